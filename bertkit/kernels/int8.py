"""I-BERT's arithmetic in integers in portable PyTorch; `bertkit.core.reference.int8` says what each function gives.

No number here is a floating-point one, and all are those of the oracle, bit for bit: on every device, eagerly, under
`torch.compile` and `torch.export`. Long formulas change one tensor step by step, since memory is what takes the time.
Kim et al., "I-BERT: Integer-only BERT Quantization", arXiv 2101.01321.

Shape suffixes: B batch, L length, N heads, D head size, S keys, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bertkit.core.reference.int8 import (
    EXP_BITS,
    GELU_DROPPED_BITS,
    LARGEST_EXP,
    LARGEST_INT32,
    LARGEST_PROBABILITY,
    STREAM_BITS,
)

NEWTON_STEPS = 6
"""From a start that is at most twice the root, so many of Newton's steps reach every root of 32 bits."""


# -- arithmetic -----------------------------------------------------------------------------------------------------
def rescale(x: Tensor, multiplier: Tensor, right_shift: Tensor) -> Tensor:
    """Multiply by multiplier / 2**right_shift, rounding to the nearest integer, ties up.

    Args:
        x: integers of 32 bits.
        multiplier, right_shift: one for all or one per feature.

    Returns:
        int64.
    """
    right_shift = wide(right_shift)
    total = wide(x) * multiplier
    total += 1 << (right_shift - 1)
    total >>= right_shift
    return total


