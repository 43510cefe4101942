"""Both trees against transformers, on every golden case: outputs and gradients."""

from __future__ import annotations

import pytest

from tests.equivalence import runner, tf_side, torch_side
from tests.fixtures.load import golden_cases, gradient_errors, output_errors

TOLERANCE = 1e-5
"""Of the largest value of each output, and of the norm of each gradient."""

CASES = [case for case in golden_cases("torch") if not runner.is_transformers_bug(case)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("side", [torch_side, tf_side], ids=["torch", "tf"])
def test_equals_transformers(side, case):
    outputs, gradients, state = side.run_case(case)
    errors = runner.compared_outputs(case, output_errors(case, outputs))
    assert max(errors.values()) <= TOLERANCE, worst(errors)
    if case.gradients:
        errors = gradient_errors(case, gradients)
        assert max(errors.values()) <= TOLERANCE, worst(errors)
    for name, expected in case.expected["state"].items():
        assert state[name] == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("case", golden_cases("tf"), ids=str)
def test_equals_transformers_tensorflow(case):
    """TFMobileBert of transformers 4.57; its losses are per example or of shape [1], ours the scalar that torch gives."""
    outputs, _, _ = tf_side.run_case(case)
    errors = output_errors(case, outputs)
    errors.pop("loss", None)
    assert max(errors.values()) <= TOLERANCE, worst(errors)
    if "loss" in case.expected["outputs"]:
        assert outputs["loss"] == pytest.approx(case.expected["outputs"]["loss"].mean(), rel=1e-5)


def worst(errors):
    return sorted(errors.items(), key=lambda item: -item[1])[:5]
