"""BERT of Megatron-LM: every layout and division against originals made rank by rank; there and back; and all that is wrong.

With `BERTKIT_TRANSFORMERS`, an interpreter that has transformers 4.37.2 and torch, its script is run beside ours.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import subprocess
import zipfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.convert.formats import find_format
from bertkit.convert.megatron import MEGATRON_LM, NGC_MEGATRON
from bertkit.convert.original import Options, Original, Sample
from bertkit.convert.rules import Translation
from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.errors import BertkitError, CheckpointError, ConfigError
from bertkit.core.megatron_bert import MegatronBertConfig
from bertkit.core.tensors import LazyTensor, lazy, stored
from tests import cases
from tests.cli.common import TOKENIZER, WORDS, checkpoint, run

torch = pytest.importorskip("torch")
from tests.conversion.originals import megatron as originals  # noqa: E402
from tests.conversion.originals.megatron import Recipe  # noqa: E402

HEADS = {"num_attention_heads": 8}
FILE = "release/mp_rank_00/model_optim_rng.pt"


def read(path: Path, **options: Any) -> Original:
    format = find_format(path)
    return format.read(format.open(Sample(path)), Options(**options))


def bits(tensor: Any) -> np.ndarray:
    values = tensor.contiguous().view(torch.uint8).numpy() if isinstance(tensor, torch.Tensor) else stored(tensor())[0]
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def same(found: dict[str, LazyTensor], expected: dict[str, torch.Tensor], made: Any = ()) -> bool:
    assert found.keys() - {*made} == expected.keys()
    return all(found[name].shape == tuple(value.shape) and np.array_equal(bits(found[name]), bits(value))
               for name, value in expected.items())


def written(tmp_path: Path, **recipe: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    chosen = Recipe(**recipe)
    whole = originals.weights(chosen)
    return originals.write(tmp_path / "original", whole, chosen), whole


def emit(directory: Path, original: Original, **options: Any) -> Path:
    """Our writer, without the rest of `convert`."""
    ready = replace(original, translation=Translation(dict(original.translation.tensors)), notes=[])
    for name, content in MEGATRON_LM.write(ready, Options(**options)).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        with (directory / name).open("wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file, lambda count: None)
    return directory


# -- reading ------------------------------------------------------------------------------------------------------------
DIVISIONS = [(1, 1, 1), (2, 1, 1), (8, 4, 1), (1, 2, 2), (4, 2, 2)]


@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("division", DIVISIONS, ids=lambda division: "x".join(map(str, division)))
def test_every_division_gives_the_same_tensors(tmp_path, version, division):
    tensor, pipeline, virtual = division
    path, whole = written(tmp_path, version=version, names=1 + (version > 1), tensor=tensor, pipeline=pipeline, virtual=virtual)
    original = read(path)
    assert same(original.translation.tensors, whole) and original.task == "ForPreTraining"
    assert f"checkpoint version {version}" in original.format


@pytest.mark.parametrize("recipe", [
    {"names": 3, "wrapped": True}, {"names": 3, "tensor": 2, "pipeline": 2}, {"shuffled": True}, {"legacy": True, "version": 0},
    {"dtype": "bfloat16", "tensor": 2}, {"dtype": "float32", "shuffled": True, "version": 1}, {"enums": True},
    {"args": None, "hidden": 128, "heads": 2}, {"iteration": 1000, "version": 2, "names": 1},
], ids=str)
def test_generations_and_forms(tmp_path, recipe):
    recipe = {**recipe, "dtype": getattr(torch, recipe.get("dtype", "float16"))}
    path, whole = written(tmp_path, **recipe)
    assert same(read(path).translation.tensors, whole)


def test_baggage_is_left_out_by_name(tmp_path):
    path, _ = written(tmp_path, tensor=2)
    (path / "release" / "mp_rank_00" / "distrib_optim.pt").write_bytes(b"never read")
    left_out = read(path).translation.left_out
    assert left_out == {
        "optimizer": "optimizer state", "lr_scheduler": "state of the learning rate", "random_rng_state": "random state",
        "np_rng_state": "random state", "torch_rng_state": "random state", "cuda_rng_state": "random state",
        "rng_tracker_states": "random state", "release/mp_rank_00/distrib_optim.pt": "optimizer state"}


def change(file: Path, edit: Any) -> None:
    tree = torch.load(file, weights_only=False)
    edit(tree)
    torch.save(tree, file)


def test_extra_states_and_strange_keys_are_left_out(tmp_path):
    path, whole = written(tmp_path)

    def edit(tree):
        tree["model"]["language_model"]["encoder"]["layers.0.mlp._extra_state"] = None
        tree["mine"] = [1]

    change(path / FILE, edit)
    original = read(path)
    assert same(original.translation.tensors, whole)
    left_out = original.translation.left_out
    assert left_out["mine"] == "not a part of the model"
    assert left_out["language_model.encoder.layers.0.mlp._extra_state"] == "state of Transformer Engine"


@pytest.mark.parametrize("take", [lambda d: d, lambda d: d / "release", lambda d: d / "release" / "mp_rank_00",
                                  lambda d: d / FILE, lambda d: shutil.copy(d / FILE, d / "release" / "megatron.pt")],
                         ids=["run", "iteration", "rank", "file", "renamed file"])
def test_what_may_be_given(tmp_path, take):
    path, whole = written(tmp_path)
    given = Path(take(path))
    if given.name == "megatron.pt":
        given = Path(shutil.move(given, tmp_path / "megatron.pt"))
    assert same(read(given).translation.tensors, whole)


@pytest.mark.parametrize(("top", "deflate", "legacy"), [*product(["", "megatron_bert/"], [False, True], [False, True])])
def test_the_zip_as_it_is(tmp_path, top, deflate, legacy):
    path, whole = written(tmp_path, version=0, names=1, args=None, legacy=legacy)
    archive = originals.zipped(tmp_path / "m_cased.zip", path, top=top, deflate=deflate)
    assert find_format(archive) is NGC_MEGATRON
    assert same(read(archive, config=HEADS).translation.tensors, whole)


def test_the_tracker_chooses(tmp_path):
    path, whole = written(tmp_path, iteration=20)
    originals.write(path, originals.weights(Recipe(), seed=1), Recipe(iteration=3))
    tracker = path / "latest_checkpointed_iteration.txt"
    tracker.write_text("20\n")
    assert same(read(path).translation.tensors, whole)
    for text, problem in (("twenty", "says 'twenty'"), ("4", "2 checkpoints")):
        tracker.write_text(text)
        refused(path, problem)
    tracker.unlink()
    refused(path, "2 checkpoints", "iter_0000003: 1 file(s)", error=CheckpointError)


# -- tasks --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("recipe", "task"), [
    ({}, "ForPreTraining"), ({"binary_head": False}, "ForMaskedLM"), ({"language_model_head": False}, "Model"),
    ({"classification_head": 3}, "ForSequenceClassification"), ({"multichoice_head": True}, "ForMultipleChoice"),
], ids=str)
def test_tasks(tmp_path, recipe, task):
    path, whole = written(tmp_path, **recipe)
    report = convert(path, tmp_path / "made")
    assert report.architecture == f"MegatronBert{task}" and not report.missing
    with open_checkpoint(tmp_path / "made") as made:
        prefix = "bert." if task == "Model" else ""
        assert same({prefix + name: made.lazy(name) for name in made.names()}, whole, report.made)
        if not recipe.get("binary_head", True):
            assert not np.any(made.read("bert.embeddings.token_type_embeddings.weight"))
            assert "zeros" in report.made["bert.embeddings.token_type_embeddings.weight"]
    assert json.loads((tmp_path / "made" / "config.json").read_text()).get("num_labels", 2) == 2


def test_a_gpt_is_no_bert(tmp_path):
    path, _ = written(tmp_path, language_model_head=False, binary_head=False)
    with pytest.raises(CheckpointError, match="may be a GPT"):
        read(path)
    assert read(path, task="Model").task == "Model"


# -- the configuration --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("args", "expected"), [
    ({}, {"hidden_act": "gelu_new", "head_act": "gelu", "layer_norm_eps": 1e-5}),
    ({"bias_gelu_fusion": False}, {"hidden_act": "gelu", "head_act": None}),
    ({"bias_gelu_fusion": False, "onnx_safe": True}, {"hidden_act": "gelu", "head_act": None}),
    ({"bias_gelu_fusion": False, "openai_gelu": True}, {"hidden_act": "gelu_new", "head_act": None}),
    ({"layernorm_epsilon": 1e-6, "hidden_dropout": 0.0, "attention_dropout": 0.2, "init_method_std": 0.01},
     {"layer_norm_eps": 1e-6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.2, "initializer_range": 0.01}),
], ids=str)
def test_the_arguments_decide(tmp_path, args, expected):
    path, _ = written(tmp_path, args=args)
    config = read(path).config
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.num_attention_heads, config.intermediate_size, config.num_hidden_layers) == (8, 128, 4)


def test_without_arguments_the_shapes_decide(tmp_path):
    path, _ = written(tmp_path, version=0, names=1, args=None, hidden=128, inner=96)
    original = read(path)
    assert original.config == MegatronBertConfig(
        vocab_size=128, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=16, layer_norm_eps=1e-5, hidden_act="gelu")
    assert any("2 of size 64" in note for note in original.notes)
    assert read(path, config=HEADS).config.num_attention_heads == 8
    assert read(path, config={"layernorm_epsilon": 1e-6, "pad_token_id": 3}).config.pad_token_id == 3


def test_as_transformers_would_have_it(tmp_path):
    config = read(written(tmp_path)[0], hf_compat=True).config
    assert (config.layer_norm_eps, config.hidden_act, config.head_act) == (1e-12, "gelu", None)
    assert config.tokenizer_type == "BertWordPieceLowerCase"


def test_the_vocabulary_is_kept_or_cut(tmp_path):
    path, whole = written(tmp_path)
    assert read(path).config.vocab_size == 128
    cut = read(path, vocab_size=100)
    assert cut.config.vocab_size == 100 and "cut from 128 to 100" in cut.notes[0]
    names = {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}
    assert same(cut.translation.tensors, {name: value[:100] if name in names else value for name, value in whole.items()})
    with pytest.raises(CheckpointError, match="vocab_size: got 129, expected a number up to the 128 rows"):
        read(path, vocab_size=129)


@pytest.mark.parametrize(("args", "name", "lower"), [
    ({}, "vocab.txt", True), ({"tokenizer_type": "BertWordPieceCase"}, "vocab.txt", False),
    (None, "bert-large-cased-vocab.txt", False), (None, "bert-large-uncased-vocab.txt", True),
], ids=str)
def test_a_vocabulary_beside(tmp_path, args, name, lower):
    path, _ = written(tmp_path, vocabulary=1024, args=args)
    shutil.copy(TOKENIZER, path / name)
    report = convert(path, tmp_path / "made", config=HEADS)
    settings = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())
    assert settings == {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "model_max_length": 16}
    assert any(f"--vocab-size {WORDS}" in note for note in report.notes)
    convert(path, tmp_path / "cut", config=HEADS, vocab_size=WORDS)
    from bertkit.core.tokenization import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "cut").vocab_size == WORDS


# -- what the model computes --------------------------------------------------------------------------------------------
def megatron_forward(
    tree: dict[str, Any], args: Any, version: int, ids: torch.Tensor, types: torch.Tensor
) -> list[torch.Tensor]:
    """Megatron-LM's own arithmetic, on one file as it lies there: scores of the tokens and of the order of sentences."""
    functional = torch.nn.functional
    language_model, head = tree["language_model"], tree["lm_head"]
    body = {name: value.double() for name, value in language_model["encoder"].items()}
    table = {name: value["weight"].double() for name, value in language_model["embedding"].items()}
    size, heads = args.hidden_size, args.num_attention_heads

    def linear(x, of, name):
        return functional.linear(x, of[f"{name}.weight"].double(), of[f"{name}.bias"].double())

    def norm(x, of, name):
        return functional.layer_norm(x, (size,), of[f"{name}.weight"].double(), of[f"{name}.bias"].double(),
                                     args.layernorm_epsilon)

    x = table["word_embeddings"][ids] + table["position_embeddings"][: ids.shape[1]] + table["tokentype_embeddings"][types]
    for number in range(args.num_layers):
        at = f"layers.{number}"
        mixed = linear(norm(x, body, f"{at}.input_layernorm"), body, f"{at}.self_attention.query_key_value")
        lead = mixed.shape[:-1]
        if version == 0:
            parts = [part.reshape(*lead, heads, -1) for part in mixed.chunk(3, -1)]
        elif version == 1:
            parts = mixed.reshape(*lead, heads, -1, 3).unbind(-1)
        else:
            parts = mixed.reshape(*lead, heads, -1).chunk(3, -1)
        query, key, value = (part.transpose(1, 2) for part in parts)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        context = (scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape)
        x = x + linear(context, body, f"{at}.self_attention.dense")
        inner = linear(norm(x, body, f"{at}.post_attention_layernorm"), body, f"{at}.mlp.dense_h_to_4h")
        inner = functional.gelu(inner, approximate="tanh" if args.bias_gelu_fusion else "none")
        x = x + linear(inner, body, f"{at}.mlp.dense_4h_to_h")
    x = norm(x, body, "final_layernorm")
    pooled = torch.tanh(linear(x[:, 0], language_model["pooler"], "dense"))
    words = norm(functional.gelu(linear(x, head, "dense")), head, "layernorm") @ table["word_embeddings"].T
    return [words + head["bias"].double(),
            functional.linear(pooled, *(tree["binary_head"][leaf].double() for leaf in ("weight", "bias")))]