def saturate(x: Tensor, bits: int) -> Tensor:
    """Bring integers into the range of `bits` bits."""
    return x.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def integer_sqrt(x: Tensor) -> Tensor:
    """The largest integers whose squares do not exceed x >= 0, int64."""
    bits = torch.bucketize(x, 1 << torch.arange(63, device=x.device), right=True)
    root = 1 << ((bits + 1) >> 1)
    for _ in range(NEWTON_STEPS):
        root = torch.minimum(root, (root + x // root.clamp(min=1)) >> 1)
    return root


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Products of 8 bit integers added up in 32 bits.

    Args:
        x: [..., inputs], int8.
        weight: [outputs, inputs], int8.
        bias: [outputs], int32.

    Returns:
        [..., outputs], int32.
    """
    return (product(x.flatten(0, -2), weight.t()) + bias).view(*x.shape[:-1], len(bias))


def gelu(x: Tensor, clip: Tensor, one: Tensor, unit: Tensor, drop: Tensor) -> Tensor:
    """GELU by a second-degree polynomial for erf, before `rescale`.

    Args:
        x: [..., features], 32 bits.
        clip, one, unit, drop: [features].

    Returns:
        int64 that fits 32 bits.
    """
    x = wide(x)
    total = torch.minimum(x.abs(), clip)
    total -= clip
    total *= total
    total += one
    total *= x.sign()
    total >>= GELU_DROPPED_BITS
    total += unit
    total *= x
    total >>= drop
    return total


def exponentials(x: Tensor, constants: Tensor, multiplier: Tensor, right_shift: Tensor) -> Tensor:
    """exp(x) for x <= 0 as integers of 15 bits.

    Args:
        x: scores less the row's largest, int32.
        constants: drop, step, linear and one of the polynomial.
        multiplier, right_shift: [1], from the polynomial to 15 bits.

    Returns:
        int64.
    """
    drop, step, linear, one = constants.unbind()
    below = torch.minimum(-(x >> drop), EXP_BITS * step)
    halvings = below // step
    rest = below - halvings * step
    polynomial = wide(one - rest * (linear - rest))
    shift = wide(right_shift + halvings).clamp(max=63)
    return rescale(polynomial, multiplier, shift).clamp(max=LARGEST_EXP)


def softmax(scores: Tensor, keep: Tensor | None, constants: Tensor, multiplier: Tensor, right_shift: Tensor) -> Tensor:
    """Softmax over the last axis in 1/256, at most 255; keys that are not kept get 0, as do rows without keys.

    Args:
        scores: [..., S], int32.
        keep: broadcastable to `scores`, True for keys that count; None for all.
        constants, multiplier, right_shift: see `exponentials`.

    Returns:
        int64.
    """
    lowest = torch.iinfo(scores.dtype).min
    kept = scores if keep is None else torch.where(keep, scores, lowest)
    below = scores - kept.amax(-1, keepdim=True)
    exps = exponentials(below if keep is None else torch.where(keep, below, 0), constants, multiplier, right_shift)
    exps = exps if keep is None else torch.where(keep, exps, 0)
    factor = (2**32 // exps.sum(-1, keepdim=True).clamp(min=1)).clamp(max=2**32 - 1)
    return (exps * factor + 2**23 >> 24).clamp(max=LARGEST_PROBABILITY)


def layer_norm(x: Tensor, shift: Tensor, multiplier: Tensor, right_shift: Tensor, offset: Tensor) -> Tensor:
    """Layer normalisation with the integer square root, straight to int8.

    Args:
        x: [..., E], 22 bits, int64.
        shift: [1].
        multiplier, right_shift, offset: [E].
    """
    width = x.shape[-1]
    centred = x - (2 * x.sum(-1, keepdim=True) + width) // (2 * width)
    squares = centred >> shift
    squares *= squares
    squares = squares.sum(-1, keepdim=True)
    deviation = integer_sqrt(squares).clamp(min=1) << shift
    factor = (2**31 // deviation).clamp(max=LARGEST_INT32)
    centred *= factor
    centred >>= 1
    normed = saturate(centred, 32)
    normed *= multiplier
    normed += offset
    normed >>= right_shift
    return to_stream(normed)


def attend(query_BNLD: Tensor, key_BNSD: Tensor, value_BNSD: Tensor, keep: Tensor | None, heads: Tensor | None,
           constants: Tensor, multiplier: Tensor, right_shift: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of 8 bit integers.

    Args:
        query_BNLD, key_BNSD, value_BNSD: projections by head, int8.
        keep: broadcastable to [B, N, L, S], True for keys that count; None for all.
        heads: broadcastable to [B, N, L, S], True for heads that count; None for all.
        constants, multiplier, right_shift: see `exponentials`.

    Returns:
        Sums [B, N, L, D], int32, and probabilities [B, N, L, S] in 1/256, uint8.
    """
    probabilities = softmax(product(query_BNLD, key_BNSD.transpose(-1, -2)), keep, constants, multiplier, right_shift)
    if heads is not None:
        probabilities = torch.where(heads, probabilities, 0)
    # Probabilities have 8 bits but no sign: what their products lack when 128 less is multiplied is added again.
    lacking = 128 * value_BNSD.sum(-2, keepdim=True, dtype=torch.int32)
    return product((probabilities - 128).to(torch.int8), value_BNSD) + lacking, probabilities.to(torch.uint8)


# -- products -------------------------------------------------------------------------------------------------------
def product(x: Tensor, y: Tensor) -> Tensor:
    """int8 [..., M, K] times int8 [..., K, N], added up in int32."""
    if x.dim() == 2:
        return matrix_product(x, y)
    if torch.compiler.is_compiling() or not x.numel():  # one operation, whatever the batch
        return batched_product(x, y)
    if x.device.type != "cpu":
        return torch.stack([batched_product(*pair) for pair in zip(x, y, strict=True)])
    pairs = zip(x.flatten(0, -3), y.flatten(0, -3), strict=True)
    return torch.stack([matrix_product(*pair) for pair in pairs]).view(*x.shape[:-1], y.shape[-1])


def batched_product(x: Tensor, y: Tensor) -> Tensor:
    """`product` of batches of matrices in 32 bits; away from the CPU, PyTorch multiplies no integers but element by element."""
    if x.device.type == "cpu":
        return x.int() @ y.int()
    return (x[..., None].int() * y[..., None, :, :]).sum(-2, dtype=torch.int32)


def matrix_product(x: Tensor, y: Tensor) -> Tensor:
    """`product` of two matrices by the device's instructions for 8 bits, where they are exact."""
    if is_exact(x.device.type):
        return int8_product(x, y)
    return (x.cpu().int() @ y.cpu().int()).to(x.device)


def int8_product(x: Tensor, y: Tensor) -> Tensor:
    """`_int_mm`, given what it gets right."""
    if x.device.type == "cpu":
        # It misreads the strides of what has but one row or column.
        x, y = (z if min(z.shape) > 1 else z.clone(memory_format=torch.contiguous_format) for z in (x, y))
        return torch._int_mm(x, y)
    return tensor_core_product(x, y)


def tensor_core_product(x: Tensor, y: Tensor) -> Tensor:
    """`_int_mm` on CUDA: dense matrices, more than 16 rows, multiples of 8 elsewhere."""
    rows, inner, columns = x.shape[0], x.shape[1], y.shape[1]
    x = F.pad(x, (0, -inner % 8, 0, max(17 - rows, 0))).contiguous()
    y = F.pad(y, (0, -columns % 8, 0, -inner % 8)).contiguous()
    return torch._int_mm(x, y)[:rows, :columns]


_EXACT: dict[str, bool] = {}
"""What `is_exact` has found, by type of device."""


def is_exact(device: str) -> bool:
    """Whether a type of device has products of 8 bits, and right ones: CPUs without instructions for them saturate pairs.

    What is being traced cannot be tried; then it is as if there were none, unless the device was tried before.
    """
    if device not in _EXACT and not torch.compiler.is_compiling():
        x = torch.full((17, 64), 127, dtype=torch.int8, device=device)
        if type(x) is not Tensor:  # a stand-in without values
            return False
        try:
            _EXACT[device] = bool((int8_product(x, x.t()) == 64 * 127**2).all())
        except RuntimeError:  # this device, or this version of PyTorch, has none
            _EXACT[device] = False
    return _EXACT.get(device, False)


# -- words ----------------------------------------------------------------------------------------------------------
def wide(x: Tensor) -> Tensor:
    """In 64 bits."""
    return x.to(torch.int64)


def to_stream(x: Tensor) -> Tensor:
    """Saturated to 8 bits."""
    return saturate(x, STREAM_BITS).to(torch.int8)
