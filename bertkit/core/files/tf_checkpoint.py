"""TensorFlow's checkpoints (tensor bundles), read and written without TensorFlow.

A checkpoint called `model.ckpt` is a file `model.ckpt.index`, a table with an entry for each tensor, and one or more files
`model.ckpt.data-00000-of-00001` with nothing but values. TF1's `Saver` and TF2's `tf.train.Checkpoint` write the same files:
the one names tensors after variables (`bert/pooler/dense/kernel`), the other after paths through Python objects
(`model/pooler/kernel/.ATTRIBUTES/VARIABLE_VALUE`), with a text that describes the objects.

A variable may be cut into slices. Then its entry lists them, and each has an entry of its own under a key that begins with
a zero byte. Here such a variable is one tensor again.

Source: tensorflow/core/protobuf/tensor_bundle.proto and tensorflow/core/util/tensor_bundle/ of github.com/tensorflow/tensorflow
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from bertkit.core.atomic import StagedFiles
from bertkit.core.errors import CheckpointError
from bertkit.core.files.crc32c import crc32c, masked
from bertkit.core.files.protobuf import BYTES, FIXED32, VARINT, field, parse, read_varint, varint
from bertkit.core.files.sstable import LARGEST_TABLE, read_table, table_of
from bertkit.core.tensors import STORED_AS, LazyTensor, RawTensor, from_bits, lazy, stored

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""Name of the text by which TF2 finds the tensors of an object."""

DTYPES = {
    1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 8: "C64", 9: "I64", 10: "BOOL", 14: "BF16", 17: "U16",
    19: "F16", 22: "U32", 23: "U64", 24: "F8_E5M2", 25: "F8_E4M3",
}  # fmt: skip
"""TensorFlow's numbers of the dtypes that arrays have."""

STRING = 7
OTHER_DTYPES = {
    STRING: "string", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16", 18: "complex128",
    20: "resource", 21: "variant", 26: "float8_e4m3fnuz", 27: "float8_e4m3b11fnuz", 28: "float8_e5m2fnuz", 29: "int4",
    30: "uint4", 31: "int2", 32: "uint2",
}  # fmt: skip
NUMBER_OF = {dtype: number for number, dtype in DTYPES.items()}

VERSION = 1
"""Of the format; there has been no other."""

MOST_DIMENSIONS = 32
MOST_PROBLEMS = 20
LARGEST_STRING = 1 << 28
FILE = re.compile(r"(.+)\.(index|meta|data-\d{5,}-of-\d{5,})")
FETCH = "Fetch the checkpoint again."

Write = Callable[[BinaryIO, Callable[[int], Any]], None]
"""Writes a file, and tells how many bytes of values it has written."""


@dataclass(frozen=True)
class TensorFlowCheckpoint:
    """What a checkpoint of TensorFlow holds.

    Args:
        prefix: the path that all files begin with: `dir/model.ckpt` for `dir/model.ckpt.index`.
        files: the index, then the files with values.
        tensors: the tensors by name; reading one reads its part of the file and checks it.
        strings: for each single string, such as `OBJECT_GRAPH`, what reads it.
        others: by name, the types of the rest: entries that no array can hold, as pieces of input pipelines are.
    """

    prefix: Path
    files: list[Path]
    tensors: dict[str, LazyTensor]
    strings: dict[str, Callable[[], bytes]]
    others: dict[str, str]


# -- reading ------------------------------------------------------------------------------------------------------------
def open_tf_checkpoint(path: str | os.PathLike[str]) -> TensorFlowCheckpoint:
    """Open a checkpoint of TensorFlow. Nothing but the index is read before a tensor is called.

    Args:
        path: the prefix, or any one of the files; the `.meta` file is not needed.

    Raises:
        CheckpointError: when files are missing, damaged or hostile; later, when the values of a tensor are.

    Example:
        >>> open_tf_checkpoint("uncased_L-24_H-128/mobilebert_variables.ckpt").tensors["global_step"]()  # doctest: +SKIP
        array(500000)
    """
    prefix = prefix_of(path)
    index = _named(prefix, ".index")
    try:
        if not index.is_file():
            raise _no_index(prefix)
        with open(index, "rb") as file:
            content = file.read(LARGEST_TABLE + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror or error}") from error
    try:
        table = read_table(content)
        header = _Header.of(table.pop(b"", None))
    except CheckpointError as error:
        raise CheckpointError(f"{index} is damaged, or no index of TensorFlow", [error.headline], FETCH) from error
    return _Bundle(prefix, header, table).open()


