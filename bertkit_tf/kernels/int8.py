"""I-BERT's arithmetic in integers in portable TensorFlow; `bertkit.core.reference.int8` says what each function gives.

No number here is a floating-point one, and all are those of the oracle, bit for bit: eagerly, in `tf.function` with
unknown batch and lengths, and with `jit_compile=True`. Kim et al., "I-BERT: Integer-only BERT Quantization",
arXiv 2101.01321.

Shape suffixes: B batch, L length, N heads, D head size, S keys, E width.
"""

from __future__ import annotations

import tensorflow as tf

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
def rescale(x: tf.Tensor, multiplier: tf.Tensor, right_shift: tf.Tensor) -> tf.Tensor:
    """Multiply by multiplier / 2**right_shift, rounding to the nearest integer, ties up.

    Args:
        x: integers of 32 bits.
        multiplier, right_shift: one for all or one per feature.

    Returns:
        int64.
    """
    right_shift = wide(right_shift)
    return shift_right(wide(x) * wide(multiplier) + power_of_two(right_shift - 1), right_shift)


def saturate(x: tf.Tensor, bits: int) -> tf.Tensor:
    """Bring integers into the range of `bits` bits."""
    return tf.clip_by_value(x, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def integer_sqrt(x: tf.Tensor) -> tf.Tensor:
    """The largest integers whose squares do not exceed x >= 0, int64."""
    ones = x
    for places in (1, 2, 4, 8, 16, 32):  # from the highest bit down, every bit becomes 1
        ones = tf.bitwise.bitwise_or(ones, shift_right(ones, places))
    bits = wide(tf.raw_ops.PopulationCount(x=ones))
    root = power_of_two(shift_right(bits + 1, 1))
    for _ in range(NEWTON_STEPS):
        root = tf.minimum(root, shift_right(root + x // tf.maximum(root, 1), 1))
    return root


def linear(x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Products of 8 bit integers added up in 32 bits.

    Args:
        x: [..., inputs], int8.
        weight: [outputs, inputs], int8.
        bias: [outputs], int32.

    Returns:
        [..., outputs], int32.
    """
    flat = product(tf.reshape(x, [1, -1, x.shape[-1]]), weight[None]) + bias
    return tf.reshape(flat, tf.concat([tf.shape(x)[:-1], [weight.shape[0]]], 0))


def gelu(x: tf.Tensor, clip: tf.Tensor, one: tf.Tensor, unit: tf.Tensor, drop: tf.Tensor) -> tf.Tensor:
    """GELU by a second-degree polynomial for erf, before `rescale`.

    Args:
        x: [..., features], 32 bits.
        clip, one, unit, drop: [features].

    Returns:
        int64 that fits 32 bits.
    """
    x, clip = wide(x), wide(clip)
    polynomial = shift_right(tf.sign(x) * ((tf.minimum(tf.abs(x), clip) - clip) ** 2 + one), GELU_DROPPED_BITS)
    return shift_right(x * (polynomial + wide(unit)), drop)


def exponentials(x: tf.Tensor, constants: tf.Tensor, multiplier: tf.Tensor, right_shift: tf.Tensor) -> tf.Tensor:
    """exp(x) for x <= 0 as integers of 15 bits.

    Args:
        x: scores less the row's largest, int32.
        constants: drop, step, linear and one of the polynomial.
        multiplier, right_shift: [1], from the polynomial to 15 bits.

    Returns:
        int64.
    """
    drop, step, linear, one = tf.unstack(constants)
    below = tf.minimum(-shift_right(x, drop), EXP_BITS * step)
    halvings = below // step
    rest = below - halvings * step
    polynomial = wide(one - rest * (linear - rest))
    shift = tf.minimum(wide(right_shift + halvings), 63)
    return tf.minimum(rescale(polynomial, multiplier, shift), LARGEST_EXP)


def softmax(scores: tf.Tensor, keep: tf.Tensor | None, constants: tf.Tensor, multiplier: tf.Tensor,
            right_shift: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis in 1/256, at most 255; keys that are not kept get 0, as do rows without keys.

    Args:
        scores: [..., S], int32.
        keep: broadcastable to `scores`, True for keys that count; None for all.
        constants, multiplier, right_shift: see `exponentials`.

    Returns:
        int64.
    """
    kept = scores if keep is None else tf.where(keep, scores, scores.dtype.min)
    below = scores - tf.reduce_max(kept, -1, keepdims=True)
    exps = exponentials(below if keep is None else tf.where(keep, below, 0), constants, multiplier, right_shift)
    exps = exps if keep is None else tf.where(keep, exps, 0)
    factor = tf.minimum(2**32 // tf.maximum(tf.reduce_sum(exps, -1, keepdims=True), 1), 2**32 - 1)
    return tf.minimum(shift_right(exps * factor + 2**23, 24), LARGEST_PROBABILITY)


def layer_norm(x: tf.Tensor, shift: tf.Tensor, multiplier: tf.Tensor, right_shift: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Layer normalisation with the integer square root, straight to int8.

    Args:
        x: [..., E], 22 bits, int64.
        shift: [1].
        multiplier, right_shift, offset: [E].
    """
    width = x.shape[-1]
    centred = x - (2 * tf.reduce_sum(x, -1, keepdims=True) + width) // (2 * width)
    squares = tf.reduce_sum(shift_right(centred, shift) ** 2, -1, keepdims=True)
    deviation = tf.maximum(integer_sqrt(squares), 1) * power_of_two(shift)
    factor = tf.minimum(2**31 // deviation, LARGEST_INT32)
    normed = saturate(shift_right(centred * factor, 1), 32)
    return to_stream(shift_right(normed * wide(multiplier) + offset, right_shift))


def attend(query_BNLD: tf.Tensor, key_BNSD: tf.Tensor, value_BNSD: tf.Tensor, keep: tf.Tensor | None, heads: tf.Tensor | None,
           constants: tf.Tensor, multiplier: tf.Tensor, right_shift: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Attention of 8 bit integers.

    Args:
        query_BNLD, key_BNSD, value_BNSD: projections by head, int8.
        keep: broadcastable to [B, N, L, S], True for keys that count; None for all.
        heads: broadcastable to [B, N, L, S], True for heads that count; None for all.
        constants, multiplier, right_shift: see `exponentials`.

    Returns:
        Sums [B, N, L, D], int32, and probabilities [B, N, L, S] in 1/256, uint8.
    """
    probabilities = softmax(batched_product(query_BNLD, key_BNSD), keep, constants, multiplier, right_shift)
    if heads is not None:
        probabilities = tf.where(heads, probabilities, 0)
    # Probabilities have 8 bits but no sign: what their products lack when 128 less is multiplied is added again.
    lacking = 128 * tf.reduce_sum(tf.cast(value_BNSD, tf.int32), -2, keepdims=True)
    context = batched_product(tf.cast(probabilities - 128, tf.int8), tf.linalg.matrix_transpose(value_BNSD)) + lacking
    return context, tf.cast(probabilities, tf.uint8)


# -- products -------------------------------------------------------------------------------------------------------
@tf.function(input_signature=[tf.TensorSpec([None] * 3, tf.int8)] * 2, jit_compile=True, autograph=False)
def product(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """int8 [B, M, K] times int8 [B, N, K], added up in int32.

    XLA compiles it, also inside of what it does not compile: TensorFlow's own product of int8 takes ten times as long.
    """
    return tf.matmul(x, y, transpose_b=True, output_type=tf.int32)


def batched_product(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """int8 [B, N, M, K] times int8 [B, N, S, K], added up in int32 [B, N, M, S]."""
    before, rows, columns = tf.shape(x)[:2], tf.shape(x)[2:3], tf.shape(y)[2:3]
    flat = product(*(tf.reshape(z, tf.concat([[-1], tf.shape(z)[2:]], 0)) for z in (x, y)))
    return tf.ensure_shape(tf.reshape(flat, tf.concat([before, rows, columns], 0)), [*x.shape[:3], y.shape[2]])


# -- words ----------------------------------------------------------------------------------------------------------
def wide(x: tf.Tensor) -> tf.Tensor:
    """In 64 bits."""
    return tf.cast(x, tf.int64)


def to_stream(x: tf.Tensor) -> tf.Tensor:
    """Saturated to 8 bits."""
    return tf.cast(saturate(x, STREAM_BITS), tf.int8)


def shift_right(x: tf.Tensor, places: tf.Tensor | int) -> tf.Tensor:
    """The arithmetic shift, which rounds down."""
    return tf.bitwise.right_shift(x, tf.cast(places, x.dtype))


def power_of_two(exponent: tf.Tensor) -> tf.Tensor:
    """2**exponent, int64."""
    return tf.bitwise.left_shift(tf.ones([], tf.int64), wide(exponent))
