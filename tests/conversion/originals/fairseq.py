"""RoBERTa and I-BERT checkpoints as fairseq writes them: each generation of names and of settings, with the baggage.

Names, their order, the settings and the state of the training are those of fairseq 0.9 to 0.12 and of I-BERT's branch of
it; nothing of bertkit is used. `forward` is what RoBERTa computes, on the names of the newest generation.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH, INNER, LAYERS, HEADS, LENGTH, LABELS = 8, 12, 3, 2, 10, 3
WORDS = ["the", "of", "and", "naïve", "4", "x"]
ROWS = 4 + len(WORDS) + 1
"""<s> <pad> </s> <unk>, the dictionary, <mask>."""


class Maker:
    """Makes the tensors of a model, module by module."""

    def __init__(self, seed: int, quantised: bool) -> None:
        self.random, self.quantised = torch.Generator().manual_seed(seed), quantised
        self.model: OrderedDict[str, Tensor] = OrderedDict()

    def values(self, *shape: int, scale: float = 0.5) -> Tensor:
        return torch.randn(shape, generator=self.random) * scale

    def act(self, name: str) -> None:
        if self.quantised:
            low, high = -self.values(1).abs() - 0.1, self.values(1).abs() + 0.1
            self.model |= {f"{name}.x_min": low, f"{name}.x_max": high,
                           f"{name}.act_scaling_factor": torch.maximum(-low, high) / 127}

    def linear(self, name: str, rows: int, columns: int) -> None:
        weight, bias = self.values(rows, columns), self.values(rows)
        self.model |= {f"{name}.weight": weight, f"{name}.bias": bias}
        if self.quantised:
            scale = weight.abs().amax(1) / 127
            self.model |= {f"{name}.fc_scaling_factor": scale, f"{name}.weight_integer": (weight / scale[:, None]).round(),
                           f"{name}.bias_integer": torch.zeros_like(bias)}

    def norm(self, name: str) -> None:
        self.model |= {f"{name}.weight": 1 + self.values(WIDTH, scale=0.1), f"{name}.bias": self.values(WIDTH)}
        if self.quantised:
            self.model[f"{name}.shift"] = torch.full((1,), 2.0)
            self.act(f"{name}.activation")

    def embedding(self, name: str, rows: int) -> None:
        weight = self.values(rows, WIDTH)
        weight[1] = 0
        self.model[f"{name}.weight"] = weight
        if self.quantised:
            self.model |= {f"{name}.weight_scaling_factor": weight.abs().max().view(1) / 127,
                           f"{name}.weight_integer": torch.zeros_like(weight)}


def weights(
    *, prefix: str = "encoder", norm: str = "emb_layer_norm", fused: bool = False, quantised: bool = False,
    lm_head: bool = True, untied: bool = False, heads: tuple[str, ...] = (), version: bool = False, seed: int = 0,
    norms: tuple[str, str] = ("self_attn_layer_norm", "final_layer_norm"),
) -> OrderedDict[str, Tensor]:
    """The weights of a model.

    Args:
        prefix: "decoder" until fairseq 0.9, "encoder" since.
        norm: the embeddings' norm: "emb_layer_norm", and "layernorm_embedding" since 1.0.
        fused: queries, keys and values in one tensor, as before 0.8.
        quantised: an I-BERT, with its ranges and integer copies.
        lm_head: with a language-model head, as every RoBERTa.
        untied: whose decoder is not the word embeddings.
        heads: names of classification heads.
        version: with the buffer that TransformerEncoder has since 1.0.
        seed: of the values.
        norms: names of a layer's norms.
    """
    make = Maker(seed, quantised)
    top = f"{prefix}.sentence_encoder"
    if version:
        make.model[f"{top}.version"] = torch.Tensor([3])
    make.embedding(f"{top}.embed_tokens", ROWS)
    make.embedding(f"{top}.embed_positions", LENGTH + 2)
    make.act(f"{top}.embed_positions_act")
    for layer in range(LAYERS):
        at = f"{top}.layers.{layer}"
        if quantised:
            make.model[f"{at}.activation_fn_approx.input_scaling_factor"] = torch.ones(1)
        make.act(f"{at}.input_act")
        if fused:
            make.model |= {f"{at}.self_attn.in_proj_weight": make.values(3 * WIDTH, WIDTH),
                           f"{at}.self_attn.in_proj_bias": make.values(3 * WIDTH)}
        else:
            for name in ("k_proj", "v_proj", "q_proj"):
                make.linear(f"{at}.self_attn.{name}", WIDTH, WIDTH)
        for name in ("k_proj_act", "v_proj_act", "q_proj_act", "softmax.act", "attn_probs_act", "attn_act"):
            make.act(f"{at}.self_attn.{name}")
        make.linear(f"{at}.self_attn.out_proj", WIDTH, WIDTH)
        make.act(f"{at}.pre_self_attn_layer_norm_act")
        make.norm(f"{at}.{norms[0]}")
        make.act(f"{at}.fc1_act")
        make.act(f"{at}.fc2_act")
        make.linear(f"{at}.fc1", INNER, WIDTH)
        make.linear(f"{at}.fc2", WIDTH, INNER)
        make.act(f"{at}.pre_final_layer_norm_act")
        make.norm(f"{at}.{norms[1]}")
    make.norm(f"{top}.{norm}")
    make.quantised = False  # the heads compute in float
    if lm_head:
        words = make.model[f"{top}.embed_tokens.weight"]
        make.model |= {f"{prefix}.lm_head.weight": make.values(ROWS, WIDTH) if untied else words,
                       f"{prefix}.lm_head.bias": make.values(ROWS)}
        make.linear(f"{prefix}.lm_head.dense", WIDTH, WIDTH)
        make.norm(f"{prefix}.lm_head.layer_norm")
    for head in heads:
        make.linear(f"classification_heads.{head}.dense", WIDTH, WIDTH)
        make.linear(f"classification_heads.{head}.out_proj", LABELS, WIDTH)
    return make.model


def arguments(**changes: Any) -> Namespace:
    """The arguments of a run of fairseq 0.9."""
    return Namespace(**{
        "no_progress_bar": False, "log_interval": 100, "log_format": "simple", "tensorboard_logdir": "", "seed": 1,
        "cpu": False, "fp16": True, "user_dir": None, "criterion": "masked_lm", "tokenizer": None, "bpe": None,
        "optimizer": "adam", "adam_betas": "(0.9, 0.98)", "lr": [0.0005], "lr_scheduler": "polynomial_decay",
        "task": "masked_lm", "arch": "roberta_base", "data": "data-bin/wikitext-103", "max_epoch": 0, "update_freq": [16],
        "save_dir": "checkpoints", "restore_file": "checkpoint_last.pt", "sample_break_mode": "complete",
        "tokens_per_sample": LENGTH, "mask_prob": 0.15, "leave_unmasked_prob": 0.1, "random_token_prob": 0.1,
        "encoder_layers": LAYERS, "encoder_embed_dim": WIDTH, "encoder_ffn_embed_dim": INNER,
        "encoder_attention_heads": HEADS, "max_positions": LENGTH, "dropout": 0.1, "attention_dropout": 0.2,
        "activation_dropout": 0.0, "activation_fn": "gelu", "pooler_activation_fn": "tanh", "pooler_dropout": 0.0,
        "encoder_layerdrop": 0, "encoder_layers_to_keep": None, **changes})


def hydra(**changes: Any) -> dict[str, Any]:
    """The settings of fairseq 1.0 and later."""
    names = ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "max_positions",
             "dropout", "attention_dropout", "activation_dropout", "activation_fn", "pooler_activation_fn", "pooler_dropout")
    model = {name: vars(arguments())[name] for name in names} | {
        "untie_weights_roberta": False, "no_scale_embedding": True, "layernorm_embedding": True, "quant_noise_pq": 0}
    return {"_name": None, "common": {"_name": None, "seed": 1, "fp16": True},
            "task": {"_name": "masked_lm", "data": "data-bin"}, "criterion": {"_name": "masked_lm", "tpu": False},
            "optimizer": {"_name": "adam", "lr": [0.0005]},
            "model": {"_name": "roberta", **model, **changes}}


class Node:
    """A value or container of omegaconf, which knows its parent."""

    def __init__(self, parent: Node | None, **content: Any) -> None:
        self.__dict__ |= {"_metadata": None, "_parent": parent, **content}


class AnyNode(Node):
    """A value."""

    __module__, __qualname__ = "omegaconf.nodes", "AnyNode"


class DictConfig(Node):
    """A dictionary, as fairseq wrote its settings for some months."""

    __module__, __qualname__ = "omegaconf.dictconfig", "DictConfig"

    def __init__(self, content: dict[str, Any], parent: Node | None = None) -> None:
        super().__init__(parent)
        self._content = {name: DictConfig(value, self) if isinstance(value, dict) else AnyNode(self, _val=value)
                         for name, value in content.items()}


OMEGACONF = {"omegaconf": ModuleType("omegaconf"), "omegaconf.nodes": ModuleType("omegaconf.nodes"),
             "omegaconf.dictconfig": ModuleType("omegaconf.dictconfig")}
OMEGACONF["omegaconf.nodes"].AnyNode, OMEGACONF["omegaconf.dictconfig"].DictConfig = AnyNode, DictConfig


def save(
    path: Path, model: OrderedDict[str, Tensor], args: Namespace | None = None, cfg: dict[str, Any] | DictConfig | None = None,
    legacy: bool = False,
) -> Path:
    """A checkpoint file with the state of the training.

    Args:
        path: the file.
        model: its weights.
        args: the arguments of older files.
        cfg: the settings of newer ones.
        legacy: in the form of torch before 1.6.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count = sum(value.numel() for value in model.values())
    meters = [(10, "loss", "AverageMeter", {"val": torch.tensor(2.5, dtype=torch.float64), "sum": 5.0, "count": 2, "round": 3})]
    state = {
        "args": args, "cfg": cfg, "model": model, "criterion": None,
        "optimizer_history": [{"criterion_name": "MaskedLmLoss", "optimizer_name": "MemoryEfficientFP16Optimizer",
                               "lr_scheduler_state": {"best": 2.5}, "num_updates": 7}],
        "task_state": {},
        "extra_state": {"metrics": {"default": meters}, "train_iterator": {"epoch": 2, "iterations_in_epoch": 0,
                                                                            "shuffle": True}, "val_loss": 2.5},
        "last_optimizer_state": {"state": {0: {"step": 7, "exp_avg": torch.zeros(count), "exp_avg_sq": torch.zeros(count)}},
                                 "param_groups": [{"lr": 0.0005, "params": [0]}], "loss_scale": 128.0},
    }
    if cfg is None:
        del state["cfg"], state["criterion"], state["task_state"]
    with patch.dict(sys.modules, OMEGACONF):  # where pickle looks the classes up
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def dictionary(directory: Path, words: list[str] = WORDS) -> Path:
    """The dict.txt of a training: a symbol and how often it was seen."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "dict.txt"
    path.write_text("".join(f"{word} {1000 // (number + 1)}\n" for number, word in enumerate(words)), "utf-8")
    return path


def newest(model: OrderedDict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that today's fairseq gives them when it loads an old file."""
    renamed = {}
    for name, value in model.items():
        name = name.replace("decoder.", "encoder.", 1) if name.startswith("decoder.") else name
        name = name.replace(".layernorm_embedding.", ".emb_layer_norm.")
        name = name.replace(".layer_norms.0.", ".self_attn_layer_norm.").replace(".layer_norms.1.", ".final_layer_norm.")
        for leaf in ("weight", "bias"):
            if name.endswith(f".in_proj_{leaf}"):
                parts = zip("qkv", value.chunk(3), strict=True)
                renamed |= {name.replace(f"in_proj_{leaf}", f"{letter}_proj.{leaf}"): part for letter, part in parts}
                break
        else:
            renamed[name] = value
    return renamed