def prefix_of(path: str | os.PathLike[str]) -> Path:
    """The prefix of a checkpoint of which a file, or the prefix itself, is given.

    Example:
        >>> prefix_of("dir/model.ckpt-5.data-00000-of-00001").as_posix(), prefix_of("dir/model.ckpt-5").as_posix()
        ('dir/model.ckpt-5', 'dir/model.ckpt-5')
    """
    path = Path(path)
    match = FILE.fullmatch(path.name)
    return path.with_name(match[1]) if match and not _named(path, ".index").exists() else path


def data_name(name: str, shard: int = 0, shards: int = 1) -> str:
    """The name of a file with values.

    Example:
        >>> data_name("model.ckpt")
        'model.ckpt.data-00000-of-00001'
    """
    return f"{name}.data-{shard:05d}-of-{shards:05d}"


def _named(prefix: Path, ending: str) -> Path:
    return prefix.parent / (prefix.name + ending)


def _no_index(prefix: Path) -> CheckpointError:
    directory = prefix if prefix.is_dir() else prefix.parent
    there = sorted(file.name for file in directory.glob("*.index"))[:MOST_PROBLEMS] if directory.is_dir() else []
    return CheckpointError(
        f"there is no {_named(prefix, '.index')}",
        [f"{directory} has: {name}" for name in there],
        "A checkpoint of TensorFlow is given by its .index file; one without such a file, as TensorFlow before 0.12 "
        "wrote it, is not read." if prefix.is_file() else "A checkpoint of TensorFlow is given by its .index file.",
    )


@dataclass(frozen=True)
class _Header:
    shards: int
    byte_order: Literal["little", "big"] = "little"

    @classmethod
    def of(cls, message: bytes | None) -> _Header:
        if message is None:
            raise CheckpointError("it has no header: it is a table of something else")
        found = parse(message, {1: VARINT, 2: VARINT, 3: BYTES})
        shards, order, needs = _last(found[1]), _last(found[2]), _last(parse(b"".join(found[3]), {2: VARINT})[2])
        if not 0 < shards < 2**31 or order not in (0, 1):
            raise CheckpointError(f"its header tells of {shards} files and the byte order {order}")
        if needs > VERSION:
            raise CheckpointError(f"it needs a reader of version {needs} of the format, which was {VERSION} so far")
        return cls(shards, "big" if order else "little")

    def write(self) -> bytes:
        return field(1, VARINT, self.shards) + field(3, BYTES, field(1, VARINT, VERSION))


Extent = tuple[int, int]
"""Where a slice begins in a dimension, and its length there: -1 for all of it."""


@dataclass(frozen=True)
class _Entry:
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    slices: tuple[tuple[Extent, ...], ...] = ()

    @classmethod
    def of(cls, message: bytes) -> _Entry:
        found = parse(message, {1: VARINT, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT, 6: FIXED32, 7: BYTES})
        dimensions = parse(b"".join(found[2]), {2: BYTES})[2]
        shape = tuple(_last(parse(dimension, {1: VARINT})[1]) for dimension in dimensions)
        slices = tuple(tuple(map(_extent, parse(part, {1: BYTES})[1])) for part in found[7])
        dtype, shard, offset, size, checksum = (_last(found[number]) for number in (1, 3, 4, 5, 6))
        return cls(dtype, shape, shard, offset, size, checksum, slices)

    def write(self) -> bytes:
        shape = b"".join(field(2, BYTES, field(1, VARINT, length)) for length in self.shape)
        return b"".join([
            field(1, VARINT, self.dtype), field(2, BYTES, shape), field(3, VARINT, self.shard),
            field(4, VARINT, self.offset), field(5, VARINT, self.size), field(6, FIXED32, self.checksum),
        ])  # fmt: skip


