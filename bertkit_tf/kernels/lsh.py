"""YOSO attention in portable TensorFlow: hashing, sampling by hash tables, the expectation, their gradients.

Zeng et al., "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli Sampling",
arXiv 2111.09714. `bertkit.core.reference.lsh` states the same operations in a few lines of NumPy each.

Everything runs eagerly, in `tf.function` with unknown batch and lengths, and with `jit_compile=True`; loops
are `tf.while_loop`, so that graphs stay small. No operation holds a matrix of size [L, S].

Shape suffixes: B batch, N heads, G = B * N groups, L queries, S keys, D head size, E value size, W weight
size, M hash functions (m in the paper), P parts of one fast hash, R rows of a block, T tiles. tau is
`hash_code_len`. Masks are 1 (keep) or 0 (drop), of any dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from bertkit.core.errors import InputError
from bertkit.core.hashing import capacity_problems, hash_layout, hash_problems, power, shape_of_hashes, table_problems
from bertkit.core.inputs import check_codes, check_operation
from bertkit_tf.kernels import native

LONGEST_PAIRWISE = 2048
"""Up to this length, sampled gradients compare all pairs of codes (in blocks): quadratic, but faster."""

BLOCK_ROWS = 128
"""Queries whose weights for all keys exist at once."""

LARGEST_TABLES = 2**24
"""Numbers in the hash tables, of one hash function and some heads, that exist at once: 64 MiB of float32."""


def fast_hash(
    query_BNLD: Tensor, query_mask_BL: Tensor, key_BNSD: Tensor, key_mask_BS: Tensor, num_hash: int,
    hash_code_len: int, signs_N3PD: Tensor,
) -> tuple[Tensor, Tensor]:
    """Hash by the signs of three Hadamard transforms with random sign flips, `H D2 H D1 H D0 x`.

    The additions run in float32 in a fixed order: codes equal those of PyTorch and NumPy bit for bit.

    Args:
        query_BNLD, key_BNSD: `[B, N, L, D]` and `[B, N, S, D]`; only directions matter.
        query_mask_BL, key_mask_BS: 1 keeps a vector, 0 gives it code 0.
        num_hash: hash functions.
        hash_code_len: bits of a code.
        signs_N3PD: +1 and -1, from `bertkit.core.hashing.random_signs`.

    Returns:
        Codes `[B, N, L, num_hash]` and `[B, N, S, num_hash]`, int32, without gradient.

    Raises:
        InputError: the numbers do not make a hash function, or the tensors do not fit together.

    Example:
        >>> from bertkit.core.hashing import random_signs
        >>> x, mask = tf.random.normal((1, 2, 7, 64)), tf.ones((1, 7))
        >>> signs = random_signs(0, num_heads=2, head_dim=64, num_hash=5, hash_code_len=9)
        >>> fast_hash(x, mask, x, mask, num_hash=5, hash_code_len=9, signs_N3PD=signs)[0].shape
        TensorShape([1, 2, 7, 5])
    """
    wrong = _wrong_hashes("signs_N3PD", signs_N3PD, query_BNLD, num_hash, hash_code_len, True)
    _check("fast_hash", wrong, query_BNLD=query_BNLD, query_mask_BL=query_mask_BL, key_BNSD=key_BNSD, key_mask_BS=key_mask_BS)
    return _hash_both(query_BNLD, query_mask_BL, key_BNSD, key_mask_BS, num_hash, hash_code_len, signs_N3PD)


def gaussian_hash(
    query_BNLD: Tensor, query_mask_BL: Tensor, key_BNSD: Tensor, key_mask_BS: Tensor, num_hash: int,
    hash_code_len: int, projections_NDK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Hash by the sides of random Gaussian hyperplanes: two unit vectors collide with (1 - angle / pi)**tau.

    The order of additions is that of the matrix product: a vector within rounding of a hyperplane may fall on
    either side in another framework.

    Args:
        query_BNLD, key_BNSD: `[B, N, L, D]` and `[B, N, S, D]`; only directions matter.
        query_mask_BL, key_mask_BS: 1 keeps a vector, 0 gives it code 0.
        num_hash: hash functions.
        hash_code_len: bits of a code.
        projections_NDK: `[N, D, num_hash * hash_code_len]`, from `bertkit.core.hashing.random_projections`.

    Returns:
        Codes `[B, N, L, num_hash]` and `[B, N, S, num_hash]`, int32, without gradient.

    Raises:
        InputError: the numbers do not make a hash function, or the tensors do not fit together.

    Example:
        >>> from bertkit.core.hashing import random_projections
        >>> x, mask = tf.random.normal((1, 2, 7, 64)), tf.ones((1, 7))
        >>> projections = random_projections(0, 2, head_dim=64, num_hash=5, hash_code_len=9)
        >>> gaussian_hash(x, mask, x, mask, num_hash=5, hash_code_len=9, projections_NDK=projections)[0].shape
        TensorShape([1, 2, 7, 5])
    """
    wrong = _wrong_hashes("projections_NDK", projections_NDK, query_BNLD, num_hash, hash_code_len, False)
    _check("gaussian_hash", wrong, query_BNLD=query_BNLD, query_mask_BL=query_mask_BL, key_BNSD=key_BNSD,
           key_mask_BS=key_mask_BS)
    return _hash_both(query_BNLD, query_mask_BL, key_BNSD, key_mask_BS, num_hash, hash_code_len, projections_NDK)


