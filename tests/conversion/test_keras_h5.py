"""transformers' tf_model.h5: the file is written here as it writes it, and read back; and bertkit writes the same."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest

from bertkit.convert import convert, keras_h5
from bertkit.convert.keras_h5 import torch_name
from bertkit.convert.original import Options, Sample
from bertkit.convert.transformers import TRANSFORMERS_TF
from bertkit.core.checkpoint import open_checkpoint, write_checkpoint
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.mobilebert import MOBILEBERT
from tests import cases
from tests.cli.common import weights
from tests.conversion import bert

h5py = pytest.importorskip("h5py")

HEADS = {"cls.predictions": "predictions___cls", "cls.seq_relationship": "seq_relationship___cls"}
KERAS_NORMS = ("transform.LayerNorm",)
OWN_MATRICES = ("word_embeddings.weight", "decoder.weight", "predictions.dense.weight", "LayerNorm.weight")
WORDS, DECODER = "mobilebert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
TASKS = list(MOBILEBERT.tasks)
TRANSFORMERS = os.environ.get("BERTKIT_TRANSFORMERS_TF")
"""The Python of an environment with transformers 4.57.6 and tf-keras, as in fixtures/README.md."""


def keras_path(name: str, value: np.ndarray, norms: tuple[str, ...] = KERAS_NORMS) -> tuple[str, np.ndarray]:
    """Where transformers puts a tensor: its own layers call a weight `weight`, Keras's `kernel`, `embeddings` or `gamma`."""
    owner, _, leaf = name.rpartition(".")
    if owner.endswith(norms):
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
    norms = ("LayerNorm",) if settings.get("normalization_type") == "layer_norm" else KERAS_NORMS
    with h5py.File(directory / "tf_model.h5", "w") as file:
        for name, value in tensors.items():
            path, value = keras_path(name, value, norms)
            file[path] = value
            assert torch_name(path) == name
    return directory


def checkpoint(directory, task, **changes):
    """A directory of bertkit's own, and its tensors."""
    config = cases.config("mobilebert", task, architectures=[f"MobileBert{task}"], **changes)
    tensors = weights("mobilebert", task, config)
    write_checkpoint(directory, tensors, extra_files={"config.json": config.to_json_string()})
    return config, tensors


