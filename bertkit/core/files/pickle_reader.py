"""Files of `torch.save`, read without torch and without running anything that a pickle asks for.

Both forms are read: the zip archive of torch 1.6 and later, and the stream of pickles before it. A pickle is a program;
the names that it may use are those of `GLOBALS`, each of which stands for something inert here, and those of programs that
train models, of which nothing is kept but what the pickle says. Values stay where they are until they are asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from bertkit.core.errors import CheckpointError
from bertkit.core.files.archive import Archive, Member, Walk
from bertkit.core.files.byte_source import ByteSource, Part, as_source
from bertkit.core.files.pickle_machine import Buildable, Foreign, Inert, Machine, Maker, Stub, short
from bertkit.core.tensors import BITS_ONLY, STORED_AS, LazyTensor, RawTensor

__all__ = ["GLOBALS", "Inert", "Stub", "load", "load_pickle", "what_starts_with"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_PROTOCOL = 1001

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
NUMPY_CODES = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}")
LARGEST_REPETITION = 64 * 2**20
"""Bytes up to which a tensor may show the same numbers several times, as expanded tensors do."""

MOST_OTHERS = 100
"""Members of an archive beside its storages; torch writes half a dozen."""


def load(source: str | os.PathLike[str] | ByteSource, name: str | None = None) -> Any:
    """What `torch.save` wrote: dictionaries, lists, numbers, ... with a `LazyTensor` for each tensor.

    An `argparse.Namespace` becomes a `types.SimpleNamespace`, a `torch.Size` a tuple, a `torch.device` and a `torch.dtype`
    an `Inert`, a numpy array or number itself. What programs that train models leave beside the weights becomes a `Stub`.

    Args:
        source: a file of `torch.save`, of any version since torch 0.1.10, or its bytes wherever they lie.
        name: what errors call it; the name of the source when absent.

    Raises:
        CheckpointError: when the file is damaged or of another kind, or when its pickle uses any other class or function.

    Example:
        >>> load("pytorch_model.bin")["bert.pooler.dense.bias"].shape  # doctest: +SKIP
        (768,)
    """
    source = _named(source, name)
    start = source.read(0, min(source.size, 512)).tobytes()
    if start.startswith(b"PK"):
        return _load_zip(source)
    if start.startswith(LEGACY_START):
        return _load_legacy(source)
    raise CheckpointError(f"{source.name} was not written by torch.save", [what_starts_with(start)])


def load_pickle(source: str | os.PathLike[str] | ByteSource, name: str | None = None) -> Any:
    """What a plain pickle describes that torch.save did not write, such as `.metadata` of torch.distributed.checkpoint.

    Args:
        source: the file, or its bytes wherever they lie.
        name: what errors call it; the name of the source when absent.

    Raises:
        CheckpointError: when it is damaged, or when it uses any class or function that is not known to be harmless.

    Example:
        >>> load_pickle("checkpoint/.metadata").state_dict_metadata["weight"].size  # doctest: +SKIP
        (768, 768)
    """
    source = _named(source, name)
    value, end = _run(source, 0)
    if end != source.size:
        raise _damaged(source, f"{source.size - end} bytes follow its pickle")
    return value


def _named(source: str | os.PathLike[str] | ByteSource, name: str | None) -> ByteSource:
    source = as_source(source)
    return source if name is None else Part(source, 0, source.size, name)


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


class _Place:
    """Where the values of a storage lie, which is known at the latest when the pickle has been read.

    Args:
        position: where they begin in the source, or a number that grows alike.
        open: gives the values as a source of their own.
    """

    def __init__(self, position: int = 0, open: Callable[[], ByteSource] | None = None) -> None:
        self.tensors: list[tuple[LazyTensor, int]] = []
        self._source: ByteSource | None = None
        self.settle(position, open)

    def settle(self, position: int, open: Callable[[], ByteSource] | None) -> None:
        """Tell where the values are, also to the tensors that there are already."""
        self.position, self._open = position, open
        for tensor, offset in self.tensors:
            object.__setattr__(tensor, "position", position + offset)  # it is frozen for all others

    def source(self) -> ByteSource:
        """The values as bytes."""
        if self._source is None:
            if self._open is None:
                raise CheckpointError("a tensor has no values")
            self._source = self._open()
        return self._source


@dataclass(frozen=True, eq=False)
class _Storage:
    """The values that tensors share."""

    key: str
    dtype: str
    count: int
    place: _Place
    first: int = 0


class _NumpyDtype(Buildable):
    """A plain number type of numpy; the pickle tells its byte order after making it."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_: object) -> None:
        if type(code) is not str or not NUMPY_CODES.fullmatch(code):
            raise CheckpointError(f"numpy arrays of type {short(code)} are not read")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "="):
            raise CheckpointError("numpy arrays of big-endian machines are not read")


