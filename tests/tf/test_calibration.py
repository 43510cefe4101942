"""Calibration in TensorFlow: the checks that both frameworks pass, and what only Keras could break."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import bertkit_tf
from bertkit.core.calibration import CalibrationReport
from bertkit_tf import state
from tests.fixtures.calibration import BATCHES, CHECKS, model_of
from tests.tf.test_integer import TensorFlow as Integers


class TensorFlow(Integers):
    """TensorFlow as the shared checks see it."""

    @staticmethod
    def calibrate(model: Any, batches: Any, *arguments: Any, **options: Any) -> CalibrationReport:
        return bertkit_tf.calibrate(model, batches, *arguments, **options)

    @staticmethod
    def tensor(model: Any, name: str) -> np.ndarray:
        return state.get_variable(model, model.params()[name]).numpy()


@pytest.mark.parametrize("name", CHECKS)
def test_shared(name: str) -> None:
    check, options = CHECKS[name]
    check(TensorFlow(), **options)


def test_a_checkpoint_keeps_what_was_found(tmp_path) -> None:
    model = model_of(TensorFlow(), "ForTokenClassification")
    bertkit_tf.calibrate(model, BATCHES)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, quant_mode=True)
    for name, param in loaded.params().items():
        if param.stored:
            np.testing.assert_array_equal(*(state.get_variable(m, param).numpy() for m in (model, loaded)), err_msg=name)
    model.save(tmp_path / "model.keras")
    again = bertkit_tf.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(BATCHES[0]).logits, model(BATCHES[0]).logits)


def test_quantised_training_goes_on() -> None:
    """Ranges go on from what was found, over factors that stay; each step sees them."""
    model = model_of(TensorFlow(), "ForSequenceClassification", quant_mode=True)
    report = bertkit_tf.calibrate(model, BATCHES)
    model.compile(optimizer=keras.optimizers.SGD(1e-4), jit_compile=False)
    model.fit(BATCHES[0], np.array([0, 1, 2]), verbose=0)
    found = report.ranges["encoder.layer.0.output.output_activation"]
    activation = model.ibert.encoder.layer[0].output_.output_activation
    np.testing.assert_array_equal(activation.channel_scale.numpy(), found.channels)
    assert 0 < abs(float(activation.x_max.numpy()[0]) - found.high) < 0.1 * found.high
