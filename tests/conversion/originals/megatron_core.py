"""BERT checkpoints as megatron-core writes them, made with torch alone: `mp_rank_*` files and `torch_dist` directories.

The names are those of `megatron.core.models.bert`, with the layers of megatron-core itself ("local") or of Transformer
Engine ("te"). The args name enumerations of a package `megatron.core` that exists in memory while they are pickled.
"""

from __future__ import annotations

import enum
import io
import json
import random
import sys
import types
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

LAYERS, HIDDEN, HEADS, INNER, WORDS, POSITIONS = 4, 16, 4, 32, 512, 12
COLUMNS = ("word_embeddings.weight", "output_layer.weight", "output_layer.bias", "linear_qkv.weight", "linear_qkv.bias",
           "linear_fc1.weight", "linear_fc1.bias")
ROWS = ("linear_proj.weight", "linear_fc2.weight")
ENGINE = ("self_attention.core_attention", "self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1",
          "mlp.linear_fc2")
ENGINE_NAMES = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_", "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
VERSION = 3.0


def weights(*, tied: bool = True, binary_head: bool = True, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Random weights by the names of the local layers, in the order of the modules."""
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (WORDS, HIDDEN),
        "embedding.position_embeddings.weight": (POSITIONS, HIDDEN),
        **({"embedding.tokentype_embeddings.weight": (2, HIDDEN)} if binary_head else {}),
    }

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (HIDDEN,)

    for number in range(LAYERS):
        layer = f"encoder.layers.{number}"
        norm(f"{layer}.input_layernorm")
        linear(f"{layer}.self_attention.linear_proj", HIDDEN, HIDDEN)
        linear(f"{layer}.self_attention.linear_qkv", 3 * HIDDEN, HIDDEN)
        norm(f"{layer}.pre_mlp_layernorm")
        linear(f"{layer}.mlp.linear_fc1", INNER, HIDDEN)
        linear(f"{layer}.mlp.linear_fc2", HIDDEN, INNER)
    norm("encoder.final_layernorm")
    linear("lm_head.dense", HIDDEN, HIDDEN)
    norm("lm_head.layer_norm")
    if not tied:
        shapes["output_layer.weight"] = (WORDS, HIDDEN)
    shapes["output_layer.bias"] = (WORDS,)
    if binary_head:
        linear("binary_head", 2, HIDDEN)
        linear("pooler.dense", HIDDEN, HIDDEN)
    numbers = torch.Generator().manual_seed(len(shapes))
    return {name: torch.randn(shape, generator=numbers).to(dtype) for name, shape in shapes.items()}


@contextmanager
def megatron() -> Iterator[types.SimpleNamespace]:
    """The package that a checkpoint's args refer to, for as long as they are pickled."""
    names = ("megatron", "megatron.core", "megatron.core.enums", "megatron.core.transformer", "megatron.core.transformer.enums",
             "megatron.core.dist_checkpointing", "megatron.core.dist_checkpointing.strategies",
             "megatron.core.dist_checkpointing.strategies.torch")
    modules = {name: types.ModuleType(name) for name in names}

    def within(module: str, made: type) -> type:
        made.__module__ = module
        setattr(modules[module], made.__name__, made)
        return made

    metadata = type("MCoreMetadata", (Metadata,), {"__qualname__": "MCoreMetadata"})
    sys.modules.update(modules)
    try:
        yield types.SimpleNamespace(
            model_type=within("megatron.core.enums", enum.Enum("ModelType", {"encoder_or_decoder": 1})),
            backend=within("megatron.core.transformer.enums", enum.Enum("AttnBackend", {"auto": 5})),
            metadata=within("megatron.core.dist_checkpointing.strategies.torch", metadata))
    finally:
        for name in names:
            del sys.modules[name]


def arguments(package: types.SimpleNamespace, **changed: object) -> Namespace:
    """The args of a run: those that matter here, and some of each kind that do not."""
    settings = {
        "num_layers": LAYERS, "encoder_num_layers": LAYERS, "hidden_size": HIDDEN, "ffn_hidden_size": INNER,
        "num_attention_heads": HEADS, "kv_channels": HIDDEN // HEADS, "group_query_attention": False, "num_query_groups": 1,
        "max_position_embeddings": POSITIONS, "seq_length": POSITIONS, "padded_vocab_size": WORDS,
        "make_vocab_size_divisible_by": 128, "tokenizer_type": "BertWordPieceLowerCase", "position_embedding_type":
        "learned_absolute", "add_position_embedding": True, "normalization": "LayerNorm", "norm_epsilon": 1e-5,
        "layernorm_epsilon": 1e-5, "apply_layernorm_1p": False, "apply_residual_connection_post_layernorm": False, "swiglu":
        False, "squared_relu": False, "openai_gelu": False, "onnx_safe": None, "bias_gelu_fusion": True, "add_bias_linear":
        True, "add_qkv_bias": False, "qk_layernorm": False, "num_experts": None, "untie_embeddings_and_output_weights": False,
        "bert_binary_head": True, "hidden_dropout": 0.1, "attention_dropout": 0.1, "init_method_std": 0.02,
        "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "virtual_pipeline_model_parallel_size": None,
        "fp16": False, "bf16": True, "params_dtype": torch.bfloat16, "model_type": package.model_type.encoder_or_decoder,
        "attention_backend": package.backend.auto, "use_mcore_models": True, "transformer_impl": "local", "lr": 1e-4,
        "data_path": ["1.0", "corpus"], "rank": 0, "world_size": 1,
    }
    return Namespace(**settings | changed)


def engine_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by the names of Transformer Engine's layers."""
    def renamed(name: str) -> str:
        for old, new in ENGINE_NAMES.items():
            if name.startswith("encoder.layers."):
                name = name.replace(old, new)
        return name

    return {renamed(name): tensor for name, tensor in tensors.items()}


def extra_state() -> io.BytesIO:
    """What Transformer Engine keeps beside the weights of a layer."""
    blob = io.BytesIO()
    torch.save({"scale_fwd": torch.ones(3), "extra_fp8_variables": {}}, blob)
    return blob


def _random_state() -> dict[str, object]:
    return {"random_rng_state": random.getstate(), "np_rng_state": np.random.get_state(),
            "torch_rng_state": torch.get_rng_state(), "cuda_rng_state": torch.zeros(16, dtype=torch.uint8),
            "rng_tracker_states": {"model-parallel-rng": torch.zeros(16, dtype=torch.uint8)}}


# -- mp_rank_* ----------------------------------------------------------------------------------------------------------
def _slice(name: str, tensor: torch.Tensor, rank: int, count: int) -> torch.Tensor:
    if name.endswith(COLUMNS):
        return tensor.chunk(count, 0)[rank].clone()
    return tensor.chunk(count, 1)[rank].clone() if name.endswith(ROWS) else tensor


def _stage(name: str, stages: int, virtual: int) -> tuple[int, int, str]:
    """Stage, virtual stage and name there."""
    if not name.startswith("encoder.layers."):
        first = name.startswith("embedding.")
        return (0, 0, name) if first else (stages - 1, virtual - 1, name)
    number, _, rest = name.removeprefix("encoder.layers.").partition(".")
    group, local = divmod(int(number), LAYERS // (stages * virtual))
    return group % stages, group // stages, f"encoder.layers.{local}.{rest}"


def write_ranks(
    directory: Path, tensors: dict[str, torch.Tensor], *, spec: str = "local", ranks: int = 1, stages: int = 1,
    virtual: int = 1, **changed: object,
) -> Path:
    """A directory of `mp_rank_*` files, as `--ckpt-format torch` writes it."""
    settings = {
        "tensor_model_parallel_size": ranks, "pipeline_model_parallel_size": stages,
        "virtual_pipeline_model_parallel_size": virtual if virtual > 1 else None,
        "untie_embeddings_and_output_weights": "output_layer.weight" in tensors,
        "transformer_impl": "local" if spec == "local" else "transformer_engine",
    } | changed
    for rank in range(ranks):
        for stage in range(stages):
            models: list[dict[str, object]] = [{} for _ in range(virtual)]
            for name, tensor in tensors.items():
                home, chunk, local = _stage(name, stages, virtual)
                if home == stage:
                    models[chunk][local] = _slice(name, tensor, rank, ranks)
            if stages > 1 and stage == stages - 1 and "output_layer.weight" not in tensors:
                words = _slice("output_layer.weight", tensors["embedding.word_embeddings.weight"], rank, ranks)
                pairs = [({"output_layer.weight": words} if name == "output_layer.bias" else {}) | {name: tensor}
                         for name, tensor in models[-1].items()]
                models[-1] = {name: tensor for pair in pairs for name, tensor in pair.items()}
            if spec == "te":
                models = [_with_engine(model) for model in models]
            with megatron() as package:
                content = {
                    "args": arguments(package, **settings), "checkpoint_version": VERSION, "iteration": 1000,
                    "num_floating_point_operations_so_far": 123.0,
                    **({"model": models[0]} if virtual == 1 else {f"model{n}": model for n, model in enumerate(models)}),
                    "optimizer": {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
                                  "fp32_from_fp16_params": [[torch.ones(3)]]},
                    "opt_param_scheduler": {"max_lr": 1e-4, "num_steps": 1000},
                    "rng_state": [_random_state()],
                }
                name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
                file = directory / "iter_0001000" / name / "model_optim_rng.pt"
                file.parent.mkdir(parents=True)
                torch.save(content, file)
    (directory / "latest_checkpointed_iteration.txt").write_text("1000")
    return directory


def _with_engine(model: dict[str, object]) -> dict[str, object]:
    """A model with Transformer Engine's names and blobs; newer versions write tensors of bytes."""
    renamed: dict[str, object] = dict(engine_names(model))
    layers = {name.split(".")[2] for name in model if name.startswith("encoder.layers.")}
    for layer in sorted(layers):
        for module in ENGINE:
            blob = torch.empty(0, dtype=torch.uint8) if module.endswith("core_attention") else extra_state()
            renamed[f"encoder.layers.{layer}.{module}._extra_state"] = blob
    return renamed


# -- torch_dist ---------------------------------------------------------------------------------------------------------
@dataclass
class Chunks:
    """A rank's part of a tensor: blocks by their offsets."""

    size: tuple[int, ...]
    blocks: dict[tuple[int, ...], torch.Tensor]

    def items(self, name: str) -> list[WriteItem]:
        """What torch is asked to write."""
        return [
            WriteItem(MetadataIndex(name, offsets, number), WriteItemType.SHARD, tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(torch.Size(offsets), block.size()),
                properties=TensorProperties.create_from_tensor(block), size=torch.Size(self.size)))
            for number, (offsets, block) in enumerate(self.blocks.items())]


class _Planner(DefaultSavePlanner):
    """Megatron's way: every rank writes all that it is given, and objects are bytes already."""

    def create_local_plan(self) -> SavePlan:
        items: list[WriteItem] = []
        for name, value in self.state_dict.items():
            items += value.items(name) if isinstance(value, Chunks) else [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO)]
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        value = self.state_dict[write_item.index.fqn]
        return value.blocks[tuple(write_item.index.offset)] if isinstance(value, Chunks) else value


