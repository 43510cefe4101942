"""LevelDB's sorted tables, which hold the index of TensorFlow's checkpoints: keys in order, each with a value.

A table is a row of blocks, each followed by one byte for its compression and the checksum of both. At the end stand a block
that says where the others are, and a footer that says where that block is. In a block a key is written as the number of bytes
that it shares with the key before it, and the rest; every 16th key is whole again, so that a reader can jump in.

Source: https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bertkit.core.errors import CheckpointError
from bertkit.core.files.crc32c import crc32c, masked
from bertkit.core.files.protobuf import read_varint, varint

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
FOOTER_SIZE = 48
TRAILER_SIZE = 5
PLAIN, SNAPPY = 0, 1

LARGEST_TABLE = 1 << 24
"""Bytes of a table, of its blocks without their compression, and of its keys without their sharing. Some 100,000 tensors."""

BLOCK_SIZE = 1 << 18
"""Bytes after which a block ends: TensorFlow's setting."""

RESTART_INTERVAL = 16


# -- reading ------------------------------------------------------------------------------------------------------------
def read_table(content: bytes) -> dict[bytes, bytes]:
    """The values of a table by their keys, in order.

    Raises:
        CheckpointError: when the table is damaged; work and memory are bounded by `LARGEST_TABLE`.

    Example:
        >>> read_table(table_of({b"": b"first", b"key": b"second"}.items()))
        {b'': b'first', b'key': b'second'}
    """
    return dict(_Reader(content).entries())


