"""The tables of the pages are what their scripts make of the code and of the measured numbers."""

from __future__ import annotations

import json
import runpy

import pytest

from bertkit.core.variants import VARIANTS
from tests.docs.pages import PAGES, ROOT

TABLES = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
EQUALITY = runpy.run_path(str(ROOT / "docs" / "make_equality.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert TABLES["refreshed"](text) == text, "run: python docs/make_tables.py"


@pytest.mark.parametrize("name", list(TABLES["CONFIGS"]))
def test_every_configuration_has_a_table(name):
    assert any(f"<!-- table: parameters {name} -->" in page.read_text(encoding="utf-8") for page in PAGES)


def test_equality_is_up_to_date():
    text = (ROOT / "docs" / "equality.md").read_text(encoding="utf-8")
    assert EQUALITY["refreshed"](text) == text, "run: python docs/make_equality.py"


def test_equality_names_classes_and_numbers():
    numbers = json.loads((ROOT / "docs" / "equality.json").read_text(encoding="utf-8"))
    classes = {name for variant in VARIANTS.values() for name in variant.class_names()}
    assert not numbers or numbers.keys() == classes
    assert {column for row in numbers.values() for column in row} <= EQUALITY["COLUMNS"].keys()


def test_equality_table():
    lines = EQUALITY["equality_table"]({"YosoModel": {"torch_outputs": 2e-7, "tf_outputs": None}}).splitlines()
    assert lines[2] == "| `YosoModel` | 2.0e-07 | - | - | - | - |"
    assert lines[3].startswith("| largest | 2.0e-07 |")


def test_the_design_names_every_file():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = text.partition("## The tree")[2].split("```")[1].replace("tokenization*.py", "tokenization")
    files = [*(ROOT / "bertkit").rglob("*.py"), *(ROOT / "bertkit_tf").rglob("*.py")]
    named = {*tree.replace(",", " ").replace("/", " ").split()}
    assert [file for file in files if file.name not in named | {"__init__.py"} and file.stem.split("_")[0] not in named] == []
