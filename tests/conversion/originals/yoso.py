"""Checkpoints as the programs of mlpen/YOSO write them, and what their models compute.

The names, their order, the nesting and everything beside the weights are theirs; the values come from a formula. Written
with `torch.save` out of the state of real modules' optimizers.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conversion.bert import gelu, unit
from tests.fixtures.fill import fill

SETTINGS: dict[str, Any] = {
    "mixed_precision": True, "shared_weight": False, "vocab_size": 47, "num_sen_type": 2, "max_seq_len": 20,
    "embedding_dim": 16, "dim": 16, "hidden_dim": 24, "num_layers": 3, "dropout_prob": 0.1, "num_head": 4, "head_dim": 4,
    "model_type": "efficient_attention", "attn_type": "yoso-v1-e", "use_fast_hash": True, "hash_code_len": 5, "num_hash": 8,
    "n2_backward": False,
}
"""The section "model" of a config.json, made small; all that `yoso-v1` has."""

Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _layer(at: str, settings: dict[str, Any], feed_forward: tuple[str, str], conv: int | None) -> Shapes:
    dim, hidden = settings["dim"], settings["hidden_dim"]
    kernel = {} if conv is None else {f"{at}.mha.attn.conv.weight": (settings["num_head"], 1, conv, 1)}
    return {
        **_linear(f"{at}.mha.W_q", dim, dim), **_linear(f"{at}.mha.W_k", dim, dim), **_linear(f"{at}.mha.W_v", dim, dim),
        **kernel, **_linear(f"{at}.mha.ff", dim, dim), **_norm(f"{at}.norm1", dim),
        **_linear(f"{at}.{feed_forward[0]}", hidden, dim), **_linear(f"{at}.{feed_forward[1]}", dim, hidden),
        **_norm(f"{at}.norm2", dim),
    }


def layers(settings: dict[str, Any], generation: int) -> list[tuple[str, tuple[str, str]]]:
    """Of each layer the name, and the names of its feed-forward network."""
    names = {1: "model.transformer_{}", 2: "model.backbone.backbone.encoders.{}"}[generation]
    if settings["shared_weight"]:
        names = "model.backbone.backbone.encoder"
    return [(names.format(i), ("ff1", "ff2") if generation == 1 else ("ff.0", "ff.2")) for i in range(settings["num_layers"])]


def state(
    settings: dict[str, Any] = SETTINGS, *, generation: int = 2, program: str = "RoBERTa", head: str = "mlm",
) -> OrderedDict[str, torch.Tensor]:
    """What `model.module.state_dict()` gives.

    Args:
        settings: the section "model" of config.json.
        generation: 1 for the names of the weights on the hub, 2 for those of the published programs.
        program: "RoBERTa", or "BERT", which has a pooler and a classifier of sentences.
        head: beside the language model: "mlm" for nothing, "qa", "wikihop" or "classifier" (of `RoBERTa`).
    """
    dim, words = settings["dim"], settings["vocab_size"]
    rows = settings["max_seq_len"] + (2 if program == "RoBERTa" else 0)
    shapes: Shapes = {
        "model.embeddings.word_embeddings.weight": (words, dim),
        "model.embeddings.position_embeddings.weight": (rows, dim),
        "model.embeddings.token_type_embeddings.weight": (settings["num_sen_type"], dim),
        **_norm("model.embeddings.norm", dim),
    }
    for at, feed_forward in layers(settings, generation):
        shapes |= _layer(at, settings, feed_forward, settings.get("conv_window"))
    if program == "BERT" or generation == 1:
        shapes |= _linear("model.pooler", dim, dim)
    shapes |= {**_linear("mlm.dense", dim, dim), **_norm("mlm.norm", dim), **_linear("mlm.mlm_class", words, dim)}
    shapes |= {
        "mlm": {}, "qa": _linear("qahead", 2, dim), "wikihop": _linear("qahead", 1, dim),
        "classifier": {**_linear("sen_classifer.dense", dim, dim), **_linear("sen_classifer.classifer", 3, dim)},
    }[head]
    if program == "BERT" or generation == 1:
        shapes |= _linear("sen_class", settings.get("num_classes", 4), dim)
    made = OrderedDict((name, torch.from_numpy(_values(name, shape))) for name, shape in shapes.items())
    made["mlm.mlm_class.weight"] = made["model.embeddings.word_embeddings.weight"]
    made._metadata = OrderedDict({"": {"version": 1}, "model": {"version": 1}})
    return made


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers by name, the same for the same tensor in both generations."""
    for old, new in (("model.backbone.backbone.encoders.", "model.transformer_"), (".ff.0.", ".ff1."), (".ff.2.", ".ff2.")):
        name = name.replace(old, new)
    return fill(name, shape)