class _NumpyArray(np.ndarray, Buildable):
    """An array whose pickle tells shape, type and values after making it."""

    def build(self, state: Any) -> None:
        _, shape, kind, fortran_order, values = state
        if self.shape != (0,):
            raise CheckpointError("a numpy array is filled twice")
        array = _numpy_array(values, kind, shape, "F" if fortran_order is True else "C")
        np.ndarray.__setstate__(self, (1, shape, kind.dtype, fortran_order is True, array.tobytes("A")))  # type: ignore[arg-type]


def _numpy_array(values: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(values, str):  # bytes of Python 2 that happened to be text
        values = values.encode("utf-8")
    numbers = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    plain = isinstance(kind, _NumpyDtype) and isinstance(values, (bytes, bytearray)) and order in ("C", "F")
    if not plain or not numbers:
        raise CheckpointError("a numpy array is damaged, or holds objects")
    if math.prod(shape) * kind.dtype.itemsize != len(values):
        raise CheckpointError(f"a numpy array of shape {shape} has {len(values)} bytes")
    return np.frombuffer(bytes(values), kind.dtype, math.prod(shape)).reshape(shape, order=order)


def _numpy_scalar(kind: Any, values: Any) -> Any:
    return _numpy_array(values, kind, (), "C")[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise CheckpointError(f"bytes are written in the unknown encoding {short(encoding)}")
    return text.encode("latin-1")


def _bytearray(values: Any = b"", encoding: Any = None) -> bytearray:
    if encoding is not None:
        values = _encode(values, encoding)
    if type(values) is not bytes:
        raise CheckpointError(f"a bytearray is made of {short(values)}")
    return bytearray(values)


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise CheckpointError("a complex number is damaged")
    return complex(real, imaginary)


def _items(values: Any = ()) -> list[Any]:
    """What a set, a list or a deque is made of."""
    if not isinstance(values, (list, tuple)):
        raise CheckpointError(f"a container is made of {short(values)}")
    return list(values)


def _pairs(values: Any = ()) -> list[tuple[Any, Any]]:
    """What a dictionary is made of."""
    if isinstance(values, dict):
        return list(values.items())
    pairs = _items(values)
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise CheckpointError("a dictionary is made of something that is no pair")
    return [(key, value) for key, value in pairs]


def _keys(values: Any = ()) -> list[Any]:
    return [key for key, _ in _pairs(values)]


def _size(values: Any = ()) -> tuple:
    return tuple(_items(values))


def _device(*where: Any) -> Inert:
    return Inert(":".join(str(part)[:20] for part in where[:2] if type(part) in (str, int)))


def _member(owner: Any, name: Any) -> Stub:
    """An attribute of what is not known: a member of an enumeration as some Pythons write it, or a method of an object.

    The schedules of torch before 1.10 held methods of their own. Nothing is looked up; the stub holds what was asked for.
    """
    if not isinstance(owner, (Foreign, Stub)) or type(name) is not str or not name.isidentifier() or name.startswith("__"):
        raise CheckpointError(f"its pickle uses builtins.getattr on {short(owner)} for {short(name)}; nothing was executed")
    return Stub(owner.name, (name,)) if isinstance(owner, Foreign) else Stub("builtins.getattr", (owner, name))


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: object, hooks: object, metadata: object = None
) -> LazyTensor:
    return _view(storage, None, offset, shape, stride, metadata)


def _tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: object, hooks: object, dtype: Any,
    metadata: object = None,
) -> LazyTensor:
    if not isinstance(dtype, Inert) or dtype.dtype is None:
        raise CheckpointError(f"tensors of {short(dtype)} are not read")
    return _view(storage, dtype.dtype, offset, shape, stride, metadata)