def save_distributed(directory: Path, states: list[dict[str, object]], metadata_class: type | None = None) -> None:
    """What `torch.distributed.checkpoint` does with the state of each rank, one after the other in this process."""
    writer = FileSystemWriter(directory, thread_count=2, sync_files=False)
    planners = [_Planner(flatten_state_dict=False) for _ in states]
    plans = []
    for rank, (planner, state) in enumerate(zip(planners, states, strict=True)):
        planner.set_up_planner(state, is_coordinator=rank == 0)
        writer.set_up_storage_writer(rank == 0)
        plans.append(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = planners[0].create_global_plan(plans)
    if metadata_class is not None:
        metadata = metadata_class(**vars(metadata))
        metadata.mcore_data = {}
    results = [writer.write_data(planner.finish_plan(plan), planner).wait()
               for planner, plan in zip(planners, writer.prepare_global_plan(plans), strict=True)]
    writer.finish(metadata, results)


def dist_states(
    tensors: dict[str, torch.Tensor], *, ranks: int = 1, stacked: bool = True, prefix: str = "", whole: bool = False
) -> list[dict[str, object]]:
    """What each tensor-parallel rank writes.

    Args:
        tensors: the model.
        ranks: number of ranks.
        stacked: whether a tensor of the layers is one with the layers as its first axis.
        prefix: what the names begin with.
        whole: whether all layers are one block, instead of one each.
    """
    states: list[dict[str, object]] = [{} for _ in range(ranks)]
    named = engine_names(tensors)
    groups: dict[str, list[torch.Tensor]] = {}
    for name, tensor in named.items():
        _, _, rest = name.removeprefix("encoder.layers.").partition(".")
        stack = stacked and name.startswith("encoder.layers.")
        groups.setdefault(f"encoder.layers.{rest}" if stack else name, []).append(tensor[None] if stack else tensor)
    for name, layers in groups.items():
        lead = name.startswith("encoder.layers.") and stacked
        parts = [torch.cat(layers)] if whole else layers
        axis = 0 if name.endswith(COLUMNS) else 1 if name.endswith(ROWS) else None
        for rank, state in enumerate(states):
            if axis is None and rank:
                continue
            blocks = {}
            for number, part in enumerate(parts):
                place = 0 if axis is None else axis + lead
                pieces = part.chunk(1 if axis is None else ranks, place)
                offsets = [0] * part.dim()
                offsets[place] = rank * pieces[0].shape[place]
                offsets[0] += number if lead else 0
                blocks[tuple(offsets)] = pieces[rank].contiguous()
            size = (len(layers), *layers[0].shape[1:]) if lead else tuple(layers[0].shape)
            state[prefix + name] = Chunks(size, blocks)
    return states


def write_dist(
    directory: Path, tensors: dict[str, torch.Tensor], *, ranks: int = 1, stacked: bool = True, prefix: str = "",
    whole: bool = False, common: str = "file", metadata_class: bool = False, **changed: object,
) -> Path:
    """A directory as `--ckpt-format torch_dist` writes it.

    Args:
        common: where args and iteration are: in a "file", "embedded" in the tensors' files, or "none".
        metadata_class: whether the metadata is of Megatron's own class, as in some of its versions.
        **changed: args that differ.
    """
    states = dist_states(tensors, ranks=ranks, stacked=stacked, prefix=prefix, whole=whole)
    words = tensors["embedding.word_embeddings.weight"].float()
    states[0] |= {
        "optimizer.state.exp_avg.embedding.word_embeddings.weight": Chunks(tuple(words.shape), {(0, 0): words}),
        "optimizer/shard_0_1": _saved([{"param_groups": []}]),
        "rng_state/shard_0.0_1.1": _saved([_random_state()]),
        f"{prefix}encoder.final_layernorm._extra_state/shard_0_1": _saved([extra_state()]),
    }
    for number in range(LAYERS):
        for module in ENGINE:
            key = (f"encoder.layers.{module}._extra_state/shard_{number}_{LAYERS}" if stacked else
                   f"encoder.layers.{number}.{module}._extra_state/shard_0_1")
            states[0][prefix + key] = _saved([extra_state()])
    iteration = directory / "iter_0001000"
    with megatron() as package:
        settings = {"untie_embeddings_and_output_weights": "output_layer.weight" in tensors,
                    "tensor_model_parallel_size": ranks} | changed
        state = {"args": arguments(package, **settings), "checkpoint_version": VERSION, "iteration": 1000,
                 "opt_param_scheduler": {"num_steps": 1000}, "num_floating_point_operations_so_far": 123.0}
        if common == "embedded":
            states[0]["common_state/shard_0_1"] = _saved([state])
        save_distributed(iteration, states, package.metadata if metadata_class else None)
        if common == "file":
            torch.save(state, iteration / "common.pt")
    settings = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
                "common_backend_version": 1}
    (iteration / "metadata.json").write_text(json.dumps(settings))
    (directory / "latest_checkpointed_iteration.txt").write_text("1000")
    return directory


def _saved(content: object) -> io.BytesIO:
    blob = io.BytesIO()
    torch.save(content, blob)
    return blob


def load_distributed(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a directory as `torch.distributed.checkpoint` itself loads them."""
    reader = FileSystemReader(directory)
    entries = reader.read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()
             if isinstance(entry, TensorStorageMetadata)}
    load(state, storage_reader=reader, planner=DefaultLoadPlanner(flatten_state_dict=False), no_dist=True)
    return state