def forward(model: OrderedDict[str, Tensor], ids: Tensor, head: str | None = None) -> Tensor:
    """Scores of every word at every place, or those of a classification head; padding is not attended to."""
    w = {name.removeprefix("encoder."): value.double() for name, value in newest(model).items()}
    w = {name.removeprefix("sentence_encoder."): value for name, value in w.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    real = ids.ne(1).int()
    x = w["embed_tokens.weight"][ids] + w["embed_positions.weight"][(real.cumsum(1) * real + 1).long()]
    x = norm("emb_layer_norm", x) * real[..., None]
    for layer in range(LAYERS):
        at = f"layers.{layer}"
        q, k, v = (linear(f"{at}.self_attn.{letter}_proj", x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for letter in "qkv")
        scores = q * (WIDTH // HEADS) ** -0.5 @ k.transpose(-1, -2)
        seen = scores.masked_fill(~real.bool()[:, None, None], float("-inf")).softmax(-1) @ v
        x = norm(f"{at}.self_attn_layer_norm", x + linear(f"{at}.self_attn.out_proj", seen.transpose(1, 2).flatten(2)))
        x = norm(f"{at}.final_layer_norm", x + linear(f"{at}.fc2", F.gelu(linear(f"{at}.fc1", x))))
    if head is not None:
        first = torch.tanh(linear(f"classification_heads.{head}.dense", x[:, 0]))
        return linear(f"classification_heads.{head}.out_proj", first)
    x = norm("lm_head.layer_norm", F.gelu(linear("lm_head.dense", x)))
    return F.linear(x, w["lm_head.weight"]) + w["lm_head.bias"]
