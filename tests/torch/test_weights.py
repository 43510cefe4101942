"""Weights: names, saving, loading with every option, and files that do not fit."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import bertkit
from bertkit.core.errors import BertkitError, CheckpointError, ConfigError
from bertkit.core.variants import VARIANTS
from tests import cases
from tests.torch.common import assert_same, features, make, model_class

each_class = pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
each_head = pytest.mark.parametrize(("variant", "task"), cases.LOSSES)
each_language_model = pytest.mark.parametrize(("variant", "task"), cases.LANGUAGE_MODELS)
each_variant = pytest.mark.parametrize("variant", list(VARIANTS))


def saved(model, directory, **options):
    """The directory of a model that was saved there."""
    model.save_pretrained(directory, **options)
    return directory


def kept_names(model):
    """Names of the spec that a state dict has: all but the derived ones."""
    return {name for name, param in model.params().items() if param.kind != "derived"}


def as_pickle(model, directory, change=lambda state: state):
    """A checkpoint as `torch.save` wrote it."""
    saved(model, directory)
    (directory / "model.safetensors").unlink()
    torch.save(change(dict(model.state_dict())), directory / "pytorch_model.bin")
    return directory


@each_class
def test_state_dict_has_the_names_and_shapes_of_the_spec(variant, task):
    model = make(variant, task)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {name: param.shape for name, param in model.params().items() if name in kept_names(model)}
    assert shapes.keys() == {name for name, p in VARIANTS[variant].params(task, model.config).items() if p.kind != "derived"}
    assert model.load_state_dict(make(variant, task, seed=1).state_dict()) == ([], [])
    assert_same(model(**features(variant, task)), make(variant, task, seed=1)(**features(variant, task)), 0)


@each_class
def test_saving_and_loading_is_exact(variant, task, tmp_path):
    model = make(variant, task)
    again, info = model_class(variant, task).from_pretrained(saved(model, tmp_path / "a"), output_loading_info=True)
    assert not any(info.values()) and not again.training and again.name_or_path == str(tmp_path / "a")
    assert_same(again.state_dict(), model.state_dict(), 0)
    assert_same(again(**features(variant, task)), model(**features(variant, task)), 0)
    saved(again, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    stored = load_file(tmp_path / "a" / "model.safetensors").keys()
    assert stored == {name for name, param in model.params().items() if param.stored}
    assert json.loads((tmp_path / "a" / "config.json").read_text())["architectures"] == [type(model).__name__]


@pytest.mark.parametrize(("variant", "changes"), cases.KINDS, ids=cases.name_of)
def test_every_kind_is_saved(variant, changes, tmp_path):
    model = make(variant, **changes)
    again = model_class(variant).from_pretrained(saved(model, tmp_path))
    assert_same(again(**features(variant)), model(**features(variant)), 0)


@each_head
def test_a_base_checkpoint_in_a_task_class_and_back(variant, task, tmp_path):
    base = make(variant)
    saved(base, tmp_path / "base")
    with pytest.warns(UserWarning) as caught:
        model = model_class(variant, task).from_pretrained(tmp_path / "base", is_decoder=task == "ForCausalLM")
    assert len(caught) == 1
    prefix = VARIANTS[variant].prefix
    text = str(caught[0].message)
    fresh = set(re.search("newly initialised, train them before use: (.*)", text)[1].split(", "))
    assert fresh == {n for n, p in model.params().items() if p.stored and not n.startswith(f"{prefix}.")}
    assert ("pooler" in text) == (base.pooler is not None and model.base_model.pooler is None)
    state = base.state_dict()
    assert_same(model.base_model.state_dict(), {n: state[n] for n in model.base_model.state_dict()}, 0)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        back, info = type(base).from_pretrained(saved(model, tmp_path / "task"), output_loading_info=True)
    assert len(caught) == 1 and "left out" in str(caught[0].message)
    assert set(info["missing_keys"]) == {n for n in state if n.startswith("pooler") and model.base_model.pooler is None}
    inputs = features(variant)
    assert_same({"x": back(**inputs).last_hidden_state}, {"x": model.base_model(**inputs).last_hidden_state})


@each_variant
def test_number_of_labels_problem_type_and_other_overrides(variant, tmp_path):
    cls = model_class(variant, "ForSequenceClassification")
    saved(make(variant, "ForSequenceClassification", num_labels=2), tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)got \[2.*expected \[5.*num_labels=2"):
        cls.from_pretrained(tmp_path, num_labels=5)
    with pytest.warns(UserWarning, match="newly initialised"):
        model, info = cls.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True,
                                          problem_type="multi_label_classification", hidden_dropout_prob=0.5)
    assert model(**features(variant)).logits.shape == (cases.BATCH, 5)
    assert model.config.problem_type == "multi_label_classification" and model.config.hidden_dropout_prob == 0.5
    assert {len(model.config.id2label), model.config.num_labels} == {5}
    assert {name for name, _, _ in info["mismatched_keys"]} == {n for n in model.state_dict() if "classifier" in n
                                                                and model.state_dict()[n].shape[0] == 5}
    names = {0: "bad", 1: "good"}
    assert cls.from_pretrained(tmp_path, id2label=names).config.label2id == {"bad": 0, "good": 1}


@each_variant
def test_a_configuration_can_be_given(variant, tmp_path):
    model = make(variant)
    saved(model, tmp_path)
    config = cases.config(variant, output_hidden_states=True)
    again = model_class(variant).from_pretrained(tmp_path, config=config)
    assert again.config is config and len(again(**features(variant)).hidden_states) == 3
    changed = model_class(variant).from_pretrained(tmp_path, config=config, output_attentions=True)
    assert changed.config.output_attentions and not config.output_attentions
    assert model_class(variant).from_pretrained(tmp_path, config=tmp_path).config == model.config.from_pretrained(tmp_path)


@each_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(variant, dtype, tmp_path):
    model = make(variant, "ForMaskedLM").to(dtype)
    saved(model, tmp_path)
    cls, name = type(model), str(dtype).removeprefix("torch.")
    assert {t.dtype for n, t in load_file(tmp_path / "model.safetensors").items() if "weight" in n} == {dtype}
    assert cls.from_pretrained(tmp_path).dtype == torch.float32
    for wanted in ({"torch_dtype": "auto"}, {"dtype": "auto"}, {"torch_dtype": dtype}, {"torch_dtype": name}):
        again = cls.from_pretrained(tmp_path, **wanted)
        assert again.dtype == dtype
        assert_same(again.state_dict(), model.state_dict(), 0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("torch_dtype") == name
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cls.from_pretrained(tmp_path, torch_dtype="auto").dtype == dtype
    for wrong in ("int8", "float33"):
        with pytest.raises(BertkitError, match=f"torch_dtype: got '{wrong}'"):
            cls.from_pretrained(tmp_path, torch_dtype=wrong)


@each_language_model
def test_shards(variant, task, tmp_path):
    model = make(variant, task)
    saved(model, tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    again = type(model).from_pretrained(tmp_path)
    assert_same(again.state_dict(), model.state_dict(), 0)
    saved(model, tmp_path)  # one file again: nothing stale stays behind
    assert {f.name for f in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@each_language_model
def test_files_of_old_versions(variant, task, tmp_path):
    model = make(variant, task)

    def old(state):
        norm = re.compile(r"((?:LayerNorm|layer_norm|\.ln)\.)(weight|bias)$")
        renamed = {norm.sub(lambda m: m[1] + {"weight": "gamma", "bias": "beta"}[m[2]], n): t for n, t in state.items()}
        assert renamed.keys() != state.keys()
        prefix = VARIANTS[variant].prefix
        return {**renamed, f"{prefix}.embeddings.position_ids": torch.arange(cases.POSITIONS)[None]}

    again, info = type(model).from_pretrained(as_pickle(model, tmp_path, old), output_loading_info=True)
    assert not any(info.values())
    assert_same(again.state_dict(), model.state_dict(), 0)


@each_language_model
@pytest.mark.parametrize("copies", [True, False])
def test_pickled_files_with_and_without_tied_copies(variant, task, copies, tmp_path):
    model = make(variant, task)
    tied = {name for name, param in model.params().items() if param.tied_to}
    assert tied
    as_pickle(model, tmp_path, lambda state: {n: t.clone() for n, t in state.items() if copies or n not in tied})
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same(again.state_dict(), model.state_dict(), 0)
    words, decoder = again.get_input_embeddings().weight, again.get_output_embeddings().weight
    assert words is decoder


def test_tied_copies_that_differ_are_reported(tmp_path):
    model = make("yoso", "ForMaskedLM")
    as_pickle(model, tmp_path, lambda s: {n: t + 1 if n.endswith("decoder.weight") else t for n, t in s.items()})
    with pytest.warns(UserWarning, match=r"decoder.weight differs from yoso.embeddings.word_embeddings.weight.*up to 1"):
        again = type(model).from_pretrained(tmp_path)
    assert_same(again.state_dict(), model.state_dict(), 0)


@each_variant
def test_prefixes_of_wrappers(variant, tmp_path):
    model = make(variant, "ForTokenClassification")
    as_pickle(model, tmp_path, lambda state: {f"module.{n}": t for n, t in state.items()})
    assert_same(type(model).from_pretrained(tmp_path).state_dict(), model.state_dict(), 0)


@each_variant
def test_one_error_names_everything_that_does_not_fit(variant, tmp_path):
    model = make(variant)
    saved(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = [n for n in state if "layer.1.output.dense" in n]
    cut = "embeddings.position_embeddings.weight"
    save_file({**{n: t for n, t in state.items() if n not in lost}, cut: state[cut][:-2].clone(), "stranger": torch.ones(1)},
              tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        type(model).from_pretrained(tmp_path)
    text = str(caught.value)
    assert len(lost) >= 2 and all(f"missing: {name}" in text for name in lost)
    rows = state[cut].shape[0]
    assert "unexpected: stranger" in text and f"shape of {cut}: got [{rows - 2}, " in text and f"expected [{rows}, " in text
    assert "Likely cause: " in text


@each_variant
@pytest.mark.parametrize("other", list(VARIANTS))
def test_a_file_of_another_variant(variant, other, tmp_path):
    if variant == other:
        return
    saved(make(other, "ForMaskedLM"), tmp_path)
    with pytest.raises(ConfigError, match=f"reads model_type '{variant}', but this config.json says '{other}'"):
        model_class(variant, "ForMaskedLM").from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="Likely cause") as caught:
        model_class(variant, "ForMaskedLM").from_pretrained(tmp_path, config=cases.config(variant))
    assert VARIANTS[other].name in str(caught.value).splitlines()[-1]


@each_variant
def test_more_layers_than_the_file_has(variant, tmp_path):
    saved(make(variant), tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)missing: encoder.layer.2.*num_hidden_layers"):
        model_class(variant).from_pretrained(tmp_path, num_hidden_layers=3)


@each_variant
def test_unknown_keywords_are_refused(variant, tmp_path):
    saved(make(variant, from_elsewhere=1), tmp_path)
    with pytest.raises(BertkitError, match=r"num_lables.*num_labels"):
        model_class(variant).from_pretrained(tmp_path, num_lables=3)
    assert model_class(variant).from_pretrained(tmp_path, from_elsewhere=2).config.from_elsewhere == 2


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json"):
        bertkit.YosoModel.from_pretrained(tmp_path)
    cases.config("yoso").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no weights"):
        bertkit.YosoModel.from_pretrained(tmp_path)


@each_class
def test_auto_classes(variant, task, tmp_path):
    saved(make(variant, task), tmp_path)
    auto = getattr(bertkit, "AutoModel" + task.removeprefix("Model"))
    model, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is model_class(variant, task) and not any(info.values())
    assert type(auto.from_config(model.config)) is type(model)
    assert auto.from_pretrained(tmp_path, torch_dtype="bfloat16", output_attentions=True).config.output_attentions


@each_variant
def test_devices(variant, tmp_path):
    saved(make(variant), tmp_path)
    assert model_class(variant).from_pretrained(tmp_path, device="cpu").device.type == "cpu"
    with torch.device("meta"):
        skeleton = model_class(variant)(cases.config(variant))
    assert all(t.is_meta for t in skeleton.state_dict().values())


def test_a_changed_model_is_not_saved_in_part(tmp_path):
    model = make("yoso", "Model")
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model.mine = torch.nn.Linear(2, 2)
    model.encoder.layer[0].attention.output.dense = torch.nn.Sequential(model.encoder.layer[0].attention.output.dense)
    with pytest.raises(CheckpointError) as caught:
        model.save_pretrained(tmp_path)
    for part in ("not in the weight spec: mine.weight", "not in the model: encoder.layer.0.attention.output.dense.weight"):
        assert part in str(caught.value)
    assert (tmp_path / "model.safetensors").read_bytes() == before
