"""Keras files, weights files, checkpoint directories, SavedModels, copies."""

import copy
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import bertkit_tf
from bertkit.core.errors import CheckpointError
from tests import cases
from tests.tf.common import ENCODERS, assert_same, everything, make, model_class

TASK = "ForSequenceClassification"


@pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
def test_every_class_comes_back_exactly(variant, task, tmp_path):
    model, x = make(variant, task, num_hidden_layers=1), cases.features(variant, task)
    expected = model(x)
    model.save(tmp_path / "model.keras")
    assert_same(keras.saving.load_model(tmp_path / "model.keras")(x), expected)
    model.save_weights(tmp_path / "model.weights.h5")
    other = make(variant, task, seed=1, num_hidden_layers=1)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same(other(x), expected)
    model.save_pretrained(tmp_path / "directory")
    assert_same(model_class(variant, task).from_pretrained(tmp_path / "directory")(x), expected)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "config": lambda model: with_weights_of(type(model).from_config(model.get_config()), model),
    "clone": lambda model: with_weights_of(keras.models.clone_model(model), model),
}


def with_weights_of(model, other):
    """The model, with another's weights."""
    model.set_weights(other.get_weights())
    return model


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(("variant", "task"), [("mobilebert", "ForMaskedLM"), ("yoso", "Model"), ("ibert", TASK)])
def test_copies_are_equal_and_apart(variant, task, way):
    model, x = make(variant, task, num_hidden_layers=1), cases.features(variant)
    twin, before = COPIES[way](model), model(x)
    assert_same(twin(x), before)
    twin.set_weights([array + 1 for array in twin.get_weights()])
    assert_same(model(x), before)
    assert type(twin) is type(model) and twin.config.to_dict() == model.config.to_dict()


def test_training_goes_on_where_it_stopped(tmp_path):
    x = everything("megatron-bert", TASK)
    model = make("megatron-bert", TASK, num_hidden_layers=1)
    model.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"], run_eagerly=True)
    model.fit(x, verbose=0)
    model.save(tmp_path / "model.keras")
    twin = bertkit_tf.load_model(tmp_path / "model.keras")
    assert_same([v.value for v in twin.optimizer.variables], [v.value for v in model.optimizer.variables])
    for one in (model, twin):
        one.run_eagerly = True
        one.fit(x, verbose=0)
    assert_same(twin.get_weights(), model.get_weights(), 1e-6)


@pytest.mark.slow
def test_a_fresh_process_loads_a_keras_file(tmp_path):
    model, x = make("mobilebert", TASK, dtype="mixed_bfloat16", num_hidden_layers=1), cases.features("mobilebert")
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "x.npz", **x)
    code = ("import sys, numpy as np, bertkit_tf; model = bertkit_tf.load_model(sys.argv[1] + '/model.keras');"
            "np.save(sys.argv[1] + '/y.npy', model(dict(np.load(sys.argv[1] + '/x.npz'))).logits.numpy().astype('float32'));"
            "print(model.dtype_policy.name)")
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == "mixed_bfloat16"
    assert_same(np.load(tmp_path / "y.npy"), model(x).logits, 1e-6)


def test_a_model_inside_a_functional_model_is_saved_with_it(tmp_path):
    ids = keras.Input((None,), dtype="int32", name="input_ids")
    mask = keras.Input((None,), dtype="int32", name="attention_mask")
    encoder = make("megatron-bert", num_hidden_layers=1)
    hidden = encoder(input_ids=ids, attention_mask=mask)
    model = keras.Model([ids, mask], keras.layers.Dense(2)(hidden.pooler_output))
    x = [array for name, array in cases.features("megatron-bert").items() if name != "token_type_ids"]
    model.save(tmp_path / "model.keras")
    assert_same(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))
    model.compile("sgd", loss="mse")
    model.fit(x, np.ones((3, 2)), verbose=0)