@pytest.mark.parametrize(("version", "fusion"), [(0, True), (1, False), (2, True), (3, False)])
def test_the_result_computes_what_megatron_computes(tmp_path, version, fusion):
    from bertkit import MegatronBertForPreTraining

    recipe = Recipe(version=version, dtype=torch.float32, args={"bias_gelu_fusion": fusion})
    whole = {name: value * 8 for name, value in originals.weights(recipe).items()}
    path = originals.write(tmp_path / "original", whole, recipe)
    convert(path, tmp_path / "made")
    model = MegatronBertForPreTraining.from_pretrained(tmp_path / "made").double().eval()
    tree = torch.load(path / FILE, weights_only=False)
    ids, types = torch.arange(24).reshape(2, 12) * 5, torch.arange(24).reshape(2, 12) % 2
    expected = megatron_forward(tree["model"], tree["args"], version, ids, types)
    with torch.no_grad():
        made = model(ids, token_type_ids=types)
    for found, right in zip((made.prediction_logits, made.seq_relationship_logits), expected, strict=True):
        assert torch.allclose(found, right, rtol=1e-6, atol=1e-6) and right.std() > 0.1


# -- writing ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("division", [(1, 1), (2, 1), (8, 4)], ids=str)
@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_writing_what_was_read_gives_the_same_files(tmp_path, version, division):
    tensor, pipeline = division
    path, _ = written(tmp_path, version=version, names=1 + (version > 1), tensor=tensor, pipeline=pipeline,
                      vocabulary=128 * tensor, args={"vocab_size": None})
    made = emit(tmp_path / "made", read(path), tensor_parallel=tensor, pipeline_parallel=pipeline, checkpoint_version=version)
    files = [file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file()]
    assert files == [file.relative_to(made) for file in sorted(made.rglob("*")) if file.is_file()]
    assert (made / files[0]).read_text() == "release"
    for file in files[1:]:
        theirs, ours = (torch.load(directory / file, weights_only=False) for directory in (path, made))
        assert list(flat(theirs["model"])) == list(flat(ours["model"])), file
        assert same({name: lazy(value.numpy()) for name, value in flat(ours["model"]).items()}, flat(theirs["model"]))
        assert ours.get("checkpoint_version") == theirs.get("checkpoint_version")
        known = vars(ours["args"])
        assert {name: value for name, value in vars(theirs["args"]).items() if name in known and name != "vocab_size"} == {
            name: known[name] for name in vars(theirs["args"]) if name in known and name != "vocab_size"
        } | {name: vars(theirs["args"])[name] for name in ("consumed_train_samples",)} | {"consumed_train_samples": 4000}