def _extent(message: bytes) -> Extent:
    found = parse(message, {1: VARINT, 2: VARINT})
    return _last(found[1]), _last(found[2], -1)


def _last(values: list[int], default: int = 0) -> int:
    """The value of a field that stands in a message at most once: if more often, the last one counts."""
    return values[-1] if values else default


class _Bundle:
    """An index that is being checked: everything that is wrong is collected, then told at once."""

    def __init__(self, prefix: Path, header: _Header, table: Mapping[bytes, bytes]) -> None:
        self.prefix, self.header, self.table = prefix, header, table
        self.problems: list[str] = []
        self.entries: dict[bytes, _Entry] = {}
        self.files: dict[int, tuple[Path, int | None]] = {}
        """Path and size by number, of the files with values that entries name; no size where there is no file."""

    def open(self) -> TensorFlowCheckpoint:
        for key, message in self.table.items():
            self._collect(key, self._parse, message)
        placed = {key: entry for key, entry in self.entries.items() if not entry.slices}
        for key, entry in placed.items():
            self._collect(key, self._check_place, entry)
        self._check_overlaps(placed)
        checkpoint = TensorFlowCheckpoint(self.prefix, [_named(self.prefix, ".index")], {}, {}, {})
        slices = {key for key in self.entries if key.startswith(b"\0")}
        for key, entry in self.entries.items():
            if not key.startswith(b"\0"):
                self._collect(key, self._add, entry, checkpoint, slices)
        for key in sorted(slices):
            self._collect(key, _fail, "a slice that belongs to no tensor")
        self._raise_problems()
        checkpoint.files.extend(path for _, (path, _) in sorted(self.files.items()))
        return checkpoint

    def _collect(self, key: bytes, step: Callable[..., None], *arguments: Any) -> None:
        """Take a step for the entry of a key, and note what is wrong with it."""
        try:
            step(key, *arguments)
        except CheckpointError as error:
            self.problems.append(f"{_shown(key)}: {error.headline}")
            if len(self.problems) > MOST_PROBLEMS:
                self._raise_problems()

    def _parse(self, key: bytes, message: bytes) -> None:
        self.entries[key] = _Entry.of(message)

    def _raise_problems(self) -> None:
        missing = [f"missing: {path.name}" for path, size in self.files.values() if size is None]
        problems = [*missing[:MOST_PROBLEMS], *self.problems[:MOST_PROBLEMS]]
        if len(self.problems) > MOST_PROBLEMS or len(missing) > MOST_PROBLEMS:
            problems.append("... and more")
        if missing:
            raise CheckpointError(f"{self.prefix} is incomplete", problems, "Fetch the missing files into the same directory.")
        if problems:
            index = _named(self.prefix, ".index")
            raise CheckpointError(f"{index} is damaged or hostile, or belongs to other files", problems, FETCH)

    # -- where the values lie --
    def _check_place(self, key: bytes, entry: _Entry) -> None:
        if entry.dtype not in DTYPES and entry.dtype not in OTHER_DTYPES:
            raise CheckpointError(f"the unknown type {entry.dtype}")
        if not 0 <= entry.shard < self.header.shards:
            raise CheckpointError(f"file {entry.shard}, where there are {self.header.shards}")
        path, held = self._file(entry.shard)
        if held is None:
            return
        if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > held:
            raise CheckpointError(
                f"bytes {entry.offset} to {entry.offset + entry.size} of {path.name}, which has {held} (is it cut off?)"
            )
        _check_shape(entry.shape)
        if entry.dtype in DTYPES:
            size = math.prod(entry.shape) * STORED_AS[DTYPES[entry.dtype]].itemsize
            if entry.size != size:
                raise CheckpointError(f"{entry.size} bytes for {_described(entry)}, expected {size}")

    def _file(self, shard: int) -> tuple[Path, int | None]:
        if shard not in self.files:
            path = self.prefix.parent / data_name(self.prefix.name, shard, self.header.shards)
            try:
                self.files[shard] = path, path.stat().st_size if path.is_file() else None
            except OSError as error:
                raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        return self.files[shard]

    def _check_overlaps(self, entries: Mapping[bytes, _Entry]) -> None:
        end: dict[int, tuple[int, bytes]] = {}
        for key, entry in sorted(entries.items(), key=lambda item: item[1].offset):
            before, other = end.get(entry.shard, (0, b""))
            if entry.size and entry.offset < before:
                self._collect(key, _fail, f"it begins at byte {entry.offset}, inside of {_shown(other)}")
            if entry.size and entry.offset + entry.size > before:
                end[entry.shard] = entry.offset + entry.size, key

    # -- what the values are --
    def _add(self, key: bytes, entry: _Entry, checkpoint: TensorFlowCheckpoint, slices: set[bytes]) -> None:
        try:
            name = key.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"the name is no UTF-8: {error}") from error
        if entry.slices:
            checkpoint.tensors[name] = self._merged(name, key, entry, slices)
        elif entry.dtype in DTYPES:
            checkpoint.tensors[name] = LazyTensor(entry.shape, DTYPES[entry.dtype], partial(self._values, name, entry))
        elif entry.dtype == STRING and entry.shape == ():
            checkpoint.strings[name] = partial(self._string, name, entry)
        elif entry.dtype in OTHER_DTYPES:
            checkpoint.others[name] = _described(entry)

    def _merged(self, name: str, key: bytes, entry: _Entry, slices: set[bytes]) -> LazyTensor:
        """The tensor whose slices an entry lists; they are taken out of the set of slices."""
        _check_shape(entry.shape)
        if entry.dtype not in DTYPES:
            raise CheckpointError(f"slices of {_described(entry)}")
        parts = []
        for extents in entry.slices:
            place = _place(extents, entry.shape)
            part_key = _key_of_slice(key, extents)
            part = self.entries.get(part_key)
            if part is None or part.slices:
                raise CheckpointError(f"there is no slice {_spelled(place)}")
            expected = tuple(piece.stop - piece.start for piece in place)
            if (part.dtype, part.shape) != (entry.dtype, expected):
                raise CheckpointError(
                    f"the slice {_spelled(place)} is {_described(part)}, expected {DTYPES[entry.dtype]} {list(expected)}"
                )
            slices.discard(part_key)
            parts.append((place, part))
        _check_grid([place for place, _ in parts], entry.shape)

        def read() -> np.ndarray | RawTensor:
            whole = np.empty(entry.shape, STORED_AS[DTYPES[entry.dtype]])
            for place, part in parts:
                whole[place] = stored(self._values(f"{name} {_spelled(place)}", part))[0]
            return _wrapped(whole, DTYPES[entry.dtype])

        return LazyTensor(entry.shape, DTYPES[entry.dtype], read)

    # -- reading the values --
    def _values(self, name: str, entry: _Entry) -> np.ndarray | RawTensor:
        content = self._bytes(name, entry)
        if masked(crc32c(content)) != entry.checksum:
            raise self._wrong(name, entry, "its checksum is wrong")
        values = content.view(STORED_AS[DTYPES[entry.dtype]]).reshape(entry.shape)
        if self.header.byte_order == "big":
            values = values.byteswap()
        return _wrapped(values, DTYPES[entry.dtype])

    def _string(self, name: str, entry: _Entry) -> bytes:
        if entry.size > LARGEST_STRING:
            raise self._wrong(name, entry, f"a string of {entry.size} bytes, expected at most {LARGEST_STRING}")
        content = self._bytes(name, entry).tobytes()
        try:
            length, start = read_varint(content, 0)
        except CheckpointError as error:
            raise self._wrong(name, entry, error.headline) from error
        inner, text = content[start : start + 4], content[start + 4 :]
        if len(text) != length:
            raise self._wrong(name, entry, f"a string of {len(text)} bytes, expected {length}")
        order = self.header.byte_order
        first, second = _checksums_of_string(text, inner, order)
        if first != int.from_bytes(inner, order) or second != entry.checksum:
            raise self._wrong(name, entry, "its checksum is wrong")
        return text

    def _bytes(self, name: str, entry: _Entry) -> np.ndarray:
        path, _ = self._file(entry.shard)
        content = np.empty(entry.size, np.uint8)
        try:
            with open(path, "rb") as file:
                file.seek(entry.offset)
                got = file.readinto(content.data)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}", [f"reading: {name}"]) from error
        if got != entry.size:
            raise self._wrong(name, entry, f"{got} bytes from byte {entry.offset} on, expected {entry.size}")
        return content

    def _wrong(self, name: str, entry: _Entry, cause: str) -> CheckpointError:
        return CheckpointError(f"{self._file(entry.shard)[0]} is damaged", [f"{name}: {cause}"], FETCH)


