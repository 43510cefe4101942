"""The script that measures YOSO's estimator; its picture in the pages is drawn by hand."""

from __future__ import annotations

import doctest
import importlib.util
import sys

import pytest

from tests.docs.pages import ROOT


@pytest.fixture
def script(monkeypatch):
    """A measurement that takes no time."""
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("make_estimator", ROOT / "docs" / "make_estimator.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    module.LENGTH, module.AT_ONCE, module.CALLS, module.COUNTS, module.CODE_LENGTHS = 64, 16, 2, (4, 32), (9, 5)
    return module


def test_the_quality_of_an_estimator(script):
    assert doctest.testmod(script).failed == 0


def test_more_hash_functions_estimate_better(script):
    for kind in script.KINDS:
        few, many = (script.measured_attention(kind, count, 5) for count in script.COUNTS)
        for name in ("context", *script.GRADIENTS):
            assert 1.5 * many[name].deviation < few[name].deviation and many[name].cosine > few[name].cosine
        assert many["context"].bias < 0.2


def test_the_tables_have_a_number_everywhere(script):
    rates = {(kind, bits): script.measured_rates(kind, bits, pairs=2, num_hash=7) for kind in script.KINDS for bits in (9, 5)}
    assert all(rate[0] == 1 for rate in rates.values())  # no angle: the same codes
    quality = dict.fromkeys(("context", *script.GRADIENTS), script.Quality(0.1, 0.2, 0.9))
    attention = {(kind, count, bits): quality for kind in script.KINDS for count in script.COUNTS for bits in (9, 5)}
    lines = script.tables(rates, attention).split("\n")
    assert len([line for line in lines if line.endswith("| 0.900 | 0.900 |")]) == 2 * 2 * 4
