"""Directories of `torch.distributed.checkpoint`, read without torch, without processes and without running their pickles.

The file `.metadata` is a pickle of dataclasses: the shape of every tensor, the chunks that it was divided into, and the file,
offset and length of each. The files (`__0_0.distcp`, ...) hold the chunks one behind the other, each as `torch.save` writes
a tensor. A chunk is opened when values of it are asked for, and only its bytes that are needed are touched.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.core.errors import CheckpointError
from bertkit.core.files import pickle_reader
from bertkit.core.files.byte_source import ByteSource, Part, as_source
from bertkit.core.tensors import STORED_AS, LazyTensor, RawTensor, from_bits, stored

METADATA = ".metadata"
LARGEST_METADATA = 1 << 26
LONGEST_NAME = 1000
MOST_CHUNKS = 10_000
LARGEST_GRID = 1 << 20
SMALL = 1 << 16
"""Bytes up to which a chunk is read as a whole, although only some of it is wanted."""

REMEDY = "Fetch or save the checkpoint again, with all of its files."

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where something lies: its file in the directory, and its first byte and number of bytes there."""

    file: str
    begin: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """A block of a tensor.

    Args:
        offsets: where the block begins in the tensor, by axis.
        sizes: how long it is, by axis.
        place: where its values lie.
    """

    offsets: Numbers
    sizes: Numbers
    place: Place