def _view(storage: Any, dtype: str | None, offset: Any, shape: Any, stride: Any, metadata: object) -> LazyTensor:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise CheckpointError("a tensor is damaged")
    numbers = (offset, *shape, *stride)
    if len(shape) > 32 or len(shape) != len(stride) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise CheckpointError(
            f"a tensor has impossible numbers: offset {short(offset)}, shape {short(shape)}, stride {short(stride)}"
        )
    dtype = dtype or storage.dtype
    item = STORED_AS[dtype]
    count = storage.count * STORED_AS[storage.dtype].itemsize // item.itemsize
    size = math.prod(shape) * item.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= count:
        raise CheckpointError(f"a tensor reaches number {last} of storage {short(storage.key)}, which has {count}")
    if size > max((last + 1 - offset) * item.itemsize, LARGEST_REPETITION):
        raise CheckpointError(f"a tensor of shape {shape} shows {last + 1 - offset} numbers again and again")
    if metadata:
        raise CheckpointError(f"tensors with the property {short(metadata)} are not read")
    first = storage.first + offset * item.itemsize

    def read() -> np.ndarray | RawTensor:
        if 0 in shape:
            values = np.zeros(shape, item)
        else:
            flat = storage.place.source().read(first, storage.first + (last + 1) * item.itemsize)
            if first % item.itemsize or flat.ctypes.data % item.alignment:
                flat = flat.copy()  # in old files, values do not begin at multiples of their size
            # Along an axis of length 1 nobody steps, and any number may be written for it.
            steps = [step * item.itemsize if n > 1 else item.itemsize for n, step in zip(shape, stride, strict=True)]
            values = np.lib.stride_tricks.as_strided(flat.view(item), shape, steps)
        return RawTensor(values, dtype) if dtype in BITS_ONLY else values

    tensor = LazyTensor(tuple(shape), dtype, read, storage.place.position + first)
    storage.place.tensors.append((tensor, first))
    return tensor


def _parameter(tensor: Any, *_: object) -> LazyTensor:
    if not isinstance(tensor, LazyTensor):
        raise CheckpointError("a parameter is no tensor")
    return tensor


def _with_attributes(make: Any, kind: object, arguments: Any, state: object) -> LazyTensor:
    if not isinstance(make, Maker) or make.make not in (_tensor, _tensor_of_dtype, _parameter):
        raise CheckpointError("a tensor with attributes is damaged")
    return make.make(*arguments)


BUILTINS = ("builtins", "__builtin__")
NUMPY_CORE = ("numpy.core", "numpy._core")
MAKERS: Mapping[str, Callable[..., Any]] = {
    "argparse.Namespace": SimpleNamespace,
    "collections.deque": lambda values=(), maxlen=None: _items(values),
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "numpy.dtype": _NumpyDtype,
    **{f"{core}.multiarray.scalar": _numpy_scalar for core in NUMPY_CORE},
    **{f"{core}.multiarray._reconstruct": lambda *_: np.ndarray.__new__(_NumpyArray, (0,)) for core in NUMPY_CORE},
    **{f"{core}.numeric._frombuffer": _numpy_array for core in NUMPY_CORE},
    "_codecs.encode": _encode,
    **{f"{builtins}.bytes": lambda: b"" for builtins in BUILTINS},  # how old protocols write that there are none
    **{f"{builtins}.bytearray": _bytearray for builtins in BUILTINS},
    **{f"{builtins}.complex": _complex for builtins in BUILTINS},
    **{f"{builtins}.getattr": _member for builtins in BUILTINS},
}
"""What pickles may call, and what makes the result."""

HASHERS: Mapping[str, tuple[Callable[..., Any], Callable[..., Iterable[Any]]]] = {
    "collections.OrderedDict": (lambda values=(): dict(_pairs(values)), _keys),
    "collections.Counter": (lambda values=(): dict(_pairs(values)), _keys),
    "collections.defaultdict": (lambda factory=None, values=(): dict(_pairs(values)), lambda _=None, values=(): _keys(values)),
    **{f"{builtins}.set": (lambda values=(): set(_items(values)), _items) for builtins in BUILTINS},
    **{f"{builtins}.frozenset": (lambda values=(): frozenset(_items(values)), _items) for builtins in BUILTINS},
}
"""The same for what makes a dictionary or a set, and what will be hashed for it."""

