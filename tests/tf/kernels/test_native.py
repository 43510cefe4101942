"""The compiled kernels as operations of TensorFlow; tests/core/test_native_ibert.py has what they compute."""

from __future__ import annotations

import functools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from bertkit.core import native as core
from bertkit.core.errors import BackendError
from bertkit_tf.kernels import native
from tests.fixtures.frozen import CASES
from tests.fixtures.native import arguments, best_packed, needs_library, wanted

pytestmark = needs_library


@pytest.fixture(scope="module", params=["plain", "ragged"])
def case(request):
    return CASES[request.param]()


@pytest.fixture(scope="module")
def tensors(case):
    return [None if array is None else tf.constant(array) for array in arguments(case, best_packed(case))]


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "tf.function"])
def test_the_operation_gives_the_oracles_integers(case, tensors, states, graph):
    def encode(*ids):
        return native.ibert_encode(*tensors[:4], *ids, tensors[7], states=states)

    hidden = (tf.function(encode) if graph else encode)(*tensors[4:7])
    assert hidden.dtype == tf.int8
    np.testing.assert_array_equal(hidden.numpy(), wanted(case, states))


def test_ids_and_masks_may_be_of_other_types(case, tensors):
    *weights, words, types, positions, mask = tensors
    mask = tf.ones_like(words) if mask is None else mask
    words, positions = tf.cast(words, tf.int32), tf.cast(positions, tf.int32)
    hidden = native.ibert_encode(*weights, words, types, positions, tf.cast(mask, tf.bool))
    np.testing.assert_array_equal(hidden.numpy(), wanted(case, 1))


def test_a_graph_knows_the_shapes_and_takes_any(case, tensors):
    unknown = tf.TensorSpec((None, None), tf.int64)

    @tf.function(input_signature=[unknown] * 3)
    def encode(*ids):
        hidden = native.ibert_encode(*tensors[:4], *ids, states=3)
        assert hidden.shape.as_list() == [3, None, None, 64]
        return hidden

    for batch, length in ((2, 5), (1, 1), (0, 4)):
        ids = [tensor[:batch, :length] for tensor in tensors[4:7]]
        np.testing.assert_array_equal(encode(*ids), native.ibert_encode(*tensors[:4], *ids, states=3))


@pytest.mark.parametrize("configured", [0, 3])
def test_as_many_threads_are_used_as_tensorflow_uses(tensors, monkeypatch, configured):
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: configured)
    traced = tf.function(lambda *ids: native.ibert_encode(*tensors[:4], *ids)).get_concrete_function(*tensors[4:7])
    (operation,) = [node for node in traced.graph.get_operations() if node.type == "BertkitIbertEncode"]
    assert operation.get_attr("threads") == (configured or core.cores())


@pytest.mark.parametrize(("position", "change", "said"), [
    (4, lambda ids: ids + 1000, "an id is outside of its embedding table"),
    (6, lambda ids: -ids - 1, "an id is outside of its embedding table"),
    (5, lambda ids: ids[:, :2], r"type_ids has shape \[\d, 2\], expected that of word_ids, \[\d, \d+\]"),
    (4, lambda ids: ids[0], "word_ids has 1 axes, expected 2"),
    (2, lambda table: table[:, :5], "rows of types hold 5 numbers, expected 64 as those of words"),
    (0, lambda packed: packed[:20], "the packed weights are damaged"),
])
def test_what_does_not_fit_is_refused(tensors, position, change, said):
    changed = [change(tensor) if index == position else tensor for index, tensor in enumerate(tensors)]
    with pytest.raises(tf.errors.InvalidArgumentError, match=said):
        native.ibert_encode(*changed)


def test_what_is_traced_for_xla_is_portable():
    class Layer(keras.layers.Layer):
        def call(self, x):
            levels.append(native.level())
            return x

    levels = []
    inner = tf.function(lambda x: levels.append(native.level()) or x)
    tf.function(lambda x: tf.cond(x > 0, lambda: inner(x), lambda: x), jit_compile=True)(tf.constant(1.0))
    model = keras.Sequential([Layer()])
    model.compile(jit_compile=True)
    model.predict(np.ones((2, 3)), verbose=0)
    assert set(levels) == {"portable"} and len(levels) >= 2
    levels.clear()
    inner(tf.ones(2))
    assert levels == [core.level()]


def test_a_library_that_tensorflow_cannot_load_is_named_and_portable_kernels_serve(monkeypatch, tmp_path):
    broken = core.Library(tmp_path / "libbertkit.so", None, dict.fromkeys(core.LEVELS))
    Path(tmp_path, core.file_name("bertkit_tf")).write_text("no library")
    monkeypatch.setattr(core._State, "library", broken)
    operations = functools.cache(native._operations.__wrapped__)
    monkeypatch.setattr(native, "_operations", operations)
    monkeypatch.setattr(native, "_refused", functools.cache(native._refused.__wrapped__))
    said = r"TensorFlow cannot load bertkit's operations\n.*bertkit_tf"
    with pytest.raises(BackendError, match=said):
        operations()
    with core.use_kernels("native"), pytest.raises(BackendError, match=said):
        native.level()
    with core.use_kernels("auto"):
        with pytest.warns(UserWarning, match=f"portable kernels, which are slower: {said}"):
            assert native.level() == "portable"
        assert native.level() == "portable"  # warns once