@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor in blocks that lie in different places.

    Args:
        directory: where the files are.
        name: its name.
        dtype: its dtype, in the spelling of safetensors.
        shape: its shape.
        chunks: its blocks, which cover it.
    """

    directory: Path
    name: str
    dtype: str
    shape: Numbers
    chunks: tuple[Chunk, ...]

    def whole(self) -> LazyTensor:
        """All of it."""
        return LazyTensor(self.shape, self.dtype, partial(self._read, (0,) * len(self.shape), self.shape))

    def layer(self, number: int) -> LazyTensor:
        """One entry of its first axis, without that axis; reading it touches no other entry."""
        begin, size = (number, *(0 for _ in self.shape[1:])), (1, *self.shape[1:])
        return LazyTensor(self.shape[1:], self.dtype, partial(self._read, begin, size, self.shape[1:]))

    def _read(self, begin: Numbers, size: Numbers, shape: Numbers | None = None) -> np.ndarray | RawTensor:
        """The values of a block, in another shape where one is given."""
        shared = [(chunk, overlap) for chunk in self.chunks if (overlap := _overlap(chunk, begin, size)) is not None]
        if len(shared) == 1:  # nothing to put together: a view of the mapped file
            values = self._values(*shared[0])
        else:
            values = np.empty(size, STORED_AS[self.dtype])
            for chunk, (first, last) in shared:
                target = tuple(slice(low - start, high - start) for low, high, start in zip(first, last, begin, strict=True))
                values[target] = self._values(chunk, (first, last))
        values = values if shape is None else values.reshape(shape)
        return from_bits(values, self.dtype)

    def _values(self, chunk: Chunk, block: tuple[Numbers, Numbers]) -> np.ndarray:
        """The values of a block that lies in a chunk."""
        inside = tuple(slice(low - start, high - start) for low, high, start in zip(*block, chunk.offsets, strict=True))
        size = math.prod(chunk.sizes) * STORED_AS[self.dtype].itemsize
        if size > SMALL and inside[0] != slice(0, chunk.sizes[0]):
            row = size // chunk.sizes[0]
            values = self._open(chunk, _Window(self._source(chunk), size, inside[0].start * row, inside[0].stop * row))
            if values.flags.c_contiguous:  # else its rows lie elsewhere than the window
                return values[inside]
        return self._open(chunk, self._source(chunk))[inside]

    def _source(self, chunk: Chunk) -> ByteSource:
        place = chunk.place
        title = f"{place.file}: chunk of {self.name} at {list(chunk.offsets)}"
        return Part(as_source(self.directory / place.file), place.begin, place.begin + place.length, title)

    def _open(self, chunk: Chunk, source: ByteSource) -> np.ndarray:
        tensor = pickle_reader.load(source)
        received = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, LazyTensor) else type(tensor).__name__
        expected = f"{self.dtype} {list(chunk.sizes)}"
        if received != expected:
            problem = f"got {received}, expected {expected}"
            raise CheckpointError(f"{source.name} is not what {METADATA} says", [problem], REMEDY)
        return stored(tensor())[0]


class _Window(ByteSource):
    """A source of which one long range is wanted in part: the rest of it is not read, and gives zeros that take no memory.

    Args:
        source: the bytes.
        length: of the range.
        first, last: the wanted part of it.
    """

    def __init__(self, source: ByteSource, length: int, first: int, last: int) -> None:
        self.name, self.size, self.in_order = source.name, source.size, source.in_order
        self._source, self._length, self._first, self._last = source, length, first, last

    def _read(self, begin: int, end: int) -> np.ndarray:
        if end - begin != self._length:
            return self._source.read(begin, end)
        values = np.zeros(self._length, np.uint8)
        values[self._first:self._last] = self._source.read(begin + self._first, begin + self._last)
        return values


def _overlap(chunk: Chunk, begin: Numbers, size: Numbers) -> tuple[Numbers, Numbers] | None:
    """First and (exclusive) last indices that a chunk and a block share; None where they share none."""
    first = tuple(map(max, chunk.offsets, begin))
    last = tuple(min(offset + length, start + extent) for offset, length, start, extent in
                 zip(chunk.offsets, chunk.sizes, begin, size, strict=True))
    return (first, last) if all(low < high for low, high in zip(first, last, strict=True)) else None


class DistributedCheckpoint:
    """An opened directory of `torch.distributed.checkpoint`.

    Args:
        directory: the directory that holds `.metadata`.

    Raises:
        CheckpointError: when `.metadata` is damaged, hostile, or of another program.

    Example:
        >>> DistributedCheckpoint(Path("iter_0001000")).names[:1]  # doctest: +SKIP
        ['embedding.word_embeddings.weight']
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = directory / METADATA
        source = as_source(self._file)
        if source.size > LARGEST_METADATA:
            raise CheckpointError(f"{self._file} is refused: it has {source.size} bytes", remedy=REMEDY)
        content = pickle_reader.load_pickle(source)
        tensors, places = (getattr(content, name, None) for name in ("state_dict_metadata", "storage_data"))
        if not isinstance(tensors, dict) or not isinstance(places, dict) or not all(map(_is_name, tensors)):
            raise CheckpointError(f"{self._file} was not written by torch.distributed.checkpoint", remedy=REMEDY)
        self._entries = tensors
        self._places: dict[str, dict[Numbers | None, Any]] = defaultdict(dict)
        for index, place in places.items():
            name, offset = getattr(index, "fqn", None), getattr(index, "offset", None)
            if not _is_name(name) or (offset is not None and _numbers(offset) is None):
                raise CheckpointError(f"{self._file} is damaged: an entry of its storage_data has no name or offset",
                                      remedy=REMEDY)
            if len(self._places[name]) == MOST_CHUNKS:
                raise CheckpointError(f"{self._file} is refused: {name} has more than {MOST_CHUNKS} chunks")
            self._places[name][offset] = place

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return [name for name, entry in self._entries.items() if hasattr(entry, "chunks")]

    @property
    def objects(self) -> list[str]:
        """Names of what is no tensor."""
        return [name for name, entry in self._entries.items() if not hasattr(entry, "chunks")]

    def tensors(self, names: list[str]) -> dict[str, ChunkedTensor]:
        """Some of the tensors, by name.

        Raises:
            CheckpointError: when their chunks do not cover them or overlap, or when a file is missing, too short or elsewhere.
        """
        problems: list[str] = []
        found = {name: tensor for name in names if (tensor := self._tensor(name, problems)) is not None}
        if problems:
            raise CheckpointError(f"{self.directory} is damaged", problems[:40], REMEDY)
        return found

    def load_object(self, name: str) -> Any:
        """What `torch.save` wrote in the place of an object, as `pickle_reader.load` reads it.

        Raises:
            CheckpointError: when it is missing, damaged or hostile.
        """
        try:
            place = self._place(name, None)
        except ValueError as error:
            raise CheckpointError(f"{self.directory} is damaged", [f"{name}: {error}"], REMEDY) from error
        source = as_source(self.directory / place.file)
        return pickle_reader.load(Part(source, place.begin, place.begin + place.length, f"{place.file}: {name}"))

    def _tensor(self, name: str, problems: list[str]) -> ChunkedTensor | None:
        entry, before = self._entries[name], len(problems)
        shape, dtype = _numbers(getattr(entry, "size", None)), _dtype(entry)
        if shape is None or dtype is None or not isinstance(entry.chunks, list):
            problems.append(f"{name}: {METADATA} gives no shape, dtype or chunks that can be read")
            return None
        if len(entry.chunks) > len(self._places.get(name, ())):
            problems.append(f"{name}: {METADATA} says of fewer than {len(entry.chunks)} chunks where they lie")
            return None
        chunks: list[Chunk] = []
        for item in entry.chunks:
            offsets, sizes = _numbers(getattr(item, "offsets", None)), _numbers(getattr(item, "sizes", None))
            if offsets is None or sizes is None or not len(offsets) == len(sizes) == len(shape):
                problems.append(f"{name}: a chunk has no offsets and sizes for the {len(shape)} axes")
                continue
            where = f"{name}: the chunk of {list(sizes)} at {list(offsets)}"
            if any(offset + size > extent for offset, size, extent in zip(offsets, sizes, shape, strict=True)):
                problems.append(f"{where} reaches out of {list(shape)}")
                continue
            if 0 in sizes:
                continue
            try:
                place = self._place(name, offsets)
            except ValueError as error:
                problems.append(f"{where}: {error}")
                continue
            if math.prod(sizes) * STORED_AS[dtype].itemsize > place.length:
                problems.append(f"{where} needs more than the {place.length} bytes that it has in {place.file}")
            chunks.append(Chunk(offsets, sizes, place))
        if len(problems) > before:
            return None
        cause = _gaps(shape, chunks) or _shared_bytes(chunks)
        if cause:
            problems.append(f"{name} {list(shape)}: {cause}")
            return None
        return ChunkedTensor(self.directory, name, dtype, shape, tuple(chunks))

    def _place(self, name: str, offsets: Numbers | None) -> Place:
        """Where a chunk lies.

        Raises:
            ValueError: saying why it cannot be there.
        """
        info = self._places.get(name, {}).get(offsets)
        file, begin, length = (getattr(info, field, None) for field in ("relative_path", "offset", "length"))
        if info is None or not isinstance(file, str) or _numbers((begin, length)) is None:
            raise ValueError(f"{METADATA} does not say where it lies")
        if getattr(info, "transform_descriptors", None):
            raise ValueError(f"it was written through {info.transform_descriptors!r:.80}, which is not read")
        if file in ("", ".", "..") or any(sign in file for sign in "/\\:\0"):
            raise ValueError(f"{METADATA} puts it into {file!r:.200}, which is no file of the directory")
        path = self.directory / file
        if not path.is_file():
            raise ValueError(f"there is no {file}")
        if begin + length > path.stat().st_size:
            raise ValueError(f"it lies at bytes {begin} to {begin + length} of {file}, which has {path.stat().st_size}")
        return Place(file, begin, length)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME


