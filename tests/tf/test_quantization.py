"""I-BERT in TensorFlow: its building blocks, and the model in both modes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bertkit.core.ibert import IBertConfig
from bertkit.core.quantization import CalibrationError
from bertkit_tf import quantization
from bertkit_tf.models.ibert import TFIBertForMaskedLM, TFIBertForSequenceClassification, TFIBertModel
from tests.fixtures.quantization import CHECKS

LEAVES = {
    "QuantEmbedding": {"weight": "embeddings"},
    "QuantLinear": {"weight": "kernel", "bias": "bias"},
    "IntLayerNorm": {"weight": "gamma", "bias": "beta"},
}
TRANSPOSED = "kernel"


class TensorFlow:
    """The blocks behind the interface of the shared checks."""

    def block(self, name: str, *arguments: Any, weights: Mapping[str, np.ndarray] | None = None, **options: Any) -> Any:
        block = getattr(quantization, name)(*arguments, **options)
        for weight, value in (weights or {}).items():
            leaf = LEAVES.get(name, {}).get(weight, weight)
            getattr(block, leaf).assign(value.T if leaf == TRANSPOSED else value)
        return block

    def call(self, block: Any, *arrays: Any, training: bool) -> Any:
        if isinstance(block, (quantization.QuantActivation, quantization.IntSoftmax, quantization.IntLayerNorm)):
            return block(*arrays, training=training)
        return block(*arrays)

    def run(self, block: Any, *arrays: np.ndarray | None, training: bool = False) -> list[np.ndarray | None]:
        result = self.call(block, *(None if a is None else tf.constant(a) for a in arrays), training=training)
        return [None if value is None else value.numpy() for value in result]

    def gradients(self, block: Any, upstream: np.ndarray, *arrays: np.ndarray | None, training: bool = True) -> tuple:
        first, *rest = (None if a is None else tf.constant(a) for a in arrays)
        leaves = LEAVES.get(type(block).__name__, {})
        variables = {name: getattr(block, leaf).value for name, leaf in leaves.items()}
        with tf.GradientTape() as tape:
            tape.watch(first)
            total = tf.reduce_sum(self.call(block, first, *rest, training=training)[0] * upstream)
        gradient, found = tape.gradient(total, (first, variables))
        dense = {n: None if g is None else np.array(tf.convert_to_tensor(g)) for n, g in found.items()}
        weights = {n: g.T if leaves[n] == TRANSPOSED else g for n, g in dense.items()}
        return None if gradient is None else gradient.numpy(), weights

    def statistic(self, block: Any, name: str) -> float:
        for attribute in name.split("."):
            block = getattr(block, attribute)
        return float(block.value[0])

    def frozen(self, block: Any) -> contextlib.AbstractContextManager:
        return quantization.frozen_statistics(block)


@pytest.mark.parametrize("name", CHECKS)
def test_block(name: str) -> None:
    check, options = CHECKS[name]
    check(TensorFlow(), **options)


# -- the model ----------------------------------------------------------------------------------------------------
TINY = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3}
SHALLOW = {**TINY, "num_hidden_layers": 1}
IDS = np.array([[0, 5, 6, 7, 8, 2], [0, 9, 10, 2, 1, 1]], np.int32)
MASK = (IDS != 1).astype(np.int32)


@pytest.fixture(scope="module")
def calibrated() -> TFIBertModel:
    """A float model that has seen batches in training mode."""
    tf.random.set_seed(0)
    model, random = TFIBertModel(IBertConfig(**TINY)), np.random.default_rng(0)
    for _ in range(12):
        model(random.integers(3, 40, (4, 10)), token_type_ids=random.integers(0, 2, (4, 10)), training=True)
    return model


def quantised(calibrated: TFIBertModel, **config: Any) -> TFIBertModel:
    model = TFIBertModel(IBertConfig(**TINY, quant_mode=True, **config))
    model.set_weights(calibrated.get_weights())
    return model


def error(model: TFIBertModel, calibrated: TFIBertModel, **inputs: Any) -> float:
    found, true = (m(IDS, MASK, **inputs).last_hidden_state.numpy()[MASK == 1] for m in (model, calibrated))
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


@pytest.mark.parametrize("force_dequant", ["none", "gelu", "softmax", "layernorm", "nonlinear"])
@pytest.mark.parametrize("compat", [False, True])
def test_quantised_is_near_float(calibrated: TFIBertModel, force_dequant: str, compat: bool) -> None:
    model = quantised(calibrated, force_dequant=force_dequant, hf_compat_scales=compat)
    assert 0.003 < error(model, calibrated) < 0.12


@pytest.mark.parametrize("compat", [False, True])
def test_token_types_with_embeddings(calibrated: TFIBertModel, compat: bool) -> None:
    model, types = quantised(calibrated, hf_compat_scales=compat), np.ones_like(IDS)
    words = tf.gather(calibrated.embeddings.word_embeddings.embeddings.value, IDS)
    options = {"attention_mask": MASK, "position_ids": model.positions(tf.constant(IDS), None)}
    first, second = (model(inputs_embeds=words, token_type_ids=t, **options)[0].numpy() for t in (types, 0 * types))
    assert np.array_equal(first, second) == compat


def test_positions_skip_padding() -> None:
    model = TFIBertModel(IBertConfig(**TINY))
    assert model.positions(tf.constant(IDS), None).numpy().tolist() == [[2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 1, 1]]
    assert model.positions(None, tf.zeros([2, 3, 32])).numpy().tolist() == [[2, 3, 4]]
    assert model.max_tokens == 22


@pytest.mark.parametrize("quant_mode", [False, True])
def test_masked_rows_stay_finite(calibrated: TFIBertModel, quant_mode: bool) -> None:
    model = quantised(calibrated) if quant_mode else calibrated
    output = model(IDS, np.array([[1] * 6, [0] * 6]), output_attentions=True)
    assert np.isfinite(output.last_hidden_state.numpy()).all()
    np.testing.assert_allclose(output.attentions[0][1], np.full((4, 6, 6), 43 / 256 if quant_mode else 1 / 6), rtol=1e-6)


def test_an_empty_range_is_an_error(calibrated: TFIBertModel) -> None:
    model = quantised(calibrated)
    model.encoder.layer[0].output_.output_activation.x_max.assign([np.nan])
    with pytest.raises(CalibrationError, match=r"encoder\.layer\.0\.output\.output_activation: .* expected finite numbers"):
        model(IDS)
    model = quantised(calibrated)
    model.encoder.layer[1].output_.output_activation.x_min.assign([-1e-5])
    model.encoder.layer[1].output_.output_activation.x_max.assign([1e-5])
    with pytest.raises(CalibrationError, match=r"encoder\.layer\.1\.output\.output_activation: the range is empty"):
        model(IDS)
    model(IDS, training=True)
    model(IDS)


@pytest.mark.parametrize("quant_mode", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_checkpointing_counts_a_batch_once(quant_mode: bool, graph: bool) -> None:
    found = []
    for checkpointing in (False, True):
        tf.random.set_seed(1)
        model = TFIBertForMaskedLM(IBertConfig(**SHALLOW, quant_mode=quant_mode))
        if checkpointing:
            model.gradient_checkpointing_enable()

        def step(model: TFIBertForMaskedLM = model) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS, training=True).loss
            return [tf.convert_to_tensor(g) for g in tape.gradient(loss, model.trainable_variables)]

        gradients = (tf.function(step) if graph else step)()
        found.append((model.non_trainable_variables, gradients))
    for kind in range(2):
        for plain, checkpointed in zip(found[0][kind], found[1][kind], strict=True):
            np.testing.assert_allclose(np.asarray(checkpointed), np.asarray(plain), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_leaves_the_arithmetic_alone(calibrated: TFIBertModel, policy: str) -> None:
    model = TFIBertModel(IBertConfig(**TINY, quant_mode=True), dtype=policy)
    model.set_weights(calibrated.get_weights())
    expected = quantised(calibrated)(IDS, MASK).last_hidden_state
    np.testing.assert_array_equal(model(IDS, MASK).last_hidden_state, expected)


@pytest.mark.parametrize("policy", ["bfloat16", "float64"])
def test_weights_of_any_dtype_learn(policy: str) -> None:
    model = TFIBertModel(IBertConfig(**SHALLOW, quant_mode=True), dtype=policy)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(IDS, MASK, training=True).pooler_output)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert {gradient.dtype.name for gradient in gradients} == {policy}
    assert all(np.isfinite(tf.cast(tf.convert_to_tensor(gradient), tf.float32)).all() for gradient in gradients)


def test_pruned_heads_are_those_masked_out(calibrated: TFIBertModel) -> None:
    """Up to the scales of the output projection, which the pruned columns no longer widen."""
    pruned = quantised(calibrated)
    pruned.prune_heads({0: [1], 1: [0, 2]})
    mask = np.array([[1.0, 0, 1, 1], [0, 1, 0, 1]], np.float32)
    masked = quantised(calibrated)(IDS, MASK, head_mask=mask).last_hidden_state
    assert np.linalg.norm(pruned(IDS, MASK).last_hidden_state - masked) < 0.05 * np.linalg.norm(masked)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_graphs(jit_compile: bool, training: bool) -> None:
    """A rounding may fall the other way; the statistics move in training mode only."""
    model = TFIBertModel(IBertConfig(**SHALLOW, quant_mode=True))
    for _ in range(3):
        model(IDS, MASK, training=True)
    with quantization.frozen_statistics(model):
        plain = model(IDS, MASK, training=training).last_hidden_state
    last = model.encoder.layer[0].output_.output_activation.x_max
    last.assign(1.01 * last.value)
    before = float(last.value[0])
    call = tf.function(lambda: model(IDS, MASK, training=training).last_hidden_state, jit_compile=jit_compile)
    assert np.linalg.norm(call() - plain) < 0.05 * np.linalg.norm(plain)
    assert (float(last.value[0]) != before) == training


def test_the_ranges_of_a_model_with_a_head_can_be_frozen() -> None:
    model = TFIBertForSequenceClassification(IBertConfig(**TINY, quant_mode=True))
    learners = [learner for _, learner in quantization.learners(model)]
    assert len(learners) == len(list(quantization.learners(model.base_model))) > 0
    before = [learner.get_weights() for learner in learners]
    with quantization.frozen_statistics(model):
        model(IDS, training=True)
    for learner, values in zip(learners, before, strict=True):
        for mine, theirs in zip(learner.get_weights(), values, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    model(IDS, training=True)
    assert any(not np.array_equal(learner.get_weights()[0], values[0])
               for learner, values in zip(learners, before, strict=True) if values)
