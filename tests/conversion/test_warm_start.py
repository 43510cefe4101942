"""BERT and RoBERTa become I-BERT and MobileBERT that compute the same, and YOSO; what cannot be expressed is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.convert.original import Options
from bertkit.convert.rules import inverted, translate
from bertkit.convert.source import open_source
from bertkit.convert.warm_start import HEADS, SOURCES, TARGETS, moved_down, names_table, warm_start
from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.tensors import lazy
from tests.cli.common import WORDS, write
from tests.conversion import bert

TASKS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
CLASSES = {"bert": "Bert", "roberta": "Roberta"}


def source(directory, task="Model", settings=bert.SETTINGS, tensors=None, **changes):
    settings = {**settings, "architectures": [CLASSES[settings["model_type"]] + task], **changes}
    return write(directory, settings, bert.tensors(task, settings) if tensors is None else tensors)


@pytest.mark.parametrize("framework", ["torch", "tf"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("settings", [bert.SETTINGS, bert.ROBERTA], ids=lambda s: s["model_type"])
def test_it_computes_the_same(settings, to, task, framework, tmp_path):
    """As YOSO: the same but for the attention, and for the activation in the classifier."""
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[framework])
    from bertkit.commands.frameworks import Runner, open_model

    report = convert(source(tmp_path / "source", task, settings), tmp_path / "target", to=to)
    random = np.random.default_rng(0)
    ids = random.integers(3, WORDS, (2, 9))
    ids[1, 6:] = settings["pad_token_id"]
    types = random.integers(0, settings["type_vocab_size"], ids.shape)
    mask = (ids != settings["pad_token_id"]).astype(np.int64)
    other = {"attention": bert.yoso_attention, "classifier_activation": bert.gelu} if to == "yoso" else {}
    expected = bert.run(task, bert.tensors(task, settings), settings, ids, types, **other)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    found = Runner(open_model(tmp_path / "target"), framework)(inputs)
    assert expected and report.architecture.endswith(task)
    assert report.notes[0].startswith("exact" if to != "yoso" else "not exact")
    for name in expected.keys() - ({"pooler_output"} if to == "yoso" else {}):
        rows, value = mask.astype(bool) if expected[name].shape[:2] == ids.shape else slice(None), expected[name]
        np.testing.assert_allclose(found[name][rows], value[rows], atol=3e-6 * np.abs(value).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("settings", [bert.SETTINGS, bert.ROBERTA], ids=lambda s: s["model_type"])
def test_tables_read_in_both_directions(settings, to):
    theirs, ours = SOURCES[settings["model_type"]], TARGETS[to]
    for task in set(TASKS) & set(ours.tasks) - {"Model"}:
        tensors = {name: lazy(value) for name, value in bert.tensors(task, settings).items() if "position_ids" not in name}
        rules = names_table(theirs, ours, task, moved_down(2))
        back = translate(translate(tensors, rules).check("there").tensors, inverted(rules)).check("back")
        assert all(np.array_equal(back.tensors.pop(name)(), tensor()) for name, tensor in tensors.items()) and not back.tensors


@pytest.mark.parametrize("task", HEADS)
def test_mobilebert_takes_every_task_of_bert(task, tmp_path):
    report = convert(source(tmp_path / "source", task), tmp_path / "target", to="mobilebert")
    assert report.architecture == f"MobileBert{task}" and not report.missing
    assert {name.rpartition("embeddings.")[2] for name, reason in report.made.items() if "identity" in reason} == {
        "embedding_transformation.weight", "embedding_transformation.bias"}


def test_positions_get_one_row_of_zeros(tmp_path):
    report = convert(source(tmp_path / "source"), tmp_path / "target", to="ibert")
    table = "embeddings.position_embeddings.weight"
    with open_checkpoint(tmp_path / "source") as before, open_checkpoint(tmp_path / "target") as after:
        assert not after.read(table)[0].any() and np.array_equal(after.read(table)[1:], before.read(table))
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert config["max_position_embeddings"] == 21 and config["tokenizer_class"] == "BertTokenizer"
    assert config["architectures"] == ["IBertModel"] and "transformers_version" not in config
    assert list(report.left_out) == ["bert.embeddings.position_ids"] and "vocab.txt" in report.files
    assert all(name.rsplit(".", 1)[1] in ("x_min", "x_max", "act_scaling_factor", "shift") for name in report.made)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sources_keep_their_bits(dtype, tmp_path):
    convert(source(tmp_path / "whole"), tmp_path / "ibert", to="ibert", dtype=dtype)
    # The other order: a BERT in half precision becomes an I-BERT without another rounding.
    with open_checkpoint(tmp_path / "ibert") as made:
        halves = {name: made.read(name).astype(np.float32) for name in made.names() if not name.endswith(("x_min", "x_max"))}
    names = bert.tensors("Model")
    tensors = {name: halves[name] for name in names if name in halves and "position" not in name}
    tensors["embeddings.position_embeddings.weight"] = halves["embeddings.position_embeddings.weight"][1:]
    convert(source(tmp_path / "bert", tensors=tensors), tmp_path / "again", to="ibert", dtype=dtype)
    with open_checkpoint(tmp_path / "ibert") as one, open_checkpoint(tmp_path / "again") as other:
        assert one.info("pooler.dense.weight").dtype == {"float16": "F16", "bfloat16": "BF16"}[dtype]
        assert all(np.array_equal(one.read(name), other.read(name)) for name in one.names())


def test_pretraining_leaves_the_next_sentence_head_out(tmp_path):
    report = convert(source(tmp_path / "source", "ForPreTraining"), tmp_path / "target", to="ibert")
    assert report.architecture == "IBertForMaskedLM" and any("next-sentence" in note for note in report.notes)
    assert {"cls.seq_relationship.weight", "bert.pooler.dense.weight"} <= set(report.left_out)
    assert "cls.predictions.transform.dense.weight -> lm_head.dense.weight" in report.changes["renamed"]


def test_another_task_takes_what_there_is(tmp_path):
    directory = source(tmp_path / "source", "ForMaskedLM")
    report = convert(directory, tmp_path / "target", to="ibert", task="ForTokenClassification")
    assert report.architecture == "IBertForTokenClassification"
    assert report.missing == ["classifier.weight", "classifier.bias"] and "cls.predictions.bias" in report.left_out


def test_old_names_and_a_silent_config(tmp_path):
    tensors = bert.tensors("ForMaskedLM")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
           for name, value in tensors.items()}
    directory = write(tmp_path / "source", {k: v for k, v in bert.SETTINGS.items() if k != "model_type"}, old)
    with pytest.raises(ConfigError, match="--from"):
        convert(directory, tmp_path / "target", to="ibert")
    report = convert(directory, tmp_path / "target", to="ibert", source_type="bert")
    assert report.architecture == "IBertForMaskedLM"
    assert "bert.embeddings.LayerNorm.gamma -> ibert.embeddings.LayerNorm.weight" in report.changes["renamed"]
    wrapped = source(tmp_path / "wrapped", "ForMaskedLM", tensors={f"module.{name}": value for name, value in old.items()})
    assert convert(wrapped, tmp_path / "again", to="ibert").tensors == report.tensors


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("task", ["ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"])
def test_the_tensors_tell_the_task(task, to, tmp_path):
    directory = source(tmp_path / "source", task, architectures=True)
    assert convert(directory, tmp_path / "target", to=to).architecture == f"{TARGETS[to].class_name}{task}"


@pytest.mark.parametrize(("settings", "rows"), [
    (bert.SETTINGS, 2), (bert.ROBERTA, 0), ({**bert.ROBERTA, "pad_token_id": 0}, 1),
])
def test_positions_of_yoso_begin_at_row_two(settings, rows, tmp_path):
    report = convert(source(tmp_path / "source", settings=settings), tmp_path / "target", to="yoso")
    table = "embeddings.position_embeddings.weight"
    with open_checkpoint(tmp_path / "source") as before, open_checkpoint(tmp_path / "target") as after:
        assert not after.read(table)[:rows].any() and np.array_equal(after.read(table)[rows:], before.read(table))
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert config["max_position_embeddings"] == 20 + (rows == 1)
    assert any("row(s) of zeros" in note for note in report.notes) == (rows > 0)
    assert any(f"{config['max_position_embeddings']} tokens" in note for note in report.notes)


@pytest.mark.parametrize(("task", "told"), [("ForSequenceClassification", "gelu"), ("ForMultipleChoice", "relu")])
def test_heads_that_are_another_function_are_told_of(task, told, tmp_path):
    report = convert(source(tmp_path / "source", task), tmp_path / "target", to="yoso")
    assert any(told in note and "tanh" in note for note in report.notes) and not report.missing


def test_how_yoso_hashes_can_be_chosen(tmp_path):
    opened = open_source(source(tmp_path / "source"))
    made = warm_start(opened, "yoso", Options(config={"use_expectation": False, "num_hash": 16}))
    assert (made.config.use_expectation, made.config.num_hash) == (False, 16) and any("samples" in note for note in made.notes)
    with pytest.raises(ConfigError, match=r"hidden_size[\s\S]*conv_window"):
        warm_start(opened, "yoso", Options(config={"hidden_size": 8, "conv_window": 3}))
    with pytest.raises(ConfigError, match=r"num_hash.*only nothing can"):
        warm_start(opened, "ibert", Options(config={"num_hash": 8}))


def test_everything_that_cannot_be_expressed_is_listed(tmp_path):
    directory = source(tmp_path / "source", position_embedding_type="relative_key", hidden_act="relu", is_decoder=True)
    with pytest.raises(ConfigError) as error:
        convert(directory, tmp_path / "target", to="ibert")
    named = [problem.split(":")[0] for problem in error.value.problems]
    assert named == ["position_embedding_type", "is_decoder", "hidden_act"]
    assert not (tmp_path / "target").exists()


def test_a_config_of_nonsense(tmp_path):
    directory = source(tmp_path / "source", tensors=bert.tensors("Model"), pad_token_id="none", max_position_embeddings=2.5)
    for to in TARGETS:
        with pytest.raises(ConfigError, match=r"pad_token_id[\s\S]*max_position_embeddings"):
            convert(directory, tmp_path / "target", to=to)
    with pytest.raises(ConfigError, match="hidden_size"):
        convert(source(tmp_path / "other", hidden_size=-1), tmp_path / "target", to="ibert")
    with pytest.raises(ConfigError, match="expected a string"):
        convert(write(tmp_path / "third", {"model_type": ["bert"]}, {"a": np.zeros(1, np.float32)}), tmp_path / "target")


@pytest.mark.parametrize(("changes", "told"), [
    ({"num_hidden_layers": 10**9}, "1000000000"), ({"pad_token_id": 10**9}, "pad_token_id"),
    ({"architectures": True, "num_hidden_layers": -1}, "num_hidden_layers"),
])
def test_numbers_beyond_all_bounds(changes, told, tmp_path):
    directory = source(tmp_path / "source", tensors=bert.tensors("Model"), **changes)
    with pytest.raises((ConfigError, CheckpointError), match=told):
        convert(directory, tmp_path / "target", to="ibert")


def test_relu_is_fine_for_mobilebert(tmp_path):
    assert convert(source(tmp_path / "source", hidden_act="relu"), tmp_path / "target", to="mobilebert").tensors


def test_unknown_and_missing_tensors_are_errors(tmp_path):
    tensors = bert.tensors("Model")
    more = source(tmp_path / "more", tensors={**tensors, "bert.surplus": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match=r"bert\.surplus"):
        convert(more, tmp_path / "target", to="ibert")
    lacking = {name: value for name, value in tensors.items() if "layer.1.output.dense" not in name}
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        convert(source(tmp_path / "less", tensors=lacking), tmp_path / "target", to="ibert")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(("options", "told"), [
    ({}, "--to VARIANT"), ({"to": "ibert", "source_type": "albert"}, "no conversion from 'albert'"),
    ({"to": "ibert", "task": "ForPreTraining"}, "ForMaskedLM"), ({"to": "ibert", "source_type": "roberta"}, "position"),
])
def test_bad_use(options, told, tmp_path):
    with pytest.raises((ConfigError, CheckpointError), match=told):
        convert(source(tmp_path / "source"), tmp_path / "target", **options)
