"""Framework to framework: old files in today's form, other dtypes and shards, and nothing lost on the way."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.errors import CheckpointError, ConfigError
from tests import cases
from tests.cli.common import WORDS, checkpoint, run, run_json, weights, write


def arrays(directory):
    with open_checkpoint(directory) as opened:
        return {name: np.array(opened.read(name)) for name in opened.names()}


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
def test_every_class_survives(variant, task, tmp_path):
    source = checkpoint(tmp_path / "source", variant, task)
    report = convert(source, tmp_path / "target")
    assert equal(arrays(source), arrays(tmp_path / "target"))
    assert not (report.changes or report.left_out or report.made or report.missing)
    assert (tmp_path / "target" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    before, after = (json.loads((d / "config.json").read_text()) for d in (source, tmp_path / "target"))
    assert after["architectures"] == before["architectures"] and after["hidden_size"] == before["hidden_size"]


def test_an_old_file_becomes_todays(tmp_path, capsys):
    """gamma and beta, buffers, tied copies, another head, a prefix of data-parallel training, pickled."""
    torch = pytest.importorskip("torch")
    config = cases.config("megatron-bert", vocab_size=WORDS)
    today = weights("megatron-bert", "ForMaskedLM", config)
    words = today["bert.embeddings.word_embeddings.weight"]
    old = {name.replace(".ln.weight", ".ln.gamma").replace(".ln.bias", ".ln.beta"): value for name, value in today.items()}
    old |= {"cls.predictions.decoder.weight": words, "cls.predictions.decoder.bias": today["cls.predictions.bias"],
            "bert.embeddings.position_ids": np.arange(24)[None], "bert.pooler.dense.bias": np.zeros(16, np.float32)}
    source = tmp_path / "source"
    source.mkdir()
    torch.save({f"module.{name}": torch.from_numpy(value) for name, value in old.items()}, source / "pytorch_model.bin")
    (source / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["MegatronBertForMaskedLM"]}))
    code, report = run_json(capsys, "convert", source, tmp_path / "target")
    assert code == 0 and equal(arrays(tmp_path / "target"), today)
    assert "module.bert.encoder.ln.gamma -> bert.encoder.ln.weight" in report["changes"]["renamed"]
    assert {name.removeprefix("module.") for name in report["left_out"]} == {
        "cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "bert.embeddings.position_ids",
        "bert.pooler.dense.bias"}
    assert any("no tokenizer" in note for note in report["notes"])
    code, out, _ = run(capsys, "convert", source, tmp_path / "target", "--overwrite")
    assert code == 0 and "left out, not a tensor of MegatronBertForMaskedLM, or a copy (4)" in out and "gamma -> " in out


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_and_shards(dtype, tmp_path):
    source = checkpoint(tmp_path / "source", "yoso", "ForMaskedLM")
    report = convert(source, tmp_path / "parts", dtype=dtype, max_shard_size="2KB")
    whole = convert(tmp_path / "parts", tmp_path / "whole")
    assert len(report.files) > 5 and "model.safetensors" in whole.files and whole.dtype == dtype
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["torch_dtype"] == dtype
    assert equal(arrays(tmp_path / "parts"), arrays(tmp_path / "whole"))
    tolerance = {"float32": 0, "float16": 2**-10, "bfloat16": 2**-8}[dtype]
    for name, value in arrays(source).items():
        np.testing.assert_allclose(arrays(tmp_path / "whole")[name], value, rtol=tolerance, atol=1e-7)


def test_a_task_class_becomes_an_encoder_and_back(tmp_path):
    source = checkpoint(tmp_path / "source", "mobilebert", "ForPreTraining")
    bare = convert(source, tmp_path / "bare", task="Model")
    assert bare.architecture == "MobileBertModel" and "cls.seq_relationship.bias" in bare.left_out
    tagger = convert(tmp_path / "bare", tmp_path / "tagger", task="ForTokenClassification")
    assert tagger.missing == ["classifier.weight", "classifier.bias"] and "pooler.dense.weight" in tagger.left_out


def test_unknown_and_missing_tensors_are_errors(tmp_path):
    config = cases.config("ibert", vocab_size=WORDS)
    tensors = weights("ibert", "ForTokenClassification", config)
    settings = {**config.to_dict(), "architectures": ["IBertForTokenClassification"]}
    for name, changed in {"more": {**tensors, "ibert.surplus": np.zeros(1, np.float32)},
                          "less": {n: t for n, t in tensors.items() if n != "classifier.bias"}}.items():
        write(tmp_path / name, settings, changed)
    with pytest.raises(CheckpointError, match=r"ibert\.surplus"):
        convert(tmp_path / "more", tmp_path / "target")
    with pytest.raises(CheckpointError, match=r"classifier\.bias[\s\S]*--task"):
        convert(tmp_path / "less", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_targets_are_not_overwritten_by_accident(tmp_path):
    source = checkpoint(tmp_path / "source", "yoso")
    before = arrays(source)
    with pytest.raises(CheckpointError, match="--overwrite"):
        convert(source, source)
    convert(source, source, overwrite=True, dtype="bfloat16")
    assert before.keys() == arrays(source).keys()


def test_a_target_that_cannot_be_written(tmp_path, capsys):
    source = checkpoint(tmp_path / "source", "yoso")
    (tmp_path / "file").write_text("in the way")
    code, _, err = run(capsys, "convert", source, tmp_path / "file" / "target")
    assert code == 2 and str(tmp_path / "file") in err and "Traceback" not in err


def test_a_bad_size(tmp_path):
    with pytest.raises(CheckpointError, match="max_shard_size"):
        convert(checkpoint(tmp_path / "source", "yoso"), tmp_path / "target", max_shard_size="much")


def test_the_task_is_asked_for_where_nothing_tells(tmp_path):
    config = cases.config("mobilebert", vocab_size=WORDS)
    tensors = weights("mobilebert", "ForTokenClassification", config)
    write(tmp_path / "source", {k: v for k, v in config.to_dict().items() if k != "architectures"}, tensors)
    assert convert(tmp_path / "source", tmp_path / "target").architecture == "MobileBertForTokenClassification"
    write(tmp_path / "both", config.to_dict(), {**tensors, **weights("mobilebert", "ForSequenceClassification", config)})
    assert convert(tmp_path / "both", tmp_path / "chosen").architecture == "MobileBertForSequenceClassification"
    with pytest.raises(ConfigError, match="ForMaskedLM"):
        convert(tmp_path / "both", tmp_path / "other", task="ForAnything")


def test_the_report_says_what_was_moved_where(tmp_path):
    source = checkpoint(tmp_path / "source", "megatron-bert", "ForPreTraining")
    there = convert(source, tmp_path / "shards", to="megatron-lm", tensor_parallel=2)
    query = "encoder.layer.0.attention.self"
    fused = "language_model.encoder.layers.0.self_attention.query_key_value.bias"
    assert f"bert.{query}.query.bias + bert.{query}.key.bias + bert.{query}.value.bias -> {fused}" in (
        there.changes["merged into one projection"])
    assert any(line.endswith("-> lm_head.bias") for line in there.changes["padded with rows of zeros"])
    back = convert(tmp_path / "shards", tmp_path / "back")
    assert set(back.changes) == {"renamed", "cut to the vocabulary", "split into query, key and value",
                                 "merged from 2 tensor-parallel ranks"}
    assert equal(arrays(source), arrays(tmp_path / "back"))
