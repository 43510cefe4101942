"""Freezing: the tensors that the spec names, multipliers that are as good as they can be, and refusals that name the layer."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest

from bertkit.core.errors import ConfigError
from bertkit.core.freezing import FreezeError, dyadic, freeze_tensors
from bertkit.core.ibert import IBERT, native_tensors
from bertkit.core.quantization import CalibrationError
from tests.fixtures.frozen import calibrated, make_config, set_range


@pytest.mark.parametrize("task", IBERT.tasks)
@pytest.mark.parametrize("values", [{}, {"pruned_heads": {1: [0, 2]}}, {"num_hidden_layers": 0}])
def test_the_spec_names_every_tensor(task, values):
    config = make_config(**values)
    pooled = IBERT.tasks[task].pooled
    frozen_config, frozen = freeze_tensors(calibrated(config, task=task, pooled=pooled), config, task, pooled)
    params = {n: p for n, p in IBERT.params(task, frozen_config, pooled=pooled).items() if p.stored}
    assert list(frozen) == list(params)
    for name, param in params.items():
        assert frozen[name].shape == param.shape, name
        assert str(frozen[name].dtype) == (param.frozen_dtype or "float32"), name
    assert config.integer_format is None and frozen_config.integer_format == 1 and frozen_config.quant_mode
    encoder = {n.removeprefix("ibert.") for n, p in params.items() if p.frozen_dtype} - {"lm_head"}
    assert set(native_tensors(frozen_config)) < encoder


def test_no_float_weight_of_the_encoder_is_left():
    config = make_config()
    frozen_config, frozen = freeze_tensors(calibrated(config, task="ForMaskedLM", pooled=False), config, "ForMaskedLM", False)
    floats = {name: tensor.size for name, tensor in frozen.items() if tensor.dtype.kind == "f" and name.startswith("ibert.")}
    assert set(floats.values()) == {1, config.hidden_size}  # scales, for hidden states and for embeddings passed in
    layers = config.num_hidden_layers
    assert len(floats) == 2 + 1 + 2 * layers
    assert frozen_config.to_dict()["integer_format"] == 1


def test_it_is_about_a_quarter():
    config = make_config(hidden_size=256, intermediate_size=1024, vocab_size=2000)
    tensors = calibrated(config, task="ForSequenceClassification", pooled=False)
    _, frozen = freeze_tensors(tensors, config, "ForSequenceClassification", False)
    assert sum(t.nbytes for t in frozen.values()) < 0.31 * sum(t.nbytes for t in tensors.values())


def test_multipliers_are_as_good_as_31_bits_allow():
    ratios = np.concatenate([np.exp(np.random.default_rng(0).uniform(-20, 20, 300)), [1.0, 0.5, 2.0**-31, 1 - 2.0**-33]])
    ratios[::2] *= -1
    multiplier, right_shift = dyadic(ratios, np.full(ratios.shape, 62))
    for ratio, m, s in zip(ratios, multiplier, right_shift, strict=True):
        assert 1 <= s <= 62 and 2**30 <= abs(int(m)) < 2**31
        assert abs(Fraction(int(m), 2 ** int(s)) - Fraction(ratio)) <= Fraction(1, 2 ** (int(s) + 1))


def test_freezing_changes_nothing_that_it_was_given():
    config = make_config()
    tensors = calibrated(config)
    before = copy.deepcopy(tensors)
    freeze_tensors(tensors, config, "Model", True)
    assert all(np.array_equal(tensors[name], before[name]) for name in tensors)


# -- refusals --------------------------------------------------------------------------------------------------------------
def refused(edit, error: type[Exception], **values) -> str:
    """The message of a refusal."""
    config = make_config(**values)
    tensors = calibrated(config)
    edit(tensors)
    with pytest.raises(error) as caught:
        freeze_tensors(tensors, config, "Model", True)
    return str(caught.value)


@pytest.mark.parametrize(("low", "high", "words"), [
    (np.nan, 1, "the range is [nan, 1.0], expected finite numbers"), (1, np.inf, "the range is [-1.0, inf]"),
    (0, 0, "the range is empty"), (1e-5, 1e-5, "the range is empty"), (-3, 2, "the range is [3.0, 2.0], which has no width"),
])
def test_ranges_that_calibration_has_not_filled(low, high, words):
    def edit(tensors):
        for name in ("encoder.layer.1.output.ln_input_act", "encoder.layer.0.attention.self.query_activation"):
            set_range(tensors, name, low, high)

    message = refused(edit, CalibrationError)
    assert "2 activation(s)" in message and f"encoder.layer.1.output.ln_input_act: {words}" in message
    assert "calibrate()" in message


@pytest.mark.parametrize("name", ["embeddings.embeddings_act2", "encoder.layer.0.pre_output_act",
                                  "embeddings.LayerNorm.activation"])
def test_ranges_that_nothing_uses_may_be_empty(name):
    config = make_config()
    tensors = calibrated(config)
    set_range(tensors, name, 0.0)
    freeze_tensors(tensors, config, "Model", True)


def test_sums_that_could_overflow_name_the_layer():
    def edit(tensors):
        tensors["encoder.layer.0.output.dense.weight"] = np.full((4, 140000), 0.5, np.float32)
        tensors["encoder.layer.0.output.dense.bias"] = np.zeros(4, np.float32)

    message = refused(edit, FreezeError)
    assert "encoder.layer.0.output.dense: 4 of 4 sums over 140000 inputs may reach 2.28e+09, beyond 32 bits" in message


@pytest.mark.parametrize(("edit", "words"), [
    (lambda t: t.update({"encoder.layer.1.attention.self.value.weight": np.full((64, 64), np.nan, np.float32)}),
     "encoder.layer.1.attention.self.value: the weights are not all finite"),
    (lambda t: t["encoder.layer.1.intermediate.dense.bias"].fill(np.inf),
     "encoder.layer.1.intermediate.dense: the weights are not all finite"),
    (lambda t: set_range(t, "encoder.layer.0.attention.self.query_activation", 1e6), "query and key are too wide"),
    (lambda t: [set_range(t, f"encoder.layer.0.attention.self.{n}_activation", 2e-5) for n in ("query", "key")],
     "encoder.layer.0.attention.self.softmax: one step of the scores is 6.2e-15: the ranges of query and key are too narrow"),
    (lambda t: set_range(t, "encoder.layer.0.output.ln_input_act", 2e-5), "beyond 32 bits"),
    (lambda t: set_range(t, "encoder.layer.0.attention.self.softmax.act", 0.0, 0.01),
     "encoder.layer.0.attention.self.softmax.act: one step before is 3.5"),
    (lambda t: t["encoder.layer.1.output.LayerNorm.weight"].fill(np.nan), "encoder.layer.1.output.LayerNorm"),
    (lambda t: t["embeddings.LayerNorm.bias"].fill(1e20), "embeddings.LayerNorm: gain and bias reach"),
])
def test_what_does_not_fit_names_the_layer(edit, words):
    assert words in refused(edit, FreezeError)


def test_all_problems_are_told_at_once():
    def edit(tensors):
        set_range(tensors, "encoder.layer.0.attention.self.key_activation", 1e7)
        tensors["encoder.layer.1.attention.self.value.bias"].fill(np.nan)
        tensors["embeddings.LayerNorm.bias"].fill(1e20)

    message = refused(edit, FreezeError)
    assert message.count("\n  - ") >= 3


@pytest.mark.parametrize("values", [{"force_dequant": "gelu"}, {"hf_compat_scales": True}])
def test_models_that_are_not_all_integers(values):
    assert next(iter(values)) in refused(lambda tensors: None, ConfigError, **values)


def test_a_frozen_model_is_not_frozen_again():
    config = make_config()
    frozen_config, frozen = freeze_tensors(calibrated(config), config, "Model", True)
    with pytest.raises(ConfigError, match="frozen already"):
        freeze_tensors(frozen, frozen_config, "Model", True)


@pytest.mark.parametrize("values", [{"integer_format": 2}, {"integer_format": 1}, {"integer_format": "1"},
                                    {"integer_format": 1, "quant_mode": True, "force_dequant": "softmax"}])
def test_configurations_of_other_versions_are_refused(values):
    with pytest.raises(ConfigError, match="integer_format"):
        make_config(**values)
