"""megatron-core's BERT: both formats of its files, any division among ranks, the same bits both ways; what it cannot be."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.convert.formats import FORMATS, find_format
from bertkit.convert.original import Sample
from bertkit.core.checkpoint import open_checkpoint, write_checkpoint
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.megatron_bert import MegatronBertConfig
from bertkit.core.tensors import RawTensor, stored
from tests import cases
from tests.cli.common import weights as random_weights

torch = pytest.importorskip("torch")
from tests.conversion.originals import megatron_core as originals  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

HEADS, HIDDEN = originals.HEADS, originals.HIDDEN
RANKS = [{}, {"ranks": 2}, {"stages": 2}, {"ranks": 4, "stages": 2}, {"stages": 2, "virtual": 2}]
DIRECTORIES = [{}, {"ranks": 4}, {"stacked": False, "ranks": 2}, {"whole": True}, {"prefix": "model.", "common": "embedded"},
               {"metadata_class": True}]
OUTER = {
    "embedding.word_embeddings": "bert.embeddings.word_embeddings",
    "embedding.position_embeddings": "bert.embeddings.position_embeddings",
    "embedding.tokentype_embeddings": "bert.embeddings.token_type_embeddings",
    "encoder.final_layernorm": "bert.encoder.ln",
    "lm_head.dense": "cls.predictions.transform.dense",
    "lm_head.layer_norm": "cls.predictions.transform.LayerNorm",
    "output_layer": "cls.predictions",
    "binary_head": "cls.seq_relationship",
    "pooler.dense": "bert.pooler.dense",
}
INNER = {
    "input_layernorm": "attention.ln",
    "self_attention.linear_proj": "attention.output.dense",
    "pre_mlp_layernorm": "ln",
    "mlp.linear_fc1": "intermediate.dense",
    "mlp.linear_fc2": "output.dense",
}


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def expected(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What our checkpoint must hold, by our names."""
    made = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if owner in OUTER:
            ours = "cls.predictions.decoder.weight" if name == "output_layer.weight" else f"{OUTER[owner]}.{leaf}"
            made[ours] = bits(tensor)
            continue
        number, _, part = owner.removeprefix("encoder.layers.").partition(".")
        layer = f"bert.encoder.layer.{number}"
        if part == "self_attention.linear_qkv":
            by_head = tensor.view(HEADS, 3, HIDDEN // HEADS, *tensor.shape[1:])
            for place, kind in enumerate(("query", "key", "value")):
                made[f"{layer}.attention.self.{kind}.{leaf}"] = bits(by_head[:, place].reshape(HIDDEN, *tensor.shape[1:]))
        else:
            made[f"{layer}.{INNER[part]}.{leaf}"] = bits(tensor)
    return made


def contents(directory: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(directory) as opened:
        return {name: stored(opened.lazy(name)())[0] for name in opened.names()}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not np.array_equal(left[name], right[name])] == []


# -- reading ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", ["local", "te"])
@pytest.mark.parametrize("division", RANKS, ids=str)
def test_files_of_ranks(tmp_path, division, spec):
    tensors = originals.weights()
    source = originals.write_ranks(tmp_path / "source", tensors, spec=spec, **division)
    assert find_format(source).name == "megatron-core"
    report = convert(source, tmp_path / "target")
    same(contents(tmp_path / "target"), expected(tensors))
    assert report.architecture == "MegatronBertForPreTraining" and report.dtype == "bfloat16"
    assert report.left_out["optimizer"] == "optimizer state" and report.left_out["rng_state"] == "random state"
    if spec == "te":
        assert report.left_out["encoder.layers.0.mlp.linear_fc1._extra_state"] == "state of Transformer Engine"
    fused = "encoder.layers.1.self_attention.linear_qkv.weight"
    assert any(line.startswith(f"{fused} -> ") for line in report.changes["split into query, key and value"])


@pytest.mark.parametrize("division", DIRECTORIES, ids=str)
def test_directories_of_torch_distributed(tmp_path, division):
    tensors = originals.weights()
    source = originals.write_dist(tmp_path / "source", tensors, **division)
    assert find_format(source).name == find_format(source / "iter_0001000").name == "megatron-dist"
    report = convert(source, tmp_path / "target")
    same(contents(tmp_path / "target"), expected(tensors))
    assert report.architecture == "MegatronBertForPreTraining"
    assert report.left_out["optimizer.state.exp_avg.embedding.word_embeddings.weight"] == "optimizer state"
    assert report.left_out["rng_state/shard_0.0_1.1"] == "random state"
    assert "state of Transformer Engine" in report.left_out.values() and "no tensor" not in report.left_out.values()


def test_a_state_that_torch_took_apart_itself(tmp_path):
    """`--ckpt-format torch_dcp`: arguments and iteration are objects among the tensors, and layers have numbers."""
    tensors = originals.weights()
    with originals.megatron() as package:
        state = {"model": originals.engine_names(tensors), "args": originals.arguments(package), "checkpoint_version": 3.0,
                 "iteration": 1000, "optimizer": {"state": {"lm_head.dense.bias": {"exp_avg": torch.zeros(HIDDEN)}}}}
        torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / "source" / "iter_0001000", no_dist=True)
    report = convert(tmp_path / "source", tmp_path / "target")
    same(contents(tmp_path / "target"), expected(tensors))
    assert list(report.left_out) == ["optimizer.state.lm_head.dense.bias.exp_avg"]


