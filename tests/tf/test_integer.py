"""The frozen I-BERT in TensorFlow: the checks that both frameworks pass, and what only Keras could break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit_tf
from bertkit.core.errors import InputError
from bertkit.core.ibert import IBertConfig
from bertkit.core.native import PORTABLE, kernels_status, use_kernels
from bertkit_tf import state
from bertkit_tf.kernels import int8
from tests.fixtures import integer
from tests.fixtures.frozen import Tensors, calibrated, make_config, make_inputs
from tests.fixtures.integer import named
from tests.fixtures.load import flatten
from tests.tf.common import assert_same, make


class TensorFlow:
    """The shared checks' way to TensorFlow."""

    @staticmethod
    def kernel(name: str, *arrays: np.ndarray | None, **options: Any) -> list[np.ndarray]:
        found = getattr(int8, name)(*(None if array is None else tf.constant(array) for array in arrays), **options)
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple) else (found,))]

    @staticmethod
    def make(task: str, config: IBertConfig, tensors: Tensors) -> Any:
        model = getattr(bertkit_tf, f"TFIBert{task}")(config, initialise=False)
        for name, param in model.params().items():
            if param.stored:
                state.set_value(model, param, tensors[name])
        return model

    @staticmethod
    def call(model: Any, **inputs: Any) -> integer.Arrays:
        return flatten(tf.nest.map_structure(lambda value: value.numpy(), dict(model(**inputs))))

    @staticmethod
    def freeze(model: Any) -> Any:
        return bertkit_tf.freeze(model)

    @staticmethod
    def load(task: str, directory: Path, **options: Any) -> Any:
        return getattr(bertkit_tf, f"TFIBert{task}").from_pretrained(directory, **options)


@pytest.mark.parametrize("name", integer.CHECKS)
def test_shared_check(name):
    check, options = integer.CHECKS[name]
    check(TensorFlow(), **options)


@pytest.mark.parametrize("name", integer.FILE_CHECKS)
def test_shared_check_of_files(name, tmp_path):
    check, options = integer.FILE_CHECKS[name]
    check(TensorFlow(), **options, directory=tmp_path)


# -- only in TensorFlow ---------------------------------------------------------------------------------------------
def frozen(task: str = "Model", **values: Any) -> Any:
    """A small frozen model."""
    return integer.frozen_and_simulated(TensorFlow(), task, **values)[0]


def inputs_of(model: Any, **options: Any) -> dict[str, tf.Tensor]:
    """Ids, types, positions and a mask for it."""
    arrays = named(make_inputs(model.config, 3, 9, lengths=[9, 4, 6], **options))
    return {name: tf.constant(array) for name, array in arrays.items()}


@pytest.fixture(params=[PORTABLE, "native"])
def level(request):
    """Each kind of kernels, where it is there."""
    if request.param == "native" and kernels_status().library is None:
        pytest.skip("there are no compiled kernels here")
    with use_kernels(request.param):
        yield request.param


def operations(graph: Any) -> list[tf.Operation]:
    """Every operation of a graph and of the functions that it calls."""
    found = list(graph.get_operations())
    for function in graph._functions.values() if hasattr(graph, "_functions") else ():
        found += operations(function.graph) if hasattr(function, "graph") else []
    return found


def traced(model: Any, function: Any, given: dict[str, tf.Tensor], **options: Any) -> Any:
    """The graph of a call with unknown batch and length."""
    signature = {name: tf.TensorSpec([None] * x.shape.rank, x.dtype) for name, x in given.items()}
    return tf.function(lambda given: function(**given), input_signature=[signature], **options).get_concrete_function()