def save_model(path: Path, weights: OrderedDict[str, torch.Tensor]) -> Path:
    """A `.model`: the weights alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": weights}, path)
    return path


def save_training(path: Path, weights: OrderedDict[str, torch.Tensor], *, bound: bool = False) -> Path:
    """A `.cp`: the weights, and the state of AdamW and of its schedule after a step.

    Args:
        path: the file.
        weights: the state of the model.
        bound: as with the torch of its time: the state of the schedule holds one of its own methods, and thereby all of the
            schedule and of the optimizer (https://github.com/pytorch/pytorch/issues/42376).
    """
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-4, pct_start=0.01, anneal_strategy="linear", epochs=500,
                                                   steps_per_epoch=2000)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    state = schedule.state_dict()
    if bound:
        state["anneal_func"] = types.MethodType(torch.optim.lr_scheduler.OneCycleLR._annealing_linear, schedule)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": weights, "optimizer_state_dict": optimizer.state_dict(),
                "lr_scheduler_state_dict": state, "epoch": 4, "inst_pass": 2560}, path)
    return path


def run(
    weights: dict[str, torch.Tensor], settings: dict[str, Any], ids: np.ndarray, types: np.ndarray, mask: np.ndarray, *,
    generation: int = 2, program: str = "RoBERTa",
) -> dict[str, np.ndarray]:
    """What the model computes, in float64: hidden states, and the scores of each head that there is.

    Attention is the expectation: the probability that `hash_code_len` random planes do not part two vectors.
    """
    w = {name: value.numpy().astype(np.float64) for name, value in weights.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], settings["num_head"], -1).transpose(0, 2, 1, 3)

    def convolved(name: str, value: np.ndarray) -> np.ndarray:
        if name not in w:
            return np.zeros_like(value)
        kernel = w[name][:, 0, :, 0]
        half = kernel.shape[1] // 2
        padded = np.pad(value * mask[:, None, :, None], ((0, 0), (0, 0), (half, half), (0, 0)))
        return sum(kernel[None, :, k, None, None] * padded[:, :, k:k + value.shape[2]] for k in range(kernel.shape[1]))

    at = "model.embeddings"
    positions = np.arange(ids.shape[1]) + (2 if program == "RoBERTa" else 0)
    x = norm(f"{at}.norm", w[f"{at}.word_embeddings.weight"][ids] + w[f"{at}.position_embeddings.weight"][positions]
             + w[f"{at}.token_type_embeddings.weight"][types])
    seen = mask[:, None, :, None] * mask[:, None, None, :]
    for at, (first, second) in layers(settings, generation):
        query, key, value = (heads(linear(f"{at}.mha.W_{letter}", x)) for letter in "qkv")
        cosine = np.clip(unit(query) @ unit(key).swapaxes(-1, -2), -1, 1)
        collisions = (1 - np.arccos(cosine) / np.pi) ** settings["hash_code_len"] * seen
        context = unit(collisions @ value) + convolved(f"{at}.mha.attn.conv.weight", value)
        x = norm(f"{at}.norm1", x + linear(f"{at}.mha.ff", context.transpose(0, 2, 1, 3).reshape(x.shape)))
        x = norm(f"{at}.norm2", x + linear(f"{at}.{second}", gelu(linear(f"{at}.{first}", x))))
    outputs = {"hidden": x, "mlm": linear("mlm.mlm_class", norm("mlm.norm", gelu(linear("mlm.dense", x))))}
    return {**outputs, "qahead": linear("qahead", x)} if "qahead.weight" in w else outputs
