"""The wheel of pure Python holds both packages, typed, for every Python, and nothing else; test_native.py has the other one."""

from __future__ import annotations

import email
import zipfile
from pathlib import Path

import pytest

import bertkit
from tests.packaging.stubs import PACKAGES, ROOT
from tests.packaging.wheels import NO_COMPILER, build_wheel, names, needs_pip

pytestmark = [pytest.mark.slow, needs_pip]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"), **NO_COMPILER)


def described(wheel: Path, file: str) -> str:
    return zipfile.ZipFile(wheel).read(f"bertkit-{bertkit.__version__}.dist-info/{file}").decode()


def test_it_is_for_every_python_and_platform(wheel):
    assert wheel.name == f"bertkit-{bertkit.__version__}-py3-none-any.whl"


def test_it_holds_the_two_packages_and_nothing_else(wheel):
    assert {name.split("/")[0] for name in names(wheel)} == set(PACKAGES)
    assert {Path(name).suffix for name in names(wheel)} <= {".py", ".pyi", ".typed"}


def test_it_holds_every_module_and_the_types(wheel):
    sources = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py*")
               if path.suffix in (".py", ".pyi")}
    assert sources | {f"{package}/py.typed" for package in PACKAGES} == set(names(wheel))


def test_no_framework_is_a_dependency_of_the_core(wheel):
    metadata = email.message_from_string(described(wheel, "METADATA"))
    core = [line.split(">")[0].strip() for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(core) == ["huggingface_hub", "numpy", "safetensors", "tokenizers", "tqdm"]
    assert {"torch", "tf", "tf-cpu", "test", "docs", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_command_is_installed(wheel):
    assert "bertkit = bertkit.cli:main" in described(wheel, "entry_points.txt").replace("=bertkit", "= bertkit")