@pytest.mark.parametrize(("variant", "task"), [
    ("ibert", TASK), ("megatron-bert", "ForCausalLM"), ("mobilebert", "ForQuestionAnswering"),
    ("mobilebert", "ForMultipleChoice"), ("yoso", "ForMaskedLM"),
])
def test_exported_models_take_integers_of_any_batch_and_length(variant, task, tmp_path):
    model = make(variant, task, num_hidden_layers=1)
    model.export(tmp_path, verbose=False)
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    for rows, length in ((3, 9), (1, 4)):
        x = cases.features(variant, task, rows=rows, length=length)
        expected = model(x)
        found = served(**{name: tf.constant(value, tf.int32) for name, value in x.items()})
        assert_same(found, {name: expected[name] for name in found}, 1e-5)
        assert "logits" in found or "start_logits" in found


def test_an_export_may_have_a_signature_of_its_own(tmp_path):
    model = make("yoso", num_hidden_layers=1)
    model.export(tmp_path, verbose=False, input_signature=[{"input_ids": tf.TensorSpec([1, 4], tf.int64, "input_ids")}])
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    assert list(served.structured_input_signature[1]) == ["input_ids"]
    assert_same(served(input_ids=tf.constant([[5, 6, 7, 8]], tf.int64)), model([[5, 6, 7, 8]]), 1e-5)


def test_shards_and_loading_info(tmp_path):
    model, x = make("mobilebert", "ForMaskedLM"), cases.features("mobilebert")
    model.save_pretrained(tmp_path, max_shard_size=5000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded, info = model_class("mobilebert", "ForMaskedLM").from_pretrained(tmp_path, output_loading_info=True)
    assert_same(loaded(x), model(x))
    assert not any(info.values())


@pytest.mark.parametrize(("variant", "task"), ENCODERS)
def test_dtypes_of_checkpoints(variant, task, tmp_path):
    half = make(variant, task, dtype="bfloat16", num_hidden_layers=1)
    half.save_pretrained(tmp_path)
    auto = model_class(variant).from_pretrained(tmp_path, dtype="auto")
    assert auto.dtype_policy.name == "bfloat16"
    assert_same(auto.get_weights(), half.get_weights())
    full = model_class(variant).from_pretrained(tmp_path)
    assert full.dtype_policy.name == "float32"
    assert_same(full.get_weights(), half.get_weights())


def test_encoders_and_tasks_exchange_weights(tmp_path):
    task = make("mobilebert", TASK, num_hidden_layers=1)
    task.save_pretrained(tmp_path / "task")
    with pytest.warns(UserWarning, match="left out"):
        encoder = model_class("mobilebert").from_pretrained(tmp_path / "task")
    assert_same(encoder(cases.features("mobilebert")), task.mobilebert(cases.features("mobilebert")))
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.warns(UserWarning, match=r"classifier\.weight"):
        back = model_class("mobilebert", TASK).from_pretrained(tmp_path / "encoder", num_labels=5)
    assert back.config.num_labels == 5 and back(cases.features("mobilebert")).logits.shape == (3, 5)


def test_a_checkpoint_of_another_size_is_one_error(tmp_path):
    make("yoso", num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="word_embeddings"):
        model_class("yoso").from_pretrained(tmp_path, vocab_size=100)
    with pytest.warns(UserWarning, match="word_embeddings"):
        model = model_class("yoso").from_pretrained(tmp_path, vocab_size=100, ignore_mismatched_sizes=True)
    assert model.get_input_embeddings().embeddings.shape[0] == 100


def test_a_changed_model_is_not_saved_in_part(tmp_path):
    model = make("yoso", "Model", num_hidden_layers=1)
    model.compile("adam", "mse", metrics=["mae"])
    model.save_pretrained(tmp_path)
    model.mine = bertkit_tf.layers.Dense(2, 2)
    with pytest.raises(CheckpointError, match="not in the weight spec: dense"):
        model.save_pretrained(tmp_path)
