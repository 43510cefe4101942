"""Building the wheel, with a compiler and without."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.packaging.stubs import ROOT

NO_COMPILER = {"CC": "/no/compiler", "CXX": "/no/compiler"}
needs_pip = pytest.mark.skipif(
    None in (find_spec("scikit_build_core"), find_spec("pip")), reason="needs pip and scikit-build-core")


def pip(*arguments: str | Path, **variables: str) -> None:
    """Run pip without the network."""
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, *map(str, arguments[1:])], capture_output=True, text=True,
                          env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables})
    assert done.returncode == 0, done.stderr


def build_wheel(directory: Path, *options: str, **variables: str) -> Path:
    """The wheel of this checkout."""
    pip("wheel", *options, "--wheel-dir", directory, ROOT, **variables)
    (built,) = directory.glob("*.whl")
    return built


def names(wheel: Path) -> list[str]:
    """Its files but those that pip needs."""
    return [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
