"""Dtype policies: mixed precision, double precision, one model's own and the global one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
from tests.tf.common import CLASSIFIERS, assert_same, everything, flat, gradients, make

TASK = "ForSequenceClassification"


def dtypes(output):
    """Dtypes of all tensors of an output."""
    return {value.dtype.name for value in tf.nest.flatten(dict(output))}


@pytest.mark.parametrize(("variant", "task", "policy"), [
    *((*pair, "mixed_bfloat16") for pair in cases.CLASSES),
    *((*pair, policy) for pair in CLASSIFIERS for policy in ("mixed_float16", "bfloat16")),
])
def test_half_precision_is_close(variant, task, policy):
    x = everything(variant, task)
    full, half = make(variant, task, num_hidden_layers=1), make(variant, task, num_hidden_layers=1, dtype=policy)
    assert {v.dtype for v in half.trainable_variables} == {"bfloat16" if policy == "bfloat16" else "float32"}
    found, expected = flat(half(x)), flat(full(x))
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() < 0.15 * max(np.abs(value).max(), 1), name


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(("variant", "task"), CLASSIFIERS)
def test_mixed_precision_trains(variant, task, policy):
    model = make(variant, task, num_hidden_layers=1, dtype=policy)
    model.compile(keras.optimizers.SGD(0.05), run_eagerly=True)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) is (policy == "mixed_float16")
    losses = model.fit(everything(variant, task), epochs=3, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses))
    assert all(np.all(np.isfinite(array)) for array in model.get_weights())
    assert policy == "mixed_float16" or losses[-1] < losses[0]


@pytest.mark.parametrize(("variant", "task"), CLASSIFIERS)
def test_double_precision_is_double(variant, task):
    x = everything(variant, task)
    double, single = make(variant, task, dtype="float64"), make(variant, task)
    for target, source in zip(double.variables, single.variables, strict=True):
        target.assign(tf.cast(source.value, tf.float64))
    output = double(x, output_hidden_states=True)
    assert dtypes(output) == {"float64"}
    assert_same(output, single(x, output_hidden_states=True), 1e-4)
    if variant == "yoso":
        return  # its gradients are a bound of the derivative on purpose
    _, *found = gradients(double, x)
    variable = double.trainable_variables[0]
    direction = tf.random.stateless_normal(variable.shape, (0, 1), dtype=tf.float64)
    moved = []
    for sign in (1, -1):
        variable.assign_add(sign * 1e-5 * direction)
        moved.append(double(x, training=True).loss)
        variable.assign_sub(sign * 1e-5 * direction)
    slope = tf.reduce_sum(found[0] * direction)
    assert float((moved[0] - moved[1]) / 2e-5) == pytest.approx(float(slope), rel=1e-5, abs=1e-8)


def test_the_stream_of_mobilebert_stays_single():
    model = make("mobilebert", dtype="mixed_float16")
    big = [v for v in model.variables if v.path.endswith("embeddings")]
    for variable in big:
        variable.assign(variable * 1e5)  # beyond what float16 holds, as trained models reach
    output = model(cases.features("mobilebert"), output_hidden_states=True)
    assert {state.dtype for state in output.hidden_states} == {tf.float32}
    assert np.abs(output.hidden_states[0]).max() > np.finfo(np.float16).max


def test_the_global_policy_counts_and_is_kept_apart():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make("yoso", TASK)
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"bfloat16"}
    assert {layer.compute_dtype for layer in make("yoso", TASK)._flatten_layers()} == {"float32"}
