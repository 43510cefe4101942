"""YOSO attention as the paper writes it: the truth that all kernels are tested against.

Zeng et al., "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli Sampling",
arXiv 2111.09714.

Loops over hash functions, tables of size [L, S], float64: clear, never fast. The only float32 is inside
`fast_hash`, whose codes are compared bit for bit. What masked rows hold is never read, and a sum takes nothing from rows
without a weight in it, so that NaN goes nowhere else.

Shape suffixes: B batch, N heads, L queries, S keys, D head size, E value size, M hash functions
(m in the paper), W weight size, P parts of one fast hash. tau is `hash_code_len`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bertkit.core.hashing import hash_layout

Float = NDArray[np.float64]
Codes = NDArray[np.int32]


def fast_hash(
    query_BNLD: ArrayLike, query_mask_BL: ArrayLike, key_BNSD: ArrayLike, key_mask_BS: ArrayLike,
    num_hash: int, hash_code_len: int, signs_N3PD: ArrayLike,
) -> tuple[Codes, Codes]:
    """Hash by the signs of three Hadamard transforms with random sign flips, `H D2 H D1 H D0 x`.

    Args:
        query_BNLD, key_BNSD: `[B, N, L, D]` and `[B, N, S, D]`.
        query_mask_BL, key_mask_BS: 1 keeps a vector, 0 gives it code 0.
        num_hash: hash functions.
        hash_code_len: bits of a code.
        signs_N3PD: +1 and -1, from `bertkit.core.hashing.random_signs`.

    Returns:
        Codes `[B, N, L, num_hash]` and `[B, N, S, num_hash]`; bit i of a code weighs 2**i.

    Raises:
        InputError: the numbers do not make a hash function.

    Example:
        >>> from bertkit.core.hashing import random_signs
        >>> x, mask = np.random.default_rng(0).normal(size=(1, 2, 7, 64)), np.ones((1, 7))
        >>> query_codes, key_codes = fast_hash(x, mask, -x, mask, 5, 9, random_signs(0, 2, 64, 5, 9))
        >>> query_codes.shape, bool((query_codes + key_codes == 2**9 - 1).all())
        ((1, 2, 7, 5), True)
    """
    def codes(x_BNLD: ArrayLike, mask_BL: ArrayLike) -> Codes:
        x_BNLD, signs = _kept(x_BNLD, mask_BL).astype(np.float32), np.asarray(signs_N3PD, np.float32)
        layout = hash_layout(x_BNLD.shape[-1], num_hash, hash_code_len)
        padding = layout.padded_dim - x_BNLD.shape[-1]
        padded = np.pad(x_BNLD, [(0, 0)] * 3 + [(0, padding)])[:, :, :, None, :]
        for step in range(3):
            padded = hadamard_transform(padded * signs[:, step][None, :, None])
        used, hashes = layout.hashes_per_part * hash_code_len, layout.num_part * layout.hashes_per_part
        bits = (padded[..., :used] > 0).reshape(*x_BNLD.shape[:3], hashes, hash_code_len)[..., :num_hash, :]
        return _codes(bits, mask_BL)

    return codes(query_BNLD, query_mask_BL), codes(key_BNSD, key_mask_BS)


def gaussian_hash(
    query_BNLD: ArrayLike, query_mask_BL: ArrayLike, key_BNSD: ArrayLike, key_mask_BS: ArrayLike,
    num_hash: int, hash_code_len: int, projections_NDK: ArrayLike,
) -> tuple[Codes, Codes]:
    """Hash by the sides of random Gaussian hyperplanes: two unit vectors collide with (1 - angle / pi)**tau.

    Args:
        query_BNLD, key_BNSD: `[B, N, L, D]` and `[B, N, S, D]`.
        query_mask_BL, key_mask_BS: 1 keeps a vector, 0 gives it code 0.
        num_hash: hash functions.
        hash_code_len: bits of a code.
        projections_NDK: `[N, D, num_hash * hash_code_len]`, from `bertkit.core.hashing.random_projections`.

    Returns:
        Codes `[B, N, L, num_hash]` and `[B, N, S, num_hash]`.

    Example:
        >>> from bertkit.core.hashing import random_projections
        >>> x, mask = np.random.default_rng(0).normal(size=(1, 2, 7, 64)), np.ones((1, 7))
        >>> gaussian_hash(x, mask, x, mask, 5, 9, random_projections(0, 2, 64, 5, 9))[0].shape
        (1, 2, 7, 5)
    """
    def codes(x_BNLD: ArrayLike, mask_BL: ArrayLike) -> Codes:
        projected = _kept(x_BNLD, mask_BL) @ np.asarray(projections_NDK, np.float64)
        return _codes((projected > 0).reshape(*projected.shape[:3], num_hash, hash_code_len), mask_BL)

    return codes(query_BNLD, query_mask_BL), codes(key_BNSD, key_mask_BS)


def hadamard_transform(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply the last axis by the unnormalised Hadamard matrix: butterflies of stride 1, 2, 4, ...

    Every kernel adds in this order of strides, because the sign of a sum near zero depends on it.

    Args:
        x: `[..., D]`, D a power of two.

    Example:
        >>> hadamard_transform(np.array([1, 2, 3, 4], np.float32)).tolist()
        [10.0, -2.0, -4.0, 0.0]
    """
    size, stride = x.shape[-1], 1
    while stride < size:
        pairs = x.reshape(*x.shape[:-1], size // (2 * stride), 2, stride)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([first + second, first - second], axis=-2).reshape(x.shape)
        stride *= 2
    return x


def _codes(bits_BNLMT: NDArray[np.bool_], mask_BL: ArrayLike) -> Codes:
    weights = 2 ** np.arange(bits_BNLMT.shape[-1])
    codes = (bits_BNLMT * weights).sum(-1) * _keep(mask_BL)[:, None, :, None]
    return codes.astype(np.int32)


def _keep(mask: ArrayLike) -> NDArray[np.bool_]:
    return np.asarray(mask) != 0


def _kept(x_BNLD: ArrayLike, mask_BL: ArrayLike) -> Float:
    """Masked rows are zeros."""
    return np.where(_keep(mask_BL)[:, None, :, None], np.asarray(x_BNLD, np.float64), 0.0)


def _sum(weights_BNLS: Float, x_BNSE: ArrayLike) -> Float:
    """`weights @ x`, where a weight of 0 takes nothing, not even NaN."""
    x_BNSE = np.asarray(x_BNSE, np.float64)
    total = np.zeros((*weights_BNLS.shape[:3], x_BNSE.shape[3]))
    for row in range(x_BNSE.shape[2]):
        weight = weights_BNLS[..., row, None]
        total += weight * np.where(weight == 0, 0.0, x_BNSE[:, :, None, row])
    return total


def collision_rate(
    query_mask_BL: ArrayLike, query_codes_BNLM: ArrayLike, key_mask_BS: ArrayLike, key_codes_BNSM: ArrayLike
) -> Float:
    """The fraction of hash functions under which query i and key j collide, 0 where either is masked.

    This is the matrix that sampling stands for: `lsh_cumulation` is this matrix times the values.

    Returns:
        `[B, N, L, S]`.
    """
    query_codes, key_codes = np.asarray(query_codes_BNLM), np.asarray(key_codes_BNSM)
    rate = np.zeros((*query_codes.shape[:3], key_codes.shape[2]))
    for m in range(query_codes.shape[-1]):
        rate += query_codes[..., :, None, m] == key_codes[..., None, :, m]
    kept = _keep(query_mask_BL)[:, None, :, None] * _keep(key_mask_BS)[:, None, None, :]
    return rate * kept / query_codes.shape[-1]


def lsh_cumulation(
    query_mask_BL: ArrayLike, query_codes_BNLM: ArrayLike, key_mask_BS: ArrayLike, key_codes_BNSM: ArrayLike,
    value_BNSE: ArrayLike, hashtable_capacity: int,
) -> Float:
    """Sum the values of the keys that collide with each query, averaged over the hash functions.

    Args:
        query_mask_BL, key_mask_BS: 1 keeps, 0 drops: a masked query gets 0, a masked key gives nothing.
        query_codes_BNLM, key_codes_BNSM: codes below `hashtable_capacity`.
        value_BNSE: `[B, N, S, E]`.
        hashtable_capacity: 2**hash_code_len, the buckets of a table (unused: here is no table).

    Returns:
        `[B, N, L, E]`.

    Example:
        >>> codes = np.array([[[[0], [1], [0]]]])
        >>> mask, value = np.ones((1, 3)), [[[[1.0], [2.0], [4.0]]]]
        >>> lsh_cumulation(mask, codes, mask, codes, value, hashtable_capacity=2).ravel()
        array([5., 2., 5.])
    """
    rate = collision_rate(query_mask_BL, query_codes_BNLM, key_mask_BS, key_codes_BNSM)
    return _sum(rate, value_BNSE)


def lsh_weighted_cumulation(
    query_mask_BL: ArrayLike, query_codes_BNLM: ArrayLike, query_weight_BNLW: ArrayLike,
    key_mask_BS: ArrayLike, key_codes_BNSM: ArrayLike, key_weight_BNSW: ArrayLike, value_BNSE: ArrayLike,
    hashtable_capacity: int,
) -> Float:
    """Sum the values of the colliding keys, each times the dot product of the query's and the key's weights.

    Args:
        query_mask_BL, key_mask_BS: 1 keeps, 0 drops.
        query_codes_BNLM, key_codes_BNSM: codes below `hashtable_capacity`.
        query_weight_BNLW, key_weight_BNSW: the weights.
        value_BNSE: `[B, N, S, E]`.
        hashtable_capacity: 2**hash_code_len.

    Returns:
        `[B, N, L, E]`.
    """
    rate = collision_rate(query_mask_BL, query_codes_BNLM, key_mask_BS, key_codes_BNSM)
    dots = _kept(query_weight_BNLW, query_mask_BL) @ _transpose(_kept(key_weight_BNSW, key_mask_BS))
    return _sum(np.where(rate == 0, 0.0, rate * dots), value_BNSE)


def expectation_weights(
    query_BNLD: ArrayLike, key_BNSD: ArrayLike, query_mask_BL: ArrayLike, key_mask_BS: ArrayLike,
    hash_code_len: int,
) -> Float:
    """The probability that query i and key j collide, 0 where either is masked.

    Args:
        query_BNLD, key_BNSD: unit vectors.
        query_mask_BL, key_mask_BS: 1 keeps, 0 drops.
        hash_code_len: bits of a code.

    Returns:
        `[B, N, L, S]`.

    Example:
        >>> x = np.eye(2)[None, None]
        >>> expectation_weights(x, x, np.ones((1, 2)), np.ones((1, 2)), hash_code_len=2)[0, 0].tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    # Rounding makes the dot product of a unit vector with itself exceed 1, where arccos is NaN.
    cosine = np.clip(_kept(query_BNLD, query_mask_BL) @ _transpose(_kept(key_BNSD, key_mask_BS)), -1.0, 1.0)
    kept = _keep(query_mask_BL)[:, None, :, None] * _keep(key_mask_BS)[:, None, None, :]
    return (1.0 - np.arccos(cosine) / np.pi) ** hash_code_len * kept


def yoso_expectation(
    query_BNLD: ArrayLike, key_BNSD: ArrayLike, value_BNSE: ArrayLike, query_mask_BL: ArrayLike,
    key_mask_BS: ArrayLike, hash_code_len: int,
) -> Float:
    """YOSO-E: attention with the expected collisions, before the rows are normalised.

    Returns:
        `[B, N, L, E]`.
    """
    weights = expectation_weights(query_BNLD, key_BNSD, query_mask_BL, key_mask_BS, hash_code_len)
    return _sum(weights, value_BNSE)


def yoso_expectation_gradients(
    query_BNLD: ArrayLike, key_BNSD: ArrayLike, value_BNSE: ArrayLike, query_mask_BL: ArrayLike,
    key_mask_BS: ArrayLike, hash_code_len: int, grad_context_BNLE: ArrayLike,
) -> tuple[Float, Float, Float]:
    """The paper's gradients of YOSO-E with respect to query, key and value.

    The true derivative of a collision probability is unbounded where query and key align; the paper takes its
    lower bound, tau / 2 times the probability itself.
    """
    weights = expectation_weights(query_BNLD, key_BNSD, query_mask_BL, key_mask_BS, hash_code_len)
    kept = _kept(value_BNSE, key_mask_BS), hash_code_len, _kept(grad_context_BNLE, query_mask_BL)
    return _gradients(weights, query_BNLD, key_BNSD, *kept)


def yoso_sampling_gradients(
    query_BNLD: ArrayLike, key_BNSD: ArrayLike, value_BNSE: ArrayLike, query_mask_BL: ArrayLike,
    key_mask_BS: ArrayLike, hash_code_len: int, query_codes_BNLM: ArrayLike, key_codes_BNSM: ArrayLike,
    grad_context_BNLE: ArrayLike,
) -> tuple[Float, Float, Float]:
    """The sampled gradients of YOSO: those of the expectation, with counted collisions for probabilities."""
    rate = collision_rate(query_mask_BL, query_codes_BNLM, key_mask_BS, key_codes_BNSM)
    kept = _kept(value_BNSE, key_mask_BS), hash_code_len, _kept(grad_context_BNLE, query_mask_BL)
    return _gradients(rate, query_BNLD, key_BNSD, *kept)


def _gradients(
    weights_BNLS: Float, query_BNLD: ArrayLike, key_BNSD: ArrayLike, value_BNSE: ArrayLike,
    hash_code_len: int, grad_context_BNLE: ArrayLike,
) -> tuple[Float, Float, Float]:
    grad_context = np.asarray(grad_context_BNLE, np.float64)
    dots = grad_context @ _transpose(value_BNSE)
    grad_weights = np.where(weights_BNLS == 0, 0.0, dots * weights_BNLS * (hash_code_len / 2))
    return (
        _sum(grad_weights, key_BNSD), _sum(_transpose(grad_weights), query_BNLD), _sum(_transpose(weights_BNLS), grad_context),
    )


def _transpose(x: ArrayLike) -> Float:
    return np.swapaxes(np.asarray(x, np.float64), -1, -2)
