"""Training with Keras: every way to give a loss, data, callbacks, weights, freezing, and memory."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from bertkit.core.errors import BackendError, InputError
from bertkit.core.variants import VARIANTS
from tests import cases
from tests.tf.common import CLASSIFIERS, ENCODERS, assert_same, cross_entropy, everything, gradients, labels, make

TASK = "ForSequenceClassification"
ROWS = 7
"""Not a multiple of the batch of 3: the last batch is short."""

FEATURES = cases.features("megatron-bert", rows=ROWS)
LABELS = cases.labels(TASK, rows=ROWS)["labels"]
DATA = tf.data.Dataset.from_tensor_slices((FEATURES, LABELS)).batch(3)
WITH_LABELS = {**FEATURES, "labels": LABELS}

WAYS = {
    "Keras loss, y": ({"loss": cross_entropy()}, (FEATURES, LABELS)),
    "Keras loss by output": ({"loss": {"logits": cross_entropy()}}, (FEATURES, {"logits": LABELS})),
    "Keras loss, dataset": ({"loss": cross_entropy()}, (DATA,)),
    "own loss, y": ({}, (FEATURES, LABELS)),
    "own loss, dict as y": ({}, (FEATURES, {"labels": LABELS})),
    "own loss, labels in x": ({}, (WITH_LABELS,)),
    "own loss, list as x": ({}, ([*FEATURES.values()], LABELS)),
    "own loss, dataset": ({}, (DATA,)),
    "own loss, dataset of labels in x": ({}, (tf.data.Dataset.from_tensor_slices(WITH_LABELS).batch(3),)),
}


def fit(model, data, **options):
    """`fit` in batches of 3, in order, without chatter."""
    batch = {} if isinstance(data[0], tf.data.Dataset) else {"batch_size": 3}
    return model.fit(*data, **{"shuffle": False, "verbose": 0, **batch, **options}).history


def trained(way, **options):
    """The history of two epochs, an evaluation, and the trained model."""
    compiled, data = WAYS[way]
    model = make("megatron-bert", TASK, num_hidden_layers=1)
    metrics = {"logits": ["accuracy"]} if isinstance(compiled.get("loss"), dict) else ["accuracy"]
    model.compile(keras.optimizers.SGD(0.3), metrics=metrics, **compiled, **options)
    history = fit(model, data, epochs=2)
    batch = {} if isinstance(data[0], tf.data.Dataset) else {"batch_size": 3}
    return history, model.evaluate(*data, verbose=0, return_dict=True, **batch), model


@pytest.fixture(scope="module")
def by_hand():
    """Losses, accuracy and weights of two epochs of plain steps."""
    model = make("megatron-bert", TASK, num_hidden_layers=1)
    optimizer = keras.optimizers.SGD(0.3)
    history = []
    for _ in range(2):
        losses = []
        for start in range(0, ROWS, 3):
            batch = {name: value[start : start + 3] for name, value in WITH_LABELS.items()}
            loss, *found = gradients(model, batch)
            optimizer.apply(found, model.trainable_variables)
            losses += [float(loss)] * len(batch["labels"])
        history.append(np.mean(losses))
    output = model(WITH_LABELS)
    accuracy = np.mean(np.argmax(output.logits, -1) == LABELS)
    return history, float(output.loss), accuracy, model.get_weights()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_is_the_same_training(way, by_hand):
    history, loss, accuracy, weights = by_hand
    found, evaluated, model = trained(way, run_eagerly="dataset" not in way)
    np.testing.assert_allclose(found["loss"], history, rtol=1e-5)
    assert found["loss"][1] < found["loss"][0]
    assert evaluated["loss"] == pytest.approx(loss, rel=1e-4)
    assert evaluated["accuracy"] == pytest.approx(accuracy)
    assert_same(model.get_weights(), weights, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["Keras loss, y", "own loss, y", "own loss, labels in x"])
def test_training_under_xla_is_the_same_training(way, by_hand):
    _, evaluated, model = trained(way, jit_compile=True)
    assert evaluated["loss"] == pytest.approx(by_hand[1], rel=1e-4)
    assert_same(model.get_weights(), by_hand[3], 1e-5)


@pytest.mark.parametrize(("variant", "task"), cases.LOSSES)
def test_every_class_trains_with_its_own_loss_and_predicts_every_row(variant, task):
    model = make(variant, task, num_hidden_layers=1)
    x, y = cases.features(variant, task, rows=4), labels(variant, task, rows=4)
    model.compile(keras.optimizers.SGD(0.05), run_eagerly=True)
    losses = [model.train_on_batch(x, y) for _ in range(3)]
    assert losses[-1] < losses[0]
    predicted = model.predict({**x, **y}, batch_size=3, verbose=0)
    expected = model(x)
    assert "loss" not in predicted and type(predicted) is type(expected)
    assert_same({name: value for name, value in predicted.items() if name != "past_key_values"},
                {name: value for name, value in expected.items() if name != "past_key_values"}, 1e-5)


SEVERAL = {
    "ForQuestionAnswering": {"start_logits": "start_positions", "end_logits": "end_positions"},
    "ForPreTraining": {"prediction_logits": "labels", "seq_relationship_logits": "next_sentence_label"},
}


@pytest.mark.parametrize("task", SEVERAL)
def test_keras_losses_of_several_outputs(task):
    x, y = cases.features("megatron-bert", task), labels("megatron-bert", task)
    if task == "ForPreTraining":
        y["labels"] = x["input_ids"]
    by_output = {output: y[label] for output, label in SEVERAL[task].items()}
    model = make("megatron-bert", task, num_hidden_layers=1)
    model.compile("sgd", run_eagerly=True)
    own = model.evaluate(x, y, verbose=0)
    model.compile("sgd", loss={name: cross_entropy() for name in by_output}, run_eagerly=True,
                  metrics={name: ["accuracy"] for name in by_output})
    fit(model, (x, by_output), validation_data=(x, by_output))
    model = make("megatron-bert", task, num_hidden_layers=1)
    model.compile("sgd", loss={name: cross_entropy() for name in by_output}, run_eagerly=True)
    found = model.evaluate(x, by_output, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(own * (2 if task == "ForQuestionAnswering" else 1), rel=1e-5)
    assert {f"{name}_loss" for name in by_output} < found.keys()


def test_weights_of_samples_and_classes():
    model = make("megatron-bert", TASK, num_hidden_layers=1)
    model.compile(keras.optimizers.SGD(0.0), loss=cross_entropy(), weighted_metrics=["accuracy"], run_eagerly=True)
    weight = np.array([1, 0, 0, 2, 0, 1, 0], np.float32)
    logits = np.asarray(model(FEATURES).logits)
    each = np.log(np.exp(logits).sum(1)) - logits[range(ROWS), LABELS]
    options = {"sample_weight": weight, "batch_size": ROWS}
    assert fit(model, (FEATURES, LABELS), **options)["loss"][0] == pytest.approx((each * weight).sum() / ROWS, rel=1e-5)
    by_class = {0: 1.0, 1: 2.0, 2: 0.5}
    expected = (each * np.vectorize(by_class.get)(LABELS)).sum() / ROWS
    found = fit(model, (FEATURES, LABELS), class_weight=by_class, batch_size=ROWS)["loss"][0]
    assert found == pytest.approx(expected, rel=1e-5)


def test_callbacks_find_what_they_need(tmp_path):
    model = make("mobilebert", TASK, num_hidden_layers=1)
    model.compile("adam")
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True),
        keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TerminateOnNaN(),
    ]
    data = tf.data.Dataset.from_tensor_slices((FEATURES, LABELS)).shuffle(ROWS, seed=0).batch(3)
    fit(model, (data,), epochs=2, validation_data=data, callbacks=callbacks)
    assert {"best.keras", "last.weights.h5", "log.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert_same(keras.saving.load_model(tmp_path / "best.keras")(FEATURES), model(FEATURES), 1e-6)


def test_steps_by_hand_and_fit_after_predict():
    model = make("yoso", TASK, num_hidden_layers=1)
    model.compile("sgd", metrics=["accuracy"], run_eagerly=True)
    before = model.predict_on_batch(FEATURES)
    assert model.train_on_batch(FEATURES, LABELS)[0] == pytest.approx(model.evaluate(FEATURES, LABELS, verbose=0)[0], rel=0.2)
    fit(model, (FEATURES, LABELS))
    assert np.abs(model.predict_on_batch(FEATURES).logits - before.logits).max() > 0


WRONG = {
    "there is no y": ({"loss": "mse"}, (WITH_LABELS,)),
    "there is no loss": ({}, (FEATURES,)),
    "need a Keras loss": ({}, (FEATURES, LABELS, np.ones(ROWS))),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_missing_loss_says_what_to_do(message):
    model = make("megatron-bert", TASK, num_hidden_layers=1)
    compiled, data = WRONG[message]
    model.compile("sgd", run_eagerly=True, **compiled)
    options = dict(zip(("x", "y", "sample_weight"), data, strict=False))
    with pytest.raises(InputError, match=message):
        model.fit(**options, verbose=0)


def test_keras_distributions_are_refused():
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0"]))
    try:
        with pytest.raises(BackendError, match=r"tf\.distribute"):
            make("yoso", TASK).compile("sgd")
    finally:
        keras.distribution.set_distribution(None)


@pytest.mark.parametrize("optimizer", [
    lambda: keras.optimizers.AdamW(0.01, gradient_accumulation_steps=2, use_ema=True, global_clipnorm=1.0),
    lambda: keras.optimizers.Lion(0.01), lambda: keras.optimizers.Adafactor(0.01),
    lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10), momentum=0.9),
], ids=["accumulation", "lion", "adafactor", "schedule"])
def test_optimizers(optimizer):
    model = make("megatron-bert", TASK, num_hidden_layers=1)
    model.compile(optimizer(), run_eagerly=True)
    losses = fit(model, (FEATURES, LABELS), epochs=4)["loss"]
    assert losses[-1] < losses[0]


# -- what is trained ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
def test_every_tensor_of_the_spec_is_tracked_once(variant, task):
    model = make(variant, task)
    stored = [param for param in model.params().values() if param.stored]
    statistics = [param for param in stored if param.kind == "stat"]
    assert len(model.trainable_variables) == len({id(v) for v in model.trainable_variables}) == len(stored) - len(statistics)
    assert len(model.variables) == len(stored)
    assert sum(v.value.shape.num_elements() for v in model.trainable_variables) == model.num_parameters()
    doubled = [2 * array for array in model.get_weights()]
    model.set_weights(doubled)
    assert_same(model.get_weights(), doubled)


@pytest.mark.parametrize(("variant", "task"), CLASSIFIERS)
def test_a_frozen_encoder_stays_as_it_is(variant, task):
    """Its parameters: I-BERT's ranges follow what training shows them, as they do in PyTorch."""
    model = make(variant, task)
    parameters = model.base_model.trainable_variables
    assert model.base_model is getattr(model, model.base_model_prefix)
    model.base_model.trainable = False
    head = [v.path for v in model.trainable_variables]
    frozen = [v.numpy() for v in parameters]
    free = [v.numpy() for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
    fit(model, (everything(variant, task),))
    assert_same([v.numpy() for v in parameters], frozen)
    assert 2 <= len(head) <= 4 and all(np.any(v.numpy() != old) for v, old in zip(model.trainable_variables, free, strict=True))
    model.base_model.trainable = True
    assert len(model.trainable_variables) > len(head)


@pytest.mark.parametrize(("variant", "task"), ENCODERS)
def test_the_row_of_padding_gets_no_gradient(variant, task):
    model = make(variant, task)
    x = {**cases.features(variant, lengths=(9, 4, 7)), "attention_mask": np.ones((3, 9), int)}
    _, *found = gradients(model, x)
    table = next(i for i, v in enumerate(model.trainable_variables) if v is model.get_input_embeddings().embeddings)
    assert not np.any(found[table][model.config.pad_token_id]) and np.any(found[table])


# -- dropout, memory ---------------------------------------------------------------------------------------------
DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}


