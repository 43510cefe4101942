"""BERT checkpoints as Megatron-LM writes them: all layouts, generations of names and divisions, with the baggage.

    python -m tests.conversion.originals.megatron --ngc megatron_bert_345m.zip [--legacy] [--deflate]

makes an archive of the shape of NVIDIA's `megatron_bert_345m_v0_1_uncased.zip`, with random weights.

A model is made as one dictionary of whole tensors (queries, keys and values apart). The files are made from it as Megatron's
ranks would have held their parts: head by head, row by row; nothing of bertkit is used.
"""

from __future__ import annotations

import argparse
import random
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
CUT_COLUMNS = ("word_embeddings.weight", "lm_head.bias", "dense_h_to_4h.weight", "dense_h_to_4h.bias")
CUT_ROWS = ("attention.dense.weight", "dense_4h_to_h.weight")


@dataclass(frozen=True)
class Recipe:
    """What to write, and how.

    Args:
        hidden, heads, layers, inner, positions, vocabulary: sizes; the vocabulary as padded.
        version: version of the layout.
        tensor, pipeline, virtual: numbers of ranks, stages, and virtual stages in each.
        names: generation of names, 1, 2 or 3.
        binary_head, language_model_head: whether there are such heads; without the first also no pooler and token types.
        classes: number of classes of a classification head instead, or of 1 for multiple choice.
        args: whether the arguments are kept, and which differ from the usual.
        dtype: of the weights.
        wrapped: whether data-parallel wrappers put "module." before the names.
        baggage: whether optimizer and random states are there.
        shuffled: whether the keys are in another order.
        legacy: torch's form before 1.6.
        enums: whether the arguments hold members of an enumeration of Megatron's.
    """

    hidden: int = 64
    heads: int = 8
    layers: int = 4
    inner: int = 128
    positions: int = 16
    vocabulary: int = 128
    version: int = 3
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    names: int = 2
    binary_head: bool = True
    language_model_head: bool = True
    classification_head: int = 0
    multichoice_head: bool = False
    args: dict[str, Any] | None = field(default_factory=dict)
    dtype: torch.dtype = torch.float16
    wrapped: bool = False
    baggage: bool = True
    shuffled: bool = False
    legacy: bool = False
    enums: bool = False
    iteration: int | None = None

    @property
    def folder(self) -> str:
        """Directory of the iteration."""
        return "release" if self.iteration is None else f"iter_{self.iteration:07d}"


def weights(recipe: Recipe, seed: int = 0) -> Tensors:
    """The whole model, by the names of transformers."""
    make = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}

    def add(name: str, *shape: int) -> None:
        tensors[name] = (torch.randn(shape, generator=make) * 0.02).to(recipe.dtype)

    def linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        add(f"{name}.weight", recipe.hidden)
        add(f"{name}.bias", recipe.hidden)

    hidden = recipe.hidden
    add("bert.embeddings.word_embeddings.weight", recipe.vocabulary, hidden)
    add("bert.embeddings.position_embeddings.weight", recipe.positions, hidden)
    pooled = recipe.binary_head or recipe.classification_head or recipe.multichoice_head
    if pooled:
        add("bert.embeddings.token_type_embeddings.weight", 2, hidden)
    for layer in range(recipe.layers):
        at = f"bert.encoder.layer.{layer}"
        norm(f"{at}.attention.ln")
        for part in ("query", "key", "value"):
            linear(f"{at}.attention.self.{part}", hidden, hidden)
        linear(f"{at}.attention.output.dense", hidden, hidden)
        norm(f"{at}.ln")
        linear(f"{at}.intermediate.dense", recipe.inner, hidden)
        linear(f"{at}.output.dense", hidden, recipe.inner)
    norm("bert.encoder.ln")
    if pooled:
        linear("bert.pooler.dense", hidden, hidden)
    if recipe.classification_head or recipe.multichoice_head:
        linear("classifier", recipe.classification_head or 1, hidden)
        return tensors
    if recipe.language_model_head:
        add("cls.predictions.bias", recipe.vocabulary)
        linear("cls.predictions.transform.dense", hidden, hidden)
        norm("cls.predictions.transform.LayerNorm")
        if recipe.binary_head:
            linear("cls.seq_relationship", 2, hidden)
    return tensors