def flat(tree: dict[str, Any], name: str = "") -> dict[str, torch.Tensor]:
    return {key: value for step, item in tree.items()
            for key, value in (flat(item, f"{name}{step}/") if isinstance(item, dict) else {name + step: item}).items()}


@pytest.mark.parametrize("task", ["ForPreTraining", "ForMaskedLM", "Model", "ForSequenceClassification", "ForMultipleChoice"])
@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_reading_what_was_written_gives_the_same_model(tmp_path, task, version):
    source = checkpoint(tmp_path / "source", "megatron-bert", task, hidden_act="gelu_new", head_act="gelu", num_hidden_layers=2)
    options = {"tensor_parallel": 2, "pipeline_parallel": 2, "checkpoint_version": version}
    report = convert(source, tmp_path / "shards", to="megatron-lm", **options)
    assert any("padded from" in note for note in report.notes) and len(report.files) == 6
    again = convert(tmp_path / "shards", tmp_path / "again")
    with open_checkpoint(source) as one, open_checkpoint(tmp_path / "again") as other:
        assert set(one.names()) == set(other.names())
        assert all(np.array_equal(one.read(name), other.read(name)) for name in one.names())
    first, second = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "again"))
    assert {name: second[name] for name in second if name not in ("architectures", "torch_dtype")} == {
        name: first[name] for name in second if name not in ("architectures", "torch_dtype")}
    assert again.architecture == f"MegatronBert{task}"
    assert (tmp_path / "again" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()


def test_bfloat16_goes_there_and_back(tmp_path):
    path, whole = written(tmp_path, dtype=torch.bfloat16, vocabulary=100)
    made = emit(tmp_path / "made", read(path), tensor_parallel=4, pipeline_parallel=4)
    assert same(read(made).translation.tensors, whole)
    tree = torch.load(made / "release" / "mp_rank_03_000" / "model_optim_rng.pt", weights_only=False)
    words = tree["model"]["language_model"]["embedding"]["word_embeddings"]["weight"]
    assert words.shape == (128, 64) and words.dtype == torch.bfloat16 and not words.any()
    assert tree["args"].padded_vocab_size == 512 and tree["args"].vocab_size == 100 and tree["args"].bf16


def test_what_megatron_cannot_hold_is_refused_at_once(tmp_path):
    original = read(written(tmp_path)[0])
    config = replace_config(original.config, is_decoder=True, position_embedding_type="relative_key", hidden_act="relu",
                            pruned_heads={0: [1]}, tie_word_embeddings=False)
    with pytest.raises(ConfigError) as caught:
        emit(tmp_path / "made", replace(original, config=config, task="ForTokenClassification"), tensor_parallel=3,
             pipeline_parallel=5, checkpoint_version=4)
    assert len(caught.value.problems) == 9, caught.value


def replace_config(config: MegatronBertConfig, **changes: Any) -> MegatronBertConfig:
    return MegatronBertConfig.from_dict({**config.to_dict(), **changes})


# -- transformers' own script -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("with_args", [True, False])
def test_transformers_script_agrees(tmp_path, version, with_args):
    python = os.environ.get("BERTKIT_TRANSFORMERS")
    if not python:
        pytest.skip("BERTKIT_TRANSFORMERS names no interpreter")
    path, _ = written(tmp_path, version=version, names=1 + (version > 1), args={} if with_args else None)
    archive = originals.zipped(tmp_path / "m.zip", path)
    original = read(archive, hf_compat=True, config={} if with_args else HEADS)
    (tmp_path / "settings.json").write_text(original.config.to_json_string())
    module = "transformers.models.megatron_bert.convert_megatron_bert_checkpoint"
    settings = [] if with_args else ["--config_file", tmp_path / "settings.json"]
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "PYTHONPATH": ""}
    subprocess.run([python, "-m", module, archive, *settings], env=environment, check=True, capture_output=True)
    theirs = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    words = theirs.pop("cls.predictions.decoder.weight")
    assert torch.equal(words, theirs["bert.embeddings.word_embeddings.weight"])
    assert same(original.translation.tensors, theirs)
    settings = json.loads((tmp_path / "config.json").read_text())
    ours = json.loads(original.config.to_json_string())
    assert {name: value for name, value in ours.items() if name in settings} == {
        name: value for name, value in settings.items() if name in ours}
    assert ours.keys() - settings.keys() <= {"head_act"}