FOREIGN_PACKAGES = (
    # Megatron-LM of any age: its first version had its modules at the top.
    "megatron", "arguments", "configure_data", "data_utils", "fp16", "learning_rates", "model", "mpu", "optim", "utils",
    "apex", "deepspeed", "transformer_engine",
    "fairseq", "omegaconf", "typing",
    "torch.optim", "torch.distributed", "torch.nn.functional", "torch.nn.init", "torch._C._nn", "torch._C._distributed_c10d",
    "numpy.random", "datetime", "pathlib",
)
"""Packages whose classes and functions training leaves in checkpoints. They are never imported: each gives a `Stub`."""

FOREIGN_NAMES = (
    "_io.BytesIO", "io.BytesIO", "functools.partial", "operator.getitem",
    "torch.Generator", "torch._C.Generator", "torch.layout", "torch.memory_format", "torch.serialization._get_layout",
    *(f"numpy.{name}" for name in (
        "bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
        "float64", "str_", "bytes_",
    )),
    *(f"{builtins}.{name}" for builtins in BUILTINS for name in (
        "bool", "dict", "float", "int", "list", "long", "object", "range", "slice", "str", "tuple", "type",
        "unicode", "xrange", "Ellipsis", "NotImplemented",
    )),
)
"""Single names for which the same holds."""


def _globals() -> dict[str, Inert]:
    table: dict[str, Inert] = {name: Maker(name, make) for name, make in MAKERS.items()}
    table |= {name: Maker(name, make, keys) for name, (make, keys) in HASHERS.items()}
    table |= {name: Inert(name) for name in ("numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter")}
    table |= {f"torch.{name}": Inert(f"torch.{name}", dtype) for name, dtype in TORCH_DTYPES.items()}
    for module in ("torch", "torch.cuda", "torch.storage"):
        table |= {f"{module}.{name}": Inert(f"{module}.{name}", dtype) for name, dtype in STORAGES.items()}
    return table | {name: Foreign(name) for name in FOREIGN_NAMES}


GLOBALS: Mapping[str, Inert] = _globals()
"""Every single name that a pickle may use, and what stands for it; beside them stand those of `FOREIGN_PACKAGES`."""


def _no_storage(identity: Any) -> _Storage:
    raise CheckpointError("its pickle refers to something outside of it")


def _run(source: ByteSource, position: int, storage: Callable[[Any], _Storage] = _no_storage) -> tuple[Any, int]:
    """What the pickle at a place describes, and the place behind it."""

    def find(name: str) -> Inert:
        if name in GLOBALS:
            return GLOBALS[name]
        if name.startswith(tuple(f"{package}." for package in FOREIGN_PACKAGES)):
            return Foreign(name)
        raise CheckpointError(
            f"{source.name} is refused: its pickle uses {ascii(name)[1:-1]:.200}, "
            "which weights do not need; nothing was executed",
            remedy="If you trust the file, load it with torch and save the state_dict alone.",
        )

    try:
        return Machine(find, storage).run(source, position)
    except CheckpointError as error:
        if source.name in error.headline:
            raise
        raise CheckpointError(f"{source.name}: {error.headline}", error.problems, error.remedy) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise _damaged(source, f"its pickle cannot be read: {type(error).__name__}: {error!s:.200}") from error


def _damaged(source: ByteSource, cause: str) -> CheckpointError:
    return CheckpointError(f"{source.name} is damaged: {cause}", remedy="Fetch or save the file again.")


def _dtype_and_count(kind: Any, count: Any) -> tuple[str, int]:
    if not isinstance(kind, Inert) or kind.dtype is None or type(count) is not int or not 0 <= count < 2**62:
        raise CheckpointError(f"a storage is of unknown type or size: {short(kind)}, {short(count)}")
    return kind.dtype, count


def _storage_fields(identity: Any, number: int) -> tuple[str, str, int, Any]:
    """Key, dtype, count and view of a storage, which torch writes as ("storage", type, key, device, count, view)."""
    if type(identity) is not tuple or len(identity) != number or identity[0] != "storage" or type(identity[2]) is not str:
        raise CheckpointError("its pickle refers to something that is no storage of a tensor")
    return (identity[2], *_dtype_and_count(identity[1], identity[4]), identity[-1])


