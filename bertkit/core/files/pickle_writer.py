"""Files of `torch.save`, written without torch and one tensor at a time.

What is written is the zip archive of torch 1.6 and later: a pickle that describes everything but the values, then a member
for the values of each tensor. The pickle is the one that torch itself would write, and the same tree gives the same bytes.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import zlib
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from bertkit.core.errors import CheckpointError
from bertkit.core.files.pickle_reader import STORAGES, TORCH_DTYPES, Inert
from bertkit.core.tensors import STORED_AS, LazyTensor, RawTensor, lazy, stored

STORAGE_OF = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}
"""The class of torch that holds each dtype, except for the dtypes that came after such classes."""

NEWER_DTYPES = {
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}
"""Torch's names for those: a tensor of them names its dtype beside a storage of bare bytes."""

ALIGNMENT = 64
FORMAT_VERSION = b"3\n"
DEVICE = re.compile(r"([a-z]+)(?::(\d{1,9}))?")


def save(file: BinaryIO, tree: Any, *, name: str = "archive", progress: Callable[[int], object] | None = None) -> None:
    """Write a tree as `torch.save` does; values are read when their turn comes, and dropped once they are written.

    Every `LazyTensor`, `RawTensor` and numpy array becomes a tensor of torch; one that stands in several places becomes
    one tensor in these places. A numpy number becomes a Python number, a `types.SimpleNamespace` an `argparse.Namespace`,
    and a dictionary of a class of its own an ordered dictionary. The dtypes and devices that `pickle_reader.load` gives
    become torch's again.

    Args:
        file: open for writing; it is written from beginning to end, without seeking.
        tree: tensors in any nesting of dictionaries, lists, tuples and namespaces, beside texts, bytes, numbers, booleans
            and None.
        name: the folder inside the archive; torch takes the name of the file without its suffix.
        progress: called after each tensor, with the bytes of its values.

    Raises:
        CheckpointError: when the tree holds anything else, before anything is written; or when a tensor turns out to have
            another shape or dtype than it said.

    Example:
        >>> with open("weights.pt", "wb") as file:  # doctest: +SKIP
        ...     save(file, {"model": {"weight": np.zeros((2, 3), np.float16)}})
    """
    program = _Program()
    code = program.assemble(tree)
    archive = _Archive(file, name)
    archive.add("data.pkl", code)
    archive.add("byteorder", b"little")
    for key, (path, tensor) in enumerate(program.tensors):
        _add_values(archive, f"data/{key}", path, tensor)
        if progress is not None:
            progress(tensor.size)
    archive.add("version", FORMAT_VERSION)
    archive.finish()


def _add_values(archive: _Archive, member: str, path: str, tensor: LazyTensor) -> None:
    # A function of its own, so that a tensor is gone before the next one is read.
    value = tensor()
    try:
        bits, dtype = stored(value)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.headline}", error.problems, error.remedy) from error
    if (bits.shape, dtype, bits.dtype) != (tensor.shape, tensor.dtype, STORED_AS[tensor.dtype]):
        raise CheckpointError(
            f"{path}: got {dtype} {list(bits.shape)} (as {bits.dtype}), expected {tensor.dtype} {list(tensor.shape)}"
        )
    archive.add(member, np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data)


# -- the pickle ---------------------------------------------------------------------------------------------------------
SHORT_TUPLE = (b"", pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)