def test_no_floating_point_between_ids_and_the_last_hidden_state(level):
    """Neither in the values of an operation nor in its results, in what it calls neither."""
    model = frozen()
    given = inputs_of(model)

    def run(input_ids, attention_mask, token_type_ids, position_ids):
        return model.integers(input_ids, attention_mask, token_type_ids, position_ids, None, False, True)[0]

    graph = traced(model, run, given).graph
    dtypes = {tensor.dtype for operation in operations(graph) for tensor in (*operation.inputs, *operation.outputs)}
    assert all(dtype.is_integer or dtype.is_bool or dtype == tf.resource for dtype in dtypes), dtypes
    names = {operation.type for operation in operations(graph)}
    assert ("BertkitIbertEncode" in names) == (level == "native") and ("BatchMatMulV3" in names) == (level == PORTABLE)
    floats = {tensor.dtype for operation in operations(traced(model, model, given).graph) for tensor in operation.outputs}
    assert tf.float32 in floats


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_traced_models_give_the_same(mode, level):
    model = frozen("ForTokenClassification")
    given = inputs_of(model)
    call = traced(model, lambda **inputs: dict(model(**inputs, output_hidden_states=True)), given, jit_compile=mode == "xla")
    assert any(operation.type == "BertkitIbertEncode" for operation in operations(call.graph)) == (
        level == "native" and mode == "graph")
    for length in (9, 5):
        some = {name: x[:, :length] for name, x in given.items()}
        expected, found = model(**some, output_hidden_states=True), call(some)
        for one, twin in zip(found["hidden_states"], expected.hidden_states, strict=True):
            np.testing.assert_array_equal(one, twin)
        assert_same(found["logits"], expected.logits, 1e-5)


def test_every_kernel_gives_the_same(level):
    """Which ones serve cannot be seen: with probabilities, masks of pairs or of heads it is portable ones."""
    model = frozen("ForMaskedLM")
    given = inputs_of(model)
    plain, real = model(**given).logits, tf.cast(given["attention_mask"], tf.bool)
    pairs = {**given, "attention_mask": tf.repeat(given["attention_mask"][:, None], 9, 1)}
    ones = tf.ones(model.config.num_attention_heads)
    for other in (model(**given, output_attentions=True), model(**pairs), model(**given, head_mask=ones)):
        np.testing.assert_array_equal(other.logits[real], plain[real])


def test_keras_leaves_integers_alone(level, tmp_path):
    """Policies, files, copies and training: integers stay what they are, and heads learn."""
    source = frozen("ForSequenceClassification")
    source.save_pretrained(tmp_path)
    model = bertkit_tf.TFAutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="mixed_bfloat16")
    given = inputs_of(model)
    expected = source(**given, output_hidden_states=True)
    np.testing.assert_array_equal(model(**given, output_hidden_states=True).hidden_states[-1], expected.hidden_states[-1])
    model = bertkit_tf.TFAutoModelForSequenceClassification.from_pretrained(tmp_path)
    before = {variable.path: variable.numpy() for variable in model.weights}
    dtypes = {array.dtype.name for array in before.values()}
    assert dtypes == {"int8", "int32", "int64", "float32"} and len(model.trainable_variables) == 4
    model.compile("sgd")
    assert not model.jit_compile  # by default
    model.fit({**given, "labels": np.array([0, 1, 2])}, verbose=0)
    after = {variable.path: variable.numpy() for variable in model.weights}
    changed = {path for path, array in after.items() if not np.array_equal(array, before[path])}
    assert changed == {variable.path for variable in model.trainable_variables}
    assert_same(model.predict(given, verbose=0).logits, model(given).logits, 1e-5)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    twin = bertkit_tf.load_model(tmp_path / "model.keras")
    assert_same(twin(given), model(given))
    other = type(model).from_config(source.get_config())
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same(other(given), model(given))
    assert {variable.dtype for variable in other.weights} == dtypes


def test_weights_given_later_count(level):
    """What is made of the weights at the first call is made again, for functions that were traced before, too."""
    model, other = frozen("ForMaskedLM"), frozen("ForMaskedLM", initializer_range=0.12)
    given = inputs_of(model)
    call = tf.function(lambda given: model(given).logits)
    expected = [each(**given).logits for each in (model, other)]
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    assert_same(call(given), expected[0], 1e-5)
    model.set_weights(other.get_weights())
    for found in (model(given).logits, call(given)):
        assert_same(found, expected[1], 1e-5)