def test_a_single_file(tmp_path):
    tensors = originals.weights()
    file = originals.write_ranks(tmp_path / "source", tensors) / "iter_0001000" / "mp_rank_00" / "model_optim_rng.pt"
    assert find_format(file).name == "megatron-core"
    convert(file, tmp_path / "target")
    same(contents(tmp_path / "target"), expected(tensors))


@pytest.mark.parametrize("write", [originals.write_ranks, originals.write_dist])
def test_the_configuration_is_that_of_the_training(tmp_path, write):
    source = write(tmp_path / "source", originals.weights(), norm_epsilon=1e-6, layernorm_epsilon=1e-6, bias_gelu_fusion=False,
                   openai_gelu=True, hidden_dropout=0.2, num_query_groups=HEADS, group_query_attention=True)
    convert(source, tmp_path / "target")
    config = MegatronBertConfig.from_dict(json.loads((tmp_path / "target" / "config.json").read_text()))
    assert (config.layer_norm_eps, config.hidden_dropout_prob) == (1e-6, 0.2)
    assert (config.hidden_act, config.head_act or "gelu") == ("gelu", "gelu")
    assert (config.num_attention_heads, config.num_hidden_layers) == (HEADS, originals.LAYERS)


def test_fused_gelu_is_the_tanh_form_in_the_layers_alone(tmp_path):
    convert(originals.write_dist(tmp_path / "source", originals.weights()), tmp_path / "target")
    settings = json.loads((tmp_path / "target" / "config.json").read_text())
    assert (settings["hidden_act"], settings["head_act"]) == ("gelu_new", "gelu")


@pytest.mark.parametrize("write, division", [
    (originals.write_ranks, {}), (originals.write_ranks, {"ranks": 2, "stages": 2}), (originals.write_dist, {"ranks": 2}),
])
def test_a_decoder_of_its_own(tmp_path, write, division):
    tensors = originals.weights(tied=False)
    source = write(tmp_path / "source", tensors, **division)
    convert(source, tmp_path / "target", vocab_size=500)
    assert json.loads((tmp_path / "target" / "config.json").read_text())["tie_word_embeddings"] is False
    made, wanted = contents(tmp_path / "target"), expected(tensors)
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias", "cls.predictions.decoder.weight"):
        wanted[name] = wanted[name][:500]
    same(made, wanted)


@pytest.mark.parametrize("write", [originals.write_ranks, originals.write_dist])
def test_without_a_binary_head(tmp_path, write):
    tensors = originals.weights(binary_head=False)
    report = convert(write(tmp_path / "source", tensors, bert_binary_head=False), tmp_path / "target")
    types = "bert.embeddings.token_type_embeddings.weight"
    assert report.architecture == "MegatronBertForMaskedLM" and set(report.made) == {types}
    same(contents(tmp_path / "target"), expected(tensors) | {types: np.zeros((2, HIDDEN), np.uint16)})