@pytest.mark.parametrize(("variant", "task"), cases.LOSSES)
def test_dropout_drops_in_training_alone(variant, task):
    model, x = make(variant, task, num_hidden_layers=1, **DROPOUT), everything(variant, task)
    assert_same(model(x, training=False), model(x))
    keras.utils.set_random_seed(1)
    first, second = model(x, training=True).loss.numpy(), model(x, training=True).loss.numpy()
    keras.utils.set_random_seed(1)
    again = model(x, training=True).loss.numpy()
    assert first == again and first != second and first != model(x).loss.numpy()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_drops_the_same_features_again(variant, compiled, monkeypatch):
    """Against the same code that keeps its activations; one layer, as a graph numbers its seeds by its nodes."""
    found = []
    for recompute in (tf.recompute_grad, lambda function: function):
        monkeypatch.setattr(tf, "recompute_grad", recompute)
        model = make(variant, num_hidden_layers=1, **DROPOUT)
        model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing
        call = functools.partial(gradients, model)
        call = tf.function(call) if compiled else call
        keras.utils.set_random_seed(3)
        found.append(call({name: tf.constant(value) for name, value in cases.features(variant).items()}))
    assert_same(found[0], found[1], 1e-6)


@pytest.mark.parametrize(("variant", "changes"), [*((variant, {}) for variant in VARIANTS),
                                                  ("yoso", {"use_expectation": False, "hash_seed": 7})], ids=cases.name_of)
def test_checkpointing_without_dropout_changes_no_number(variant, changes):
    model, x, found = make(variant, TASK, **changes), everything(variant, TASK), []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        found.append(gradients(model, x))
    assert_same(found[1], found[0], 1e-6)