def test_weights_that_another_model_loads_count(level, tmp_path):
    """A model may be a part of one that knows nothing of it."""
    ids = keras.Input((None,), dtype="int32")
    first, second = (keras.Model(ids, frozen(initializer_range=spread)(ids).last_hidden_state) for spread in (0.1, 0.12))
    x = np.arange(5, 14).reshape(1, 9)
    expected = second(x)
    assert np.abs(first(x) - expected).max() > 0.1
    second.save_weights(tmp_path / "second.weights.h5")
    first.load_weights(tmp_path / "second.weights.h5")
    np.testing.assert_array_equal(first(x), expected)
    np.testing.assert_array_equal(first.predict(x, verbose=0), expected)


def slice_of(variable: keras.Variable) -> Any:
    """All of a variable as a part of it, that can be assigned."""
    return variable.value[(slice(None),) * len(variable.shape)]


def restore(variable: keras.Variable, array: np.ndarray, directory: Path) -> None:
    """Give a variable the values of another by a checkpoint of TensorFlow."""
    saved = tf.train.Checkpoint(x=keras.Variable(array, trainable=False)).write(str(directory / "checkpoint"))
    tf.train.Checkpoint(x=variable).restore(saved)


CHANGES = {
    "assign": lambda variable, array, _: variable.assign(array),
    "assign_add": lambda variable, array, _: variable.assign_add(array - variable.numpy()),
    "assign_sub": lambda variable, array, _: variable.assign_sub(variable.numpy() - array),
    "TensorFlow's assign": lambda variable, array, _: variable.value.assign(array, read_value=False),
    "TensorFlow's assign_add": lambda variable, array, _: variable.value.assign_add(array - variable.numpy(), read_value=False),
    "TensorFlow's assign_sub": lambda variable, array, _: variable.value.assign_sub(variable.numpy() - array, read_value=False),
    "slice": lambda variable, array, _: slice_of(variable).assign(array),
    "scatter": lambda variable, array, _: variable.value.scatter_nd_update(np.arange(len(array))[:, None], array),
    "checkpoint": restore,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_weight_counts(change, level, tmp_path):
    model = frozen(num_hidden_layers=1)
    given = inputs_of(model)
    call = tf.function(lambda given: model(given).last_hidden_state)
    before, variable = model(**given).last_hidden_state, model.encoder.layer[0].intermediate.dense.bias_integer
    np.testing.assert_array_equal(call(given), before)
    CHANGES[change](variable, np.random.default_rng(0).permutation(variable.numpy()), tmp_path)
    found = call(given)  # what was traced notices, without a call of the model before
    with use_kernels(PORTABLE):
        expected = model(**given).last_hidden_state
    assert np.abs(expected - before).max() > 0.01
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(model(**given).last_hidden_state, expected)


def test_weights_that_another_model_sets_count(level):
    """A model may be a part of one that knows nothing of it."""
    ids = keras.Input((None,), dtype="int32")
    first, second = (keras.Model(ids, frozen(initializer_range=spread)(ids).last_hidden_state) for spread in (0.1, 0.12))
    x = np.arange(5, 14).reshape(1, 9)
    before, expected = first(x), second(x)
    np.testing.assert_array_equal(first.predict(x, verbose=0), before)
    first.set_weights(second.get_weights())
    np.testing.assert_array_equal(first.predict(x, verbose=0), expected)
    np.testing.assert_array_equal(first(x), expected)
    assert np.abs(before - expected).max() > 0.1


def test_weights_of_a_stateless_call_count(level):
    model, other = frozen(), frozen(initializer_range=0.12)
    given, expected = inputs_of(model), other(**inputs_of(other)).last_hidden_state
    model(**given)
    variables = (other.trainable_variables, other.non_trainable_variables)
    weights = [[variable.value for variable in some] for some in variables]
    np.testing.assert_array_equal(model.stateless_call(*weights, given)[0].last_hidden_state, expected)


def test_a_graph_that_assigns_weights_is_refused():
    variable = frozen(num_hidden_layers=1).encoder.layer[0].intermediate.dense.bias_integer
    for assign in (variable.assign, variable.value.assign_add, slice_of(variable).assign):
        with pytest.raises(bertkit_tf.BertkitError, match="assigns a weight of a frozen model"):
            tf.function(assign, autograph=False)(tf.ones(variable.shape, tf.int32))


def test_a_batch_of_nothing(level):
    model = frozen("ForTokenClassification")
    output = model(tf.zeros((0, 5), tf.int32), output_hidden_states=True)
    assert output.logits.shape == (0, 5, 3) and output.hidden_states[0].shape == (0, 5, model.config.hidden_size)


def test_changing_kernels_changes_nothing():
    if kernels_status().library is None:
        pytest.skip("there are no compiled kernels here")
    model = frozen()
    given = inputs_of(model)
    expected = model(**given).last_hidden_state
    for name, lacking in kernels_status().levels.items():
        if lacking is None:
            with use_kernels(name):
                np.testing.assert_array_equal(model(**given).last_hidden_state, expected)


def test_functions_take_kernels_after_traces_without_them(level):
    """Also Keras's own: one refused batch does not spoil the next `predict`."""
    model = frozen()
    given = inputs_of(model)
    function = tf.function(lambda **options: model(**{**given, **options}).last_hidden_state, autograph=False)
    with pytest.raises(InputError, match="head_mask"):
        function(head_mask=tf.ones((9, 9)))
    function(output_attentions=True)
    np.testing.assert_array_equal(function(), model(**given).last_hidden_state)
    model.compile()
    with pytest.raises(InputError, match="sequence length"):
        model.predict(np.ones((1, 999), np.int32), verbose=0)
    model.predict(np.ones((1, 5), np.int32), verbose=0)


def test_packed_weights_are_nobody_else_s(level, tmp_path):
    """They follow from the variables: Keras counts and saves those alone."""
    model = frozen()
    before = len(model.weights), len(model.variables)
    model(**inputs_of(model))
    assert before == (len(model.weights), len(model.variables))
    checkpoint = tf.train.Checkpoint(model).write(str(tmp_path / "checkpoint"))
    assert not [name for name, _ in tf.train.list_variables(checkpoint) if "packed" in name]


def test_exported_models_need_no_compiled_code(level, tmp_path):
    model = frozen("ForSequenceClassification")
    given = {name: tf.cast(x, tf.int32) for name, x in inputs_of(model).items() if name != "position_ids"}
    expected = model(**given)
    model.export(tmp_path, verbose=False)
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    assert not [operation for operation in operations(served.graph) if "Bertkit" in operation.type]
    assert_same(served(**given), {"logits": expected.logits}, 1e-5)


def test_inside_a_functional_model(level):
    encoder = frozen()
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("input_ids", "attention_mask"))
    model = keras.Model([ids, mask], keras.layers.Dense(2)(encoder(input_ids=ids, attention_mask=mask).pooler_output))
    given = inputs_of(encoder)
    x = [tf.cast(given[name], tf.int32) for name in ("input_ids", "attention_mask")]
    model.compile("sgd", loss="mse")
    model.fit(x, np.ones((3, 2)), verbose=0)
    assert_same(model.predict(x, verbose=0), model(x), 1e-5)


