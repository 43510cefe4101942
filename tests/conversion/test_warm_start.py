"""BERT and RoBERTa become I-BERT and MobileBERT that compute the same; what cannot be expressed is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.convert.old_rules import inverted
from bertkit.convert.warm_start import BERT_ONLY, HEADS, SOURCES, TARGETS, names_table
from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.errors import CheckpointError, ConfigError
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
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[framework])
    from bertkit.commands.frameworks import Runner, open_model

    report = convert(source(tmp_path / "source", task, settings), tmp_path / "target", to=to)
    random = np.random.default_rng(0)
    ids = random.integers(3, WORDS, (2, 9))
    ids[1, 6:] = settings["pad_token_id"]
    types = random.integers(0, settings["type_vocab_size"], ids.shape)
    mask = (ids != settings["pad_token_id"]).astype(np.int64)
    expected = bert.run(task, bert.tensors(task, settings), settings, ids, types)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    found = Runner(open_model(tmp_path / "target"), framework)(inputs)
    assert expected and report.architecture.endswith(task)
    for name, value in expected.items():
        rows = mask.astype(bool) if value.shape[:2] == ids.shape else slice(None)
        np.testing.assert_allclose(found[name][rows], value[rows], atol=3e-6 * np.abs(value).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("model_type", SOURCES)
def test_tables_read_in_both_directions(model_type, to):
    theirs, ours = SOURCES[model_type], TARGETS[to]
    for task in set(theirs.tasks) & set(ours.tasks):
        there = names_table(theirs, ours, task)
        assert inverted(inverted(there)) == there == inverted(names_table(ours, theirs, task))


@pytest.mark.parametrize("task", [*HEADS, *BERT_ONLY])
def test_mobilebert_takes_every_task_of_bert(task, tmp_path):
    report = convert(source(tmp_path / "source", task), tmp_path / "target", to="mobilebert")
    assert report.architecture == f"MobileBert{task}" and not report.missing


def test_positions_get_one_row_of_zeros(tmp_path):
    report = convert(source(tmp_path / "source"), tmp_path / "target", to="ibert")
    table = "embeddings.position_embeddings.weight"
    with open_checkpoint(tmp_path / "source") as before, open_checkpoint(tmp_path / "target") as after:
        assert not after.read(table)[0].any() and np.array_equal(after.read(table)[1:], before.read(table))
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert config["max_position_embeddings"] == 21 and config["tokenizer_class"] == "BertTokenizer"
    assert config["architectures"] == ["IBertModel"] and "transformers_version" not in config
    assert report.left_out == ["bert.embeddings.position_ids"] and "vocab.txt" in report.files
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
    assert report.renamed["lm_head.dense.weight"] == "cls.predictions.transform.dense.weight"


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
    assert report.renamed["ibert.embeddings.LayerNorm.weight"] == "bert.embeddings.LayerNorm.gamma"


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
    ({}, "--to ibert"), ({"to": "ibert", "source_type": "albert"}, "no conversion from 'albert'"),
    ({"to": "ibert", "task": "ForPreTraining"}, "ForMaskedLM"), ({"to": "ibert", "source_type": "roberta"}, "position"),
])
def test_bad_use(options, told, tmp_path):
    with pytest.raises((ConfigError, CheckpointError), match=told):
        convert(source(tmp_path / "source"), tmp_path / "target", **options)