def _numbers(values: Any) -> Numbers | None:
    """Sizes or offsets; None where they are none."""
    fits = isinstance(values, tuple) and len(values) <= 32 and all(type(n) is int and 0 <= n < 1 << 48 for n in values)
    return values if fits else None


def _dtype(entry: Any) -> str | None:
    """The dtype of a tensor: the state of its properties is a tuple that begins with it."""
    state = getattr(getattr(entry, "properties", None), "state", None)
    return getattr(state[0], "dtype", None) if isinstance(state, tuple) and state else None


def _shared_bytes(chunks: list[Chunk]) -> str:
    """Which chunks lie at the same bytes, so that a small file would make a large tensor; empty where none do."""
    places = sorted((chunk.place.file, chunk.place.begin, chunk.place.length) for chunk in chunks)
    for (file, begin, length), (other, following, _) in pairwise(places):
        if file == other and begin + length > following:
            return f"two of its chunks lie at byte {following} of {file}"
    return ""


def _gaps(shape: Numbers, chunks: list[Chunk]) -> str:
    """Why some chunks do not cover a tensor exactly once; empty where they do."""
    if 0 in shape:
        return ""
    # Where any chunk begins or ends, the tensor is cut: of the cells that result, each must belong to one chunk.
    cuts = []
    for axis, extent in enumerate(shape):
        begins = {chunk.offsets[axis] for chunk in chunks}
        cuts.append(sorted({0, extent} | begins | {chunk.offsets[axis] + chunk.sizes[axis] for chunk in chunks}))
    cells = tuple(len(cut) - 1 for cut in cuts)
    places = [{cut: place for place, cut in enumerate(axis)} for axis in cuts]
    blocks = [tuple(slice(place[offset], place[offset + size]) for place, offset, size in
                    zip(places, chunk.offsets, chunk.sizes, strict=True)) for chunk in chunks]
    covered = sum(math.prod(part.stop - part.start for part in block) for block in blocks)
    if covered < math.prod(cells):
        return "its chunks do not cover it"
    if covered > math.prod(cells):
        return "its chunks overlap"
    if covered > LARGEST_GRID:
        return f"it is cut into {covered} pieces, more than {LARGEST_GRID}"
    grid = np.zeros(cells, bool)
    for block in blocks:
        grid[block] = True
    return "" if grid.all() else "its chunks overlap, and do not cover it"