def test_the_iteration_that_the_tracker_names(tmp_path):
    tensors = originals.weights()
    source = originals.write_dist(tmp_path / "source", tensors)
    shutil.copytree(source / "iter_0001000", source / "iter_0000500")
    assert find_format(source).open(Sample(source)).files[0] == "iter_0001000/.metadata"
    (source / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(CheckpointError, match="holds 2 checkpoints"):
        find_format(source).open(Sample(source))


def test_without_arguments_the_user_gives_them(tmp_path):
    tensors = originals.weights()
    source = originals.write_dist(tmp_path / "source", tensors, common="none")
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        convert(source, tmp_path / "target")
    convert(source, tmp_path / "target", config={"num_attention_heads": HEADS})
    same(contents(tmp_path / "target"), expected(tensors))


# -- writing ------------------------------------------------------------------------------------------------------------
def load_ranks(directory: Path) -> dict[str, dict]:
    return {str(file.parent.name): torch.load(file, weights_only=False) for file in sorted(directory.rglob("*.pt"))}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ranks, stages", [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_what_is_written_is_what_was_read(tmp_path, monkeypatch, ranks, stages, tied):
    tensors = originals.weights(tied=tied)
    convert(originals.write_dist(tmp_path / "source", tensors), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="megatron-core", tensor_parallel=ranks, pipeline_parallel=stages)
    original = originals.write_ranks(tmp_path / "original", tensors, ranks=ranks, stages=stages)
    with originals.megatron():
        wanted = load_ranks(original)
    made = load_ranks(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert made.keys() == wanted.keys()
    for rank, content in made.items():
        model = wanted[rank]["model"]
        assert list(content["model"]) == list(model)
        for name, tensor in content["model"].items():
            assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, model[name]), name
        assert content["checkpoint_version"] == originals.VERSION and isinstance(content["args"], Namespace)
        args, theirs = vars(content["args"]), vars(wanted[rank]["args"])
        assert {name: value for name, value in args.items() if name in theirs and theirs[name] != value} == {}
    assert find_format(tmp_path / "theirs").name == "megatron-core"
    convert(tmp_path / "theirs", tmp_path / "again")
    same(contents(tmp_path / "again"), contents(tmp_path / "ours"))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "again")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("task", ["ForPreTraining", "ForMaskedLM"])
def test_an_odd_vocabulary_is_padded_and_cut_again(tmp_path, task):
    config = cases.config("megatron-bert", task, vocab_size=99, hidden_act="gelu", architectures=[f"MegatronBert{task}"])
    values = random_weights("megatron-bert", task, config)
    types = "bert.embeddings.token_type_embeddings.weight"
    values |= {types: np.zeros_like(values[types])} if task == "ForMaskedLM" else {}
    halves = {name: RawTensor(np.abs(value * 1000).astype(np.uint16), "BF16") for name, value in values.items()}
    write_checkpoint(tmp_path / "ours", halves,
                     extra_files={"config.json": config.to_json_string()})
    report = convert(tmp_path / "ours", tmp_path / "theirs", to="megatron-core", tensor_parallel=2)
    assert any("padded from 99 to 256" in note for note in report.notes)
    (first, _) = load_ranks(tmp_path / "theirs").values()
    words = first["model"]["embedding.word_embeddings.weight"]
    assert words.shape[0] == 128 and not words[99:].any() and first["args"].padded_vocab_size == 256
    convert(tmp_path / "theirs", tmp_path / "again")
    same(contents(tmp_path / "again"), contents(tmp_path / "ours"))


@pytest.mark.parametrize("changes, options, words", [
    ({"hidden_act": "relu", "head_act": "gelu"}, {}, "hidden_act"),
    ({"hidden_act": "gelu_new"}, {}, "head_act: got 'gelu_new', expected 'gelu'"),
    ({"position_embedding_type": "relative_key"}, {}, "position_embedding_type"),
    ({}, {"tensor_parallel": 3}, "tensor_parallel"),
    ({}, {"pipeline_parallel": 5}, "pipeline_parallel"),
])
def test_what_cannot_be_written_is_refused(tmp_path, changes, options, words):
    config = cases.config("megatron-bert", "ForPreTraining", **{"hidden_act": "gelu", **changes},
                          architectures=["MegatronBertForPreTraining"])
    write_checkpoint(tmp_path / "ours", random_weights("megatron-bert", "ForPreTraining", config),
                     extra_files={"config.json": config.to_json_string()})
    with pytest.raises(ConfigError, match=words):
        convert(tmp_path / "ours", tmp_path / "theirs", to="megatron-core", **options)
    assert not (tmp_path / "theirs").exists()


