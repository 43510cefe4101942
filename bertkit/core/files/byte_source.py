"""Bytes that are read where they lie: in a file, in a part of one, or in a compressed stream that is never unpacked whole.

What reads a format asks a `ByteSource` for ranges, and neither knows nor cares whether they come from a file of their own or
from inside an archive.
"""

from __future__ import annotations

import io
import mmap
import os
import threading
import weakref
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bertkit.core.errors import CheckpointError

WINDOW = 32 * 2**20
"""Files are mapped in pieces of this size. It is what a reader that goes through a file holds in memory, beside the tensor."""

MOST_WINDOWS = 64
"""Larger files are mapped in larger pieces: on Python before 3.13, each that is in use costs a file descriptor."""

BLOCK = 2**20
INPUT = 2**16
STATE_DISTANCE = 4 * 2**20
MOST_STATES = 128
LARGEST_RATIO = 1000
"""Deflate cannot shrink anything more than 1032 times, and weights hardly at all."""


class ByteSource(ABC):
    """A row of bytes of which any range can be read.

    Attributes:
        name: what errors call it.
        size: how many bytes there are.
        in_order: whether ranges should be asked for in increasing order, as going back costs time.
    """

    name: str
    size: int
    in_order: bool = False

    def read(self, begin: int, end: int) -> np.ndarray:
        """The bytes from `begin` up to, not including, `end`.

        Returns:
            uint8 array [end - begin]: writable, never reaching the file, and valid for as long as it is held.

        Raises:
            CheckpointError: when there are no such bytes, or when they cannot be read.
        """
        if not 0 <= begin <= end <= self.size:
            raise CheckpointError(f"{self.name} is damaged: bytes {begin} to {end} are wanted, it has {self.size}")
        return self._read(begin, end) if begin < end else np.empty(0, np.uint8)

    @abstractmethod
    def _read(self, begin: int, end: int) -> np.ndarray:
        """What `read` gives, for a range that exists and is not empty."""