def _fail(key: bytes, cause: str) -> None:
    raise CheckpointError(cause)


def _shown(key: bytes) -> str:
    return key[:200].decode(errors="backslashreplace").replace("\0", "\\0")


def _described(entry: _Entry) -> str:
    return f"{DTYPES.get(entry.dtype) or OTHER_DTYPES.get(entry.dtype, entry.dtype)} {list(entry.shape)}"


def _wrapped(values: np.ndarray, dtype: str) -> np.ndarray | RawTensor:
    return from_bits(values, dtype)


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) > MOST_DIMENSIONS or min(shape, default=0) < 0 or math.prod(max(length, 1) for length in shape) >= 2**58:
        raise CheckpointError(f"the impossible shape {list(shape[: MOST_DIMENSIONS + 1])}")


# -- slices -------------------------------------------------------------------------------------------------------------
def _place(extents: tuple[Extent, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a slice belongs in the whole."""
    if len(extents) != len(shape):
        raise CheckpointError(f"a slice of {len(extents)} dimensions of a tensor of {len(shape)}")
    place = tuple(
        slice(0, whole) if length == -1 else slice(start, start + length)
        for (start, length), whole in zip(extents, shape, strict=True)
    )
    if not all(0 <= piece.start <= piece.stop <= whole for piece, whole in zip(place, shape, strict=True)):
        raise CheckpointError(f"the slice {_spelled(place)} is outside of the shape {list(shape)}")
    return place


def _check_grid(places: list[tuple[slice, ...]], shape: tuple[int, ...]) -> None:
    """Slices are those of a grid, as all partitioners make them: then they cover everything, and nothing twice."""
    distinct = {tuple((piece.start, piece.stop) for piece in place) for place in places}
    cells = 1
    for dimension, whole in enumerate(shape):
        steps = sorted({place[dimension] for place in distinct})
        cells *= len(steps)
        if [start for start, _ in steps] + [whole] != [0] + [stop for _, stop in steps]:
            raise CheckpointError(f"its slices leave gaps, or overlap, in dimension {dimension}")
    if not cells == len(distinct) == len(places):
        raise CheckpointError(f"it has {len(places)} slices, expected {cells}")


def _spelled(place: tuple[slice, ...]) -> str:
    return f"[{', '.join(f'{piece.start}:{piece.stop}' for piece in place)}]"


def _key_of_slice(name: bytes, extents: tuple[Extent, ...]) -> bytes:
    """The key of a slice's entry: texts and numbers, coded so that keys are in the order of what they code."""
    escaped = name.replace(b"\0", b"\0\xff") + b"\0\1"
    count = len(extents).to_bytes(1, "big").lstrip(b"\0")
    numbers = b"".join(_ordered(number) for extent in extents for number in extent)
    return b"\0" + escaped + bytes([len(count)]) + count + numbers


def _ordered(number: int) -> bytes:
    """A signed number of n bytes begins with n ones; a negative one has them, and all its bits, inverted."""
    width = (number if number >= 0 else ~number).bit_length() // 7 + 1
    ones = (1 << width) - 1 << 7 * width
    return ((number & (1 << 8 * width) - 1) ^ ones).to_bytes(width, "big")


# -- writing ------------------------------------------------------------------------------------------------------------
def write_tf_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | RawTensor | LazyTensor],
    strings: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write a checkpoint that TensorFlow reads, one tensor at a time; its files appear together, or not at all.

    Args:
        path: the prefix, such as `dir/model.ckpt`; the directory is made when absent.
        tensors: the tensors by name.
        strings: texts that stand among them; TF2 needs its `OBJECT_GRAPH`.

    Returns:
        The files.

    Raises:
        CheckpointError: when a tensor has no place in such a file, or the files cannot be written.

    Example:
        >>> write_tf_checkpoint("dir/model.ckpt", {"kernel": np.zeros((2, 3), np.float32)})  # doctest: +SKIP
        [PosixPath('dir/model.ckpt.data-00000-of-00001'), PosixPath('dir/model.ckpt.index')]
    """
    path = Path(path)
    with StagedFiles(path.parent) as staged:
        for name, write in tf_checkpoint_files(path.name, tensors, strings).items():
            with staged.open(name) as file:
                write(file, lambda count: None)
        return staged.commit()


def tf_checkpoint_files(
    name: str, tensors: Mapping[str, np.ndarray | RawTensor | LazyTensor], strings: Mapping[str, bytes] | None = None
) -> dict[str, Write]:
    """What writes the files of a checkpoint, by their names: first the values, then the index, which needs their checksums.

    The bytes are those that TensorFlow writes for the same tensors.

    Args:
        name: what the files' names begin with.
        tensors: the tensors by name.
        strings: texts that stand among them.

    Raises:
        CheckpointError: when names are empty, used twice, or begin with a zero byte.

    Example:
        >>> list(tf_checkpoint_files("model.ckpt", {}))
        ['model.ckpt.data-00000-of-00001', 'model.ckpt.index']
    """
    strings = strings or {}
    names = sorted(_checked([*tensors, *strings]), key=str.encode)
    entries: dict[str, _Entry] = {}

    def write_values(file: BinaryIO, wrote: Callable[[int], Any]) -> None:
        offset = 0
        for name in sorted(names, key=strings.__contains__):  # texts come last
            if name in strings:
                entries[name] = _write_string(file, strings[name], offset)
            else:
                entries[name] = _write_tensor(file, name, tensors[name], offset)
            offset += entries[name].size
            wrote(entries[name].size)

    def write_index(file: BinaryIO, wrote: Callable[[int], Any]) -> None:
        if len(entries) < len(names):
            raise RuntimeError("write the values first: the index holds their checksums")
        table = {b"": _Header(1).write()} | {name.encode(): entries[name].write() for name in names}
        file.write(table_of(table.items()))

    return {data_name(name): write_values, f"{name}.index": write_index}


def _checked(names: list[str]) -> list[str]:
    problems = [f"{name!r}: both a tensor and a text" for name, times in Counter(names).items() if times > 1]
    for name in names:
        if not name or name.startswith("\0") or name.encode(errors="ignore").decode() != name:
            problems.append(f"{name!r}: expected a text of valid characters that does not begin with a zero")
    if problems:
        raise CheckpointError("a checkpoint of TensorFlow cannot have these names", problems)
    return names


def _write_tensor(file: BinaryIO, name: str, value: np.ndarray | RawTensor | LazyTensor, offset: int) -> _Entry:
    # A function of its own, so that a tensor is gone before the next one is read.
    try:
        tensor = lazy(value)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error.headline}", error.problems, error.remedy) from error
    bits, dtype = stored(tensor())
    if (bits.shape, dtype) != (tensor.shape, tensor.dtype):
        raise CheckpointError(f"{name}: got {dtype} {list(bits.shape)}, expected {tensor.dtype} {list(tensor.shape)}")
    content = np.ascontiguousarray(bits).reshape(-1).view(np.uint8)
    file.write(content.data)
    return _Entry(NUMBER_OF[dtype], bits.shape, 0, offset, len(content), masked(crc32c(content)))


def _write_string(file: BinaryIO, text: bytes, offset: int) -> _Entry:
    first, _ = _checksums_of_string(text, b"", "little")
    inner = first.to_bytes(4, "little")
    _, second = _checksums_of_string(text, inner, "little")
    start = varint(len(text)) + inner
    file.write(start + text)
    return _Entry(STRING, (), 0, offset, len(start) + len(text), second)


def _checksums_of_string(text: bytes, inner: bytes, order: Literal["little", "big"]) -> tuple[int, int]:
    """The checksum of a string's length, and that of its length, the bytes of the first checksum, and the text.

    The file has the length as a varint, but here it counts as a number of four bytes, or of eight where it needs them.
    """
    length = crc32c(len(text).to_bytes(4 if len(text) < 2**32 else 8, order))
    return masked(length), masked(crc32c(text, crc32c(inner, length)))