# -- refusals -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("args, words", [
    ({"position_embedding_type": "rope"}, "position_embedding_type: the arguments say 'rope'"),
    ({"normalization": "RMSNorm"}, "normalization: the arguments say 'RMSNorm'"),
    ({"swiglu": True}, "swiglu: the arguments say True"),
    ({"squared_relu": True}, "squared_relu"),
    ({"num_experts": 8}, "num_experts: the arguments say 8"),
    ({"qk_layernorm": True}, "qk_layernorm: the arguments say True"),
    ({"apply_layernorm_1p": True}, "apply_layernorm_1p"),
    ({"group_query_attention": True, "num_query_groups": 2}, "num_query_groups: the arguments say 2 for 4 heads"),
    ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ({"untie_embeddings_and_output_weights": True}, "output_layer.weight: is not there"),
    ({"num_layers": 5}, "5"),
    ({"hidden_size": 32}, "hidden_size: the arguments say 32, the tensors 16"),
])
def test_arguments_of_other_models(tmp_path, args, words):
    with pytest.raises(CheckpointError, match=words):
        convert(originals.write_dist(tmp_path / "source", originals.weights(), **args), tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("changed, words", [
    ({"embedding.position_embeddings.weight": None}, r"embedding.position_embeddings.weight: is not there \(rotary"),
    ({"encoder.layers.0.self_attention.linear_qkv.weight": (32, HIDDEN)}, r"32 rows, expected 48 \(grouped queries\)"),
    ({"encoder.layers.0.mlp.linear_fc1.weight": (64, HIDDEN)}, r"64 rows, expected 32 \(a gated activation"),
    ({"encoder.final_layernorm.bias": None}, r"encoder.final_layernorm.bias: is not there \(RMSNorm\)"),
    ({"encoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight": (4, 4)}, "a mixture of experts"),
    ({"encoder.layers.0.mlp.router.weight": (4, 4)}, "a mixture of experts"),
    ({"encoder.layers.2.self_attention.q_layernorm.weight": (4,)}, "norms of queries and keys"),
    ({"encoder.layers.1.mlp.linear_fc2.bias": None}, "encoder.layer.1.output.dense.bias"),
    ({"encoder.layers.1.mlp.linear_fc2.bias": (17,)}, "encoder.layer.1.output.dense.bias"),
    ({"lm_head.layer_norm.weight": (17,)}, "LayerNorm.weight"),
    ({"surprise.weight": (4,)}, "unknown: surprise.weight"),
    ({"embedding.word_embeddings.weight": (4, 4, 4)}, r"embedding.word_embeddings.weight: got \[4, 4, 4\]"),
])
def test_tensors_of_other_models(tmp_path, changed, words):
    tensors = originals.weights()
    for name, shape in changed.items():
        tensors.pop(name, None)
        if shape:
            tensors[name] = torch.zeros(shape, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=words):
        convert(originals.write_ranks(tmp_path / "source", tensors), tmp_path / "target")


def test_stacks_of_different_heights(tmp_path):
    tensors = originals.weights()
    states = originals.dist_states(tensors, whole=True)
    name = "encoder.layers.mlp.linear_fc2.weight"
    (block,) = states[0][name].blocks.values()
    states[0][name] = originals.Chunks((3, *block.shape[1:]), {(0, 0, 0): block[:3].clone()})
    originals.save_distributed(tmp_path / "source", states)
    (tmp_path / "source" / "metadata.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"{name}: is a stack of 3 layers"):
        convert(tmp_path / "source", tmp_path / "target")


class Attack:
    def __reduce__(self):
        return print, ("attacked",)


@pytest.mark.parametrize("content, words", [
    (Attack(), "print"), ([1], "is a list"), ({"args": Attack()}, "print"),
])
def test_a_hostile_or_strange_common_file(tmp_path, capsys, content, words):
    source = originals.write_dist(tmp_path / "source", originals.weights())
    torch.save(content, source / "iter_0001000" / "common.pt")
    with pytest.raises(CheckpointError, match=words):
        convert(source, tmp_path / "target")
    assert "attacked" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    source = originals.write_dist(tmp_path / "source", originals.weights(), ranks=2)
    (source / "iter_0001000" / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"there is no __1_0\.distcp"):
        convert(source, tmp_path / "target")


def test_a_missing_rank_is_named(tmp_path):
    source = originals.write_ranks(tmp_path / "source", originals.weights(), ranks=2, stages=2)
    shutil.rmtree(source / "iter_0001000" / "mp_rank_01_001")
    with pytest.raises(CheckpointError, match="mp_rank_01_001"):
        convert(source, tmp_path / "target")


def test_directories_of_other_models_are_listed_not_read(tmp_path):
    state = {"model": {"decoder.layers.0.weight": torch.zeros(3)}, "step": 3}
    torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / "other", no_dist=True)
    format = FORMATS["megatron-dist"]
    assert list(format.open(Sample(tmp_path / "other")).tensors) == ["decoder.layers.0.weight"]
    with pytest.raises(CheckpointError, match="a decoder: it is a GPT or a T5"):
        convert(tmp_path / "other", tmp_path / "target")
