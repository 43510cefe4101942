"""The examples in docstrings."""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from importlib.util import find_spec

import pytest

from tests.docs.pages import ROOT

FRAMEWORKS = {"torch": re.compile(r"^(import|from) torch\b|^    +>>> (import torch|from bertkit import)", re.MULTILINE),
              "tensorflow": re.compile(r"^(import|from) (tensorflow|keras)\b", re.MULTILINE)}
FILES = [file for package in ("bertkit", "bertkit_tf") for file in sorted((ROOT / package).rglob("*.py"))
         if ">>> " in file.read_text(encoding="utf-8")]


@pytest.mark.filterwarnings(r"ignore:\w+ from ")
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstring_examples(file):
    for framework, pattern in FRAMEWORKS.items():
        if pattern.search(file.read_text(encoding="utf-8")) and not find_spec(framework):
            pytest.skip(f"{framework} is not installed")
    module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_public_class_of_models_shows_an_example():
    """Encoders and configurations say how they are used; task classes are declarations with one sentence."""
    import bertkit

    names = [name for name in bertkit.__all__ if name.endswith("Config") and name not in ("AutoConfig", "PretrainedConfig")]
    assert names
    assert [name for name in names if ">>> " not in (getattr(bertkit, name).__doc__ or "")] == []