class _Reader:
    def __init__(self, content: bytes) -> None:
        if len(content) > LARGEST_TABLE:
            raise CheckpointError(f"it has {len(content)} bytes, expected at most {LARGEST_TABLE}")
        if len(content) < FOOTER_SIZE or not content.endswith(MAGIC):
            raise CheckpointError(f"its {len(content)} bytes do not end like a table (is it cut off?)")
        self._content = content
        self._unpacked = 0
        self._end = len(content) - FOOTER_SIZE

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        footer = self._content[self._end :]
        _, _, place = _handle(footer, 0)  # of the block with statistics, which is empty
        offset, size, _ = _handle(footer, place)
        last, end = None, 0
        for _, handle in self._entries_of(offset, size):
            offset, size, _ = _handle(handle, 0)
            if offset < end:
                raise CheckpointError(f"a block begins at byte {offset}, before the end of another, {end}")
            end = offset + size + TRAILER_SIZE
            for key, value in self._entries_of(offset, size):
                if last is not None and key <= last:
                    raise CheckpointError(f"a key is there twice or out of order: {key[:200]!r} after {last[:200]!r}")
                yield key, value
                last = key

    def _entries_of(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        block = self._block(offset, size)
        restarts = int.from_bytes(block[-4:], "little")
        end = len(block) - 4 * (restarts + 1)
        if len(block) < 4 or end < 0:
            raise CheckpointError(f"the block at byte {offset} has {len(block)} bytes and should end with {restarts} restarts")
        key, place = b"", 0
        while place < end:
            shared, place = read_varint(block, place)
            added, place = read_varint(block, place)
            length, place = read_varint(block, place)
            if shared > len(key) or added + length > end - place:
                raise CheckpointError(f"an entry of the block at byte {offset} reaches out of it, at its byte {place}")
            key = key[:shared] + block[place : place + added]
            place += added + length
            self._count(len(key))
            yield key, block[place - length : place]

    def _block(self, offset: int, size: int) -> bytes:
        if offset + size + TRAILER_SIZE > self._end:
            raise CheckpointError(f"a block has bytes {offset} to {offset + size}, where blocks end at {self._end}")
        block = self._content[offset : offset + size + 1]
        checksum = self._content[offset + size + 1 : offset + size + TRAILER_SIZE]
        if masked(crc32c(block)) != int.from_bytes(checksum, "little"):
            raise CheckpointError(f"the checksum of the block at byte {offset} is wrong")
        content, compression = block[:-1], block[-1]
        if compression == SNAPPY:
            content = unsnappy(content, LARGEST_TABLE)
        elif compression != PLAIN:
            raise CheckpointError(f"the block at byte {offset} has the unknown compression {compression}")
        self._count(len(content))
        return content

    def _count(self, size: int) -> None:
        self._unpacked += size
        if self._unpacked > 2 * LARGEST_TABLE:
            raise CheckpointError(f"it unpacks to more than {2 * LARGEST_TABLE} bytes")


def _handle(content: bytes, place: int) -> tuple[int, int, int]:
    """Where a block lies: its offset and size; and the place after the two."""
    offset, place = read_varint(content, place)
    size, place = read_varint(content, place)
    return offset, size, place


def unsnappy(packed: bytes, limit: int) -> bytes:
    r"""What was compressed with snappy. TensorFlow reads such blocks, but its releases write none.

    Source: https://github.com/google/snappy/blob/main/format_description.txt

    Args:
        packed: the compressed bytes.
        limit: the most bytes that may come out.

    Raises:
        CheckpointError: when they are damaged, or too many.

    Example:
        >>> unsnappy(b"\x08\x04ab\x09\x02", limit=8)  # of 8 bytes: two letters, then six from two bytes back
        b'abababab'
    """
    expected, place = read_varint(packed, 0)
    if expected > limit:
        raise CheckpointError(f"a compressed block unpacks to {expected} bytes, expected at most {limit}")
    content = bytearray()
    while place < len(packed) and len(content) <= expected:
        tag = packed[place]
        place += 1
        kind, length = tag & 3, (tag >> 2) + 1
        if kind == 0:  # bytes as they are; long ones have their length in one to four bytes more
            if length > 60:
                more = length - 60
                length = int.from_bytes(packed[place : place + more], "little") + 1
                place += more
            content += packed[place : place + length]
            place += length
            continue
        if kind == 1:
            length = (tag >> 2 & 7) + 4
            back = (tag >> 5 << 8) + int.from_bytes(packed[place : place + 1], "little")
        else:
            back = int.from_bytes(packed[place : place + 2 * (kind - 1)], "little")
        place += (1, 2, 4)[kind - 1]
        if not 0 < back <= len(content):
            raise CheckpointError("a compressed block refers to bytes before its beginning")
        # What is copied may reach into itself: then it repeats.
        pattern = content[-back:][:length]
        content += (pattern * (length // len(pattern) + 1))[:length]
    if len(content) != expected or place != len(packed):
        raise CheckpointError(f"a compressed block unpacks to {len(content)} bytes, expected {expected}")
    return bytes(content)


# -- writing ------------------------------------------------------------------------------------------------------------
def table_of(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A table, byte for byte the one that TensorFlow writes.

    Args:
        entries: keys and values, in the order of the keys.
    """
    table = bytearray()
    index = _Block(1)
    block = _Block(RESTART_INTERVAL)
    place = b""
    for key, value in entries:
        if place:
            index.add(_between(block.last, key), place)
            block, place = _Block(RESTART_INTERVAL), b""
        block.add(key, value)
        if block.size >= BLOCK_SIZE:
            place = _append(table, block)
    if not place:
        place = _append(table, block)
    index.add(_after(block.last), place)
    footer = _append(table, _Block(1)) + _append(table, index)
    return bytes(table) + footer.ljust(FOOTER_SIZE - len(MAGIC), b"\0") + MAGIC


class _Block:
    def __init__(self, interval: int) -> None:
        self.last = b""
        self._interval, self._count = interval, 0
        self._content, self._restarts = bytearray(), [0]

    @property
    def size(self) -> int:
        return len(self._content) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count == self._interval:
            self._restarts.append(len(self._content))
            self._count = 0
        elif self._count:
            shared = _shared(self.last, key)
        self._content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self._count += 1
        self.last = key

    def finish(self) -> bytes:
        numbers = (*self._restarts, len(self._restarts))
        return bytes(self._content) + b"".join(number.to_bytes(4, "little") for number in numbers)


def _append(table: bytearray, block: _Block) -> bytes:
    content = block.finish()
    place = varint(len(table)) + varint(len(content))
    content += bytes([PLAIN])
    table += content + masked(crc32c(content)).to_bytes(4, "little")
    return place


def _shared(one: bytes, other: bytes) -> int:
    """How many bytes two keys begin with alike."""
    shortest = min(len(one), len(other))
    return next((place for place in range(shortest) if one[place] != other[place]), shortest)


def _between(last: bytes, following: bytes) -> bytes:
    """A short key that is not before the one and is before the other."""
    shared = _shared(last, following)
    if shared < min(len(last), len(following)) and last[shared] + 1 < following[shared]:
        return last[:shared] + bytes([last[shared] + 1])
    return last


def _after(last: bytes) -> bytes:
    """A short key that is not before this one."""
    place = next((place for place, byte in enumerate(last) if byte < 0xFF), None)
    return last if place is None else last[:place] + bytes([last[place] + 1])
