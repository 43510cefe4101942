"""transformers' tf_model.h5: the file is written here as it writes it, and read back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.convert.keras_h5 import torch_name
from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.errors import CheckpointError
from tests import cases
from tests.cli.common import weights
from tests.conversion import bert

h5py = pytest.importorskip("h5py")

HEADS = {"cls.predictions": "predictions___cls", "cls.seq_relationship": "seq_relationship___cls"}
KERAS_NORMS = ("transform.LayerNorm",)
OWN_MATRICES = ("word_embeddings.weight", "decoder.weight", "predictions.dense.weight", "LayerNorm.weight")


def keras_path(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Where transformers puts a tensor: its own layers call a weight `weight`, Keras's `kernel`, `embeddings` or `gamma`."""
    owner, _, leaf = name.rpartition(".")
    if owner.endswith(KERAS_NORMS):
        leaf = {"weight": "gamma", "bias": "beta"}[leaf]
    elif leaf == "weight" and name.endswith(("position_embeddings.weight", "token_type_embeddings.weight")):
        leaf = "embeddings"
    elif leaf == "weight" and value.ndim == 2 and not name.endswith(OWN_MATRICES):
        leaf, value = "kernel", value.T
    head = next((new for old, new in HEADS.items() if owner.startswith(old)), None)
    path = owner.replace("encoder.layer.", "encoder.layer_._").replace("ffn.", "ffn@")
    path = path.replace("cls", head, 1) if head else path
    path = path.replace(".", "/").replace("layer_/_", "layer_._").replace("@", ".")
    return f"{path.split('/')[0]}/tf_model/{path}/{leaf}:0", value


def write_h5(directory, tensors, settings):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(settings))
    with h5py.File(directory / "tf_model.h5", "w") as file:
        for name, value in tensors.items():
            path, value = keras_path(name, value)
            file[path] = value
            assert torch_name(path) == name
    return directory


def test_mobilebert(tmp_path):
    config = cases.config("mobilebert")
    tensors = weights("mobilebert", "ForPreTraining", config)
    settings = {**config.to_dict(), "architectures": ["TFMobileBertForPreTraining"]}
    report = convert(write_h5(tmp_path / "source", tensors, settings), tmp_path / "target")
    assert report.architecture == "MobileBertForPreTraining" and not (report.missing or report.left_out)
    with open_checkpoint(tmp_path / "target") as made:
        assert set(made.names()) == set(tensors)
        assert all(np.array_equal(made.read(name), value) for name, value in tensors.items())


def test_bert_as_ibert(tmp_path):
    tensors = {name: value for name, value in bert.tensors("ForMaskedLM").items() if "position_ids" not in name}
    directory = write_h5(tmp_path / "source", tensors, {**bert.SETTINGS, "architectures": ["BertForMaskedLM"]})
    assert convert(directory, tmp_path / "target", to="ibert").architecture == "IBertForMaskedLM"
    with open_checkpoint(tmp_path / "target") as made:
        query = "bert.encoder.layer.0.attention.self.query.weight"
        assert np.array_equal(made.read(query.replace("bert.", "ibert.", 1)), tensors[query])


def test_another_h5_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps({"model_type": "mobilebert"}))
    with h5py.File(tmp_path / "source" / "tf_model.h5", "w") as file:
        file["layers/dense/vars/0"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=r"layers/dense/vars/0[\s\S]*tf_model\.h5"):
        convert(tmp_path / "source", tmp_path / "target")