def _load_zip(source: ByteSource) -> Any:
    if source.in_order:
        with contextlib.suppress(CheckpointError):  # what is wrong, if anything is, the directory will tell
            return _load_in_order(source)
    archive = Archive(source)
    members = archive.members
    pickles = [name for name in members if _is_program(name)]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{source.name} is a zip archive, but not one of torch.save: it has no data.pkl",
            [f"holds: {short(name)}" for name in list(members)[:10]],
            "Open the file of weights that is in it; `bertkit convert` does so for archives that it knows.",
        )
    folder = pickles[0].removesuffix("data.pkl")
    order = folder + "byteorder"
    if order in members and archive.open(order).read(0, min(members[order].size, 100)).tobytes().strip() != b"little":
        raise CheckpointError(f"{source.name} was saved on a big-endian machine", remedy="Load and save it again with torch.")
    places: dict[str, _Place] = {}

    def storage(identity: Any) -> _Storage:
        key, dtype, count, _ = _storage_fields(identity, 5)
        member = _values_of(archive, folder, key, count * STORED_AS[dtype].itemsize)
        if key not in places:
            places[key] = _Place(member.header, lambda: archive.open(member.name))
            if not source.in_order:
                places[key].source()
        return _Storage(key, dtype, count, places[key])

    program = archive.open(pickles[0])
    return _run(Part(program, 0, program.size, source.name), 0, storage)[0]


def _is_program(name: str) -> bool:
    """Whether a member of an archive is the pickle, which lies in the one folder of the archive."""
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _values_of(archive: Archive, folder: str, key: str, size: int) -> Member:
    """The member with the values of a storage, which has at least so many bytes."""
    member = archive.members.get(f"{folder}data/{key}")
    if member is None:
        raise _damaged(archive.source, f"there is no storage {short(key)}")
    if member.packed != member.size or member.method:
        raise _damaged(archive.source, f"{short(member.name)} is compressed, which torch.save never does")
    if member.size < size:
        raise _damaged(archive.source, f"storage {short(key)} has {member.size} bytes, expected {size}")
    return member


def _load_in_order(source: ByteSource) -> Any:
    """An archive inside a compressed stream, of which the beginning alone is read."""
    walk = Walk(source)
    if not _is_program(walk.name):
        raise _damaged(source, "its pickle does not come first")
    storages = _Storages(source, walk)
    content, size = _run(Part(walk.content, 0, walk.content.size, source.name), 0, storages.storage)
    storages.settle(size)
    return content


class _Storages:
    """The storages of an archive inside a compressed stream, found one by one on a single way through it.

    The directory, for which the whole stream must be unpacked, is asked only when the archive is not as torch writes it.

    Args:
        source: the archive.
        walk: at its pickle.
    """

    def __init__(self, source: ByteSource, walk: Walk) -> None:
        self._source, self._walk, self._folder = source, walk, walk.name.removesuffix("data.pkl")
        self._places: dict[str, _Place] = {}
        self._sizes: dict[str, int] = {}
        self._found: dict[str, ByteSource] = {}
        self._others: list[str] = []
        self._archive: Archive | None = None
        self._lock = threading.Lock()

    def storage(self, identity: Any) -> _Storage:
        """What stands for a storage of which the place is not known yet."""
        key, dtype, count, _ = _storage_fields(identity, 5)
        if count:
            self._sizes[key] = max(self._sizes.get(key, 0), count * STORED_AS[dtype].itemsize)
        return _Storage(key, dtype, count, self._places.setdefault(key, _Place()))

    def settle(self, size: int) -> None:
        """Go on to the first storage, behind a pickle of so many bytes, and tell the tensors in which order they lie."""
        is_sized = self._walk.is_sized
        self._walk.leave(size)
        while not self._enter() and self._sizes:
            self._walk.leave()
        # Torch never tells sizes ahead. Before 2.7, when the version of the format came, it sorted the keys as texts.
        keys = list(self._sizes) if is_sized or ".format_version" in self._others else sorted(self._sizes)
        for key in keys:
            self._places[key].settle(size, partial(self._open, key))
            size += self._sizes[key]

    def _enter(self) -> bool:
        """Note what member the walk has come to; whether it is a storage that is wanted."""
        name = self._walk.name.removeprefix(self._folder)
        key = name.removeprefix("data/")
        if name == "byteorder" and self._walk.content.read(0, 6).tobytes() != b"little":
            raise _damaged(self._source, "its byte order is not little-endian")
        if key == name or key not in self._sizes or key in self._found:
            self._others.append(name)
            if len(self._others) > MOST_OTHERS:
                raise _damaged(self._source, "it has too many members that are no storages")
            return False
        self._found[key] = Part(self._walk.content, 0, self._sizes[key])
        return True

    def _next(self) -> None:
        """Go on to the member behind the present one, be it a storage or not."""
        self._walk.leave(self._sizes.get(self._walk.name.removeprefix(f"{self._folder}data/")))
        self._enter()

    def _ask_directory(self, key: str) -> ByteSource:
        """The values of a storage; what is wrong with the archive, if anything is, comes out here."""
        if self._archive is None:
            self._archive = Archive(self._source)
        return self._archive.open(_values_of(self._archive, self._folder, key, self._sizes[key]).name)

    def _open(self, key: str) -> ByteSource:
        """The values of a storage, for which the walk goes on as far as needed."""
        with self._lock:
            while key not in self._found and self._archive is None:
                try:
                    self._next()
                except CheckpointError:
                    break
            return _Watched(self._found[key], partial(self._leave, key)) if key in self._found else self._ask_directory(key)

    def _leave(self, key: str) -> None:
        """Check what follows a storage that has been read to its end, and after the last of all the checksum of the stream."""
        with self._lock:
            if self._archive is None and self._walk.name == f"{self._folder}data/{key}":
                try:
                    self._next()
                except CheckpointError:
                    self._ask_directory(key)
            if len(self._found) == len(self._sizes) and next(reversed(self._found)) == key:
                self._source.read(self._source.size - 1, self._source.size)