# -- what is wrong ------------------------------------------------------------------------------------------------------
def refused(path: Path, *expected: str, error: type = CheckpointError, **options: Any) -> None:
    with pytest.raises(error) as caught:
        original = read(path, **options)
        for tensor in original.translation.tensors.values():
            tensor()
    for text in expected:
        assert text in str(caught.value), caught.value


def test_a_missing_rank(tmp_path):
    path, _ = written(tmp_path, tensor=2, pipeline=2)
    shutil.rmtree(path / "release" / "mp_rank_01_000")
    refused(path, "3 of 4 files", "there: mp_rank_00_000, mp_rank_00_001, mp_rank_01_001", "not there: mp_rank_01_000")
    for rank in ("mp_rank_00_000", "mp_rank_00_001"):
        shutil.rmtree(path / "release" / rank)
    refused(path, "1 of 4 files", "not there: mp_rank_00_000, mp_rank_00_001, mp_rank_01_000")


def test_one_file_of_several(tmp_path):
    path, _ = written(tmp_path, tensor=2, args=None)
    refused(path / "release" / "mp_rank_01" / "model_optim_rng.pt", "one of 2 files", "mp_rank_00, mp_rank_01")


@pytest.mark.parametrize("pipeline", [1, 2])
def test_arguments_of_different_runs(tmp_path, pipeline):
    path, _ = written(tmp_path, tensor=2, pipeline=pipeline)
    file = path / "release" / ("mp_rank_01" if pipeline == 1 else "mp_rank_01_001") / "model_optim_rng.pt"

    def edit(tree):
        tree["args"].seed, tree["args"].hidden_size, tree["iteration"], tree["checkpoint_version"] = 7, 32, 8, 2.0

    change(file, edit)
    refused(path, "files of different runs", "seed: 1234 in", "hidden_size: 64 in", "iteration: 0 in",
            "checkpoint_version: 3.0 in")


