"""Layers that the PyTorch models share: activations, norms, attention and its masks.

Shape suffixes: B batch, N heads, L query length, S key length, D head size, E width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertkit.core.errors import InputError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def activation(name: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function behind a configuration's `hidden_act`, which may be a function already."""
    return name if callable(name) else ACTIVATIONS[name]


def word_embedding(config: Any, columns: int) -> nn.Embedding:
    """The table of words; the row of the padding token is not trained by looking it up."""
    pad = config.pad_token_id
    inside = pad is not None and 0 <= pad < config.vocab_size
    return nn.Embedding(config.vocab_size, columns, padding_idx=pad if inside else None)


class Matrix(nn.Module):
    """A weight used as it lies on disk, without a layer's meaning of its own."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))


class NoNorm(nn.Module):
    """Scale and shift each feature; under autocast in float32, and so is what is added up behind it.

    Args:
        size: number of features, the last dimension of the input.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


def additive_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a 0/1 mask into what is added to attention scores: 0, or the lowest number of the dtype.

    Args:
        mask: [B, S], [B, L, S] or [B, 1 or N, L, S], or None for no mask.
        dtype: floating dtype of the scores.

    Returns:
        [B, 1 or N, 1 or L, S], or None.

    Raises:
        InputError: for a mask of another rank.
    """
    if mask is None:
        return None
    if mask.dim() not in (2, 3, 4):
        raise InputError(f"attention_mask: got {mask.dim()} dimensions, expected 2 [batch, length] "
                         "or 3 [batch, length, length]")
    while mask.dim() < 4:
        mask = mask.unsqueeze(1)
    return (1.0 - mask.to(dtype)) * torch.finfo(dtype).min


def causal_mask(mask: Tensor, length: int) -> Tensor:
    """Forbid each of the last `length` positions to see later ones.

    Args:
        mask: [B, S] padding mask of all positions, the cached ones first.
        length: number of new positions, at the end of S.

    Returns:
        [B, length, S] mask of 0 and 1.
    """
    keys = torch.arange(mask.shape[1], device=mask.device)
    seen = keys[None, :] <= keys[mask.shape[1] - length :, None]
    return seen[None].to(mask.dtype) * mask[:, None, :]


def attend(
    query_BNLD: Tensor,
    key_BNSD: Tensor,
    value_BNSD: Tensor,
    bias: Tensor | None = None,
    *,
    dropout: float = 0.0,
    scores_bias: Tensor | None = None,
    head_mask: Tensor | None = None,
    want_probabilities: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention; the fused kernel wherever nobody needs the probabilities.

    Args:
        query_BNLD, key_BNSD, value_BNSD: projections by head.
        bias: what is added to the scaled scores, broadcastable to [B, N, L, S].
        dropout: probability of dropping a probability.
        scores_bias: what is added to the scores before scaling (relative positions), [B, N, L, S].
        head_mask: factor of each head's probabilities, [N] or broadcastable to [B, N, L, S].
        want_probabilities: give the probabilities too.

    Returns:
        Context [B, L, E] and probabilities [B, N, L, S] or None.
    """
    probabilities = None
    if want_probabilities or head_mask is not None or scores_bias is not None:
        scores = query_BNLD @ key_BNSD.transpose(-1, -2)
        if scores_bias is not None:
            scores = scores + scores_bias
        scores = scores / math.sqrt(query_BNLD.shape[-1])
        if bias is not None:
            scores = scores + bias
            # The lowest number and a negative score make -inf, and a row of these NaN.
            scores = scores.clamp(min=torch.finfo(scores.dtype).min)
        probabilities = F.dropout(scores.softmax(-1), dropout)
        if head_mask is not None:
            probabilities = probabilities * (head_mask.view(-1, 1, 1) if head_mask.dim() == 1 else head_mask)
        context_BNLD = probabilities @ value_BNSD
    else:
        if bias is not None:
            bias = bias.clamp(min=torch.finfo(query_BNLD.dtype).min).to(query_BNLD.dtype)
        context_BNLD = F.scaled_dot_product_attention(query_BNLD, key_BNSD, value_BNSD, bias, dropout)
    return merge_heads(context_BNLD), probabilities if want_probabilities else None


def split_heads(x_BLE: Tensor, size: int) -> Tensor:
    """[B, L, E] -> [B, N, L, D]."""
    return x_BLE.unflatten(2, (-1, size)).transpose(1, 2)


def merge_heads(x_BNLD: Tensor) -> Tensor:
    """[B, N, L, D] -> [B, L, E]."""
    return x_BNLD.transpose(1, 2).flatten(2)


def keep_rows(layer: nn.Linear, index: Tensor, dim: int = 0) -> None:
    """Cut a linear layer down to some of its outputs (dim 0) or inputs (dim 1), in place."""
    weight = layer.weight.index_select(dim, index.to(layer.weight.device)).detach().clone()
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    if dim == 0:
        layer.bias = nn.Parameter(layer.bias[index.to(layer.bias.device)].detach().clone(), layer.bias.requires_grad)
    layer.out_features, layer.in_features = layer.weight.shape


class Pooler(nn.Module):
    """The first token through a linear layer and tanh.

    Args:
        config: gives `hidden_size`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLE: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden_BLE[:, 0]))


class FeedForward(nn.Module):
    """Dense and activation: the first half of a feed-forward network.

    Args:
        inputs: width of the input.
        outputs: inner width.
        act: name of the activation, or a function.
    """

    def __init__(self, inputs: int, outputs: int, act: str | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x))