@dataclass(frozen=True, eq=False)
class _Name:
    """A class or function of the reading program."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    """What torch exchanges for the values of a tensor."""

    identity: tuple


class _Program:
    """The pickle of a tree; a pickle is a program for a machine with a stack and a memo.

    The tree is walked with a stack of generators, one per open node, each yielding the children that must be written
    before it goes on. So the depth of a tree is not bounded by Python's own stack, and what is open is the path.
    """

    def __init__(self) -> None:
        self.tensors: list[tuple[str, LazyTensor]] = []
        self._code = bytearray(pickle.PROTO + b"\2")
        self._problems: list[str] = []
        self._walk: list[tuple[str, Iterator[tuple[str, Any]]]] = []
        self._open: set[int] = set()
        # By text, or by the address of an object, which is kept lest another one takes its address.
        self._memo: dict[Hashable, tuple[int, Any]] = {}

    def assemble(self, tree: Any) -> bytes:
        """The whole program; afterwards `tensors` lists paths and tensors in the order of their storages.

        Raises:
            CheckpointError: naming everything in the tree that cannot be written.
        """
        self._walk.append(("", self._steps(tree)))
        while self._walk:
            step = next(self._walk[-1][1], None)
            if step is None:
                self._walk.pop()
            else:
                piece, child = step
                self._walk.append((piece, self._steps(child)))
        if self._problems:
            raise CheckpointError(
                "this cannot be written as a file of torch.save",
                self._problems,
                "It can hold dict, list, tuple, argparse.Namespace, str, bytes, int, float, bool, None and tensors.",
            )
        self._code += pickle.STOP
        return bytes(self._code)

    def _steps(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Write a value, yielding each value that has to be written at that point, with its part of the path."""
        if isinstance(value, np.number | np.bool_):
            value = value.item()
        kind = type(value)
        if value is None:
            self._code += pickle.NONE
        elif kind is bool:
            self._code += pickle.NEWTRUE if value else pickle.NEWFALSE
        elif kind is int:
            self._code += _integer(value)
        elif kind is float:
            self._code += pickle.BINFLOAT + struct.pack(">d", value)
        elif kind is str:
            self._text(value)
        elif id(value) in self._open:
            self._problem("contains itself")
        elif id(value) in self._memo:
            self._get(id(value))
        elif kind is _Name:
            self._name(value)
        elif kind is _Storage:
            yield "", value.identity
            self._code += pickle.BINPERSID
        elif kind is bytes:
            yield from self._call(value, _Name("_codecs", "encode"), (value.decode("latin-1"), "latin1"))
        elif kind is Inert:
            yield from self._inert(value)
        elif isinstance(value, LazyTensor | RawTensor | np.ndarray):
            yield from self._tensor(value)
        elif isinstance(value, dict | list | tuple | Namespace | SimpleNamespace):
            self._open.add(id(value))
            yield from self._container(value)
            self._open.remove(id(value))
        else:
            self._refuse(value)

    def _container(self, value: Any) -> Iterator[tuple[str, Any]]:
        kind = type(value)
        if kind is tuple:
            if len(value) > 3:
                self._code += pickle.MARK
            yield from ((f"[{place}]", item) for place, item in enumerate(value))
            if value:
                self._code += pickle.TUPLE if len(value) > 3 else SHORT_TUPLE[len(value)]
                self._put(value)
            else:
                self._code += pickle.EMPTY_TUPLE
        elif kind is list:
            self._code += pickle.EMPTY_LIST
            self._put(value)
            if len(value) > 1:
                self._code += pickle.MARK
            yield from ((f"[{place}]", item) for place, item in enumerate(value))
            if value:
                self._code += pickle.APPENDS if len(value) > 1 else pickle.APPEND
        elif kind is dict:
            self._code += pickle.EMPTY_DICT
            self._put(value)
            yield from self._items(value)
        elif isinstance(value, dict):
            yield from self._call(value, _Name("collections", "OrderedDict"), ())
            yield from self._items(value)
        elif kind in (Namespace, SimpleNamespace):
            yield "", _Name("argparse", "Namespace")
            self._code += pickle.EMPTY_TUPLE + pickle.NEWOBJ
            self._put(value)
            yield "", vars(value)
            self._code += pickle.BUILD
        else:
            self._refuse(value)

    def _items(self, items: dict) -> Iterator[tuple[str, Any]]:
        if len(items) > 1:
            self._code += pickle.MARK
        for key, item in items.items():
            piece = f".{key}" if isinstance(key, str) else f"[{key!r}]"
            yield f"{piece} (the key)", key
            yield piece, item
        if items:
            self._code += pickle.SETITEMS if len(items) > 1 else pickle.SETITEM

    def _tensor(self, value: LazyTensor | RawTensor | np.ndarray) -> Iterator[tuple[str, Any]]:
        try:
            tensor = lazy(value)
        except CheckpointError as error:
            self._problem(error.headline)
            return
        if tensor.dtype not in STORED_AS:
            self._problem(f"torch has no dtype {tensor.dtype!r}")
            return
        untyped = tensor.dtype in NEWER_DTYPES
        kind = _Name("torch.storage", "UntypedStorage") if untyped else _Name("torch", STORAGE_OF[tensor.dtype])
        count = tensor.size if untyped else math.prod(tensor.shape)
        storage = _Storage(("storage", kind, str(len(self.tensors)), "cpu", count))
        self.tensors.append((self._path(), tensor))
        shape, stride = tuple(map(int, tensor.shape)), _strides(tensor.shape)
        arguments: tuple = (storage, 0, shape, stride, False, OrderedDict())
        if untyped:
            arguments = (*arguments, _Name("torch", NEWER_DTYPES[tensor.dtype]))
        function = "_rebuild_tensor_v3" if untyped else "_rebuild_tensor_v2"
        yield from self._call(value, _Name("torch._utils", function), arguments)

    def _inert(self, value: Inert) -> Iterator[tuple[str, Any]]:
        module, _, name = value.name.rpartition(".")
        device = DEVICE.fullmatch(value.name)
        if value.dtype is not None and module == "torch" and name in TORCH_DTYPES:
            self._name(_Name(module, name))
        elif device is not None:
            kind, index = device.groups()
            yield from self._call(value, _Name("torch", "device"), (kind,) if index is None else (kind, int(index)))
        else:
            self._refuse(value)

    def _call(self, value: Any, function: _Name, arguments: tuple) -> Iterator[tuple[str, Any]]:
        """Write a value as what a function returns."""
        yield "", function
        yield "", arguments
        self._code += pickle.REDUCE
        self._put(value)

    def _text(self, text: str) -> None:
        if text in self._memo:
            self._get(text)
        else:
            encoded = text.encode("utf-8", "surrogatepass")
            self._code += pickle.BINUNICODE + struct.pack("<L", len(encoded)) + encoded
            self._put(text, text)

    def _name(self, name: _Name) -> None:
        key = (name.module, name.name)
        if key in self._memo:
            self._get(key)
        else:
            self._code += pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode()
            self._put(name, key)

    def _put(self, value: Any, key: Hashable = None) -> None:
        place = len(self._memo)
        self._memo[id(value) if key is None else key] = place, value
        self._code += pickle.BINPUT + bytes([place]) if place < 256 else pickle.LONG_BINPUT + struct.pack("<L", place)

    def _get(self, key: Hashable) -> None:
        place, _ = self._memo[key]
        self._code += pickle.BINGET + bytes([place]) if place < 256 else pickle.LONG_BINGET + struct.pack("<L", place)

    def _path(self) -> str:
        return "".join(piece for piece, _ in self._walk).removeprefix(".") or "the tree"

    def _problem(self, what: str) -> None:
        self._problems.append(f"{self._path()}: {what}")

    def _refuse(self, value: Any) -> None:
        kind = type(value)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        self._problem(f"a {module}{kind.__qualname__} cannot be written")


