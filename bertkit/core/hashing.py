"""What YOSO's hash functions are made of, the same in every framework: random numbers, their limits, and their arithmetic.

Random numbers are read from one stream of 64-bit words: Philox4x64-10 with the seed as its key, the only kind of
stream that NumPy promises never to change. PyTorch and TensorFlow receive the arrays, and so hash alike.

Shape suffixes: N heads, P parts of one fast hash (d // tau hash functions each), D padded head size d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertkit.core.errors import InputError

SMALLEST_TRANSFORM = 32
"""Heads are zero-padded to a power of two, at least this one (what checkpoints were trained with)."""

LONGEST_CODE = 24
"""Bits of a code. Longer ones collide only where vectors are equal, and need a table of 2**bits rows."""

MOST_HASHES = 4096
"""Hash functions. With more of them than a text has tokens, the exact expectation costs less."""

LARGEST_TABLE = 2**28
"""Numbers in the hash table of one function and one head: 1 GiB of float32."""


@dataclass(frozen=True)
class HashLayout:
    """How the hash functions of one head are cut out of Hadamard transforms.

    Args:
        padded_dim: size of the transform: a power of two.
        hashes_per_part: hash functions that one transform yields, `hash_code_len` dimensions each.
        num_part: transforms, enough for all hash functions.
    """

    padded_dim: int
    hashes_per_part: int
    num_part: int


def hash_layout(head_dim: int, num_hash: int, hash_code_len: int) -> HashLayout:
    """Cut `num_hash` hash functions of `hash_code_len` bits out of Hadamard transforms.

    Args:
        head_dim: size of a query or key vector.
        num_hash: hash functions.
        hash_code_len: bits of a code (tau).

    Raises:
        InputError: listing every number that is out of range.

    Example:
        >>> hash_layout(head_dim=64, num_hash=64, hash_code_len=9)
        HashLayout(padded_dim=64, hashes_per_part=7, num_part=10)
    """
    problems = [] if head_dim >= 1 else [f"head_dim: got {head_dim}, expected at least 1"]
    problems += hash_problems(num_hash, hash_code_len)
    if problems:
        raise InputError("impossible hash functions", problems)
    padded_dim = max(SMALLEST_TRANSFORM, 1 << (head_dim - 1).bit_length())
    hashes_per_part = padded_dim // hash_code_len
    return HashLayout(padded_dim, hashes_per_part, math.ceil(num_hash / hashes_per_part))


def hash_problems(num_hash: int, hash_code_len: int) -> list[str]:
    """Why these numbers make no hash functions; empty where they do.

    Example:
        >>> hash_problems(num_hash=0, hash_code_len=9)
        ['num_hash: got 0, expected 1 to 4096']
    """
    limits = {"num_hash": (num_hash, MOST_HASHES), "hash_code_len": (hash_code_len, LONGEST_CODE)}
    return [f"{name}: got {size}, expected 1 to {most}" for name, (size, most) in limits.items() if not 1 <= size <= most]


def table_problems(hash_code_len: int, width: int) -> list[str]:
    """Why there can be no hash table with so long codes and rows of so many numbers; empty where there can.

    Example:
        >>> table_problems(hash_code_len=24, width=64)
        ['hash_code_len: got 24, expected at most 22 for rows of 64 numbers: a hash table would take 4 GiB']
    """
    longest = largest_capacity(width).bit_length() - 1
    if hash_code_len <= longest:
        return []
    size = 4 * width * 2**hash_code_len / 2**30
    return [f"hash_code_len: got {hash_code_len}, expected at most {longest} for rows of {width} numbers: a hash table would "
            f"take {size:.3g} GiB"]


def capacity_problems(capacity: int, width: int) -> list[str]:
    """Why there can be no hash table of so many buckets with rows of so many numbers; empty where there can.

    Example:
        >>> capacity_problems(capacity=0, width=64)
        ['hashtable_capacity: got 0, expected 1 to 4194304 for values of 64 numbers']
    """
    most = largest_capacity(width)
    if 1 <= capacity <= most:
        return []
    return [f"hashtable_capacity: got {capacity}, expected 1 to {most} for values of {width} numbers"]


def largest_capacity(width: int) -> int:
    """The most buckets of a hash table with rows of `width` numbers."""
    return min(2**LONGEST_CODE, LARGEST_TABLE // max(1, width))


def shape_of_hashes(fast: bool, num_heads: int, head_dim: int, num_hash: int, hash_code_len: int) -> tuple[int, ...]:
    """The shape of what `random_signs`, where hashing is fast, or `random_projections` draws.

    Raises:
        InputError: the numbers do not make a hash function.
    """
    layout = hash_layout(head_dim, num_hash, hash_code_len)
    return (num_heads, 3, layout.num_part, layout.padded_dim) if fast else (num_heads, head_dim, num_hash * hash_code_len)


def random_signs(
    seed: int, num_heads: int, head_dim: int, num_hash: int, hash_code_len: int
) -> NDArray[np.int8]:
    """Draw the three random sign diagonals of `fast_hash`.

    Element i of the array (in C order) is bit i of the stream, lowest bit of a word first: 1 is +1, 0 is -1.

    Args:
        seed: any non-negative integer below 2**128.
        num_heads: attention heads; each has hash functions of its own.
        head_dim: size of a query or key vector.
        num_hash: hash functions.
        hash_code_len: bits of a code.

    Returns:
        `[num_heads, 3, num_part, padded_dim]`, +1 or -1.

    Raises:
        InputError: the numbers do not make a hash function (see `hash_layout`), or the seed is out of range.

    Example:
        >>> random_signs(seed=0, num_heads=12, head_dim=64, num_hash=64, hash_code_len=9).shape
        (12, 3, 10, 64)
    """
    shape = shape_of_hashes(True, num_heads, head_dim, num_hash, hash_code_len)
    count = math.prod(shape)
    words = _words(seed, math.ceil(count / 64)).astype("<u8", copy=False)
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    return (2 * bits.astype(np.int8) - 1).reshape(shape)


def random_projections(
    seed: int, num_heads: int, head_dim: int, num_hash: int, hash_code_len: int
) -> NDArray[np.float32]:
    """Draw the Gaussian projections of `gaussian_hash`.

    Words 2i and 2i + 1 of the stream give normal numbers 2i and 2i + 1 (in C order) by the Box-Muller
    transform of their upper 53 bits, in float64, rounded to float32.

    Args:
        seed: any non-negative integer below 2**128.
        num_heads: attention heads; each has hash functions of its own.
        head_dim: size of a query or key vector.
        num_hash: hash functions.
        hash_code_len: bits of a code.

    Returns:
        `[num_heads, head_dim, num_hash * hash_code_len]`, standard normal.

    Raises:
        InputError: the numbers do not make a hash function (see `hash_layout`), or the seed is out of range.

    Example:
        >>> random_projections(seed=0, num_heads=2, head_dim=64, num_hash=5, hash_code_len=9).shape
        (2, 64, 45)
    """
    shape = shape_of_hashes(False, num_heads, head_dim, num_hash, hash_code_len)
    count = math.prod(shape)
    uniform = (_words(seed, count + count % 2) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-uniform[0::2]))
    angle = 2.0 * np.pi * uniform[1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return normal[:count].reshape(shape).astype(np.float32)


def _words(seed: int, count: int) -> NDArray[np.uint64]:
    if not 0 <= seed < 1 << 128:
        raise InputError("impossible seed", [f"seed: got {seed}, expected at least 0 and below 2**128"])
    return np.random.Philox(key=seed).random_raw(count)


def power(x: Any, exponent: int) -> Any:
    """`x**exponent` by squaring, which for tensors is several times as fast as a power of floats.

    Args:
        x: a number, an array, or a tensor of any framework.
        exponent: 1 or more.

    Example:
        >>> power(0.5, 9) == 0.5**9
        True
    """
    result = None
    while exponent > 0:
        if exponent % 2 == 1:
            result = x if result is None else result * x
        exponent //= 2
        x = x * x if exponent > 0 else x
    return result
