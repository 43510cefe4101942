"""I-BERT's arithmetic in integers: the oracle for every faster implementation, one to one with the paper.

Kim et al., "I-BERT: Integer-only BERT Quantization", arXiv 2101.01321. A real number x is an integer q and a scale S
with x = S * q; this file knows the integers alone. Whatever depends on scales was made an integer before, by
`bertkit.core.freezing`. All arrays are int64 here, which holds every intermediate; the widths in the text are those
that the tensors of a frozen model guarantee, and that faster implementations rely on. They agree with this one bit for bit.

Rounding, once and for all:

- `>>` is the arithmetic shift, which rounds down; `//` rounds down, too.
- `rescale` rounds to the nearest integer, ties up, and so does softmax: rounded down, as in the paper's code, the small
  probabilities of a long sequence would be lost, and all would be biased.
- results of b bits saturate: [-2**(b-1), 2**(b-1) - 1]; probabilities at [0, 255].

Shape suffixes: B batch, L length, N heads, D head size, S keys, E width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bertkit.core.quantization import EMBEDDING_BITS, EXP_BITS, GELU_DROPPED_BITS, NORM_BITS, STREAM_BITS

Integers = NDArray[np.int64]
Tensors = Mapping[str, np.ndarray]

LARGEST_EXP = 2**15 - 1
LARGEST_PROBABILITY = 255
LARGEST_INT32 = 2**31 - 1


# -- arithmetic -----------------------------------------------------------------------------------------------------
def rescale(x: np.ndarray, multiplier: np.ndarray, right_shift: np.ndarray) -> Integers:
    """Multiply by multiplier / 2**right_shift, rounding to the nearest integer, ties up.

    Args:
        x: integers of 32 bits.
        multiplier: 32 bits, of any sign; one for all or one per feature.
        right_shift: 1 ... 62, so that product and rounding fit 63 bits.

    Returns:
        Integers of 32 bits: freezing has made sure of it for every x that can occur.

    Example:
        >>> rescale(np.array([-3, -1, 1, 3, 100]), np.array(1), np.array(1))
        array([-1,  0,  1,  2, 50])
    """
    right_shift = right_shift.astype(np.int64)
    return (x.astype(np.int64) * multiplier + (np.int64(1) << (right_shift - 1))) >> right_shift


def saturate(x: Integers, bits: int) -> Integers:
    """Bring integers into the range of `bits` bits."""
    return np.clip(x, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def integer_sqrt(x: Integers) -> Integers:
    """The largest integers whose squares do not exceed x >= 0, by Newton's iteration from above (Algorithm 4).

    Example:
        >>> integer_sqrt(np.array([0, 1, 3, 4, 2**62 - 1]))
        array([         0,          1,          1,          2, 2147483647])
    """
    bits = np.array([int(value).bit_length() for value in np.ravel(x)], np.int64).reshape(np.shape(x))
    root = np.int64(1) << ((bits + 1) // 2)
    while True:
        better = (root + x // np.maximum(root, 1)) >> 1
        if not (better < root).any():
            return root
        root = np.minimum(root, better)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Integers:
    """Products of 8 bit integers added up in 32 bits, which freezing has made sure of.

    Args:
        x: [..., inputs].
        weight: [outputs, inputs].
        bias: [outputs], 32 bits.
    """
    return x.astype(np.int64) @ weight.astype(np.int64).T + bias


def gelu(x: Integers, clip: np.ndarray, one: np.ndarray, unit: np.ndarray, drop: np.ndarray) -> Integers:
    """GELU by a second-degree polynomial for erf, at a scale that is `2**drop` times the polynomial's (Algorithm 2).

    The polynomial is sign(x) * ((min(|x|, clip) - clip)**2 + one) >> 14, and `unit` is what 1 is at its scale.

    Args:
        x: [..., features], 32 bits.
        clip: [features], where erf is flat.
        one: [features], up to 63 bits.
        unit: [features], 31 bits.
        drop: [features], so many bits too much would the result have for 32.

    Returns:
        Integers of 32 bits, before `rescale`.
    """
    polynomial = np.sign(x) * ((np.minimum(np.abs(x), clip) - clip) ** 2 + one) >> GELU_DROPPED_BITS
    return x * (polynomial + unit) >> drop


def exponentials(x: Integers, constants: np.ndarray, multiplier: np.ndarray, right_shift: np.ndarray) -> Integers:
    """exp(x) for x <= 0 as integers of 15 bits: a polynomial on (-ln 2, 0], and a shift for the rest (Algorithm 3).

    Args:
        x: scores less the row's largest.
        constants: `drop`: bits by which scores are too fine for 32 bit polynomials; `step`: ln 2; `linear` and `one`:
            the polynomial is one - r * (linear - r) for a remainder r in [0, step).
        multiplier, right_shift: [1], from the polynomial to 15 bits.
    """
    drop, step, linear, one = (int(value) for value in constants)
    below = np.minimum(-(x >> drop), EXP_BITS * step)
    halvings = below // step
    rest = below - halvings * step
    polynomial = one - rest * (linear - rest)
    shift = np.minimum(right_shift + halvings, 63)
    return np.minimum((polynomial * multiplier + (np.int64(1) << (shift - 1))) >> shift, LARGEST_EXP)


def softmax(scores: Integers, keep: np.ndarray | None, constants: np.ndarray, multiplier: np.ndarray,
            right_shift: np.ndarray) -> Integers:
    """Softmax over the last axis in 1/256, at most 255; keys that are not kept get 0, as do rows without keys.

    Args:
        scores: [..., S], 32 bits.
        keep: broadcastable to `scores`, True for keys that count; None for all.
        constants, multiplier, right_shift: see `exponentials`.
    """
    kept = np.ones(scores.shape, bool) if keep is None else np.broadcast_to(keep, scores.shape)
    lowest = np.iinfo(np.int64).min
    largest = np.where(kept, scores, lowest).max(-1, keepdims=True)
    below = np.where(kept, scores - largest, 0)
    exps = np.where(kept, exponentials(below, constants, multiplier, right_shift), 0)
    factor = np.minimum(2**32 // np.maximum(exps.sum(-1, keepdims=True), 1), 2**32 - 1)
    return np.minimum(exps * factor + 2**23 >> 24, LARGEST_PROBABILITY)


def layer_norm(x: Integers, shift: np.ndarray, multiplier: np.ndarray, right_shift: np.ndarray, offset: np.ndarray) -> Integers:
    """Layer normalisation with the integer square root, straight to 8 bits (Section 3.4).

    The mean is rounded to the nearest integer, ties up. Gain, bias and the next scale are one product and one sum.

    Args:
        x: [..., E], 22 bits.
        shift: [1], bits by which squares are too wide for 32 bits.
        multiplier, right_shift: [E], gain over the next scale, for normed integers of 32 bits.
        offset: [E], 62 bits: the bias over the next scale, shifted left by `right_shift`, and a half.
    """
    width = x.shape[-1]
    centred = x - (2 * x.sum(-1, keepdims=True) + width) // (2 * width)
    squares = ((centred >> shift) ** 2).sum(-1, keepdims=True)
    deviation = np.maximum(integer_sqrt(squares), 1) << shift
    factor = np.minimum(2**31 // deviation, LARGEST_INT32)
    normed = saturate(centred * factor >> 1, 32)
    return saturate((normed * multiplier + offset) >> right_shift, STREAM_BITS)


# -- the encoder ----------------------------------------------------------------------------------------------------
def encode(
    tensors: Tensors, layers: int, head_size: int, word_ids: np.ndarray, type_ids: np.ndarray, position_ids: np.ndarray,
    mask: np.ndarray | None = None, head_mask: np.ndarray | None = None,
) -> tuple[list[Integers], list[Integers]]:
    """From ids to the integers of the last hidden state.

    Args:
        tensors: the frozen tensors of the encoder, without a prefix.
        layers: number of layers.
        head_size: width of a head.
        word_ids, type_ids, position_ids: [B, L] rows of the tables.
        mask: [B, L] or [B, L, S], true for tokens to attend to. Positions that a [B, L] mask leaves out are 0
            in every hidden state.
        head_mask: [layers, heads], true for heads that count.

    Returns:
        Hidden states [B, L, E] after the embeddings and after each layer, 8 bits, and probabilities [B, N, L, S] of each
        layer, in 1/256.
    """
    mask = None if mask is None else np.asarray(mask).astype(bool)
    real = mask[:, :, None] if mask is not None and mask.ndim == 2 else np.ones((*word_ids.shape, 1), bool)
    keep = None if mask is None else mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    state = embed(tensors, word_ids, type_ids, position_ids) * real
    states, probabilities = [state], []
    for index in range(layers):
        layer = under(tensors, f"encoder.layer.{index}.")
        heads = None if head_mask is None else np.asarray(head_mask[index]).astype(bool)
        state, found = encoder_layer(layer, state, head_size, keep, heads)
        state = state * real
        states.append(state)
        probabilities.append(found)
    return states, probabilities


def embed(tensors: Tensors, word_ids: np.ndarray, type_ids: np.ndarray, position_ids: np.ndarray) -> Integers:
    """The sum of word, type and position by way of 16 bits, normed to 8 bits."""
    total = np.zeros((), np.int64)
    for name, ids in (("word", word_ids), ("token_type", type_ids), ("position", position_ids)):
        table = under(tensors, f"embeddings.{name}_embeddings.")
        part = rescale(table["weight_integer"][ids], table["multiplier"], table["right_shift"])
        total = part if name == "word" else saturate(total + part, EMBEDDING_BITS)
    return normed(under(tensors, "embeddings."), total)


def encoder_layer(layer: Tensors, state: Integers, head_size: int, keep: np.ndarray | None = None,
                  heads: np.ndarray | None = None) -> tuple[Integers, Integers]:
    """One encoder layer from 8 bits to 8 bits.

    Args:
        layer: its tensors.
        state: [B, L, E].
        head_size: width of a head.
        keep: broadcastable to [B, N, L, S], true for keys that count.
        heads: [N], true for heads that count.

    Returns:
        [B, L, E], and the probabilities [B, N, L, S].
    """
    attention = under(layer, "attention.self.")
    query, key, value = (
        split_heads(rescaled_linear(under(attention, f"{name}."), under(attention, f"{name}_activation."), state), head_size)
        for name in ("query", "key", "value")
    )
    probabilities = softmax(query @ key.swapaxes(-1, -2), keep, attention["softmax.constants"],
                            attention["softmax.act.multiplier"], attention["softmax.act.right_shift"])
    if heads is not None:
        probabilities = probabilities * heads[:, None, None]
    context = merge_heads(probabilities @ value)
    context = saturate(rescale(context, attention["output_activation.multiplier"],
                               attention["output_activation.right_shift"]), STREAM_BITS)
    state = residual(under(layer, "attention.output."), context, state)
    inner = under(layer, "intermediate.")
    wide = linear(state, inner["dense.weight_integer"], inner["dense.bias_integer"])
    wide = gelu(wide, inner["gelu.clip"], inner["gelu.one"], inner["gelu.unit"], inner["gelu.drop"])
    wide = saturate(rescale(wide, inner["output_activation.multiplier"], inner["output_activation.right_shift"]), STREAM_BITS)
    return residual(under(layer, "output."), wide, state), probabilities


def rescaled_linear(weights: Tensors, activation: Tensors, x: Integers) -> Integers:
    """A linear layer and its way back to 8 bits."""
    total = linear(x, weights["weight_integer"], weights["bias_integer"])
    return saturate(rescale(total, activation["multiplier"], activation["right_shift"]), STREAM_BITS)


def residual(block: Tensors, x: Integers, state: Integers) -> Integers:
    """A linear layer, added to the stream in 22 bits, normed to 8 bits."""
    total = linear(x, block["dense.weight_integer"], block["dense.bias_integer"])
    total = rescale(total, block["ln_input_act.multiplier"], block["ln_input_act.right_shift"])
    total = total + rescale(state, block["ln_input_act.identity_multiplier"], block["ln_input_act.identity_right_shift"])
    return normed(block, saturate(total, NORM_BITS))


def normed(block: Tensors, total: Integers) -> Integers:
    """The layer norm of a block and its way to 8 bits."""
    activation = under(block, "output_activation.")
    return layer_norm(total, block["LayerNorm.shift"].astype(np.int64), activation["multiplier"], activation["right_shift"],
                      activation["offset"])


def split_heads(x_BLE: Integers, head_size: int) -> Integers:
    """[B, L, E] -> [B, N, L, D]."""
    return x_BLE.reshape(*x_BLE.shape[:2], -1, head_size).swapaxes(1, 2)


def merge_heads(x_BNLD: Integers) -> Integers:
    """[B, N, L, D] -> [B, L, E]."""
    return x_BNLD.swapaxes(1, 2).reshape(x_BNLD.shape[0], x_BNLD.shape[2], -1)


def under(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    """The tensors below a prefix, by what is left of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