def test_freezing_leaves_the_source_alone():
    source = integer.frozen_and_simulated(TensorFlow(), "ForSequenceClassification")[1]
    before = source.get_weights()
    result = bertkit_tf.freeze(source)
    for variable in result.trainable_variables:
        variable.assign_add(tf.ones_like(variable))
    assert source.config.integer_format is None
    assert_same(source.get_weights(), before)
    with pytest.raises(bertkit_tf.BertkitError, match="got TFYosoModel, expected a class of I-BERT from bertkit_tf"):
        bertkit_tf.freeze(make("yoso"))
    with pytest.raises(bertkit_tf.CalibrationError, match="have no usable range"):
        bertkit_tf.freeze(make("ibert"))


@pytest.mark.parametrize("pooled", [True, False])
def test_with_and_without_a_pooler(pooled, tmp_path):
    source = bertkit_tf.TFIBertModel(make_config(quant_mode=True), add_pooling_layer=pooled)
    for name, tensor in calibrated(source.config, pooled=pooled).items():
        state.set_value(source, source.params()[name], tensor)
    model = bertkit_tf.freeze(source)
    model.save_pretrained(tmp_path)
    again = bertkit_tf.TFIBertModel.from_pretrained(tmp_path, add_pooling_layer=pooled)
    found = again(**inputs_of(model))
    assert_same(found, model(**inputs_of(model)))
    assert ("pooler_output" in found) == pooled
