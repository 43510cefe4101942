"""bertkit inspect: every tensor by its place in the spec."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests import cases
from tests.cli.common import WORDS, checkpoint, run, run_json, weights, write


@pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
def test_every_class_fits_itself(variant, task, tmp_path, capsys):
    code, found = run_json(capsys, "inspect", checkpoint(tmp_path, variant, task))
    assert code == 0 and found["fits"] and found["task"] == task
    assert {tensor["status"] for tensor in found["tensors"]} == {"ok"}
    assert found["tokenizer_files"] == ["vocab.txt"]


def test_what_does_not_fit_is_1(tmp_path, capsys):
    config = cases.config("mobilebert", vocab_size=WORDS)
    tensors = weights("mobilebert", "Model", config)
    del tensors["pooler.dense.bias"], tensors["encoder.layer.1.ffn.0.output.dense.weight"]
    tensors["embeddings.position_embeddings.weight"] = np.zeros((7, 20), np.float32)
    tensors["embeddings.position_ids"] = np.arange(7)
    tensors["surplus"] = np.zeros(3, np.float32)
    write(tmp_path, {**config.to_dict(), "architectures": ["MobileBertModel"]}, tensors)
    code, found = run_json(capsys, "inspect", tmp_path)
    assert code == 1 and not found["fits"]
    assert found["missing"] == ["encoder.layer.1.ffn.0.output.dense.weight", "pooler.dense.bias"]
    assert found["mismatched"] == [["embeddings.position_embeddings.weight", [7, 20], [24, 20]]]
    status = {tensor["name"]: tensor["status"] for tensor in found["tensors"]}
    assert status["surplus"] == "unexpected" and status["embeddings.position_ids"] == "not used"
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert code == 1 and "does NOT fit" in out and "got [7, 20], expected [24, 20]" in out


def test_task_from_the_tensors_where_config_is_silent(tmp_path, capsys):
    directory = checkpoint(tmp_path, "megatron-bert", "ForPreTraining")
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "architectures"}))
    assert run_json(capsys, "inspect", directory)[1]["task"] == "ForPreTraining"
    assert run_json(capsys, "inspect", directory, "--task", "MegatronBertForMaskedLM")[0] == 0
    code, _, err = run(capsys, "inspect", directory, "--task", "ForFun")
    assert code == 2 and "ForFun" in err and "ForMaskedLM" in err
