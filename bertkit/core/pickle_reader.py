"""Files of `torch.save`, read without torch and without executing anything that they contain.

A pickle is a program. This reader lets it build plain containers and tensors and refuses every other call.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertkit.core.errors import CheckpointError

STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL",
    "UntypedStorage": "U8",
}
NUMPY_OF = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
            "U8": "u1", "BOOL": "?", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file: where its numbers lie, read when they are asked for.

    Args:
        shape: its dimensions.
        dtype: safetensors' name of the dtype; bfloat16 is read as its bits, uint16.
        offset, strides: place of its first element in the storage, and steps between elements, in elements.
        storage: gives the whole storage as a flat array, without copying where the file allows.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int
    strides: tuple[int, ...]
    storage: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """The numbers.

        Raises:
            CheckpointError: when the tensor reaches beyond its storage.
        """
        flat = self.storage()
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            return np.zeros(self.shape, flat.dtype)
        if self.offset < 0 or min(self.strides, default=0) < 0 or last >= flat.size:
            raise CheckpointError(f"a tensor of shape {list(self.shape)} reaches beyond its storage of {flat.size} numbers")
        return np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, [s * flat.itemsize for s in self.strides], writeable=False)


@dataclass(frozen=True)
class _Storage:
    dtype: str
    read: Callable[[], np.ndarray]


class _StorageType:
    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _Inert:
    """Stands in for an object whose class is not known; it keeps what it was given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> StoredTensor:
    return StoredTensor(tuple(shape), storage.dtype, offset, tuple(strides), storage.read)


def _rebuild_parameter(tensor: StoredTensor, *_: Any) -> StoredTensor:
    return tensor


def _numpy_scalar(dtype: Any, data: bytes | str) -> Any:
    return _Inert(dtype, data)


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda function, _, args, state: function(*args),
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch", "device"): _Inert,
    ("torch.serialization", "_get_layout"): _Inert,
    ("argparse", "Namespace"): Namespace,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("numpy.core.multiarray", "_reconstruct"): _Inert,
    ("numpy._core.multiarray", "_reconstruct"): _Inert,
    ("numpy", "dtype"): _Inert,
    ("numpy", "ndarray"): _Inert,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32",
          "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: Path, storage: Callable[[str, str, int], Callable[[], np.ndarray]]) -> None:
        super().__init__(file, encoding="utf-8")
        self.path, self.storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(STORAGES[name])
        if module == "torch" and name in DTYPES:
            return name
        raise CheckpointError(f"{self.path} is a pickle that asks for {module}.{name}, which weights do not need",
                              remedy="Nothing of it was executed. Take the weights from a source that you trust, as safetensors.")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            raise CheckpointError(f"{self.path} refers to something that is no tensor storage: {pid!r}")
        _, kind, key, _, count, *_ = pid
        return _Storage(kind.dtype, self.storage(str(key), kind.dtype, int(count)))


def load(path: str | Path) -> Any:
    """What `torch.save` stored: containers, numbers, strings, and `StoredTensor` for every tensor.

    Args:
        path: a file of torch 1.6 or newer (a zip archive) or older.

    Raises:
        CheckpointError: when the file is damaged, or asks for anything but plain containers and tensors. Nothing in
            it is executed.
    """
    path = Path(path)
    try:
        return _load_zip(path) if zipfile.is_zipfile(path) else _load_legacy(path)
    except CheckpointError:
        raise
    except (OSError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError, ImportError, MemoryError,
            UnicodeDecodeError, pickle.UnpicklingError, zipfile.BadZipFile, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{path} is no readable file of torch.save", [f"{type(error).__name__}: {error}"],
                              "The file may be truncated; fetch it again.") from error


def _load_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        root = next((name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")), None)
        if root is None:
            raise CheckpointError(f"{path} is a zip archive, but not one of torch.save",
                                  remedy="A foreign original needs `bertkit convert`.")
        if archive.read(root + "byteorder") == b"big" if root + "byteorder" in members else False:
            raise CheckpointError(f"{path} was saved on a big-endian machine, which is not supported")
        program = archive.read(root + "data.pkl")
        starts = {name: _member_start(path, info) for name, info in members.items() if name.startswith(root + "data/")}

    def storage(key: str, dtype: str, count: int) -> Callable[[], np.ndarray]:
        name = f"{root}data/{key}"
        info = members[name]
        if info.compress_type != zipfile.ZIP_STORED or count * np.dtype(NUMPY_OF[dtype]).itemsize > info.file_size:
            raise CheckpointError(f"{path}: storage {key} is compressed or shorter than the {count} numbers that it should hold")
        return lambda: np.memmap(path, NUMPY_OF[dtype], "r", starts[name], (count,)) if count else np.zeros(0, NUMPY_OF[dtype])

    return _Unpickler(io.BytesIO(program), path, storage).load()


def _member_start(path: Path, info: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_length, extra_length = np.frombuffer(file.read(4), "<u2").tolist()
    return info.header_offset + 30 + name_length + extra_length


def _load_legacy(path: Path) -> Any:
    places: dict[str, int] = {}

    def storage(key: str, dtype: str, count: int) -> Callable[[], np.ndarray]:
        return lambda: np.memmap(path, NUMPY_OF[dtype], "r", places[key], (count,)) if count else np.zeros(0, NUMPY_OF[dtype])

    sizes: dict[str, int] = {}

    def remembered(key: str, dtype: str, count: int) -> Callable[[], np.ndarray]:
        sizes[key] = count * np.dtype(NUMPY_OF[dtype]).itemsize
        return storage(key, dtype, count)

    with path.open("rb") as file:
        if _Unpickler(file, path, remembered).load() != LEGACY_MAGIC:
            raise CheckpointError(f"{path} is no file of torch.save")
        _Unpickler(file, path, remembered).load()
        system = _Unpickler(file, path, remembered).load()
        if not system.get("little_endian", True):
            raise CheckpointError(f"{path} was saved on a big-endian machine, which is not supported")
        content = _Unpickler(file, path, remembered).load()
        for key in _Unpickler(file, path, remembered).load():
            file.seek(8, io.SEEK_CUR)
            places[str(key)] = file.tell()
            file.seek(sizes[str(key)], io.SEEK_CUR)
        if file.tell() > path.stat().st_size:
            raise CheckpointError(f"{path} is truncated: it should have {file.tell()} bytes and has {path.stat().st_size}")
    return content
