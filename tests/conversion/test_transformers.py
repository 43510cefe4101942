"""Directories that transformers loads as its own: nothing is missing in them, and nothing is left over."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.convert.original import Options, Sample
from bertkit.convert.transformers import OWN_SETTINGS, TRANSFORMERS, differences
from bertkit.core.checkpoint import open_checkpoint, write_checkpoint
from bertkit.core.variants import VARIANTS
from tests import cases
from tests.cli.common import TOKENIZER, weights
from tests.fixtures.make_state_dicts import FILE

REAL = os.environ.get("BERTKIT_TRANSFORMERS")
"""The Python of an environment with transformers 4.37.2, as in fixtures/README.md."""

STATE_DICTS = json.loads(FILE.read_text())


def checkpoint(directory, variant, task, config):
    config.architectures = [VARIANTS[variant].name + task]
    tensors = weights(variant, task, config)
    write_checkpoint(directory, tensors, extra_files={
        "config.json": config.to_json_string(), "vocab.txt": TOKENIZER.read_bytes()})
    return tensors


def tensors_of(directory):
    with open_checkpoint(directory) as opened:
        return {name: opened.read(name) for name in opened.names()}


def same(left, right):
    return set(left) == set(right) and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("entry", STATE_DICTS, ids=lambda entry: f"{entry['class']}-{cases.name_of(entry['switches'])}")
def test_every_tensor_of_transformers_classes_is_there(tmp_path, entry):
    variant, task = entry["variant"], entry["class"].removeprefix(VARIANTS[entry["variant"]].name)
    config = VARIANTS[variant].config.from_dict(entry["config"])
    tensors = checkpoint(tmp_path / "ours", variant, task, config)
    convert(tmp_path / "ours", tmp_path / "made", to="transformers")
    written = tensors_of(tmp_path / "made")
    tied = {name for name, param in VARIANTS[variant].params(task, config).items() if param.tied_to}
    assert {name: value.shape for name, value in written.items()} == {
        name: tuple(shape) for name, shape in entry["tensors"].items() if name not in tied}
    assert all(not value.any() for name, value in written.items() if name not in tensors)
    assert {value.dtype for value in written.values()} == {np.dtype(np.float32)}
    assert (tmp_path / "made" / "vocab.txt").read_bytes() == TOKENIZER.read_bytes()

    convert(tmp_path / "made", tmp_path / "back")
    assert same(tensors_of(tmp_path / "back"), tensors)


@pytest.mark.parametrize(("variant", "changes"), [
    ("ibert", {}), ("ibert", {"hf_compat_scales": True, "quant_mode": True}), ("megatron-bert", {"head_act": "relu"}),
    ("mobilebert", {"pruned_heads": {0: [1]}, "num_labels": 5}), ("yoso", {"use_expectation": False, "hash_seed": 3})])
def test_the_configuration_comes_back(tmp_path, variant, changes):
    config = cases.config(variant, **changes)
    checkpoint(tmp_path / "ours", variant, "Model", config)
    convert(tmp_path / "ours", tmp_path / "made", to="transformers")
    original = TRANSFORMERS.read(TRANSFORMERS.open(Sample(tmp_path / "made")), Options())
    original.config.torch_dtype = config.torch_dtype
    assert original.config == config and original.task == "Model"
    assert sorted(original.tokenizer_files) == ["vocab.txt"]
    written = json.loads((tmp_path / "made" / "config.json").read_text())
    assert {name for name in OWN_SETTINGS if name in written} == {name for name in OWN_SETTINGS if name in changes}


@pytest.mark.parametrize(("variant", "changes", "words"), [
    ("ibert", {"quant_mode": True}, "scale of the embeddings"), ("megatron-bert", {"head_act": "relu"}, "head_act"),
    ("mobilebert", {"normalization_type": "layer_norm"}, "layer_norm_eps"), ("mobilebert", {"hidden_act": "selu"}, "selu"),
    ("mobilebert", {"key_query_shared_bottleneck": False}, "cannot run"), ("yoso", {"conv_window": 3}, "conv_window"),
    ("yoso", {"use_expectation": False}, "hash functions"), ("yoso", {}, "padding")])
def test_what_transformers_computes_otherwise_is_said(tmp_path, variant, changes, words):
    config = cases.config(variant, **changes)
    checkpoint(tmp_path / "ours", variant, "Model", config)
    report = convert(tmp_path / "ours", tmp_path / "made", to="transformers")
    assert any(words in note for note in report.notes)


@pytest.mark.parametrize(("variant", "changes"), [
    ("ibert", {}), ("ibert", {"quant_mode": True, "hf_compat_scales": True}), ("megatron-bert", {}), ("mobilebert", {}),
    ("megatron-bert", {"head_act": "gelu", "hidden_act": "gelu"}),
    ("mobilebert", {"normalization_type": "layer_norm", "layer_norm_eps": 1e-5})])
def test_nothing_is_said_where_transformers_computes_the_same(variant, changes):
    assert differences(cases.config(variant, **changes)) == []


def test_a_directory_of_transformers_may_be_written_anew(tmp_path):
    checkpoint(tmp_path / "ours", "yoso", "Model", cases.config("yoso"))
    for _ in range(2):
        convert(tmp_path / "ours", tmp_path / "made", to="transformers", overwrite=True)
    assert TRANSFORMERS.recognise(Sample(tmp_path / "made"))


LOADS = """
import json, sys
import torch, transformers
report = {}
for name, directory in json.load(open(sys.argv[1])).items():
    model, info = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    ids = torch.arange(3, 15).reshape(2, 6)
    ids = ids[:, None].repeat(1, 2, 1) if name.endswith("MultipleChoice") else ids
    with torch.no_grad():
        outputs = model.eval()(ids)
    report[name] = [*map(str, info["missing_keys"] + info["unexpected_keys"])], outputs[0].tolist()
json.dump(report, open(sys.argv[2], "w"))
"""


@pytest.mark.skipif(not REAL, reason="BERTKIT_TRANSFORMERS names no Python with transformers 4.37.2")
def test_transformers_loads_all_classes_and_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    import bertkit

    directories = {}
    for variant, task in cases.CLASSES:
        name = VARIANTS[variant].name + task
        config = cases.config(variant, task, **({"num_labels": 2} if task == "ForQuestionAnswering" else {}))
        checkpoint(tmp_path / "ours" / name, variant, task, config)
        convert(tmp_path / "ours" / name, tmp_path / "made" / name, to="transformers")
        directories[name] = str(tmp_path / "made" / name)
    (tmp_path / "directories.json").write_text(json.dumps(directories))
    subprocess.run([str(REAL), "-W", "ignore", "-c", LOADS, str(tmp_path / "directories.json"), str(tmp_path / "report.json")],
                   check=True, capture_output=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == set(directories) and len(report) == 29
    for name, (strange, outputs) in report.items():
        assert strange == [], name
        ids = torch.arange(3, 15).reshape(2, 6)
        ids = ids[:, None].repeat(1, 2, 1) if name.endswith("MultipleChoice") else ids
        model = getattr(bertkit, name).from_pretrained(tmp_path / "ours" / name).eval()
        with torch.no_grad():
            ours = model(ids).to_tuple()[0]
        assert np.allclose(ours, outputs, rtol=1e-5, atol=1e-5), name