class _Watched(Part):
    """A source that tells when it is read to its end."""

    def __init__(self, source: ByteSource, at_end: Callable[[], None]) -> None:
        super().__init__(source, 0, source.size)
        self._at_end = at_end

    def _read(self, begin: int, end: int) -> np.ndarray:
        values = super()._read(begin, end)
        if end == self.size:
            self._at_end()
        return values


def _load_legacy(source: ByteSource) -> Any:
    """Pickles of magic number, version, system, content and storage keys; then, by key, a count and the values."""
    roots: dict[str, tuple[str, int]] = {}
    places: dict[str, _Place] = {}

    def storage(identity: Any) -> _Storage:
        key, dtype, count, view = _storage_fields(identity, 6)
        if roots.setdefault(key, (dtype, count)) != (dtype, count):
            raise CheckpointError(f"storage {short(key)} is used with two types or sizes")
        place = places.setdefault(key, _Place())
        if view is None:
            return _Storage(key, dtype, count, place)
        if type(view) is not tuple or len(view) != 3 or not all(type(n) is int and 0 <= n <= count for n in view[1:]):
            raise CheckpointError(f"a view of storage {short(key)} is damaged")
        if view[1] + view[2] > count:
            raise CheckpointError(f"a view reaches beyond storage {short(key)}")
        return _Storage(key, dtype, view[2], place, view[1] * STORED_AS[dtype].itemsize)

    _, position = _run(source, 0)
    version, position = _run(source, position)
    system, position = _run(source, position)
    if version != LEGACY_PROTOCOL:
        raise CheckpointError(f"{source.name} has version {short(version)} of torch's old format, expected {LEGACY_PROTOCOL}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{source.name} was saved on a big-endian machine", remedy="Load and save it again with torch.")
    content, position = _run(source, position, storage)
    keys, position = _run(source, position)
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or sorted(keys) != sorted(roots):
        raise _damaged(source, "its list of storages does not fit its tensors")
    for key in keys:
        dtype, count = roots[key]
        end = position + 8 + count * STORED_AS[dtype].itemsize
        if end > source.size:
            raise _damaged(source, f"storage {short(key)} ends at byte {end}, the file at {source.size} (is it complete?)")
        places[key].settle(position + 8, _legacy_values(source, key, count, position, end))
        if not source.in_order:
            places[key].source()
        position = end
    return content


def _legacy_values(source: ByteSource, key: str, count: int, begin: int, end: int) -> Callable[[], ByteSource]:
    def open() -> ByteSource:
        written = int.from_bytes(source.read(begin, begin + 8).tobytes(), "little")
        if written != count:
            raise _damaged(source, f"storage {short(key)} has {written} numbers, expected {count}")
        return Part(source, begin + 8, end)

    return open