def lsh_cumulation(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, key_mask_BS: Tensor, key_codes_BNSM: Tensor,
    value_BNSE: Tensor, hashtable_capacity: int,
) -> Tensor:
    """Sum the values of the keys that collide with each query, averaged over the hash functions.

    Linear in L and S: for one hash function after the other, keys add their values to the buckets of a table
    and queries read their bucket. Sums are float32 at least. Differentiable in the values.

    Args:
        query_mask_BL, key_mask_BS: a masked query gets 0, a masked key gives nothing.
        query_codes_BNLM, key_codes_BNSM: codes below `hashtable_capacity`, int32.
        value_BNSE: the values.
        hashtable_capacity: 2**hash_code_len, the buckets of a table.

    Returns:
        `[B, N, L, E]`, of the dtype of the values.

    Raises:
        InputError: a code without a bucket, a table that is too large, or tensors that do not fit together. In a graph it is
            tf.errors.InvalidArgumentError that refuses codes; XLA cannot refuse, and gives NaN.

    Example:
        >>> codes = tf.constant([[[[0], [1], [0]]]])
        >>> mask, value = tf.ones((1, 3)), tf.constant([[[[1.0], [2.0], [4.0]]]])
        >>> lsh_cumulation(mask, codes, mask, codes, value, hashtable_capacity=2).numpy().ravel()
        array([5., 2., 5.], dtype=float32)
    """
    _check(
        "lsh_cumulation", capacity_problems(hashtable_capacity, _width(value_BNSE)), query_mask_BL=query_mask_BL,
        query_codes_BNLM=query_codes_BNLM, key_mask_BS=key_mask_BS, key_codes_BNSM=key_codes_BNSM, value_BNSE=value_BNSE,
    )

    @tf.custom_gradient
    def cumulate(value_BNSE: Tensor) -> tuple[Tensor, Callable]:
        query_codes, key_codes, checked_BNSE = _with_buckets(hashtable_capacity, query_codes_BNLM, key_codes_BNSM, value_BNSE)
        output_BNLE = _cumulate(query_mask_BL, query_codes, key_mask_BS, key_codes, checked_BNSE, hashtable_capacity)

        def gradient(grad_BNLE: Tensor) -> Tensor:
            return lsh_cumulation(
                key_mask_BS, key_codes_BNSM, query_mask_BL, query_codes_BNLM, grad_BNLE, hashtable_capacity
            )

        return output_BNLE, gradient

    return cumulate(value_BNSE)


