"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, at the speed of memory and in NumPy alone.

A checksum is the remainder of the data, read as a polynomial over two numbers, by a polynomial of degree 32. The usual
algorithm reduces one byte at a time. Here whole blocks are reduced at once: a multiple of that polynomial which has only six
terms, x^290 + x^136 + x^113 + x^107 + x^32 + 1, says that what stands 290 places up may as well be added 154, 177, 183, 258
and 290 places further down. Squaring keeps the number of terms (the square of a sum is the sum of the squares), so the same
holds for places of 2, 4, 8, ... bits: of bytes, of 64-bit words, of runs of 32 such words. Nothing but XOR of long arrays is
left, until fewer than 290 bytes remain.
"""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78
"""The polynomial of CRC-32C, its highest terms in the lowest bits and x^32 left out."""

EXPONENTS = (0, 32, 107, 113, 136, 290)
"""A multiple of the polynomial with few terms and a wide gap below the first; found by search."""

PLACES = (*((np.uint64, run) for run in (32, 16, 8, 4, 2, 1)), (np.uint32, 1), (np.uint16, 1), (np.uint8, 1))
"""What counts as one place, from large to small: runs of words of a type."""

BLOCK = 1 << 20
"""Bytes that are reduced together: they fit into a processor's cache."""

MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | bytearray | memoryview | np.ndarray, before: int = 0) -> int:
    """The CRC-32C of some bytes (RFC 3720, appendix B.4).

    Args:
        data: the bytes; an array must be contiguous.
        before: the checksum of what comes before them.

    Example:
        >>> hex(crc32c(b"123456789")), crc32c(b"6789", before=crc32c(b"12345")) == crc32c(b"123456789")
        ('0xe3069283', True)
    """
    content = np.frombuffer(data, np.uint8)
    register = before ^ 0xFFFFFFFF
    for start in range(0, len(content), BLOCK):
        register = _advance(register, content[start : start + BLOCK])
    return register ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """A checksum as LevelDB and TensorFlow store it, so that data with checksums inside can be checksummed again."""
    return (((checksum >> 15) | (checksum << 17)) + MASK_DELTA) & 0xFFFFFFFF


def _advance(register: int, content: np.ndarray) -> int:
    if len(content) > EXPONENTS[-1]:
        # Zeros in front change nothing once the register has become a part of the data.
        words = np.zeros(-(-len(content) // 8), np.uint64)
        block = words.view(np.uint8)[-len(content) :]
        block[:] = content
        block[:4] ^= np.frombuffer(register.to_bytes(4, "little"), np.uint8)
        register, content = 0, _reduced(words)
    table = _table()
    for byte in content.tolist():
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register


def _reduced(rest: np.ndarray) -> np.ndarray:
    """The last bytes of the data, changed so that they alone have the remainder of the whole; the data are used up."""
    top = EXPONENTS[-1]
    for kind, run in PLACES:
        words = rest.view(kind)
        start, end, gap = 0, len(words) - top * run, (top - EXPONENTS[-2]) * run
        while start < end:
            head = words[start : min(start + gap, end)]
            for exponent in EXPONENTS[:-1]:
                place = start + (top - exponent) * run
                words[place : place + len(head)] ^= head
            start += len(head)
        rest = words[start:]
    return rest


@functools.cache
def _table() -> list[int]:
    """What each byte that leaves the register adds to it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    return table.tolist()