def contents(file):
    found = {}
    with h5py.File(file, "r") as opened:
        opened.visititems(lambda path, item: found.update({path: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def read(directory, **options):
    return TRANSFORMERS_TF.read(TRANSFORMERS_TF.open(Sample(directory)), Options(**options))


def language_model(directory, shift=0.0, **changes):
    """A masked language model of TensorFlow, whose decoder lies off the word embeddings."""
    config = cases.config("mobilebert", "ForMaskedLM", **changes)
    tensors = weights("mobilebert", "ForMaskedLM", config)
    tensors[DECODER] = tensors[WORDS] + np.float32(shift)
    return tensors, write_h5(directory, tensors, {**config.to_dict(), "architectures": ["MobileBertForMaskedLM"]})


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


# -- the decoder --------------------------------------------------------------------------------------------------------
def test_a_decoder_that_is_the_word_embeddings_is_no_news(tmp_path):
    _, directory = language_model(tmp_path / "source")
    original = read(directory)
    assert original.config.tie_word_embeddings and not original.notes and DECODER not in original.translation.tensors


@pytest.mark.parametrize(("decoder", "tied"), [(None, True), ("tied", True), ("own", False)])
def test_a_decoder_of_its_own_is_a_choice(tmp_path, decoder, tied):
    tensors, directory = language_model(tmp_path / "source", 0.5)
    report = convert(directory, tmp_path / "target", decoder=decoder)
    assert "differs from the word embeddings by up to 0.5" in report.notes[0]
    with open_checkpoint(tmp_path / "target") as made:
        assert (DECODER not in made.names()) == tied
        assert np.array_equal(made.read(WORDS), tensors[WORDS])
        assert tied or np.array_equal(made.read(DECODER), tensors[DECODER])
    assert json.loads((tmp_path / "target" / "config.json").read_text()).get("tie_word_embeddings", True) == tied


def test_an_untied_configuration_keeps_its_decoder(tmp_path):
    _, directory = language_model(tmp_path / "source", 0.5, tie_word_embeddings=False)
    assert DECODER in read(directory).translation.tensors and not read(directory).notes
    assert DECODER not in read(directory, decoder="tied").translation.tensors


def test_no_other_choice(tmp_path):
    _, directory = language_model(tmp_path / "source")
    with pytest.raises(ConfigError, match="decoder: got 'both'"):
        read(directory, decoder="both")


# -- writing ------------------------------------------------------------------------------------------------------------
SHAPES = [{}, {"normalization_type": "layer_norm", "classifier_activation": False}, {"use_bottleneck": False},
          {"embedding_size": 20, "trigram_input": False}]


@pytest.mark.parametrize("changes", SHAPES, ids=cases.name_of)
@pytest.mark.parametrize("task", TASKS)
def test_what_is_written_is_what_transformers_writes(tmp_path, task, changes):
    config, tensors = checkpoint(tmp_path / "ours", task, **changes)
    convert(tmp_path / "ours", tmp_path / "made", to="transformers-tf")
    prefix = "mobilebert." if task == "Model" else ""
    named = {prefix + name: value for name, value in tensors.items()}
    if "cls.predictions.bias" in named:
        named[DECODER] = named[WORDS]
    expected = contents(write_h5(tmp_path / "theirs", named, config.to_dict()) / "tf_model.h5")
    model = {"Model": "model", "ForPreTraining": "for_pre_training", "ForMaskedLM": "for_masked_lm",
             "ForNextSentencePrediction": "for_next_sentence_prediction", "ForMultipleChoice": "for_multiple_choice",
             "ForSequenceClassification": "for_sequence_classification", "ForTokenClassification": "for_token_classification",
             "ForQuestionAnswering": "for_question_answering"}[task]
    expected = {path.replace("tf_model/", f"tf_mobile_bert_{model}/", 1): value for path, value in expected.items()}
    found = contents(tmp_path / "made" / "tf_model.h5")
    assert set(found) == set(expected) and all(np.array_equal(found[path], expected[path]) for path in found)
    with h5py.File(tmp_path / "made" / "tf_model.h5") as file:
        layers = list(file.attrs["layer_names"])
        assert {f"{layer}/{name}" for layer in layers for name in file[layer].attrs["weight_names"]} == set(found)

    convert(tmp_path / "made", tmp_path / "back")
    with open_checkpoint(tmp_path / "back") as back:
        assert set(back.names()) == set(tensors)
        assert all(np.array_equal(back.read(name), value) for name, value in tensors.items())
    written = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "back")]
    assert written[0] == {**written[1], "torch_dtype": None} or written[0] == {
        key: value for key, value in written[1].items() if key != "torch_dtype"}


def test_bottlenecks_that_nothing_reads_are_made_and_read_past(tmp_path):
    config, tensors = checkpoint(tmp_path / "ours", "ForMaskedLM", use_bottleneck_attention=True)
    convert(tmp_path / "ours", tmp_path / "made", to="transformers-tf")
    unused = {name for name, param in MOBILEBERT.params("ForMaskedLM", config).items() if param.kind == "derived"}
    written = {torch_name(path): value for path, value in contents(tmp_path / "made" / "tf_model.h5").items()}
    assert len(unused) == 8 and unused <= written.keys() and not any(written[name].any() for name in unused)
    original = read(tmp_path / "made")
    assert len(original.translation.left_out) == 9 and set(original.translation.tensors) == set(tensors)


@pytest.mark.parametrize(("changes", "problem"), [({"pruned_heads": {0: [1]}}, "pruned_heads"),
                                                  ({"hidden_act": "relu6"}, "relu6")])
def test_what_tensorflows_class_cannot_be(tmp_path, changes, problem):
    checkpoint(tmp_path / "ours", "Model", **changes)
    with pytest.raises(ConfigError, match=problem):
        convert(tmp_path / "ours", tmp_path / "made", to="transformers-tf")
    assert not (tmp_path / "made").exists()


def test_numbers_that_hdf5_has_not(tmp_path):
    checkpoint(tmp_path / "ours", "Model")
    convert(tmp_path / "ours", tmp_path / "half", dtype="bfloat16")
    with pytest.raises(CheckpointError, match="--dtype float32"):
        convert(tmp_path / "half", tmp_path / "made", to="transformers-tf")
    convert(tmp_path / "half", tmp_path / "made", to="transformers-tf", dtype="float16")
    assert {value.dtype.name for value in contents(tmp_path / "made" / "tf_model.h5").values()} == {"float16"}


def test_other_variants_are_refused(tmp_path):
    config = cases.config("yoso")
    write_checkpoint(tmp_path / "ours", weights("yoso", "Model", config), extra_files={"config.json": config.to_json_string()})
    with pytest.raises(ConfigError, match="not yoso"):
        convert(tmp_path / "ours", tmp_path / "made", to="transformers-tf")


def test_many_names_are_divided_as_keras_divides_them(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_h5, "MOST_NAMES", 10)
    _, tensors = checkpoint(tmp_path / "ours", "Model")
    convert(tmp_path / "ours", tmp_path / "made", to="transformers-tf")
    with h5py.File(tmp_path / "made" / "tf_model.h5") as file:
        attributes = file["mobilebert"].attrs
        assert "weight_names" not in attributes
        assert sum(len(attributes[f"weight_names{index}"]) for index in range(len(attributes))) == len(tensors)


# -- bad input ----------------------------------------------------------------------------------------------------------
def test_an_unknown_weight_is_named(tmp_path):
    _, directory = language_model(tmp_path / "source")
    with h5py.File(directory / "tf_model.h5", "a") as file:
        file["mobilebert/tf_model/mobilebert/adapter/kernel:0"] = np.zeros((2, 2), np.float32)
    with pytest.raises(CheckpointError, match="unknown: mobilebert/tf_model/mobilebert/adapter/kernel:0"):
        read(directory)


def test_one_weight_twice(tmp_path):
    _, directory = language_model(tmp_path / "source")
    with h5py.File(directory / "tf_model.h5", "a") as file:
        file["predictions___cls/tf_model_1/predictions___cls/predictions/bias:0"] = np.zeros(2, np.float32)
    with pytest.raises(CheckpointError, match=r"is cls\.predictions\.bias, and so is"):
        read(directory)


def test_numbers_outside_of_the_file(tmp_path):
    _, directory = language_model(tmp_path / "source")
    path = "qa_outputs/tf_model/qa_outputs/bias:0"
    with h5py.File(directory / "tf_model.h5", "a") as file:
        file.create_dataset(path, (2,), np.float32, external=[(str(tmp_path / "secret"), 0, 8)])
    with pytest.raises(CheckpointError, match="has its numbers in other files"):
        read(directory)


def test_a_tensor_of_more_numbers_than_the_file_can_hold(tmp_path):
    _, directory = language_model(tmp_path / "source")
    with h5py.File(directory / "tf_model.h5", "a") as file:
        file.create_dataset("qa_outputs/tf_model/qa_outputs/bias:0", (10**12,), np.float32, chunks=(1000,))
    with pytest.raises(CheckpointError, match="claims 4,000,000,000,000 bytes"):
        read(directory)


def test_damaged_files_give_one_kind_of_error(tmp_path):
    _, directory = language_model(tmp_path / "source")
    whole = (directory / "tf_model.h5").read_bytes()
    settings = (directory / "config.json").read_text()
    random, refused = np.random.default_rng(0), 0
    for case in range(60):
        content = bytearray(whole[:random.integers(len(whole))] if case % 3 == 0 else whole)
        for _ in range(0 if case % 3 == 0 else 30):
            content[random.integers(len(content))] = random.integers(256)
        damaged = tmp_path / str(case)  # a file of its own: HDF5 remembers those that it has open
        damaged.mkdir()
        (damaged / "tf_model.h5").write_bytes(content)
        (damaged / "config.json").write_text(settings)
        try:
            for tensor in read(damaged).translation.tensors.values():
                tensor()
        except CheckpointError:
            refused += 1
    assert refused > 30


# -- against the real one -------------------------------------------------------------------------------------------------
LOADS = """
import json, sys
import transformers
model, info = getattr(transformers, "TFMobileBert" + sys.argv[1]).from_pretrained(sys.argv[2], output_loading_info=True)
if len(sys.argv) > 3:
    model.save_pretrained(sys.argv[3])
print(json.dumps([*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])]))
"""


@pytest.mark.skipif(not TRANSFORMERS, reason="BERTKIT_TRANSFORMERS_TF names no Python with transformers 4.57.6")
@pytest.mark.parametrize(("task", "changes"), [("ForPreTraining", {}), ("ForMaskedLM", {"use_bottleneck_attention": True}),
                                               ("ForMaskedLM", SHAPES[1]), ("ForSequenceClassification", SHAPES[2])])
def test_transformers_loads_it_and_writes_it_again(tmp_path, task, changes):
    checkpoint(tmp_path / "ours", task, **changes)
    convert(tmp_path / "ours", tmp_path / "made", to="transformers-tf")
    done = subprocess.run([str(TRANSFORMERS), "-c", LOADS, task, str(tmp_path / "made"), str(tmp_path / "again")],
                          capture_output=True, text=True, env={**os.environ, "TF_USE_LEGACY_KERAS": "1"}, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    written, again = (contents(tmp_path / name / "tf_model.h5") for name in ("made", "again"))
    assert set(written) == set(again) and all(np.array_equal(written[path], again[path]) for path in written)
    report = convert(tmp_path / "again", tmp_path / "back")
    assert report.architecture == f"MobileBert{task}"
    ours, back = (tmp_path / name / "model.safetensors" for name in ("ours", "back"))
    assert ours.read_bytes() == back.read_bytes()