# -- what a rank holds --------------------------------------------------------------------------------------------------
def fused(parts: list[torch.Tensor], recipe: Recipe, rank: int) -> torch.Tensor:
    """Queries, keys and values of the heads of a rank, in the order of rows of the version."""
    size = recipe.hidden // recipe.heads
    of_rank = recipe.heads // recipe.tensor
    heads = range(rank * of_rank, (rank + 1) * of_rank)
    if recipe.version == 0:
        rows = [part[head * size + row] for part in parts for head in heads for row in range(size)]
    elif recipe.version == 1:
        rows = [part[head * size + row] for head in heads for row in range(size) for part in parts]
    else:
        rows = [part[head * size + row] for head in heads for part in parts for row in range(size)]
    return torch.stack(rows)


def cut(name: str, value: torch.Tensor, recipe: Recipe, rank: int) -> torch.Tensor:
    """A rank's part of a tensor."""
    if name.endswith(CUT_COLUMNS):
        return value.chunk(recipe.tensor, 0)[rank].clone()
    if name.endswith(CUT_ROWS):
        return value.chunk(recipe.tensor, 1)[rank].clone()
    return value.clone()


def layer(whole: Tensors, recipe: Recipe, number: int, local: int, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    """One layer, as the state dict of Megatron's transformer names it."""
    norm = "norm" if recipe.names == 3 else "layernorm"
    attention = "attention" if recipe.names == 1 else "self_attention"
    ours, theirs = f"bert.encoder.layer.{number}", f"layers.{local}"
    for leaf in ("weight", "bias"):
        yield f"{theirs}.input_{norm}.{leaf}", whole[f"{ours}.attention.ln.{leaf}"].clone()
    for leaf in ("weight", "bias"):
        parts = [whole[f"{ours}.attention.self.{part}.{leaf}"] for part in ("query", "key", "value")]
        yield f"{theirs}.{attention}.query_key_value.{leaf}", fused(parts, recipe, rank)
    for old, new in (("attention.output.dense", f"{attention}.dense"), ("ln", f"post_attention_{norm}"),
                     ("intermediate.dense", "mlp.dense_h_to_4h"), ("output.dense", "mlp.dense_4h_to_h")):
        for leaf in ("weight", "bias"):
            name = f"{theirs}.{new}.{leaf}"
            yield name, cut(name, whole[f"{ours}.{old}.{leaf}"], recipe, rank)


def model(whole: Tensors, recipe: Recipe, rank: int = 0, stage: int = 0, chunk: int = 0) -> dict[str, Any]:
    """The tree of one file, or of one virtual stage of it."""
    norm = "norm" if recipe.names == 3 else "layernorm"
    first = stage == 0 and chunk == 0
    last = stage == recipe.pipeline - 1 and chunk == recipe.virtual - 1
    tree: dict[str, Any] = {"language_model": {}}
    language_model = tree["language_model"]
    if first:
        embedding = {}
        for theirs, ours in (("word_embeddings", "word_embeddings"), ("position_embeddings", "position_embeddings"),
                             ("tokentype_embeddings", "token_type_embeddings")):
            if f"bert.embeddings.{ours}.weight" in whole:
                value = cut(f"{theirs}.weight", whole[f"bert.embeddings.{ours}.weight"], recipe, rank)
                embedding[theirs] = OrderedDict(weight=value)
        language_model["embedding"] = embedding
    # Megatron's own offset: a stage's layers of a virtual stage follow those of all stages of the one before.
    each = recipe.layers // (recipe.pipeline * recipe.virtual)
    offset = chunk * (recipe.layers // recipe.virtual) + stage * each
    body = OrderedDict(item for local in range(each) for item in layer(whole, recipe, offset + local, local, rank))
    if last:
        body |= {f"final_{norm}.{leaf}": whole[f"bert.encoder.ln.{leaf}"].clone() for leaf in ("weight", "bias")}
    language_model["transformer" if recipe.names == 1 else "encoder"] = body
    if not last:
        return tree
    if "bert.pooler.dense.weight" in whole:
        language_model["pooler"] = OrderedDict(
            (f"dense.{leaf}", whole[f"bert.pooler.dense.{leaf}"].clone()) for leaf in ("weight", "bias"))
    if recipe.pipeline > 1 and "cls.predictions.bias" in whole:
        copy = cut("word_embeddings.weight", whole["bert.embeddings.word_embeddings.weight"], recipe, rank)
        tree["word_embeddings_for_head"] = OrderedDict(weight=copy)
    if "cls.predictions.bias" in whole:
        at = "cls.predictions"
        tree["lm_head"] = OrderedDict(bias=cut("lm_head.bias", whole[f"{at}.bias"], recipe, rank))
        for theirs, ours in (("dense", "transform.dense"), (norm, "transform.LayerNorm")):
            tree["lm_head"] |= {f"{theirs}.{leaf}": whole[f"{at}.{ours}.{leaf}"].clone() for leaf in ("weight", "bias")}
    for theirs, ours, there in (
        ("binary_head", "cls.seq_relationship", "cls.seq_relationship.weight" in whole),
        ("classification_head", "classifier", recipe.classification_head),
        ("multichoice_head", "classifier", recipe.multichoice_head),
    ):
        if there:
            tree[theirs] = OrderedDict((leaf, whole[f"{ours}.{leaf}"].clone()) for leaf in ("weight", "bias"))
    return tree


# -- what lies beside it ------------------------------------------------------------------------------------------------
def arguments(recipe: Recipe, rank: int, stage: int) -> argparse.Namespace:
    """Megatron's command line, as much of it as says something."""
    sizes = {"tensor_model_parallel_size": recipe.tensor, "pipeline_model_parallel_size": recipe.pipeline,
             "virtual_pipeline_model_parallel_size": recipe.virtual if recipe.virtual > 1 else None}
    epsilon = "norm_epsilon" if recipe.names == 3 else "layernorm_epsilon"
    values = {
        "num_layers": recipe.layers, "hidden_size": recipe.hidden, "ffn_hidden_size": recipe.inner,
        "num_attention_heads": recipe.heads, "kv_channels": recipe.hidden // recipe.heads,
        "max_position_embeddings": recipe.positions, "make_vocab_size_divisible_by": 128, epsilon: 1e-05,
        "apply_residual_connection_post_layernorm": False, "openai_gelu": False, "onnx_safe": None,
        "attention_dropout": 0.1, "hidden_dropout": 0.1, "weight_decay": 0.01, "clip_grad": 1.0, "micro_batch_size": 4,
        "seed": 1234, "init_method_std": 0.02, "lr": 0.0001, "lr_decay_style": "linear", "save": "checkpoints/bert",
        "fp16": recipe.dtype == torch.float16, "bf16": recipe.dtype == torch.bfloat16, "bias_gelu_fusion": True,
        "masked_softmax_fusion": True, "data_path": ["my-bert_text_sentence"], "split": "949,50,1", "vocab_file": "vocab.txt",
        "seq_length": recipe.positions, "mask_prob": 0.15, "tokenizer_type": "BertWordPieceLowerCase",
        "params_dtype": recipe.dtype, "padded_vocab_size": recipe.vocabulary, "consumed_train_samples": 4000,
        "rank": stage * recipe.tensor + rank, "local_rank": rank, "world_size": recipe.tensor * recipe.pipeline,
        "bert_binary_head": recipe.binary_head,
        **(sizes if recipe.version == 3 else {"model_parallel_size": recipe.tensor}),
    }
    return argparse.Namespace(**{**values, **(recipe.args or {})})


def baggage(recipe: Recipe) -> dict[str, Any]:
    """Optimizer, schedule and random states."""
    masters = [torch.randn(6), torch.randn(3, 2)]
    state = {number: {"step": 1000, "exp_avg": torch.randn(6), "exp_avg_sq": torch.rand(6)} for number in range(2)}
    groups = [{"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "params": [0, 1]}]
    optimizer = {"optimizer": {"state": state, "param_groups": groups}, "grad_scaler": {"scale": torch.tensor([65536.0])},
                 "fp32_from_fp16_params": [masters]}
    states = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.zeros(16, dtype=torch.uint8),
        "rng_tracker_states": {"model-parallel-rng": torch.zeros(16, dtype=torch.uint8)},
    }
    schedule = {"max_lr": 1e-4, "num_steps": 1000, "decay_style": "linear"}
    if recipe.names == 3:
        return {"optimizer": optimizer, "opt_param_scheduler": schedule, "rng_state": [states],
                "num_floating_point_operations_so_far": 1.5e18}
    return {"optimizer": optimizer, "lr_scheduler": schedule, **states}


@contextmanager
def foreign_enumeration() -> Iterator[Any]:
    """Megatron's `ModelType`, which its arguments hold; its module is there only while a file is written."""
    names = ("megatron", "megatron.core", "megatron.core.enums")
    kind = Enum("ModelType", {"encoder_or_decoder": 1, "encoder_and_decoder": 2}, module=names[-1])
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules[names[-1]].ModelType = kind
    try:
        yield kind
    finally:
        for name in names:
            del sys.modules[name]


def shuffle(tree: Any, order: random.Random) -> Any:
    """The same tree with its keys in another order."""
    if not isinstance(tree, dict):
        return tree
    return {key: shuffle(tree[key], order) for key in order.sample(list(tree), len(tree))}


def content(whole: Tensors, recipe: Recipe, rank: int = 0, stage: int = 0) -> dict[str, Any]:
    """What Megatron gives to torch.save."""
    trees = [model(whole, recipe, rank, stage, chunk) for chunk in range(recipe.virtual)]
    if recipe.wrapped:
        trees = [{"module": tree} for tree in trees]
    if recipe.shuffled:
        trees = [shuffle(tree, random.Random(1)) for tree in trees]
    result: dict[str, Any] = {}
    if recipe.args is not None:
        result["args"] = arguments(recipe, rank, stage)
    if recipe.version:
        result["checkpoint_version"] = float(recipe.version)
    result["iteration"] = recipe.iteration or 0
    result |= {"model": trees[0]} if recipe.virtual == 1 else {f"model{chunk}": tree for chunk, tree in enumerate(trees)}
    return {**result, **(baggage(recipe) if recipe.baggage else {})}


# -- files --------------------------------------------------------------------------------------------------------------
def save(tree: Any, path: Path, recipe: Recipe) -> Path:
    """Write a file as Megatron does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if recipe.enums:
        with foreign_enumeration() as kind:
            tree["args"].model_type = kind.encoder_or_decoder
            torch.save(tree, path, _use_new_zipfile_serialization=not recipe.legacy)
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=not recipe.legacy)
    return path


def write(directory: Path, whole: Tensors, recipe: Recipe) -> Path:
    """A directory with the tracker file and the files of all ranks."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "latest_checkpointed_iteration.txt").write_text(
        "release" if recipe.iteration is None else str(recipe.iteration))
    for stage in range(recipe.pipeline):
        for rank in range(recipe.tensor):
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if recipe.pipeline > 1 else "")
            save(content(whole, recipe, rank, stage), directory / recipe.folder / name / "model_optim_rng.pt", recipe)
    return directory


def zipped(path: Path, directory: Path, *, top: str = "", deflate: bool = False) -> Path:
    """The directory as NVIDIA packs it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED, compresslevel=1) as archive:
        for file in sorted(item for item in directory.rglob("*") if item.is_file()):
            archive.write(file, top + file.relative_to(directory).as_posix())
    return path


NGC = Recipe(hidden=1024, heads=16, layers=24, inner=4096, positions=512, vocabulary=30592, version=0, names=1, args=None,
             baggage=False, iteration=None)
"""The shape of NVIDIA's 345M checkpoints, which hold neither arguments nor a version."""


def main() -> None:
    """Write one large archive."""
    parser = argparse.ArgumentParser(description="Write an archive of the shape of NVIDIA's Megatron-BERT 345M.")
    parser.add_argument("--ngc", type=Path, required=True, help="the archive to write")
    parser.add_argument("--legacy", action="store_true", help="torch's form before 1.6")
    parser.add_argument("--deflate", action="store_true", help="compress the archive")
    given = parser.parse_args()
    recipe = Recipe(**{**vars(NGC), "legacy": given.legacy})
    directory = given.ngc.with_suffix(".unpacked")
    write(directory, weights(recipe), recipe)
    zipped(given.ngc, directory, deflate=given.deflate)
    for file in sorted(directory.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    directory.rmdir()


if __name__ == "__main__":
    main()
