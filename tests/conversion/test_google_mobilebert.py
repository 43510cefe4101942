"""Google's MobileBERT: TensorFlow's own Saver writes the originals, and reads what is written here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.convert.google_mobilebert import (
    DEFAULTS,
    GOOGLE_MOBILEBERT,
    MODEL_GARDEN,
    PREFIX,
    config_from,
    garden_table,
    settings_from,
)
from bertkit.convert.original import Options, Original, Sample
from bertkit.convert.rules import Translation, inverted, translate
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.files.tf_checkpoint import OBJECT_GRAPH, open_tf_checkpoint, write_tf_checkpoint
from bertkit.core.mobilebert import MOBILEBERT
from bertkit.core.tensors import LazyTensor
from tests import cases
from tests.cli.common import weights
from tests.conversion.originals import google_mobilebert as google

KINDS = list(google.SETTINGS)
WORDS = "bert/embeddings/word_embeddings"


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Directory, settings and weights by kind, written by TensorFlow with everything that a training run leaves."""
    pytest.importorskip("tensorflow")
    made = {}
    for kind, settings in google.SETTINGS.items():
        values = google.values(google.shapes(settings))
        directory = tmp_path_factory.mktemp(kind) / f"uncased_L-2_{kind}"
        google.save(directory, settings, {**values, **google.baggage(values, kind)}, vocabulary=map(str, range(37)))
        made[kind] = directory, settings, values
    return made


def read(directory, format=GOOGLE_MOBILEBERT, **options):
    return format.read(format.open(Sample(directory)), Options(**options))