def test_weights_of_different_runs(tmp_path):
    path, _ = written(tmp_path, tensor=2)
    other = Recipe(tensor=2)
    originals.save(originals.content(originals.weights(other, seed=1), other, rank=1),
                   path / "release" / "mp_rank_01" / "model_optim_rng.pt", other)
    refused(path, "copies of a tensor differ", "language_model.embedding.position_embeddings.weight in release/mp_rank_00",
            "in release/mp_rank_01")


def test_copies_are_compared_as_bits(tmp_path):
    path, _ = written(tmp_path, tensor=2)
    for rank in range(2):
        def edit(tree):
            tree["model"]["lm_head"]["dense.bias"][0] = math.nan
        change(path / "release" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt", edit)
    assert np.isnan(read(path).translation.tensors["cls.predictions.transform.dense.bias"]()[0])


def test_a_copy_of_the_word_embeddings_that_differs(tmp_path):
    path, _ = written(tmp_path, pipeline=2)

    def edit(tree):
        tree["model"]["word_embeddings_for_head"]["weight"][3] += 1

    change(path / "release" / "mp_rank_00_001" / "model_optim_rng.pt", edit)
    refused(path, "copies of a tensor differ", "word_embeddings_for_head.weight in release/mp_rank_00_001")


def test_shapes_and_names_of_different_runs(tmp_path):
    path, _ = written(tmp_path, tensor=2, args=None)

    def edit(tree):
        tree["model"]["lm_head"]["bias"] = torch.zeros(7)
        tree["model"]["binary_head"] = {}

    change(path / "release" / "mp_rank_01" / "model_optim_rng.pt", edit)
    refused(path, "lm_head.bias: F16 [64] in", "F32 [7] in", "binary_head.weight: is in release/mp_rank_00")


def test_arguments_against_tensors_all_at_once(tmp_path):
    args = {"num_layers": 5, "hidden_size": 32, "ffn_hidden_size": 1, "num_attention_heads": 7, "padded_vocab_size": 3,
            "max_position_embeddings": 17, "kv_channels": 4, "vocab_size": 200, "hidden_dropout": "much", "swiglu": True,
            "apply_residual_connection_post_layernorm": True}
    path, _ = written(tmp_path, args=args)

    def edit(tree):
        tree["model"]["language_model"]["encoder"]["layers.1.mlp.gate.weight"] = torch.zeros(1)
        del tree["model"]["language_model"]["encoder"]["layers.2.mlp.dense_4h_to_h.bias"]

    change(path / FILE, edit)
    refused(path, "num_layers: the arguments say 5, the tensors 4", "hidden_size: the arguments say 32, the tensors 64",
            "ffn_hidden_size: ", "num_attention_heads: got 7, expected a divisor of 64", "padded_vocab_size: ",
            "max_position_embeddings: the arguments say 17", "vocab_size of the arguments: got 200",
            "hidden_dropout_prob: got 'much'", "apply_residual_connection_post_layernorm: ", "swiglu: ",
            "unknown: language_model.encoder.layers.1.mlp.gate.weight")
    fixed = {name: value for name, value in vars(originals.arguments(Recipe(), 0, 0)).items() if name in args}
    fixed |= {"vocab_size": 128, "swiglu": False}
    refused(path, "unknown: ", "kv_channels: the arguments say 4", config={**fixed, "kv_channels": 4})
    change(path / FILE, lambda tree: tree["model"]["language_model"]["encoder"].pop("layers.1.mlp.gate.weight"))
    refused(path, "missing: bert.encoder.layer.2.output.dense.bias", config=fixed)


@pytest.mark.parametrize(("edit", "expected"), [
    (lambda tree: tree["model"]["language_model"]["embedding"].pop("word_embeddings"), "word_embeddings.weight: is not there"),
    (lambda tree: tree["model"]["language_model"].pop("encoder"), "dense_h_to_4h.weight: is not there"),
    (lambda tree: tree["model"].update(strange=torch.zeros(2)), "unknown: strange"),
    (lambda tree: tree["model"].update(strange="text"), "strange: got a str, expected a tensor"),
    (lambda tree: tree["model"].update({"lm_head.bias": torch.zeros(2)}), "lm_head.bias: is there twice"),
    (lambda tree: tree["model"]["lm_head"].update(bias=torch.zeros(2)), "cls.predictions.bias: got [2], expected [128]"),
    (lambda tree: tree["model"]["language_model"]["encoder"].update({"layers.0.self_attention.query_key_value.bias":
                                                                     torch.zeros(10)}), "query_key_value.bias F32 [10]"),
    (lambda tree: tree["model"]["language_model"]["encoder"].update({"layers.0.self_attention.query_key_value.bias":
                                                                     torch.zeros(())}), "query_key_value.bias F32 []"),
    (lambda tree: tree["model"]["language_model"]["embedding"]["position_embeddings"].update(weight=torch.zeros(0, 64)),
     "position_embeddings.weight: got [0, 64]"),
    (lambda tree: tree["model"]["language_model"]["encoder"].update({"layers.99999999.mlp.dense_h_to_4h.bias": torch.zeros(2)}),
     "layers: there are 5, with numbers up to 99999999"),
    (lambda tree: tree.update(checkpoint_version=7.0), "checkpoint_version is 7.0"),
    (lambda tree: tree.update(checkpoint_version="3"), "checkpoint_version is '3'"),
    (lambda tree: tree.pop("model"), "is no Megatron checkpoint"),
    (lambda tree: tree.update(args=[1]), "num_attention_heads: the file does not say it"),
    (lambda tree: tree["model"]["language_model"].update(again=tree["model"]), "in a circle"),
], ids=range(15))
def test_damaged_trees(tmp_path, edit, expected):
    path, _ = written(tmp_path, hidden=72, args={}) if "does not say" in expected else written(tmp_path)
    change(path / FILE, edit)
    with pytest.raises(CheckpointError, match=expected.replace("[", r"\[").replace("(", r"\(")):
        MEGATRON_LM.read(MEGATRON_LM.open(Sample(path)), Options())


def test_a_tree_that_doubles_at_every_level(tmp_path):
    path, _ = written(tmp_path)

    def edit(tree):
        level = {}
        for _ in range(19):
            level = {"a": level, "b": level}
        tree["model"]["bomb"] = level

    change(path / FILE, edit)
    refused(path, "more than 1000000 entries")


def test_a_pickle_that_runs_something(tmp_path):
    class Run:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path, _ = written(tmp_path)
    tree = originals.content(originals.weights(Recipe()), Recipe())
    torch.save({**tree, "optimizer": Run()}, path / FILE, pickle_module=pickle)
    refused(path, "os.system" if os.name == "nt" else "posix.system")
    assert not (tmp_path / "ran").exists()


def test_a_truncated_file(tmp_path, capsys):
    path, _ = written(tmp_path)
    content = (path / FILE).read_bytes()
    (path / FILE).write_bytes(content[: len(content) // 2])
    refused(path, "is damaged")
    code, _, err = run(capsys, "convert", path, tmp_path / "made")
    assert code and "is damaged" in err and not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["../mp_rank_00/model_optim_rng.pt", "/release/mp_rank_00/model_optim_rng.pt"])
def test_a_hostile_zip(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr(name, "content")
    refused(tmp_path / "m.zip", "leads out of the archive")


def test_a_truncated_zip(tmp_path):
    archive = originals.zipped(tmp_path / "m.zip", written(tmp_path)[0])
    archive.write_bytes(archive.read_bytes()[:100_000])
    refused(archive, "is damaged")


def test_only_whole_models_are_written(tmp_path):
    original = read(written(tmp_path)[0])
    del original.translation.tensors["cls.predictions.bias"]
    with pytest.raises(CheckpointError, match=r"no complete MegatronBertForPreTraining"):
        emit(tmp_path / "made", original)


def test_a_vocabulary_of_another_model(tmp_path):
    path, _ = written(tmp_path)
    shutil.copy(TOKENIZER, path / "vocab.txt")
    refused(path, f"it has {WORDS} tokens, the model 128 rows")
    shutil.copy(TOKENIZER, tmp_path / "vocab.txt")
    archive = originals.zipped(tmp_path / "m.zip", path / "release", top="release/")
    assert any("belongs to another model" in note for note in read(archive).notes)
    refused(archive, f"it has {WORDS} tokens", vocab=tmp_path / "vocab.txt")
    (path / "vocab.txt").write_bytes(b"\xff\xfe")
    refused(path, "is no vocabulary")
    refused(path, "mean nothing", "color", error=ConfigError, config={"color": 1})


def test_other_files_are_not_megatrons(tmp_path):
    torch.save({"model": {"encoder.layer.0.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.zip").write_bytes(b"<html>")
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("release/readme.txt", "nothing")
    for name in ("other.pt", "list.pt", "text.zip", "notes.zip"):
        assert not any(format.recognise(Sample(tmp_path / name)) for format in (MEGATRON_LM, NGC_MEGATRON)), name
    assert not MEGATRON_LM.recognise(Sample(checkpoint(tmp_path / "own", "megatron-bert")))
    assert issubclass(CheckpointError, BertkitError) and cases.config("megatron-bert").model_type in MEGATRON_LM.model_types
