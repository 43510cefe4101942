"""bertkit quantize: the same integers from both frameworks, a report that adds up, and input that cannot be quantised."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.tokenization import BertTokenizerFast
from tests.cli.common import TOKENIZER, WORDS, checkpoint, run, run_json, write
from tests.conversion import bert
from tests.fixtures.frozen import calibrated, make_config

TEXTS = ["the cat sat on the mat .", "a dog !", "the dog sat on the cat , and the cat sat on the mat ."] * 4


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(TEXTS), encoding="utf-8")
    return file


def tensors_of(directory):
    with open_checkpoint(directory) as opened:
        return {name: np.array(opened.read(name)) for name in opened.names()}


@pytest.mark.parametrize("task", ["Model", "ForMaskedLM", "ForSequenceClassification"])
def test_both_frameworks_write_the_same_integers(task, tmp_path, texts, capsys):
    for module in ("torch", "tensorflow"):
        pytest.importorskip(module)
    source = checkpoint(tmp_path / "ibert", "ibert", task)
    found = {}
    for framework in ("torch", "tf"):
        target = tmp_path / framework
        code, report = run_json(capsys, "quantize", source, target, "--calibrate", texts, "--framework", framework)
        assert code == 0 and report["bytes"] < report["float_bytes"]
        layers = report["layers"]
        assert [layer["name"] for layer in layers] == ["embeddings", "encoder.layer.0", "encoder.layer.1"]
        assert all(layer["float_to_integer"] < 0.5 and layer["cosine"] > 0.8 for layer in layers)
        assert all(layer["simulated_to_integer"] <= layer["float_to_integer"] for layer in layers)
        assert sum(layer["added"] for layer in layers) == pytest.approx(layers[-1]["float_to_integer"])
        assert report["calibration"]["tokens"] == sum(map(len, BertTokenizerFast(str(TOKENIZER))(TEXTS).input_ids))
        assert json.loads((target / "config.json").read_text())["integer_format"] == 1
        assert (target / "vocab.txt").is_file()
        found[framework] = tensors_of(target)
    for name, tensor in found["torch"].items():
        assert np.abs(tensor.astype(np.float64) - found["tf"][name]).max() <= 1e-6 * max(1.0, np.abs(tensor).max()), name
    if task == "Model":
        assert run(capsys, "predict", tmp_path / "torch", "--task", "embed", "--text", "a cat", "--framework", "tf")[0] == 0


def test_the_report_for_people(tmp_path, texts, capsys):
    pytest.importorskip("torch")
    code, out, err = run(capsys, "quantize", checkpoint(tmp_path / "ibert", "ibert"), tmp_path / "out", "--calibrate", texts,
                         "--method", "percentile", "--percentile", "90", "--framework", "torch")
    assert (code, err) == (0, "")
    for words in ("IBertModel in integers", "of the float model's", "by percentile", "most is clipped in",
                  "simulated - integer", "most is added by", "encoder.layer.1"):
        assert words in out


def test_a_bert_becomes_an_ibert_first(tmp_path, texts, capsys):
    pytest.importorskip("torch")
    source = write(tmp_path / "bert", bert.SETTINGS, bert.tensors("Model"))
    code, report = run_json(capsys, "quantize", source, tmp_path / "out", "--calibrate", texts, "--framework", "torch")
    assert code == 0 and report["architecture"].startswith("IBert")


def test_ranges_of_training_are_kept(tmp_path, capsys):
    pytest.importorskip("torch")
    config = make_config(vocab_size=WORDS, pad_token_id=0)
    trained = write(tmp_path / "ibert", {**config.to_dict(), "architectures": ["IBertModel"]}, calibrated(config))
    code, report = run_json(capsys, "quantize", trained, tmp_path / "out", "--keep-ranges", "--framework", "torch")
    assert code == 0 and report["calibration"] is None and report["layers"] == []


@pytest.mark.parametrize("failing", ["vocab.txt", "config.json", "model.safetensors"])
@pytest.mark.parametrize("before", [{}, {"model.safetensors": "weights", "vocab.txt": "words", "mine": "!"}])
def test_what_fails_leaves_what_was_there(failing, before, tmp_path, texts, capsys, monkeypatch):
    pytest.importorskip("torch")
    source, target = checkpoint(tmp_path / "ibert", "ibert"), tmp_path / "out"
    for name, text in before.items():
        target.mkdir(exist_ok=True)
        (target / name).write_text(text)
    replace = os.replace

    def fail(source, to):
        if Path(to) == target / failing and str(source).endswith(".tmp"):
            monkeypatch.undo()  # the way back is free
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, to)

    monkeypatch.setattr(os, "replace", fail)
    assert "disk is full" in refused(capsys, source, target, "--calibrate", texts, "--overwrite")
    assert {file.name: file.read_text() for file in target.iterdir()} == before if before else not target.exists()


def test_a_checkpoint_is_replaced_by_its_integers(tmp_path, texts, capsys):
    pytest.importorskip("torch")
    source = checkpoint(tmp_path / "ibert", "ibert")
    code, report = run_json(capsys, "quantize", source, source, "--calibrate", texts, "--framework", "torch", "--overwrite")
    assert code == 0 and report["bytes"] < report["float_bytes"]
    assert sorted(file.name for file in source.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    assert run_json(capsys, "inspect", source)[0] == 0
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    code, found = run_json(capsys, "inspect", source)
    assert code == 1 and not found["fits"] and "checksum" in found["damaged"][0]


# -- what cannot be quantised ------------------------------------------------------------------------------------------
def refused(capsys, *words) -> str:
    code, out, err = run(capsys, "quantize", *words, "--framework", "torch")
    assert (code, out) == (2, "")
    return err


def test_what_cannot_be_quantised(tmp_path, texts, capsys):
    pytest.importorskip("torch")
    source, target = checkpoint(tmp_path / "ibert", "ibert"), tmp_path / "out"
    empty, full = tmp_path / "empty.txt", tmp_path / "full"
    empty.write_text("\n \n")
    full.mkdir()
    (full / "mine").write_text("!")
    calibrate = ("--calibrate", texts)
    assert "no texts to calibrate on" in refused(capsys, source, target, "--calibrate", empty)
    assert "cannot read" in refused(capsys, source, target, "--calibrate", tmp_path / "none.txt")
    assert "is not empty" in refused(capsys, source, full, *calibrate)
    assert "is a file" in refused(capsys, source, full / "mine", *calibrate)
    assert "batch_size" in refused(capsys, source, target, *calibrate, "--batch-size", "0")
    assert "--texts: got -1" in refused(capsys, source, target, *calibrate, "--texts", "-1")
    assert "percentile" in refused(capsys, source, target, *calibrate, "--method", "percentile", "--percentile", "101")
    assert "no integer form" in refused(capsys, checkpoint(tmp_path / "yoso", "yoso"), target, *calibrate)
    assert not target.exists() and [file.name for file in full.iterdir()] == ["mine"]


def test_a_frozen_model_and_one_without_ranges(tmp_path, texts, capsys):
    pytest.importorskip("torch")
    source, target = checkpoint(tmp_path / "ibert", "ibert"), tmp_path / "out"
    assert run(capsys, "quantize", source, target, "--calibrate", texts, "--framework", "torch")[0] == 0
    assert "frozen" in refused(capsys, target, tmp_path / "again", "--calibrate", texts)
    settings = json.loads((source / "config.json").read_text())
    tensors = {name: tensor for name, tensor in tensors_of(source).items() if not name.endswith(("x_min", "x_max"))}
    err = refused(capsys, write(tmp_path / "empty", settings, tensors), tmp_path / "again", "--keep-ranges")
    assert "encoder.layer.0.attention.self.query_activation" in err and "calibrate()" in err