def write(directory, original, format=GOOGLE_MOBILEBERT):
    directory.mkdir()
    for name, content in format.write(original, Options()).items():
        with open(directory / name, "xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file, lambda count: None)
    return directory


def plain(directory, variables, settings):
    """A checkpoint written without TensorFlow, for what only names and shapes decide."""
    write_tf_checkpoint(directory / PREFIX, variables)
    (directory / "bert_config.json").write_text(json.dumps(settings))
    return directory


def small(kind="student", head="pretraining"):
    settings = google.SETTINGS[kind]
    return settings, google.values(google.shapes(settings, head))


def arrays(original):
    return {name: tensor() for name, tensor in original.translation.tensors.items()}


def same(left, right):
    return set(left) == set(right) and all(np.array_equal(left[name], right[name]) for name in left)


# -- reading ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_has_its_place_and_all_else_a_reason(originals, kind):
    directory, _, values = originals[kind]
    original = read(directory)
    params = MOBILEBERT.params("ForPreTraining", original.config)
    assert original.task == "ForPreTraining"
    assert {name: tensor.shape for name, tensor in original.translation.tensors.items()} == {
        name: param.shape for name, param in params.items() if param.stored}
    assert set(original.translation.left_out) == set(google.baggage(values, kind))
    assert sorted(original.tokenizer_files) == ["tokenizer_config.json", "vocab.txt"]
    assert json.loads(original.tokenizer_files["tokenizer_config.json"])["do_lower_case"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_what_the_original_computes(originals, kind):
    torch = pytest.importorskip("torch")
    from bertkit import MobileBertForPreTraining

    directory, settings, values = originals[kind]
    original = read(directory)
    ids = np.array([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
    mask, types = (ids > 0).astype(np.int64), np.array([[0, 0, 0, 1, 1, 1, 1]] * 2)
    expected = google.forward(settings, values, ids, types, mask)
    model = MobileBertForPreTraining(original.config).double().eval()
    loaded = model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in
                                    arrays(original).items()}, strict=False)
    assert not loaded.unexpected_keys and all(".decoder." in name for name in loaded.missing_keys)
    with torch.no_grad():
        outputs = model(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(types), output_hidden_states=True)
    for got, name in ((outputs.hidden_states[-1], "hidden"), (outputs.prediction_logits, "words"),
                      (outputs.seq_relationship_logits, "next")):
        scale = np.abs(expected[name]).max()
        # "manual_layer_norm" has another epsilon than the head's norm; a configuration has one for both.
        assert np.abs(got.numpy() - expected[name]).max() < scale * (1e-5 if kind == "plain" else 1e-9), name


@pytest.mark.parametrize(("head", "task"), [("squad", "ForQuestionAnswering"), ("classifier", "ForSequenceClassification")])
def test_fine_tuned_heads(tmp_path, head, task):
    settings, values = small("student", head)
    original = read(plain(tmp_path, values, settings))
    assert original.task == task and set(original.translation.tensors) == {
        name for name, param in MOBILEBERT.params(task, original.config).items() if param.stored}
    name = {"squad": "qa_outputs.weight", "classifier": "classifier.weight"}[head]
    source = {"squad": "cls/squad/output_weights", "classifier": "output_weights"}[head]
    assert np.array_equal(original.translation.tensors[name](), values[source])
    assert original.config.num_labels == (3 if head == "classifier" else 2)


def test_another_scope(tmp_path):
    settings, values = small()
    renamed = {name.replace("bert/", "mobilebert/", 1) if name.startswith("bert/") else name: value
               for name, value in values.items()}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert same(arrays(read(plain(tmp_path / "a", renamed, settings))), arrays(read(plain(tmp_path / "b", values, settings))))


def test_the_checkpoint_knows_better_than_the_settings_how_many_words_there_are(tmp_path):
    settings, values = small()
    original = read(plain(tmp_path, values, {**settings, "vocab_size": 30}))
    assert original.config.vocab_size == 37 and "30 words" in original.notes[0]


def test_fewer_words_and_a_silent_padding_row(tmp_path):
    settings, values = small()
    original = read(plain(tmp_path, values, settings), vocab_size=30, zero_padding_row=True)
    tensors = arrays(original)
    assert original.config.vocab_size == 30 and len(original.notes) == 2
    words = tensors["mobilebert.embeddings.word_embeddings.weight"]
    assert not words[0].any() and np.array_equal(words[1:], values[WORDS][1:30])
    extra = values["cls/predictions/extra_output_weights"]
    assert np.array_equal(tensors["cls.predictions.dense.weight"], extra[:30].T)
    assert tensors["cls.predictions.bias"].shape == (30,)
    with pytest.raises(ConfigError, match="vocab_size: got 38"):
        read(tmp_path, vocab_size=38)


def test_settings_may_come_from_elsewhere(tmp_path):
    settings, values = small()
    plain(tmp_path, values, settings)
    (tmp_path / "bert_config.json").rename(tmp_path / "any.json")
    assert read(tmp_path).config == config_from(settings)
    (tmp_path / "any.json").unlink()
    assert GOOGLE_MOBILEBERT.open(Sample(tmp_path)).settings == {}
    with pytest.raises(ConfigError, match="--config"):
        read(tmp_path)
    assert read(tmp_path, config=settings).config == config_from(settings)


def test_one_file_of_the_checkpoint_names_it(tmp_path):
    settings, values = small()
    plain(tmp_path, values, settings)
    for file in tmp_path.glob(f"{PREFIX}*"):
        assert GOOGLE_MOBILEBERT.recognise(Sample(file))
        assert len(GOOGLE_MOBILEBERT.open(Sample(file)).tensors) == len(values)


def test_the_newest_of_several(tmp_path):
    settings, values = small()
    plain(tmp_path, values, settings)
    write_tf_checkpoint(tmp_path / "model.ckpt-9", {**values, WORDS: values[WORDS] + 1})
    assert GOOGLE_MOBILEBERT.recognise(Sample(tmp_path))
    with pytest.raises(CheckpointError, match=r"2 checkpoints[\s\S]*model.ckpt-9"):
        read(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/somewhere/else/model.ckpt-9"\n')
    assert np.array_equal(arrays(read(tmp_path))["mobilebert.embeddings.word_embeddings.weight"], values[WORDS] + 1)


# -- both ways ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_is_written_as_it_was(originals, tmp_path, kind):
    directory, settings, values = originals[kind]
    made = write(tmp_path / "made", read(directory))
    assert same(google.restore(made / PREFIX, values), values)
    assert json.loads((made / "bert_config.json").read_text()).items() >= settings.items()
    assert (made / "vocab.txt").read_bytes() == (directory / "vocab.txt").read_bytes()

    import tensorflow as tf

    assert set(tf.train.load_checkpoint(str(made)).get_variable_to_shape_map()) == set(values)


@pytest.mark.parametrize("task", ["Model", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction",
                                  "ForSequenceClassification", "ForQuestionAnswering"])
@pytest.mark.parametrize("changes", [{}, {"use_bottleneck_attention": True, "key_query_shared_bottleneck": False},
                                     {"use_bottleneck": False, "trigram_input": False, "normalization_type": "layer_norm"}],
                         ids=["student", "tiny", "plain"])
def test_what_was_written_is_read_as_it_was(tmp_path, task, changes):
    config = cases.config("mobilebert", task, layer_norm_eps=1e-12, classifier_dropout=0.25, **changes)
    tensors = weights("mobilebert", task, config)
    lazy = {name: LazyTensor(value.shape, "F32", lambda value=value: value) for name, value in tensors.items()}
    original = Original(tmp_path, "ours", MOBILEBERT, config, Translation(lazy), task)
    back = read(write(tmp_path / "made", original))
    prefix = "mobilebert." if task == "Model" else ""
    assert same(arrays(back), {prefix + name: value for name, value in tensors.items()})
    assert back.task == task and back.config.to_dict() == config.to_dict()


@pytest.mark.parametrize(("changes", "problem"), [
    ({"hidden_act": "silu"}, "hidden_act"), ({"layer_norm_eps": 1e-5}, "layer_norm_eps: 1e-05"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings"), ({"pruned_heads": {0: [1]}}, "pruned_heads")])
def test_what_google_cannot_express_is_refused(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        settings_from(cases.config("mobilebert", **{"layer_norm_eps": 1e-12, **changes}))


@pytest.mark.parametrize("task", ["ForTokenClassification", "ForMultipleChoice"])
def test_heads_that_google_has_not(tmp_path, task):
    original = Original(tmp_path, "ours", MOBILEBERT, cases.config("mobilebert", task), Translation(), task)
    with pytest.raises(ConfigError, match=task):
        GOOGLE_MOBILEBERT.write(original, Options())


# -- the settings -------------------------------------------------------------------------------------------------------
def test_defaults_are_those_of_googles_code():
    config = config_from({"vocab_size": 5})
    changed = {"embedding_size": 768, "intra_bottleneck_size": 768, "hidden_act": "gelu_new"}
    assert {name: getattr(config, name) for name in DEFAULTS} == {**DEFAULTS, **changed}
    assert config.layer_norm_eps == 1e-12


def test_the_norm_and_the_activation_are_named_for_what_they_are():
    config = config_from({"vocab_size": 5, "normalization_type": "manual_layer_norm"})
    assert (config.normalization_type, config.layer_norm_eps) == ("layer_norm", 1e-6)
    assert config_from({"vocab_size": 5}, hf_compat=True).hidden_act == "gelu"
    assert config_from({"vocab_size": 5, "hidden_act": "relu6"}, hf_compat=True).hidden_act == "relu6"


@pytest.mark.parametrize("settings", [{}, {"vocab_size": 5, "hidden_act": "linear"}, {"vocab_size": 5, "hidden_act": ["relu"]},
                                      {"vocab_size": 5, "normalization_type": None}, {"vocab_size": 5, "hidden_size": "big"},
                                      {"vocab_size": 5, "embedding_size": 10**6}])
def test_impossible_settings(settings):
    with pytest.raises(ConfigError):
        config_from(settings)


# -- through the front door -----------------------------------------------------------------------------------------------
def test_convert_there_and_back(tmp_path):
    settings, values = small()
    (tmp_path / "source").mkdir()
    plain(tmp_path / "source", {**values, **google.baggage(values)}, settings)
    report = convert(tmp_path / "source", tmp_path / "made")
    assert report.architecture == "MobileBertForPreTraining" and not report.missing and not report.made
    assert sum(map(len, report.changes.values())) == len(values)
    assert set(report.left_out) == set(google.baggage(values))
    for _ in range(2):
        convert(tmp_path / "made", tmp_path / "back", to="google-mobilebert", overwrite=True)
    back = open_tf_checkpoint(tmp_path / "back" / PREFIX).tensors
    assert same({name: tensor() for name, tensor in back.items()}, values)


@pytest.mark.parametrize("given", ["", "/mobilebert_variables.ckpt", "/mobilebert_variables.ckpt.index"])
def test_the_script(tmp_path, given):
    settings, values = small("teacher")
    (tmp_path / "source").mkdir()
    plain(tmp_path / "source", values, settings)
    script = Path(__file__).parents[2] / "conversion" / "google_mobilebert.py"
    done = subprocess.run([sys.executable, str(script), f"{tmp_path}/source{given}"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(script.parents[1])})
    assert done.returncode == 0 and "source-bertkit" in done.stdout, done.stderr
    assert (tmp_path / "source-bertkit" / "model.safetensors").is_file()


# -- bad input ----------------------------------------------------------------------------------------------------------
def test_unknown_variables_are_named(tmp_path):
    settings, values = small()
    plain(tmp_path, {**values, "bert/encoder/layer_0/adapter/kernel": np.zeros(3, np.float32)}, settings)
    with pytest.raises(CheckpointError, match="unknown: bert/encoder/layer_0/adapter/kernel"):
        read(tmp_path)


def test_norms_that_the_settings_do_not_have(tmp_path):
    settings, values = small()
    with pytest.raises(CheckpointError, match="FakeLayerNorm"):
        read(plain(tmp_path, values, {**settings, "normalization_type": "layer_norm"}))


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 999}, {"num_feedforward_networks": 99}])
def test_settings_of_a_giant(tmp_path, changes):
    settings, values = small()
    with pytest.raises(CheckpointError, match="there are only 95 tensors"):
        read(plain(tmp_path, values, {**settings, **changes}))


def test_shapes_that_cost_nothing_and_promise_much(tmp_path):
    settings, values = small("student", "classifier")
    plain(tmp_path, {**values, "output_weights": np.zeros((10**9, 0), np.float32), WORDS: np.zeros((10**9, 0), np.float32)},
          settings)
    with pytest.raises(CheckpointError):
        convert(tmp_path, tmp_path / "made")


def test_two_models_in_one_checkpoint(tmp_path):
    settings, values = small()
    with pytest.raises(CheckpointError, match="2 models"):
        read(plain(tmp_path, {**values, "other/embeddings/word_embeddings": values[WORDS]}, settings))


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"])
def test_settings_that_are_no_json(tmp_path, text):
    settings, values = small()
    plain(tmp_path, values, settings)
    (tmp_path / "bert_config.json").write_text(text, "latin-1")
    with pytest.raises(CheckpointError, match=r"bert_config\.json"):
        read(tmp_path)


def test_damaged_checkpoints_are_recognised_and_refused(tmp_path):
    settings, values = small()
    plain(tmp_path, values, settings)
    index = tmp_path / f"{PREFIX}.index"
    index.write_bytes(index.read_bytes()[:-9])
    assert GOOGLE_MOBILEBERT.recognise(Sample(tmp_path)) and not MODEL_GARDEN.recognise(Sample(tmp_path))
    with pytest.raises(CheckpointError, match=re.escape(index.name)):
        GOOGLE_MOBILEBERT.open(Sample(tmp_path))


def test_other_directories_are_not_recognised(tmp_path):
    (tmp_path / "words.index").write_bytes(b"not of TensorFlow")
    assert not GOOGLE_MOBILEBERT.recognise(Sample(tmp_path)) and not MODEL_GARDEN.recognise(Sample(tmp_path))
    with pytest.raises(CheckpointError):
        GOOGLE_MOBILEBERT.open(Sample(tmp_path))


# -- TensorFlow 2 -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["student", "tiny", "teacher"])
def test_the_model_gardens_checkpoint_is_the_same_model(originals, tmp_path, kind):
    directory, settings, values = originals[kind]
    made = google.save_garden(tmp_path / "made", settings, google.garden(settings, values))
    assert MODEL_GARDEN.recognise(Sample(made)) and not GOOGLE_MOBILEBERT.recognise(Sample(made))
    assert not MODEL_GARDEN.recognise(Sample(directory))
    original, expected = read(made, MODEL_GARDEN), read(directory)
    head = {name for name in expected.translation.tensors if name.startswith("cls.seq_relationship")}
    assert same(arrays(original), {name: value for name, value in arrays(expected).items() if name not in head})
    assert original.config == expected.config and original.task == "ForMaskedLM"
    assert sorted(original.translation.left_out) == [
        "optimizer/iterations/.ATTRIBUTES/VARIABLE_VALUE", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"]


@pytest.mark.parametrize("kind", ["student", "tiny", "teacher"])
def test_the_model_gardens_table_holds_in_both_directions(kind):
    settings, values = small(kind)
    theirs = {re.sub("^bert/", "", name): value for name, value in google.garden(settings, values).items()}
    lazy = {name: LazyTensor(value.shape, "F32", lambda value=value: value) for name, value in theirs.items()}
    rules = garden_table(settings.get("num_feedforward_networks", 1))
    there = translate(lazy, rules).check("there")
    back = translate(there.tensors, inverted(rules), {"heads": settings["num_attention_heads"]}).check("back")
    assert same({name: tensor() for name, tensor in back.tensors.items()}, theirs)


def test_a_damaged_graph_of_objects(tmp_path):
    write_tf_checkpoint(tmp_path / PREFIX, {"encoder/a/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(2)}, {OBJECT_GRAPH: b"\x0a\x50"})
    assert MODEL_GARDEN.recognise(Sample(tmp_path)) and not GOOGLE_MOBILEBERT.recognise(Sample(tmp_path))
    with pytest.raises(CheckpointError, match="graph of objects"):
        MODEL_GARDEN.open(Sample(tmp_path))


def test_a_bottleneck_that_the_model_garden_never_uses(originals, tmp_path):
    _, settings, values = originals["tiny"]
    unused = {f"transformer_layer_{layer}/kq_shared_bottleneck/{name}": np.zeros(3, np.float32)
              for layer in range(2) for name in ("dense/kernel", "dense/bias", "norm/gamma", "norm/beta")}
    made = google.save_garden(tmp_path / "made", settings, google.garden(settings, values) | unused)
    assert unused.keys() <= read(made, MODEL_GARDEN).translation.left_out.keys()


def test_a_tensorflow_2_checkpoint_is_not_read_as_one_of_tensorflow_1(originals, tmp_path):
    _, settings, values = originals["student"]
    made = google.save_garden(tmp_path / "made", settings, google.garden(settings, values))
    with pytest.raises(CheckpointError, match="--from tf-models"):
        GOOGLE_MOBILEBERT.open(Sample(made))
