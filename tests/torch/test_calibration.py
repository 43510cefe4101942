"""Calibration in PyTorch: the checks that both frameworks pass, and what only PyTorch has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import bertkit
from bertkit import state
from bertkit.core.calibration import CalibrationReport
from bertkit.quantization import QuantActivation
from tests.fixtures.calibration import BATCHES, CHECKS, model_of
from tests.torch.test_integer import Torch as Integers


class Torch(Integers):
    """PyTorch as the shared checks see it."""

    def calibrate(self, model: Any, batches: Any, *arguments: Any, **options: Any) -> CalibrationReport:
        return bertkit.calibrate(model, batches, *arguments, **options)

    def tensor(self, model: Any, name: str) -> np.ndarray:
        return state.get_tensor(model, name).numpy()


@pytest.mark.parametrize("name", CHECKS)
def test_shared(name: str) -> None:
    check, options = CHECKS[name]
    check(Torch(), **options)


def test_the_model_comes_back_as_it_was(tmp_path) -> None:
    """Also which of its modules were training, and without observers; a checkpoint keeps what was found."""
    model = model_of(Torch(), "ForTokenClassification").train()
    model.ibert.encoder.layer[0].eval()
    before = [module.training for module in model.modules()]
    batches = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in BATCHES]
    bertkit.calibrate(model, batches)
    assert [module.training for module in model.modules()] == before
    assert all(module.observer is None for module in model.modules() if isinstance(module, QuantActivation))
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, quant_mode=True)
    assert loaded.config.channel_scales and not loaded.training
    for (name, saved), (_, found) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(saved, found), name


def test_bfloat16() -> None:
    model = model_of(Torch()).bfloat16()
    report = bertkit.calibrate(model, BATCHES)
    expected = bertkit.calibrate(model_of(Torch()), BATCHES)
    for name, found in report.ranges.items():
        assert found.high == pytest.approx(expected.ranges[name].high, rel=0.1), name


def test_quantised_training_goes_on() -> None:
    """Ranges go on from what was found, over factors that stay."""
    model = model_of(Torch(), quant_mode=True)
    report = bertkit.calibrate(model, BATCHES)
    name = "encoder.layer.0.output.output_activation"
    activation = model.get_submodule(name)
    model.train()(**{n: torch.from_numpy(a) for n, a in BATCHES[0].items()}).last_hidden_state.sum().backward()
    assert np.array_equal(activation.channel_scale.numpy(), report.ranges[name].channels)
    assert 0 < abs(float(activation.x_max) - report.ranges[name].high) < 0.1 * report.ranges[name].high
    assert activation.scale().shape == (32,)
