"""The settings of mlpen/YOSO in our words, ours in theirs, and what the shapes of the tensors say to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bertkit.core.tensors import LazyTensor
from bertkit.core.yoso import POSITION_OFFSET, YosoConfig

EPSILON, TRANSFORMERS_EPSILON = 1e-5, 1e-12
"""Of the layer norms: in the training, and in transformers' configurations."""

HEAD_SIZE = 64
"""Width of a head in all models of the repository but those of the Long Range Arena."""

MOST_LAYERS = 1000

ALBERT_TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
"""Ids of ALBERT's vocabulary, which the program `BERT` uses; those of `RoBERTa` are the defaults."""

ALIASES = {
    "dim": "hidden_size",
    "transformer_dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "transformer_hidden_dim": "intermediate_size",
    "num_head": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "num_sen_type": "type_vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dropout_prob": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "hashcode_len": "hash_code_len",
}
"""Our name of a setting by theirs, where the name is all that differs."""

FIELDS = tuple(item.name for item in fields(YosoConfig))
WITHOUT_FIELD = ("embedding_dim", "head_dim", "shared_weight")
"""Their settings that have to agree with the tensors, and are no fields of ours."""

MEANINGLESS = ("mixed_precision", "num_classes", "num_valid_classes", "output_sen_pred", "pooling_mode")
ATTENTION = re.compile(r"yoso(?:-v(?P<version>[12]))?(?P<expectation>[-_]?e)?", re.IGNORECASE)
MODEL_TYPES = ("efficient_attention", YosoConfig.model_type)

SIZES = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0, 2),
    "hidden_size": ("embeddings.word_embeddings.weight", 1, 2),
    "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0, 2),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0, 2),
    "conv_window": ("encoder.layer.0.attention.self.conv.weight", 2, 4),
    "num_attention_heads": ("encoder.layer.0.attention.self.conv.weight", 0, 4),
}
"""Where a setting is seen: one of our tensors, below the encoder's prefix, an axis, and how many axes the tensor has."""


def in_our_words(settings: Mapping[str, Any], problems: list[str], *, strict: bool) -> dict[str, Any]:
    """Settings in their words or in ours, in ours; those of `WITHOUT_FIELD` and `version`, of the kernels, come beside them.

    Args:
        settings: by name.
        problems: gets a line for each impossible value.
        strict: whether unknown names are problems.

    Example:
        >>> in_our_words({"num_head": 8, "hashcode_len": 9, "num_hash_f": -1, "n2_backward": True}, [], strict=True)
        {'num_attention_heads': 8, 'hash_code_len': 9, 'use_expectation': True, 'lsh_backward': False}
    """
    values: dict[str, Any] = {}
    for name, value in settings.items():
        wanted = None
        if name in ALIASES or name in FIELDS or name in WITHOUT_FIELD:
            values[ALIASES.get(name, name)] = value
        elif name == "num_hash_f":
            negative = type(value) is int and value < 0
            values |= {"use_expectation": True} if negative else {"use_expectation": False, "num_hash": value}
        elif name == "n2_backward":
            values["lsh_backward"] = not value
            wanted = None if isinstance(value, bool) else "a flag"
        elif name == "attn_type":
            match = ATTENTION.fullmatch(value) if isinstance(value, str) else None
            wanted = None if match else "yoso-v1, yoso-v1-e or yoso-v2"
            if match:
                values.setdefault("use_expectation", match["expectation"] is not None)
                values["version"] = match["version"]
        elif name == "model_type":
            wanted = None if value in MODEL_TYPES else " or ".join(MODEL_TYPES)
        elif strict and name not in MEANINGLESS:
            wanted = "a setting of mlpen/YOSO or of YosoConfig"
        if wanted:
            problems.append(f"{name}: got {value!r}, expected {wanted}")
    return values


def sizes_of(tensors: Mapping[str, LazyTensor], layers: set[int], problems: list[str]) -> dict[str, Any]:
    """The settings that the shapes of tensors show.

    Args:
        tensors: by our names, without the encoder's prefix.
        layers: the numbers of the layers that there are.
        problems: gets a line for each tensor that is not there or has another number of axes.
    """
    sizes: dict[str, Any] = {"num_hidden_layers": len(layers), "conv_window": None}
    if not layers or layers != {*range(len(layers))}:
        found = ", ".join(map(str, sorted(layers))) or "none"
        problems.append(f"layers: got {found}, expected all numbers from 0")
    for field, (name, axis, axes) in SIZES.items():
        tensor = tensors.get(name)
        if tensor is not None and len(tensor.shape) == axes:
            sizes[field] = tensor.shape[axis]
        elif tensor is not None:
            problems.append(f"{name}: got shape {list(tensor.shape)}, expected {axes} axes")
        elif axes == 2:
            problems.append(f"{name}: is not there")
    return sizes


