"""Files of `torch.save`, read without torch and without running anything that a pickle asks for.

Both forms are read: the zip archive of torch 1.6 and later, and the stream of pickles before it. A pickle is a program;
the names that it may use are those of `GLOBALS`, and each stands for something inert here. Values stay in the mapped file
until they are asked for.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from bertkit.core.errors import CheckpointError
from bertkit.core.tensors import BITS_ONLY, STORED_AS, LazyTensor, RawTensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_PROTOCOL = 1001
LOCAL_HEADER = struct.Struct("<4s22xHH")

TORCH_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float": "F32",
    "complex64": "C64",
    "float64": "F64",
    "double": "F64",
    "int64": "I64",
    "long": "I64",
    "uint64": "U64",
}
STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "IntStorage": "I32",
    "FloatStorage": "F32",
    "ComplexFloatStorage": "C64",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "UntypedStorage": "U8",
}
NUMPY_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def load(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote: dictionaries, lists, numbers, ... with a `LazyTensor` for each tensor.

    An `argparse.Namespace` becomes a `types.SimpleNamespace`, a `torch.Size` a tuple, a `torch.device` and a `torch.dtype`
    an `Inert`, a numpy array or number itself.

    Args:
        path: a file of `torch.save`, of any version since torch 0.1.10.

    Raises:
        CheckpointError: when the file is damaged or of another kind, or when its pickle uses any other class or function.

    Example:
        >>> load("pytorch_model.bin")["bert.pooler.dense.bias"].shape  # doctest: +SKIP
        (768,)
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(len(LEGACY_START))
            file.seek(0)
            if start.startswith(b"PK"):
                return _load_zip(path, file)
            if start == LEGACY_START:
                return _load_legacy(path, file)
            raise CheckpointError(f"{path} was not written by torch.save", [what_starts_with(file.read(512))])
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def what_starts_with(start: bytes) -> str:
    """What a file that begins with these bytes seems to be."""
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: run `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page: the download went wrong"
    if start.startswith(b"\x89HDF"):
        return "it is an HDF5 file (Keras)"
    if start.startswith(b"PK"):
        return "it is a zip archive"
    if start.startswith(b"\x80"):
        return "it is a pickle, but not one of torch.save"
    if start[257:262] == b"ustar":
        return "it is a tar archive (torch before 0.1.10): load and save it again with a newer torch"
    return f"it starts with {start[:8]!r}"


def map_file(file: BinaryIO) -> np.ndarray:
    """The bytes of a file, mapped into memory; they are read when they are touched."""
    try:
        # A private writable map: writing into a tensor never reaches the file, and torch accepts the array.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError:  # such a map counts as memory, of which a large file may need more than there is
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)


class Inert:
    """A name of a pickle that stands for itself and cannot be called or changed: a dtype, a device, a storage type."""

    __slots__ = ("dtype", "name")
    name: str
    dtype: str | None

    def __init__(self, name: str, dtype: str | None = None) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "dtype", dtype)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self!r} cannot be changed")

    def __repr__(self) -> str:
        return self.name


class Maker(Inert):
    """A name of a pickle that may be called; what it makes is decided here.

    It is no function and no class, because a pickle may set attributes of whatever it can name.
    """

    __slots__ = ("make",)
    make: Callable[..., Any]

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        super().__init__(name)
        object.__setattr__(self, "make", make)

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)


class _Dictionary(dict):
    """An ordered dictionary; the attributes that torch hangs on it (`_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Storage:
    """The values that tensors share: where they lie in the file, known at the latest when the pickle has been read."""

    __slots__ = ("count", "dtype", "key", "locate")

    def __init__(self, key: str, dtype: str, count: int, locate: Callable[[], np.ndarray]) -> None:
        self.key, self.dtype, self.count, self.locate = key, dtype, count, locate

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):
            raise AttributeError("a storage cannot be changed")
        object.__setattr__(self, name, value)


class _NumpyDtype:
    """A plain number type of numpy; the pickle tells its byte order after making it."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_: object) -> None:
        if code not in NUMPY_CODES:
            raise CheckpointError(f"numpy arrays of type {code!r} are not read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", "|", "="):
            raise CheckpointError("numpy arrays of big-endian machines are not read")


class _NumpyArray(np.ndarray):
    """An array whose pickle tells shape, type and values after making it."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, kind, fortran_order, values = state
        numbers = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in shape)
        if not isinstance(kind, _NumpyDtype) or not isinstance(values, bytes) or not numbers:
            raise CheckpointError("a numpy array is damaged, or holds objects")
        if math.prod(shape) * kind.dtype.itemsize != len(values):
            raise CheckpointError(f"a numpy array of shape {shape} has {len(values)} bytes")
        super().__setstate__((version, shape, kind.dtype, fortran_order, values))


def _numpy_scalar(kind: _NumpyDtype, values: bytes) -> np.generic:
    (scalar,) = np.frombuffer(values, kind.dtype)
    return scalar


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise CheckpointError(f"bytes are written in the unknown encoding {encoding!r}")
    return text.encode("latin-1")


def _tensor(
    storage: _Storage, offset: int, shape: tuple, stride: tuple, requires_grad: bool, hooks: object, metadata: object = None
) -> LazyTensor:
    return _view(storage, storage.dtype, storage.count, offset, shape, stride, metadata)


def _tensor_of_dtype(
    storage: _Storage, offset: int, shape: tuple, stride: tuple, requires_grad: bool, hooks: object, dtype: Inert,
    metadata: object = None,
) -> LazyTensor:
    if dtype.dtype is None:
        raise CheckpointError(f"tensors of {dtype} are not read")
    count = storage.count * STORED_AS[storage.dtype].itemsize // STORED_AS[dtype.dtype].itemsize
    return _view(storage, dtype.dtype, count, offset, shape, stride, metadata)


def _view(
    storage: _Storage, dtype: str, count: int, offset: int, shape: tuple, stride: tuple, metadata: object
) -> LazyTensor:
    numbers = (offset, *shape, *stride)
    if not all(isinstance(n, int) and 0 <= n < 2**62 for n in numbers) or len(shape) != len(stride) or len(shape) > 32:
        raise CheckpointError(f"a tensor has impossible numbers: offset {offset}, shape {shape}, stride {stride}")
    if math.prod(shape) >= 2**58:
        raise CheckpointError(f"a tensor has the impossible shape {shape}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= count:
        raise CheckpointError(f"a tensor reaches number {last} of storage {storage.key}, which has {count}")
    if metadata:
        raise CheckpointError(f"tensors with the property {metadata} are not read")
    item = STORED_AS[dtype]

    def read() -> np.ndarray | RawTensor:
        if 0 in shape:
            values = np.zeros(shape, item)
        else:
            flat = storage.locate()[offset * item.itemsize : (last + 1) * item.itemsize].view(item)
            values = np.lib.stride_tricks.as_strided(flat, shape, [step * item.itemsize for step in stride])
        # Offsets in old files are not multiples of the item size.
        values = np.require(values, requirements="A")
        return RawTensor(values, dtype) if dtype in BITS_ONLY else values

    return LazyTensor(tuple(shape), dtype, read)


def _with_attributes(make: Maker, kind: Inert, arguments: tuple, state: object) -> LazyTensor:
    if not isinstance(make, Maker):
        raise CheckpointError("a tensor with attributes is damaged")
    return make(*arguments)


def _globals() -> dict[str, Any]:
    makers: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _Dictionary,
        "torch.Size": tuple,
        "torch.device": lambda *where: Inert(":".join(map(str, where))),
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        "torch._tensor._rebuild_from_type_v2": _with_attributes,
        "numpy.dtype": _NumpyDtype,
        "_codecs.encode": _encode,
    }
    for package in ("numpy.core", "numpy._core"):
        makers[f"{package}.multiarray.scalar"] = _numpy_scalar
        makers[f"{package}.multiarray._reconstruct"] = lambda *_: np.ndarray.__new__(_NumpyArray, (0,))
    table: dict[str, Any] = {name: Maker(name, make) for name, make in makers.items()}
    # The three types that pickles instantiate themselves are immutable: they are written in C.
    table |= {"argparse.Namespace": SimpleNamespace, "builtins.set": set, "__builtin__.set": set}
    table |= {name: Inert(name) for name in ("numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter")}
    table |= {f"torch.{name}": Inert(f"torch.{name}", dtype) for name, dtype in TORCH_DTYPES.items()}
    for module in ("torch", "torch.cuda", "torch.storage"):
        table |= {f"{module}.{name}": Inert(f"{module}.{name}", dtype) for name, dtype in STORAGES.items()}
    return table


GLOBALS: Mapping[str, Any] = _globals()
"""Everything that a pickle may name, and what stands for it."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, file: BinaryIO, storage: Callable[[tuple], _Storage] | None = None) -> None:
        super().__init__(file, encoding="utf-8")
        self._path, self._storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in GLOBALS:
            raise CheckpointError(
                f"{self._path} is refused: its pickle uses {wanted}, which weights do not need; nothing was executed",
                remedy="If you trust the file, load it with torch and save the state_dict alone.",
            )
        return GLOBALS[wanted]

    def persistent_load(self, identity: Any) -> _Storage:
        if self._storage is None or not isinstance(identity, tuple) or identity[:1] != ("storage",):
            raise CheckpointError(f"{self._path} refers to something that is no storage of a tensor")
        return self._storage(identity)

    def read(self) -> Any:
        try:
            return self.load()
        except CheckpointError as error:
            if str(self._path) in error.headline:
                raise
            raise CheckpointError(f"{self._path}: {error.headline}", error.problems, error.remedy) from error
        except Exception as error:  # a damaged pickle can fail in any way
            raise _damaged(self._path, f"its pickle cannot be read: {type(error).__name__}: {error}") from error


def _damaged(path: Path, cause: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {cause}", remedy="Fetch or save the file again.")


def _dtype_and_count(kind: Any, count: Any) -> tuple[str, int]:
    if not isinstance(kind, Inert) or kind.dtype is None or type(count) is not int or not 0 <= count < 2**62:
        raise CheckpointError(f"a storage is of unknown type or size: {kind}, {count}")
    return kind.dtype, count


def _load_zip(path: Path, file: BinaryIO) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(
                    f"{path} is a zip archive, but not one of torch.save: it has no data.pkl",
                    [f"holds: {name}" for name in list(members)[:10]],
                    "Unpack it and open the file of weights that is in it.",
                )
            if members[pickles[0]].file_size > path.stat().st_size:
                raise _damaged(path, "data.pkl claims to be larger than the whole file")
            folder = pickles[0].removesuffix("data.pkl")
            program = archive.read(pickles[0])
            order = archive.read(folder + "byteorder") if folder + "byteorder" in members else b"little"
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, struct.error) as error:
        raise _damaged(path, f"{error} (is it complete?)") from error
    if order.strip() != b"little":
        raise CheckpointError(f"{path} was saved on a big-endian machine", remedy="Load and save it again with torch.")
    mapped = map_file(file)

    def storage(identity: tuple) -> _Storage:
        _, kind, key, _, count = identity
        dtype, count = _dtype_and_count(kind, count)
        member = members.get(f"{folder}data/{key}")
        if member is None:
            raise CheckpointError(f"there is no storage {key}")
        values = _stored_member(mapped, member)
        if len(values) < count * STORED_AS[dtype].itemsize:
            raise CheckpointError(f"storage {key} has {len(values)} bytes, expected {count} numbers of {dtype}")
        return _Storage(str(key), dtype, count, lambda: values)

    return _Unpickler(path, io.BytesIO(program), storage).read()


def _stored_member(mapped: np.ndarray, member: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member, which torch stores uncompressed so that they can be mapped."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise CheckpointError(f"{member.filename} is compressed or encrypted, which torch.save never does")
    start = member.header_offset
    header = mapped[start : start + LOCAL_HEADER.size].tobytes()
    if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{member.filename} does not begin where the archive's directory says")
    _, name_length, extra_length = LOCAL_HEADER.unpack(header)
    start += LOCAL_HEADER.size + name_length + extra_length
    values = mapped[start : start + member.file_size]
    if len(values) < member.file_size:
        raise CheckpointError(f"{member.filename} reaches beyond the end of the file")
    return values


def _load_legacy(path: Path, file: BinaryIO) -> Any:
    """Pickles of magic number, version, system, content and storage keys; then, by key, a count and the values."""
    places: dict[str, np.ndarray] = {}
    roots: dict[str, tuple[str, int]] = {}

    def storage(identity: tuple) -> _Storage:
        _, kind, key, _, count, view = identity
        dtype, count = _dtype_and_count(kind, count)
        if roots.setdefault(key, (dtype, count)) != (dtype, count):
            raise CheckpointError(f"storage {key} is used with two types or sizes")
        if view is None:
            return _Storage(key, dtype, count, lambda: places[key])
        _, first, view_count = view
        if not 0 <= first <= first + view_count <= count:
            raise CheckpointError(f"a view reaches beyond storage {key}")
        return _Storage(key, dtype, view_count, lambda: places[key][first * STORED_AS[dtype].itemsize :])

    _Unpickler(path, file).read()
    version, system = _Unpickler(path, file).read(), _Unpickler(path, file).read()
    if version != LEGACY_PROTOCOL:
        raise CheckpointError(f"{path} has version {version} of torch's old format, expected {LEGACY_PROTOCOL}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path} was saved on a big-endian machine", remedy="Load and save it again with torch.")
    content = _Unpickler(path, file, storage).read()
    keys = _Unpickler(path, file).read()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or not set(roots) <= set(keys):
        raise _damaged(path, "its list of storages does not fit its tensors")
    start, mapped = file.tell(), map_file(file)
    for key in keys:
        if key not in roots:
            raise _damaged(path, f"storage {key} belongs to no tensor")
        dtype, count = roots[key]
        size = count * STORED_AS[dtype].itemsize
        written = int.from_bytes(mapped[start : start + 8].tobytes(), "little")
        values = mapped[start + 8 : start + 8 + size]
        if written != count or len(values) < size:
            raise _damaged(path, f"storage {key} has {written} numbers and {len(values)} bytes, expected {count} and {size}")
        places[key] = values
        start += 8 + size
    return content