def _integer(value: int) -> bytes:
    if 0 <= value < 2**8:
        return pickle.BININT1 + struct.pack("<B", value)
    if 0 <= value < 2**16:
        return pickle.BININT2 + struct.pack("<H", value)
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<l", value)
    encoded = pickle.encode_long(value)
    if len(encoded) < 256:
        return pickle.LONG1 + struct.pack("<B", len(encoded)) + encoded
    return pickle.LONG4 + struct.pack("<l", len(encoded)) + encoded


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers from one element to the next along each axis; torch counts an empty axis as one of length 1."""
    return tuple(math.prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape)))


# -- the archive --------------------------------------------------------------------------------------------------------
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
EXTRA_FIELD = struct.Struct("<2H")
DIRECTORY_ENTRY = struct.Struct("<4s6H3L5H2L")
ZIP64_END = struct.Struct("<4sQ2H2L4Q")
ZIP64_LOCATOR = struct.Struct("<4sLQL")
END = struct.Struct("<4s4H2LH")
ZIP64_ID, PADDING_ID = 1, 0x4246
ZIP64_VERSION = 45
UTF8_NAME = 0x800
FIRST_DAY = 33  # 1 January 1980, for there is no date in what depends on the tree alone
UINT16_MAX, UINT32_MAX = 0xFFFF, 0xFFFFFFFF
ZIP64_FROM = UINT32_MAX


class _Archive:
    """A zip archive of uncompressed members whose contents start at multiples of 64 bytes, so that they can be mapped."""

    def __init__(self, file: BinaryIO, folder: str) -> None:
        self._file, self._folder, self._end = file, folder, 0
        self._directory: list[bytes] = []

    def add(self, name: str, content: bytes | memoryview) -> None:
        """Append a member, and remember it for the directory."""
        path = f"{self._folder}/{name}".encode()
        start, size, checksum = self._end, len(content), zlib.crc32(content)
        # A size or place that needs 64 bits is all ones, and stands in an extra field instead. A header has both sizes there
        # or none (nothing is compressed, so they are equal); an entry of the directory has those that need it.
        sizes = [size, size] if size >= ZIP64_FROM else []
        extra = _zip64_field(sizes)
        unpadded = start + LOCAL_HEADER.size + len(path) + len(extra) + EXTRA_FIELD.size
        padding = -unpadded % ALIGNMENT
        extra += EXTRA_FIELD.pack(PADDING_ID, padding) + b"Z" * padding
        common = (ZIP64_VERSION, UTF8_NAME, 0, 0, FIRST_DAY, checksum, _short(size), _short(size), len(path))
        self._write(LOCAL_HEADER.pack(b"PK\3\4", *common, len(extra)) + path + extra)
        self._write(content)
        extra = _zip64_field(sizes + ([start] if start >= ZIP64_FROM else []))
        entry = DIRECTORY_ENTRY.pack(b"PK\1\2", ZIP64_VERSION, *common, len(extra), 0, 0, 0, 0, _short(start))
        self._directory.append(entry + path + extra)

    def finish(self) -> None:
        """Append the directory."""
        start, count, size = self._end, len(self._directory), sum(map(len, self._directory))
        for entry in self._directory:
            self._write(entry)
        place, versions = self._end, (ZIP64_VERSION, ZIP64_VERSION)
        # Its first 12 bytes do not count as part of it.
        self._write(ZIP64_END.pack(b"PK\6\6", ZIP64_END.size - 12, *versions, 0, 0, count, count, size, start))
        self._write(ZIP64_LOCATOR.pack(b"PK\6\7", 0, place, 1))
        short_count = min(count, UINT16_MAX)
        self._write(END.pack(b"PK\5\6", 0, 0, short_count, short_count, _short(size), _short(start), 0))

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._end += len(content)


def _short(number: int) -> int:
    return number if number < ZIP64_FROM else UINT32_MAX


def _zip64_field(numbers: list[int]) -> bytes:
    return EXTRA_FIELD.pack(ZIP64_ID, 8 * len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers) if numbers else b""