def lsh_weighted_cumulation(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, query_weight_BNLW: Tensor, key_mask_BS: Tensor,
    key_codes_BNSM: Tensor, key_weight_BNSW: Tensor, value_BNSE: Tensor, hashtable_capacity: int,
) -> Tensor:
    """Sum the values of the colliding keys, each times the dot product of the query's and the key's weights.

    Linear in L and S: a bucket holds the sum of its keys' outer products of weight and value, and a query
    multiplies it by its own weight. Sums are float32 at least. Differentiable in the weights and the values.

    Args:
        query_mask_BL, key_mask_BS: a masked query gets 0, a masked key gives nothing.
        query_codes_BNLM, key_codes_BNSM: codes below `hashtable_capacity`, int32.
        query_weight_BNLW, key_weight_BNSW: the weights.
        value_BNSE: the values.
        hashtable_capacity: 2**hash_code_len, the buckets of a table.

    Returns:
        `[B, N, L, E]`, of the dtype of the values.

    Raises:
        InputError: a code without a bucket, a table that is too large, or tensors that do not fit together. In a graph it is
            tf.errors.InvalidArgumentError that refuses codes; XLA cannot refuse, and gives NaN.

    Example:
        >>> codes = tf.constant([[[[0], [1], [0]]]])
        >>> mask, x = tf.ones((1, 3)), tf.constant([[[[1.0], [2.0], [4.0]]]])
        >>> lsh_weighted_cumulation(mask, codes, x, mask, codes, x, x, hashtable_capacity=2).numpy().ravel()
        array([17.,  8., 68.], dtype=float32)
    """
    _check(
        "lsh_weighted_cumulation", capacity_problems(hashtable_capacity, _width(value_BNSE)), query_mask_BL=query_mask_BL,
        query_codes_BNLM=query_codes_BNLM, query_weight_BNLW=query_weight_BNLW, key_mask_BS=key_mask_BS,
        key_codes_BNSM=key_codes_BNSM, key_weight_BNSW=key_weight_BNSW, value_BNSE=value_BNSE,
    )
    queries, keys = (query_mask_BL, query_codes_BNLM), (key_mask_BS, key_codes_BNSM)
    capacity = hashtable_capacity

    @tf.custom_gradient
    def cumulate(query_weight: Tensor, key_weight: Tensor, value: Tensor) -> tuple[Tensor, Callable]:
        def gradient(grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            grad_query = lsh_weighted_cumulation(*queries, grad, *keys, value, key_weight, capacity)
            grad_key = lsh_weighted_cumulation(*keys, value, *queries, grad, query_weight, capacity)
            grad_value = lsh_weighted_cumulation(*keys, key_weight, *queries, query_weight, grad, capacity)
            return tf.cast(grad_query, query_weight.dtype), tf.cast(grad_key, key_weight.dtype), grad_value

        query_codes, key_codes, checked = _with_buckets(capacity, query_codes_BNLM, key_codes_BNSM, value)
        return _cumulate_weighted(
            query_mask_BL, query_codes, query_weight, key_mask_BS, key_codes, key_weight, checked, capacity
        ), gradient

    return cumulate(query_weight_BNLW, key_weight_BNSW, value_BNSE)


def expectation_weights(
    query_BNLD: Tensor, key_BNSD: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor, hash_code_len: int
) -> Tensor:
    """The probability that query i and key j collide, `(1 - arccos(q.k) / pi)**tau`; 0 if masked.

    Args:
        query_BNLD, key_BNSD: unit vectors.
        query_mask_BL, key_mask_BS: 1 keeps, 0 drops.
        hash_code_len: bits of a code.

    Returns:
        `[B, N, L, S]`, float32 at least. Its gradient is none of YOSO's: see `yoso_expectation`.

    Example:
        >>> x, mask = tf.eye(2)[None, None], tf.ones((1, 2))
        >>> expectation_weights(x, x, mask, mask, hash_code_len=2)[0, 0].numpy().tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    _check("expectation_weights", hash_problems(1, hash_code_len), query_BNLD=query_BNLD, key_BNSD=key_BNSD,
           query_mask_BL=query_mask_BL, key_mask_BS=key_mask_BS)
    kept_BNLS = _keep(query_mask_BL)[:, None, :, None] & _keep(key_mask_BS)[:, None, None, :]
    cosine_BNLS = tf.matmul(_wide(query_BNLD), _wide(key_BNSD), transpose_b=True)
    weights_BNLS = _collision_probability(cosine_BNLS, hash_code_len)
    return tf.where(kept_BNLS, weights_BNLS, tf.zeros((), weights_BNLS.dtype))


def yoso_expectation(
    query_BNLD: Tensor, key_BNSD: Tensor, value_BNSE: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor,
    hash_code_len: int,
) -> Tensor:
    """YOSO-E: attention with the expected collisions; quadratic in time, linear in memory.

    Its gradient is the paper's: the true derivative of the collision probability is unbounded where query and
    key align, so its lower bound tau / 2 times the probability stands in for it.

    Args:
        query_BNLD, key_BNSD: unit vectors.
        value_BNSE: the values.
        query_mask_BL, key_mask_BS: 1 keeps, 0 drops: a masked query gets 0, a masked key gives nothing.
        hash_code_len: bits of a code.

    Returns:
        `[B, N, L, E]`, of the dtype of the values; rows are not normalised.

    Example:
        >>> x, mask = tf.eye(2)[None, None], tf.ones((1, 2))
        >>> yoso_expectation(x, x, x, mask, mask, hash_code_len=2)[0, 0].numpy().tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    _check("yoso_expectation", hash_problems(1, hash_code_len), query_BNLD=query_BNLD, key_BNSD=key_BNSD,
           value_BNSE=value_BNSE, query_mask_BL=query_mask_BL, key_mask_BS=key_mask_BS)

    @tf.custom_gradient
    def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Callable]:
        def gradient(grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return _expectation_gradients(query, key, value, query_mask_BL, key_mask_BS, grad, hash_code_len)

        return _expectation(query, key, value, query_mask_BL, key_mask_BS, hash_code_len), gradient

    return attend(query_BNLD, key_BNSD, value_BNSE)


def yoso_sampling(
    query_BNLD: Tensor, key_BNSD: Tensor, value_BNSE: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor,
    hash_code_len: int, num_hash: int, use_fast_hash: bool, lsh_backward: bool, hashes: Tensor,
) -> Tensor:
    """YOSO: attention with counted collisions of `num_hash` hash functions; linear in time and memory.

    Args:
        query_BNLD, key_BNSD: unit vectors (without gradients any length does).
        value_BNSE: the values.
        query_mask_BL, key_mask_BS: 1 keeps, 0 drops: a masked query gets 0, a masked key gives nothing.
        hash_code_len: bits of a code.
        num_hash: hash functions.
        use_fast_hash: whether to hash by Hadamard transforms instead of Gaussian matrices.
        lsh_backward: whether gradients count the same collisions; otherwise they are those of
            `yoso_expectation`.
        hashes: signs for `fast_hash` or projections for `gaussian_hash`.

    Returns:
        `[B, N, L, E]`, of the dtype of the values; rows are not normalised. The hash itself has no gradient.

    Raises:
        InputError: the numbers do not make a hash function, or the tensors do not fit together.

    Example:
        >>> from bertkit.core.hashing import random_signs
        >>> x, mask = tf.linalg.normalize(tf.random.normal((1, 2, 7, 64)), axis=-1)[0], tf.ones((1, 7))
        >>> signs = random_signs(0, num_heads=2, head_dim=64, num_hash=5, hash_code_len=9)
        >>> yoso_sampling(x, x, x, mask, mask, 9, 5, True, True, signs).shape
        TensorShape([1, 2, 7, 64])
    """
    wrong = _wrong_hashes("hashes", hashes, query_BNLD, num_hash, hash_code_len, use_fast_hash)
    wrong += table_problems(hash_code_len, _width(value_BNSE))
    _check("yoso_sampling", wrong, query_BNLD=query_BNLD, key_BNSD=key_BNSD, value_BNSE=value_BNSE,
           query_mask_BL=query_mask_BL, key_mask_BS=key_mask_BS)
    masks, functions = (query_mask_BL, key_mask_BS), (num_hash, hash_code_len, tf.cast(hashes, tf.float32))

    @tf.custom_gradient
    def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Callable]:
        def gradient(grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if lsh_backward:
                return _sampling_gradients(query, key, value, *masks, grad, *functions)
            return _expectation_gradients(query, key, value, *masks, grad, hash_code_len)

        return _sampling(query, key, value, *masks, *functions), gradient

    return attend(query_BNLD, key_BNSD, value_BNSE)


# ---- checks ------------------------------------------------------------------------------


def _check(name: str, problems: list[str], **tensors: Tensor) -> None:
    """Refuse, with one error, what does not fit together; in a graph, as far as shapes are known."""
    others = [f"{key}: got {type(x).__name__}, expected a tensor" for key, x in tensors.items() if not hasattr(x, "shape")]
    if others:
        raise InputError(f"the inputs of {name} do not fit together", others)
    check_operation(name, {key: (tuple(x.shape), tf.as_dtype(x.dtype).name) for key, x in tensors.items()}, problems)


def _wrong_hashes(
    name: str, hashes: Tensor, query: Tensor, num_hash: int, hash_code_len: int, fast: bool
) -> list[str]:
    problems = hash_problems(num_hash, hash_code_len)
    if not hasattr(hashes, "shape"):
        problems.append(f"{name}: got {type(hashes).__name__}, expected a tensor")
    if problems or len(getattr(query, "shape", ())) != 4 or not query.shape[3]:
        return problems
    expected = shape_of_hashes(fast, query.shape[1], query.shape[3], num_hash, hash_code_len)
    if tuple(hashes.shape) != expected:
        return [f"{name}: got shape {list(hashes.shape)}, expected {list(expected)}"]
    known = hashes if isinstance(hashes, np.ndarray) else hashes.numpy() if tf.executing_eagerly() else None
    return [f"{name}: got other numbers than 1 and -1"] if fast and known is not None and (abs(known) != 1).any() else []


def _width(value: Tensor) -> int:
    shape = getattr(value, "shape", ())
    return shape[-1] or 1 if len(shape) else 1


def _with_buckets(capacity: int, query_codes: Tensor, key_codes: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and values, once it is known that every code has a bucket."""
    codes = {"query_codes_BNLM": query_codes, "key_codes_BNSM": key_codes}
    if tf.executing_eagerly():
        bounds = {name: (int(tf.reduce_min(x)), int(tf.reduce_max(x))) for name, x in codes.items() if tf.size(x) > 0}
        check_codes(bounds, capacity)
        return query_codes, key_codes, value
    outside = tf.reduce_any([tf.reduce_any((x < 0) | (x >= capacity)) for x in codes.values()])
    with tf.control_dependencies([tf.debugging.Assert(~outside, [f"a code is outside of its table of {capacity} buckets"])]):
        value = tf.where(outside, tf.constant(math.nan, value.dtype), value)
        return tf.identity(query_codes), tf.identity(key_codes), value


# ---- the loops ---------------------------------------------------------------------------


def _hash_both(
    query: Tensor, query_mask: Tensor, key: Tensor, key_mask: Tensor, num_hash: int, hash_code_len: int, hashes: Tensor,
) -> tuple[Tensor, Tensor]:
    """Codes of both by signs `[N, 3, P, D]` or projections `[N, D, K]`."""
    codes, hashes = _fast_codes if len(hashes.shape) == 4 else _gaussian_codes, tf.cast(hashes, tf.float32)
    return (
        codes(query, query_mask, num_hash, hash_code_len, hashes), codes(key, key_mask, num_hash, hash_code_len, hashes)
    )


def _fast_codes(x: Tensor, mask: Tensor, num_hash: int, hash_code_len: int, signs_N3PD: Tensor) -> Tensor:
    layout = hash_layout(x.shape[-1], num_hash, hash_code_len)
    if native.serves_lsh(x, hash_code_len):
        return native.hash_codes(x, mask, num_hash, hash_code_len, signs_N3PD)
    batch, heads, count, head_dim = _sizes(x)
    # Vectors lie along the last axis, so that every butterfly adds long contiguous runs.
    x_GDL = tf.linalg.matrix_transpose(tf.cast(_kept(x, mask), tf.float32))
    x_GDL = tf.pad(x_GDL, ((0, 0), (0, layout.padded_dim - head_dim), (0, 0)))
    signs_G3PD1 = tf.tile(signs_N3PD, (batch, 1, 1, 1))[..., None]

    def codes(block: Tensor, signs_3PD1: Tensor) -> Tensor:
        for step in range(3):
            block = _hadamard_transform(block * signs_3PD1[step])
        bits = block[:, : layout.hashes_per_part * hash_code_len] > 0
        bits_MTL = tf.reshape(bits, (layout.num_part * layout.hashes_per_part, hash_code_len, count))
        return _codes(bits_MTL[:num_hash], axis=1)

    codes_GML = _map(codes, (x_GDL, signs_G3PD1), tf.int32)
    codes_BNLM = tf.reshape(tf.linalg.matrix_transpose(codes_GML), (batch, heads, count, num_hash))
    return _finished(codes_BNLM, mask, 1, tf.int32)


def _gaussian_codes(x: Tensor, mask: Tensor, num_hash: int, hash_code_len: int, projections_NDK: Tensor) -> Tensor:
    if native.serves_lsh(x, hash_code_len):
        return native.hash_codes(x, mask, num_hash, hash_code_len, projections_NDK)
    batch, heads, count, _ = _sizes(x)

    def codes(x_LD: Tensor, projections_DK: Tensor) -> Tensor:
        bits_LMT = tf.reshape(x_LD @ projections_DK > 0, (count, num_hash, hash_code_len))
        return _codes(bits_LMT, axis=-1)

    x_GLD = tf.cast(_kept(x, mask), tf.float32)
    codes_GLM = _map(codes, (x_GLD, tf.tile(projections_NDK, (batch, 1, 1))), tf.int32)
    return _finished(tf.reshape(codes_GLM, (batch, heads, count, num_hash)), mask, 1, tf.int32)


def _cumulate(
    query_mask: Tensor, query_codes: Tensor, key_mask: Tensor, key_codes: Tensor, value: Tensor, capacity: int
) -> Tensor:
    if native.serves_lsh(value, _bits(capacity)):
        return native.cumulate(query_mask, query_codes, key_mask, key_codes, value, _bits(capacity))
    batch, heads, keys, width = _sizes(value)
    queries, num_hash = _sizes(query_codes)[2:]
    # Tables of as many groups as memory holds exist at once.
    size, count = _division(batch * heads, LARGEST_TABLES // (capacity * width))
    parts = tuple(
        tf.reshape(tf.pad(x, ((0, count * size - batch * heads), (0, 0), (0, 0))), (count, size, *_sizes(x)[1:]))
        for x in (_grouped(query_codes), _grouped(key_codes), _kept(value, key_mask))
    )

    def groups(query_codes_GLM: Tensor, key_codes_GSM: Tensor, value_GSE: Tensor) -> Tensor:
        first_bucket = tf.range(size)[:, None] * capacity
        query_buckets_MGL, key_buckets_MGS = (
            tf.transpose(codes, (2, 0, 1)) + first_bucket for codes in (query_codes_GLM, key_codes_GSM)
        )
        value_RE = tf.reshape(value_GSE, (size * keys, width))

        def read(m: Tensor) -> Tensor:
            key_buckets, query_buckets = (
                tf.reshape(buckets[m], (-1,)) for buckets in (key_buckets_MGS, query_buckets_MGL)
            )
            table = tf.math.unsorted_segment_sum(value_RE, key_buckets, size * capacity)
            return tf.gather(table, query_buckets)

        return _sum(read, num_hash, tf.zeros((size * queries, width), value_RE.dtype))

    output = groups(*(x[0] for x in parts)) if isinstance(count, int) and count == 1 else _map(groups, parts, parts[2].dtype)
    output_GLE = tf.reshape(output, (size * count, queries, width))[: batch * heads]
    output_BNLE = tf.reshape(output_GLE, (batch, heads, queries, width))
    return _finished(output_BNLE, query_mask, 1.0 / num_hash, value.dtype)


def _cumulate_weighted(
    query_mask: Tensor, query_codes: Tensor, query_weight: Tensor, key_mask: Tensor, key_codes: Tensor,
    key_weight: Tensor, value: Tensor, capacity: int,
) -> Tensor:
    if native.serves_lsh(value, _bits(capacity)):
        return native.cumulate_weighted(
            query_mask, query_codes, query_weight, key_mask, key_codes, key_weight, value, _bits(capacity)
        )
    batch, heads, keys, width = _sizes(value)
    queries, num_hash = _sizes(query_codes)[2:]
    # The row of zeros behind the last one fills up the tiles.
    value_GSE, key_weight_GSW, query_weight_GLW = (
        tf.pad(_kept(x, mask), ((0, 0), (0, 1), (0, 0)))
        for x, mask in ((value, key_mask), (key_weight, key_mask), (query_weight, query_mask))
    )
    # A table has room for as many columns of the weights as memory holds.
    size, count = _division(_sizes(query_weight)[3], LARGEST_TABLES // (capacity * width))
    query_weight_GCLW, key_weight_GCSW = (
        tf.transpose(tf.reshape(
            tf.pad(x, ((0, 0), (0, 0), (0, size * count - _sizes(x)[2]))), (batch * heads, rows + 1, count, size)
        ), (0, 2, 1, 3))
        for x, rows in ((query_weight_GLW, queries), (key_weight_GSW, keys))
    )
    # Masked rows go to a bucket behind the last one, whose tiles are dropped.
    query_codes_GML, key_codes_GMS = (
        tf.linalg.matrix_transpose(_grouped(tf.where(_keep(mask)[:, None, :, None], codes, capacity)))
        for codes, mask in ((query_codes, query_mask), (key_codes, key_mask))
    )

    def group(
        query_codes_ML: Tensor, query_weight_CLW: Tensor, key_codes_MS: Tensor, key_weight_CSW: Tensor, value_SE: Tensor
    ) -> Tensor:
        def read(step: Tensor) -> Tensor:
            m, columns = step // count, step % count
            query_rows, query_buckets = _tiles(query_codes_ML[m], capacity)
            key_rows, key_buckets = _tiles(key_codes_MS[m], capacity)
            weight_TRW, value_TRE = tf.gather(key_weight_CSW[columns], key_rows), tf.gather(value_SE, key_rows)
            outer_TWE = tf.matmul(weight_TRW, value_TRE, transpose_a=True)
            table = tf.math.unsorted_segment_sum(outer_TWE, key_buckets, capacity)
            read_TRE = tf.gather(query_weight_CLW[columns], query_rows) @ tf.gather(table, query_buckets)
            return tf.math.unsorted_segment_sum(
                tf.reshape(read_TRE, (-1, width)), tf.reshape(query_rows, (-1,)), queries + 1
            )

        return _sum(read, num_hash * count, tf.zeros((queries + 1, width), value_GSE.dtype))

    output_GLE = _map(
        group, (query_codes_GML, query_weight_GCLW, key_codes_GMS, key_weight_GCSW, value_GSE), value_GSE.dtype
    )
    output_BNLE = tf.reshape(output_GLE[:, :-1], (batch, heads, queries, width))
    return _finished(output_BNLE, query_mask, 1.0 / num_hash, value.dtype)


def _expectation(
    query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor, key_mask: Tensor, hash_code_len: int
) -> Tensor:
    batch, heads, queries, _ = _sizes(query)
    key_GSD, value_GSE = _kept(key, key_mask), _kept(value, key_mask)

    def attend(query_GRD: Tensor) -> Tensor:
        cosine_GRS = tf.matmul(query_GRD, key_GSD, transpose_b=True)
        return tf.matmul(_collision_probability(cosine_GRS, hash_code_len), value_GSE)

    blocks = _map(attend, _blocks(_kept(query, query_mask)), value_GSE.dtype)
    output_BNLE = tf.reshape(_unblocked(blocks, queries), (batch, heads, queries, _sizes(value)[3]))
    return _finished(output_BNLE, query_mask, 1.0, value.dtype)


def _expectation_gradients(
    query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor, key_mask: Tensor, grad: Tensor,
    hash_code_len: int,
) -> tuple[Tensor, Tensor, Tensor]:
    key_GSD = _kept(key, key_mask)

    def weights(query_GRD: Tensor) -> Tensor:
        return _collision_probability(tf.matmul(query_GRD, key_GSD, transpose_b=True), hash_code_len)

    of = _kept(query, query_mask)
    return _blockwise_gradients(weights, of, query, key, value, query_mask, key_mask, grad, hash_code_len)


def _sampling(
    query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor, key_mask: Tensor, num_hash: int, hash_code_len: int,
    hashes: Tensor,
) -> Tensor:
    if native.serves_lsh(value, hash_code_len):
        return native.sample(query, key, value, query_mask, key_mask, num_hash, hash_code_len, hashes)
    query_codes, key_codes = _hash_both(query, query_mask, key, key_mask, num_hash, hash_code_len, hashes)
    return _cumulate(query_mask, query_codes, key_mask, key_codes, value, 2**hash_code_len)


def _sampling_gradients(
    query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor, key_mask: Tensor, grad: Tensor, num_hash: int,
    hash_code_len: int, hashes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    def pairwise() -> tuple[Tensor, Tensor, Tensor]:
        key_codes_MGS = tf.transpose(_grouped(key_codes), (2, 0, 1))

        def weights(query_codes_GRM: Tensor) -> Tensor:
            query_codes_MGR = tf.transpose(query_codes_GRM, (2, 0, 1))

            def collide(m: Tensor) -> Tensor:
                # Sign vectors of tau bits agree in all of them where their product is tau: a matrix product
                # and a relu are several times faster than a comparison that broadcasts.
                query_GRT, key_GST = (signs_of_bits(codes[m]) for codes in (query_codes_MGR, key_codes_MGS))
                return tf.nn.relu(tf.matmul(query_GRT, key_GST, transpose_b=True) + (1 - hash_code_len))

            def signs_of_bits(codes: Tensor) -> Tensor:
                bits = tf.bitwise.right_shift(codes[..., None], tf.range(hash_code_len))
                return tf.cast(2 * tf.bitwise.bitwise_and(bits, 1) - 1, dtype)

            dtype = _wide(value).dtype
            groups, rows, _ = _sizes(query_codes_GRM)
            return _sum(collide, num_hash, tf.zeros((groups, rows, _sizes(key)[2]), dtype)) / num_hash

        of = _grouped(query_codes)
        return _blockwise_gradients(weights, of, query, key, value, query_mask, key_mask, grad, hash_code_len)

    def tables() -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, capacity = (query_mask, query_codes), (key_mask, key_codes), 2**hash_code_len
        scale = hash_code_len / 2
        return (
            tf.cast(_cumulate_weighted(*queries, grad, *keys, value, _wide(key), capacity) * scale,
            query.dtype), tf.cast(_cumulate_weighted(*keys, value, *queries, grad, _wide(query),
            capacity) * scale, key.dtype), tf.cast(_cumulate(*keys, *queries, grad, capacity), value.dtype),
        )

    if native.serves_lsh(query, hash_code_len):
        return native.sampling_gradients(query, key, value, query_mask, key_mask, grad, num_hash, hash_code_len, hashes)
    query_codes, key_codes = _hash_both(query, query_mask, key, key_mask, num_hash, hash_code_len, hashes)
    pairs = _sizes(query)[2] * _sizes(key)[2]
    if tf.is_tensor(pairs):
        return tf.cond(pairs <= LONGEST_PAIRWISE**2, pairwise, tables)
    return pairwise() if pairs <= LONGEST_PAIRWISE**2 else tables()


# ---- pieces ------------------------------------------------------------------------------


def _sizes(x: Tensor) -> list[int | Tensor]:
    """The sizes of all axes: numbers where they are known, tensors where not."""
    dynamic = tf.shape(x)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(x.shape)]


def _bits(capacity: int) -> int:
    """Of the codes of a table with so many buckets."""
    return max(1, (capacity - 1).bit_length())


def _wide(x: Tensor) -> Tensor:
    """Sums need float32 at least."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def _keep(mask: Tensor) -> Tensor:
    return tf.cast(mask, tf.bool)


def _grouped(x: Tensor) -> Tensor:
    """Merge batch and heads."""
    batch, heads, *rest = _sizes(x)
    return tf.reshape(x, (batch * heads, *rest))


def _kept(x_BNLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Zero the masked rows (whatever they hold, even NaN), widen, and merge batch and heads."""
    x_BNLD = _wide(x_BNLD)
    return _grouped(tf.where(_keep(mask_BL)[:, None, :, None], x_BNLD, tf.zeros((), x_BNLD.dtype)))


def _finished(output_BNLE: Tensor, mask_BL: Tensor, scale: float, dtype: tf.DType) -> Tensor:
    """Scale and zero the masked rows."""
    zero = tf.zeros((), output_BNLE.dtype)
    return tf.cast(tf.where(_keep(mask_BL)[:, None, :, None], output_BNLE * scale, zero), dtype)


def _codes(bits: Tensor, axis: int) -> Tensor:
    bits = tf.cast(bits, tf.int32)
    weights = tf.bitwise.left_shift(1, tf.range(bits.shape[axis]))
    return tf.reduce_sum(bits * (weights if axis == -1 else weights[:, None]), axis=axis)


def _hadamard_transform(x_PDL: Tensor) -> Tensor:
    """Transform the axis before the last: butterflies of stride 1, 2, 4, ... as in the reference."""
    parts, size, count = _sizes(x_PDL)
    stride = 1
    while stride < size:
        first, second = tf.unstack(tf.reshape(x_PDL, (parts, size // (2 * stride), 2, stride, count)), axis=2)
        x_PDL = tf.reshape(tf.stack((first + second, first - second), axis=2), (parts, size, count))
        stride *= 2
    return x_PDL


def _sum(term: Callable[[Tensor], Tensor], count: int, zeros: Tensor) -> Tensor:
    """`zeros + term(0) + ... + term(count - 1)`, one at a time."""
    _, total = tf.while_loop(
        lambda i, total: i < count,
        lambda i, total: (i + 1, tf.ensure_shape(total + term(i), zeros.shape)),
        (tf.constant(0), zeros),
        maximum_iterations=count,
    )
    return total


def _map(function: Callable, parts: Tensor | tuple[Tensor, ...], dtype: tf.DType) -> Tensor:
    """`tf.map_fn`, also over nothing, of which it would not know the shape: that is mapped as a part of zeros."""
    parts = parts if isinstance(parts, tuple) else (parts,)
    count = _sizes(parts[0])[0]
    if tf.is_tensor(count) or count == 0:
        paddings = [[[0, tf.cast(tf.equal(count, 0), tf.int32)], *[[0, 0]] * (x.shape.rank - 1)] for x in parts]
        parts = tuple(tf.ensure_shape(tf.pad(x, y), (None, *x.shape[1:])) for x, y in zip(parts, paddings, strict=True))
    mapped = tf.map_fn(lambda x: function(*x), parts, fn_output_signature=dtype)
    return mapped[:count]


def _blocks(x_GLD: Tensor) -> Tensor:
    """Cut the rows into blocks `[blocks, G, R, D]`, the last one filled up with zeros."""
    groups, rows, width = _sizes(x_GLD)
    height, count = _division(rows, BLOCK_ROWS)
    padded = tf.pad(x_GLD, ((0, 0), (0, count * height - rows), (0, 0)))
    return tf.transpose(tf.reshape(padded, (groups, count, height, width)), (1, 0, 2, 3))


def _division(count: int | Tensor, most: int | Tensor) -> tuple[int | Tensor, int | Tensor]:
    """The size of parts, at most `most`, and their number, at least one, that `count` things fill."""
    dynamic = tf.is_tensor(count) or tf.is_tensor(most)
    minimum, maximum = (tf.minimum, tf.maximum) if dynamic else (min, max)
    size = maximum(minimum(count, most), 1)
    return size, maximum((count + size - 1) // size, 1)


def _unblocked(blocks: Tensor, rows: int | Tensor) -> Tensor:
    """The inverse of `_blocks`."""
    count, groups, height, width = _sizes(blocks)
    return tf.reshape(tf.transpose(blocks, (1, 0, 2, 3)), (groups, count * height, width))[:, :rows]


def _collision_probability(cosine: Tensor, hash_code_len: int) -> Tensor:
    # Rounding makes the dot product of a unit vector with itself exceed 1, where acos is NaN.
    return power(1.0 - tf.acos(tf.clip_by_value(cosine, -1.0, 1.0)) / math.pi, hash_code_len)


def _blockwise_gradients(
    weights_of: Callable[[Tensor], Tensor], of_GLX: Tensor, query: Tensor, key: Tensor, value: Tensor,
    query_mask: Tensor, key_mask: Tensor, grad: Tensor, hash_code_len: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's gradients of `weights @ value`, with the weights of a block of queries at a time."""
    batch, heads, queries, head_dim = _sizes(query)
    query_GLD, key_GSD = _kept(query, query_mask), _kept(key, key_mask)
    value_GSE, grad_GLE = _kept(value, key_mask), _kept(grad, query_mask)
    of_blocks, query_blocks, grad_blocks = _blocks(of_GLX), _blocks(query_GLD), _blocks(grad_GLE)
    count = _sizes(query_blocks)[0]

    def step(i: Tensor, grad_query: tf.TensorArray, grad_key: Tensor, grad_value: Tensor) -> tuple:
        query_GRD, grad_GRE = query_blocks[i], grad_blocks[i]
        weights_GRS = weights_of(of_blocks[i])
        grad_value += tf.matmul(weights_GRS, grad_GRE, transpose_a=True)
        weights_GRS *= tf.matmul(grad_GRE, value_GSE, transpose_b=True)
        grad_key += tf.matmul(weights_GRS, query_GRD, transpose_a=True)
        grad_query = grad_query.write(i, tf.matmul(weights_GRS, key_GSD))
        grad_key = tf.ensure_shape(grad_key, key_GSD.shape)
        grad_value = tf.ensure_shape(grad_value, value_GSE.shape)
        return i + 1, grad_query, grad_key, grad_value

    _, grad_query, grad_key, grad_value = tf.while_loop(
        lambda i, *_: i < count,
        step,
        (
            tf.constant(0), tf.TensorArray(key_GSD.dtype, size=count, element_shape=query_blocks.shape[1:]),
            tf.zeros_like(key_GSD), tf.zeros_like(value_GSE),
        ),
        maximum_iterations=count,
    )  # fmt: skip
    grad_query = tf.reshape(_unblocked(grad_query.stack(), queries), (batch, heads, queries, head_dim))
    grad_key, grad_value = (
        tf.reshape(x, (batch, heads, *_sizes(x)[1:])) for x in (grad_key, grad_value)
    )
    return (
        _finished(grad_query, query_mask, hash_code_len / 2, query.dtype),
        _finished(grad_key, key_mask, hash_code_len / 2, key.dtype),
        _finished(grad_value, key_mask, 1.0, value.dtype),
    )


def _tiles(codes_S: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Bring the rows of each bucket together in tiles of a fixed height that no two buckets share.

    The number of tiles depends on shapes alone: a bucket wastes less than one tile.

    Returns:
        Rows `[T, R]`, S where a tile has room left, and the bucket `[T]` of each tile.
    """
    (count,) = _sizes(codes_S)
    if tf.is_tensor(count):
        height = tf.clip_by_value(count // capacity, 4, 64)
        tiles = (count + tf.minimum(count, capacity) * (height - 1)) // height
    else:
        height = min(max(count // capacity, 4), 64)
        tiles = (count + min(count, capacity) * (height - 1)) // height
    order_S = tf.argsort(codes_S, stable=True)
    sorted_S = tf.gather(codes_S, order_S)
    sizes = tf.math.unsorted_segment_sum(tf.ones_like(codes_S), codes_S, capacity + 1)
    heights = (sizes + height - 1) // height * height
    moved = tf.cumsum(heights, exclusive=True) - tf.cumsum(sizes, exclusive=True)
    place_S = tf.range(count) + tf.gather(moved, sorted_S)
    place_S1 = tf.where(sorted_S == capacity, tiles * height, place_S)[:, None]
    rows = tf.tensor_scatter_nd_update(tf.fill((tiles * height + 1,), count), place_S1, order_S)
    buckets = tf.tensor_scatter_nd_update(tf.zeros((tiles + 1,), tf.int32), place_S1 // height, sorted_S)
    return tf.reshape(rows[:-1], (tiles, height)), buckets[:-1]
