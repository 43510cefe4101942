"""CRC-32C: the published values, and the fast way against the definition."""

import numpy as np
import pytest

from bertkit.core.files.crc32c import BLOCK, EXPONENTS, POLYNOMIAL, crc32c, masked

RANDOM = np.random.default_rng(0)
LENGTHS = [0, 1, 3, 4, 7, 289, 290, 291, 293, 297, 2320, 2321, 5000, 40_001, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 300]


def by_definition(content, register=0xFFFFFFFF):
    """Bit by bit; many messages of one length at once, one in each row."""
    for column in content.T:
        register = register ^ column.astype(np.uint32)
        for _ in range(8):
            register = np.where(register & 1, (register >> 1) ^ np.uint32(POLYNOMIAL), register >> 1)
    return register ^ np.uint32(0xFFFFFFFF)


@pytest.mark.parametrize(
    "content, expected",
    [  # RFC 3720, appendix B.4
        (b"\0" * 32, 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_values(content, expected):
    assert crc32c(content) == crc32c(bytearray(content)) == crc32c(memoryview(content)) == expected


def test_the_sparse_polynomial_is_a_multiple():
    remainder, power = 0, 1 << 31  # the coefficients of 1, x, x^2, ... from the highest bit down
    for exponent in range(EXPONENTS[-1] + 1):
        remainder ^= power if exponent in EXPONENTS else 0
        power = (power >> 1) ^ (POLYNOMIAL if power & 1 else 0)
    assert remainder == 0


@pytest.mark.parametrize("length", [300, 601, 2400, 4999])
def test_against_the_definition(length):
    rows = RANDOM.integers(0, 256, (20, length), np.uint8)
    assert [crc32c(row) for row in rows] == by_definition(rows).tolist()


@pytest.mark.parametrize("length", LENGTHS)
def test_in_parts_as_in_one(length):
    content = RANDOM.integers(0, 256, length, np.uint8)
    whole = crc32c(content)
    for cut in {0, 1, min(4, length), length // 3, length}:
        assert crc32c(content[cut:], crc32c(content[:cut])) == whole
    # The definition alone checks that the parts are right: they are short, or are checked above.
    pieces = 0
    for start in range(0, length, 250):
        pieces = crc32c(content[start : start + 250], pieces)
    assert pieces == whole


def test_other_arrays():
    numbers = RANDOM.standard_normal((30, 40)).astype(np.float32)
    assert crc32c(numbers) == crc32c(numbers.tobytes())


def test_mask():
    assert masked(crc32c(b"foo")) != crc32c(b"foo")
    assert masked(0) == 0xA282EAD8 and masked(0xFFFFFFFF) == 0xA282EAD7
