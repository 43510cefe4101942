"""I-BERT's integer operations in TensorFlow against the NumPy oracle: as a graph, and under XLA; eagerly in test_integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bertkit_tf.kernels import int8
from tests.fixtures.integer import KERNELS, attention_is_the_oracle, ints, kernel_is_the_oracle

MODES = ["graph", "xla"]


class Traced:
    """The shared checks' way to the operations."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def kernel(self, name: str, *arrays: np.ndarray | None, **options: Any) -> list[np.ndarray]:
        """A graph knows neither batch nor lengths, only what the weights say."""
        given = {str(place): tf.constant(array) for place, array in enumerate(arrays) if array is not None}
        signature = {place: tf.TensorSpec([None] * (x.shape.rank - 1) + x.shape[-1:] if x.shape.rank > 2 else x.shape, x.dtype)
                     for place, x in given.items()}

        @tf.function(input_signature=[signature], jit_compile=self.mode == "xla")
        def traced(given):
            return getattr(int8, name)(*(given.get(str(place)) for place in range(len(arrays))), **options)

        return [tensor.numpy() for tensor in tf.nest.flatten(traced(given))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_the_oracle(name, mode):
    kernel_is_the_oracle(Traced(mode), name)


@pytest.mark.parametrize("mode", MODES)
def test_attention_is_the_oracle(mode):
    attention_is_the_oracle(Traced(mode), 70, 64)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 4096, 7), (2, 70, 64, 33)])
def test_products_are_exact(shape):
    batch, rows, inner, columns = shape
    random = np.random.default_rng(3)
    x, y = (ints(random, 8, batch, size, inner).astype(np.int8) for size in (rows, columns))
    x[0, 0], y[0, 0] = -128, -128
    expected = x.astype(np.int64) @ y.astype(np.int64).swapaxes(1, 2)
    np.testing.assert_array_equal(int8.product(tf.constant(x), tf.constant(y)), expected)


def test_shapes_stay_known():
    """What follows from static shapes is static."""
    spec = tf.TensorSpec([None, 4, None, 8], tf.int8)

    @tf.function(input_signature=[spec] * 3)
    def traced(query, key, value):
        numbers = (tf.constant([0, 11356, 44356, 749_000_000]), tf.constant([1 << 30]), tf.constant([45]))
        return int8.attend(query, key, value, None, None, *numbers)

    context, probabilities = traced.get_concrete_function().outputs
    assert context.shape.as_list() == [None, 4, None, 8] and probabilities.shape.rank == 4
    assert (context.dtype, probabilities.dtype) == (tf.int32, tf.uint8)