def contradictions(values: Mapping[str, Any], sizes: Mapping[str, Any]) -> list[str]:
    """Settings that say something else than the tensors."""
    shown = {**sizes, "embedding_dim": sizes["hidden_size"]}
    return [f"{name}: got {values[name]!r}, but the tensors show {size}" for name, size in shown.items()
            if name in values and values[name] != size]


def number_of_heads(heads: Any, size: Any, width: int, problems: list[str], notes: list[str]) -> int:
    """The number of heads, which only the kernels of convolutions show.

    Args:
        heads, size: what the settings or the kernels say; None where they do not.
        width: of the stream, which in transformers is that of all heads together.
        problems, notes: get a line where the two do not fit, or are not known.
    """
    wrong = [f"{name}: got {value!r}, expected a positive integer" for name, value in (("num_head", heads), ("head_dim", size))
             if value is not None and (type(value) is not int or value < 1)]
    if wrong:
        problems += wrong
        return 1
    if heads is None and size is None:
        size = HEAD_SIZE
        notes.append(f"nothing tells the number of heads: heads of size {size} are assumed; num_head in the config changes it")
    heads = width // size if heads is None else heads
    size = width // heads if size is None else size
    if heads * size != width:
        problems.append(f"num_head, head_dim: got {heads} heads of size {size}, expected {width} in all, the stream's width")
    return heads


def first_position(rows: int, longest: Any, from_zero: bool, problems: list[str]) -> int:
    """The row of the position table that the first token takes: 2, or 0 in the program `BERT`.

    Args:
        rows: of the table.
        longest: what the settings say of the longest sequence; None where they do not.
        from_zero: whether the names are those of the program `BERT`.
        problems: gets a line where rows and settings do not fit.
    """
    if longest is None:
        return 0 if from_zero else POSITION_OFFSET
    if longest not in (rows, rows - POSITION_OFFSET):
        problems.append(f"max_seq_len: got {longest!r}, but the position table has {rows} rows: expected "
                        f"{rows - POSITION_OFFSET}, or {rows} where positions begin at row 0")
    return 0 if longest == rows else POSITION_OFFSET


def shared_layers(values: dict[str, Any], shared: bool, problems: list[str]) -> int:
    """How many layers one stands for; 0 where each has weights of its own. Takes `shared_weight` out of the settings."""
    told, layers = values.pop("shared_weight", shared), values.get("num_hidden_layers")
    if told is not shared:
        problems.append(f"shared_weight: got {told!r}, but the tensors are of {'one layer' if shared else 'several layers'}")
    if not shared:
        return 0
    if type(layers) is int and 1 <= layers <= MOST_LAYERS:
        return layers
    problems.append(f"num_layers: got {layers!r}, expected how many layers share their weights, 1 to {MOST_LAYERS}; "
                    "no tensor shows it: say it in the config")
    return 0


def in_their_words(config: YosoConfig, *, shared: bool, num_classes: int | None) -> dict[str, Any]:
    """The settings of the program `RoBERTa`.

    Args:
        config: of bertkit.
        shared: whether one layer is written for all.
        num_classes: labels of a classifier, where there is one.
    """
    settings: dict[str, Any] = {
        "mixed_precision": True,
        "shared_weight": shared,
        "vocab_size": config.vocab_size,
        "num_sen_type": config.type_vocab_size,
        "max_seq_len": config.max_position_embeddings,
        "embedding_dim": config.hidden_size,
        "dim": config.hidden_size,
        "hidden_dim": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "dropout_prob": config.hidden_dropout_prob,
        "num_head": config.num_attention_heads,
        "head_dim": config.head_size,
        "model_type": "efficient_attention",
        "attn_type": "yoso-v1-e" if config.use_expectation else "yoso-v1",
        "use_fast_hash": config.use_fast_hash,
        "hash_code_len": config.hash_code_len,
        "num_hash": config.num_hash,
        "n2_backward": not config.lsh_backward,
    }
    # The programs look whether these are there, not what they are.
    optional = {"conv_window": config.conv_window, "num_classes": num_classes}
    return {**settings, **{name: value for name, value in optional.items() if value is not None}}
