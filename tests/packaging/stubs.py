"""Writes `__init__.pyi` of both packages, so that editors and type checkers see the names that are loaded lazily.

`python -m tests.packaging.stubs` at the repository root; a test tells when that was forgotten.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("bertkit", "bertkit_tf")


def file_of(package: str) -> Path:
    return ROOT / package / "__init__.pyi"


def stub(package: str) -> str:
    """The names of a package, each from where it is defined."""
    neutral = importlib.import_module("bertkit")
    module = importlib.import_module(package)
    by_home = defaultdict(list)
    for name in module.__all__:
        own = name in module._HOME_OF
        by_home[f"{package}.{module._HOME_OF[name]}" if own else f"bertkit.{neutral._HOME_OF[name]}"].append(name)
    lines = ["# Written by tests/packaging/stubs.py from the table in __init__.py."]
    for home in sorted(by_home):
        lines += [f"from {home} import {name} as {name}" for name in sorted(by_home[home])]
    names = [f'    "{name}",' for name in module.__all__]
    return "\n".join([*lines, "", "__version__: str", "__all__ = [", *names, "]", ""])


if __name__ == "__main__":
    for package in PACKAGES:
        file_of(package).write_text(stub(package), "utf-8")
