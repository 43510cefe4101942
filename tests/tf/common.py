"""Models, inputs and comparisons that the TensorFlow tests share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import bertkit_tf
from bertkit.core.variants import VARIANTS
from tests import cases

ENCODERS = [(variant, "Model") for variant in VARIANTS]
CLASSIFIERS = [(variant, "ForSequenceClassification") for variant in VARIANTS]


def model_class(variant: str, task: str = "Model") -> Any:
    """The class of a variant and a task."""
    return getattr(bertkit_tf, f"TF{VARIANTS[variant].name}{task}")


def make(variant: str, task: str = "Model", *, seed: int = 0, dtype: Any = None, **changes: Any) -> Any:
    """A tiny model whose biases and norms are no identity; the padding row stays zero."""
    keras.utils.set_random_seed(seed)
    model = model_class(variant, task)(cases.config(variant, task, **changes), dtype=dtype)
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:
            variable.assign_add(tf.cast(0.1 * random.standard_normal(variable.shape), variable.dtype))
    return model


def everything(variant: str, task: str, **options: Any) -> dict[str, np.ndarray]:
    """Inputs and labels."""
    rows = {name: value for name, value in options.items() if name in ("rows", "length", "seed")}
    return {**cases.features(variant, task, **options), **labels(variant, task, **rows)}


def labels(variant: str, task: str, **options: Any) -> dict[str, np.ndarray]:
    """The labels under the names that `call` documents."""
    names = model_class(variant, task).input_aliases
    return {names.get(name, name): value for name, value in cases.labels(task, **options).items()}


def flat(output: Any) -> dict[str, np.ndarray]:
    """Every tensor of an output as an array; "hidden_states.0" for those in tuples."""
    return dict(_flat("", output))


def _flat(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, Mapping | tuple | list):
        for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat(f"{name}.{key}" if name else str(key), child)
    else:
        yield name, np.asarray(tf.cast(tf.convert_to_tensor(value), tf.float64))


def assert_same(actual: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Every tensor equals its twin, relative to the twin's largest value; 0 means exactly. All differences at once."""
    actual, expected = flat(actual), flat(expected)
    assert actual.keys() == expected.keys()
    wrong = {}
    for name, twin in expected.items():
        assert actual[name].shape == twin.shape, name
        difference, largest = np.abs(actual[name] - twin).max(initial=0), np.abs(twin).max(initial=0)
        if not difference <= tolerance * max(largest, 1.0):
            wrong[name] = (difference, largest)
    assert not wrong, wrong




def gradients(model: Any, inputs: Mapping[str, Any]) -> list[tf.Tensor]:
    """The loss in training, and its gradient for every trainable variable."""
    with tf.GradientTape() as tape:
        output = model(inputs, training=True)
        loss = output.loss if "loss" in output else tf.reduce_mean(tf.sin(output.last_hidden_state))
    found = tape.gradient(loss, [v.value for v in model.trainable_variables], unconnected_gradients="zero")
    return [loss, *map(tf.convert_to_tensor, found)]


def cross_entropy() -> keras.Loss:
    """Keras's loss of class indices on scores."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