class FileBytes(ByteSource):
    """The bytes of a file, mapped into memory piece by piece, hence read when they are touched.

    The file is held open: it stays the same when another takes its name. A file that has become shorter is an error when
    it is read; only one that shrinks while its arrays are in use still ends the process, as with every mapped file.

    Args:
        path: the file.

    Raises:
        OSError: when it cannot be opened.

    Example:
        >>> FileBytes("model.safetensors").read(0, 8)  # doctest: +SKIP
    """

    _latest: ClassVar[mmap.mmap | None] = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = str(path)
        self._file = io.FileIO(Path(path))
        weakref.finalize(self, self._file.close)
        self.size = os.fstat(self._file.fileno()).st_size
        self._window = max(WINDOW, -(-self.size // MOST_WINDOWS // WINDOW) * WINDOW)
        self._maps: weakref.WeakValueDictionary[tuple[int, int], mmap.mmap] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def _read(self, begin: int, end: int) -> np.ndarray:
        try:
            with self._lock:
                if os.fstat(self._file.fileno()).st_size < end:
                    raise CheckpointError(f"{self.name} became shorter while it was being read")
                first = begin // self._window * self._window
                try:
                    mapped = self._map(first, min(-(-end // self._window) * self._window, self.size))
                except (OSError, ValueError):  # no more maps or descriptors, no maps at all, or the file is shorter now
                    return self._copy(begin, end)
                return np.frombuffer(mapped, np.uint8, end - begin, begin - first)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.name}: {error.strerror or error}") from error

    def _map(self, first: int, last: int) -> mmap.mmap:
        mapped = self._maps.get((first, last))
        if mapped is None:
            # A private writable map: writing into a tensor never reaches the file, and torch accepts the array.
            mapped = mmap.mmap(self._file.fileno(), last - first, access=mmap.ACCESS_COPY, offset=first)
            self._maps[first, last] = mapped
        # Arrays keep their maps; this keeps the one that will probably be wanted next: one for all files, as there may be many.
        FileBytes._latest = mapped
        return mapped

    def _copy(self, begin: int, end: int) -> np.ndarray:
        values = np.empty(end - begin, np.uint8)
        self._file.seek(begin)
        done = 0
        while done < len(values):
            count = self._file.readinto(values.data[done:])
            if not count:
                raise CheckpointError(f"{self.name} became shorter while it was being read")
            done += count
        return values


class Part(ByteSource):
    """A range of another source as a source of its own.

    Args:
        source: what it is a part of.
        begin: where it begins there.
        end: where it ends there.
        name: what errors call it; the name of the source when absent.

    Raises:
        CheckpointError: when the source has no such range.
    """

    def __init__(self, source: ByteSource, begin: int, end: int, name: str | None = None) -> None:
        self.name = name or source.name
        if not 0 <= begin <= end <= source.size:
            raise CheckpointError(f"{self.name} is damaged: it lies at bytes {begin} to {end} of {source.size}")
        self.size, self.in_order = end - begin, source.in_order
        self._source, self._begin = source, begin

    def _read(self, begin: int, end: int) -> np.ndarray:
        return self._source.read(self._begin + begin, self._begin + end)


@dataclass
class _Reader:
    """A decompressor between two blocks."""

    block: int
    position: int
    stream: Any

    def copy(self) -> _Reader:
        return _Reader(self.block, self.position, self.stream.copy())


class Inflated(ByteSource):
    """What a deflate stream unpacks to, in memory that does not grow with it.

    Reading in increasing order unpacks it once. Going back starts from a state that was kept on the way, a few megabytes
    before what is wanted. The checksum is compared when the end is reached for the first time.

    Args:
        source: the bare stream, without a header, from its first byte to its last.
        size: how many bytes it must unpack to.
        checksum: CRC-32 of these bytes; None does not check.
        name: what errors call it; the name of the source when absent.

    Raises:
        CheckpointError: when the size is impossible.
    """

    in_order = True

    def __init__(self, source: ByteSource, size: int, checksum: int | None = None, name: str | None = None) -> None:
        self.name, self.size = name or source.name, size
        if not 0 <= size <= LARGEST_RATIO * source.size:
            raise CheckpointError(
                f"{self.name} is refused: {source.size} compressed bytes claim to hold {size}",
                [f"expected at most {LARGEST_RATIO} times as many"],
                "Weights shrink by a small part only: this is a zip bomb, or damaged.",
            )
        self._source, self._checksum = source, checksum
        self._blocks = -(-size // BLOCK)
        distance = max(STATE_DISTANCE, size // MOST_STATES)
        self._state_every = -(-distance // BLOCK)
        self._reader = _Reader(0, 0, zlib.decompressobj(-zlib.MAX_WBITS))
        self._states = [self._reader.copy()]
        self._seen, self._sum = 0, 0
        self._held: tuple[int, bytes] = (-1, b"")
        self._lock = threading.Lock()

    def _read(self, begin: int, end: int) -> np.ndarray:
        values = np.empty(end - begin, np.uint8)
        with self._lock:
            for block in range(begin // BLOCK, -(-end // BLOCK)):
                content = np.frombuffer(self._block(block), np.uint8)
                first = block * BLOCK
                inside = content[max(begin - first, 0) : end - first]
                place = max(first - begin, 0)
                values[place : place + len(inside)] = inside
        return values

    def _block(self, wanted: int) -> bytes:
        if self._held[0] == wanted:
            return self._held[1]
        nearest = self._states[min(wanted // self._state_every, len(self._states) - 1)]
        if not nearest.block <= self._reader.block <= wanted:
            self._reader = nearest.copy()
        while self._reader.block <= wanted:
            self._held = (-1, b"")
            try:
                content = self._next_block(self._reader)
            except BaseException:  # the reader is between two blocks no longer, even after Ctrl-C
                self._reader = self._states[0].copy()
                raise
            self._held = (self._reader.block - 1, content)
        return self._held[1]

    def _next_block(self, reader: _Reader) -> bytes:
        size = min(BLOCK, self.size - reader.block * BLOCK)
        content = self._unpack(reader, size)
        if len(content) < size:
            raise self._damaged(f"it unpacks to {reader.block * BLOCK + len(content)} bytes, expected {self.size}")
        reader.block += 1
        if reader.block > self._seen:
            self._sum = zlib.crc32(content, self._sum)
            if reader.block == self._blocks:
                self._check_end(reader.copy())
            if reader.block % self._state_every == 0:
                self._states.append(reader.copy())
            self._seen = reader.block
        return content

    def _unpack(self, reader: _Reader, size: int) -> bytes:
        pieces = []
        missing = size
        while missing and not reader.stream.eof:
            packed = self._source.read(reader.position, min(reader.position + INPUT, self._source.size))
            try:
                piece = reader.stream.decompress(packed, missing)
            except zlib.error as error:
                raise self._damaged(str(error)) from error
            reader.position += len(packed) - len(reader.stream.unconsumed_tail) - len(reader.stream.unused_data)
            if not piece and not len(packed):
                break
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _check_end(self, reader: _Reader) -> None:
        if self._unpack(reader, 1):
            raise self._damaged(f"it unpacks to more than the {self.size} bytes that it claims")
        if not reader.stream.eof or reader.position != self._source.size:
            raise self._damaged(f"its stream ends at byte {reader.position} of {self._source.size}")
        if self._checksum is not None and self._sum != self._checksum:
            raise self._damaged(f"its checksum is {self._sum:08x}, expected {self._checksum:08x}")

    def _damaged(self, cause: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is damaged: {cause}", remedy="Fetch it again.")


class ByteStream(io.RawIOBase):
    """A source as a file that is read from one place on, for what expects a file.

    Args:
        source: the bytes.
        position: where to begin.
    """

    def __init__(self, source: ByteSource, position: int = 0) -> None:
        self._source, self._position = source, position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        if position < 0:
            raise ValueError(f"there is no byte {position}")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        begin = min(self._position, self._source.size)
        values = self._source.read(begin, min(begin + len(buffer), self._source.size))
        buffer[: len(values)] = values.data
        self._position = begin + len(values)
        return len(values)


def as_source(source: str | os.PathLike[str] | ByteSource) -> ByteSource:
    """A path as the source of its bytes; a source as it is.

    Raises:
        CheckpointError: when the file cannot be opened.
    """
    if isinstance(source, ByteSource):
        return source
    try:
        return FileBytes(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from error
