"""A checkpoint directory: lazy reading of safetensors and PyTorch files, and writing that never leaves half a file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.core import pickle_reader
from bertkit.core.errors import CheckpointError
from bertkit.core.pickle_reader import NUMPY_OF, StoredTensor
from bertkit.core.progress import progress

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": None}
DTYPE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FOREIGN = {".h5": "Keras weights", ".ckpt": "a TensorFlow checkpoint", ".index": "a TensorFlow checkpoint",
           ".zip": "an archive", ".pt": "a PyTorch file of another tool", ".msgpack": "Flax weights", ".onnx": "an ONNX model"}
WEIGHTS, PICKLED = "model", "pytorch_model"


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says of a tensor without reading it; `dtype` in safetensors' spelling, e.g. "F32"."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size on disk."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(NUMPY_OF[self.dtype]).itemsize


@dataclass(frozen=True)
class RawTensor:
    """Numbers that NumPy has no dtype for: bfloat16 as its bits, uint16."""

    bits: np.ndarray
    dtype: str


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written: its shape and dtype now, its numbers when their turn comes."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray | RawTensor]


class Checkpoint(Mapping[str, np.ndarray]):
    """An opened checkpoint: a mapping from names to arrays that are read when they are asked for.

    Args:
        path: what was opened.
        files: the files that hold the tensors.
        format: "safetensors" or "pytorch".
        tensors: what is known of each tensor, and how to read it.
        metadata: free text that a safetensors file carries.
    """

    def __init__(self, path: Path, files: list[Path], format: str,
                 tensors: dict[str, tuple[TensorInfo, Callable[[], np.ndarray]]], metadata: Mapping[str, str]) -> None:
        self.path, self.files, self.format, self.metadata = path, files, format, dict(metadata)
        self._tensors = tensors

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor."""
        return self._find(name)[0]

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor; bfloat16 is widened to float32, exactly."""
        bits, dtype = self.read_raw(name)
        return widen(bits) if dtype == "BF16" else bits

    def read_raw(self, name: str) -> tuple[np.ndarray, str]:
        """The numbers of a tensor as they lie in the file, and their dtype; bfloat16 as its bits, uint16."""
        info, read = self._find(name)
        return read(), info.dtype

    def lazy(self, name: str) -> LazyTensor:
        """A tensor as `write_checkpoint` takes it, unchanged."""
        info = self.info(name)

        def read() -> np.ndarray | RawTensor:
            bits, dtype = self.read_raw(name)
            return RawTensor(bits, dtype) if dtype == "BF16" else bits

        return LazyTensor(info.shape, info.dtype, read)

    def _find(self, name: str) -> tuple[TensorInfo, Callable[[], np.ndarray]]:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}")
        return self._tensors[name]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors = {}


# -- reading ----------------------------------------------------------------------------------------------------
def open_checkpoint(path: str | os.PathLike, *, variant: str | None = None) -> Checkpoint:
    """Open the weights in a directory, or a single weights file; tensors are read when they are asked for.

    A directory is searched for `model.safetensors`, its sharded form, `pytorch_model.bin` and its sharded form.

    Args:
        path: a directory, or a `.safetensors`, `.bin` or `.pt` file.
        variant: the word in `model.fp16.safetensors`, e.g. "fp16".

    Raises:
        CheckpointError: when there are no weights, or they are damaged, incomplete or hostile.
    """
    path = Path(path)
    if path.is_file():
        return _open_files(path, [path])
    if not path.is_dir():
        raise CheckpointError(f"there is no file or directory {path}")
    word = f".{variant}" if variant else ""
    for single, index in ((f"{WEIGHTS}{word}.safetensors", f"{WEIGHTS}.safetensors.index{word}.json"),
                          (f"{PICKLED}{word}.bin", f"{PICKLED}.bin.index{word}.json")):
        if (path / single).is_file():
            return _open_files(path, [path / single])
        if (path / index).is_file():
            return _open_shards(path, path / index)
    found = sorted(item.name for item in path.iterdir())
    foreign = [f"{name} is {what}" for name in found for end, what in FOREIGN.items() if name.endswith(end)]
    raise CheckpointError(
        f"no weights in {path}: expected {WEIGHTS}{word}.safetensors, {WEIGHTS}.safetensors.index{word}.json, "
        f"{PICKLED}{word}.bin or {PICKLED}.bin.index{word}.json; it holds: {', '.join(found[:20]) or 'nothing'}", foreign,
        "Foreign originals need `bertkit convert`." if foreign else "")


def _open_shards(path: Path, index: Path) -> Checkpoint:
    places = _read_index(index)
    unsafe = [shard for shard in places.values() if Path(shard).name != shard]
    missing = sorted({shard for shard in places.values() if shard not in unsafe and not (path / shard).is_file()})
    if unsafe or missing:
        raise CheckpointError(f"{index} cannot be followed", [*(f"missing: {shard}" for shard in missing),
                              *(f"outside the directory: {shard}" for shard in dict.fromkeys(unsafe))])
    checkpoint = _open_files(path, [path / shard for shard in dict.fromkeys(places.values())])
    lost = [name for name in places if name not in checkpoint]
    if lost:
        raise CheckpointError(f"{index} names tensors that its shards lack", lost)
    return checkpoint


def _read_index(index: Path) -> dict[str, str]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) and isinstance(shard, str) for name, shard in places.items()):
            raise TypeError("weight_map does not map names to files")
        return places
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards", [f"{type(error).__name__}: {error}"]) from error


def _open_files(path: Path, files: list[Path]) -> Checkpoint:
    tensors: dict[str, tuple[TensorInfo, Callable[[], np.ndarray]]] = {}
    metadata: dict[str, str] = {}
    pickled = False
    for file in files:
        if _is_safetensors(file):
            found, described = _open_safetensors(file)
            metadata.update(described)
        else:
            found, pickled = _open_pickle(file), True
        tensors.update(found)
    return Checkpoint(path, files, "pytorch" if pickled else "safetensors", tensors, metadata)


def _is_safetensors(file: Path) -> bool:
    return file.suffix == ".safetensors"


def _open_safetensors(file: Path) -> tuple[dict[str, tuple[TensorInfo, Callable[[], np.ndarray]]], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    # The library checks the header against the file (bounds, overlaps, holes, dtypes); after that it can be trusted.
    try:
        with safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is no safetensors file, or is damaged", [str(error)],
                              "It may be truncated, or a Git LFS pointer; fetch it again.") from error
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (start, _) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in NUMPY_OF:
            raise CheckpointError(f"{file}: {name} has dtype {dtype}, expected one of {', '.join(NUMPY_OF)}")
        tensors[name] = TensorInfo(name, shape, dtype), partial(_map, file, dtype, shape, 8 + length + start)
    return tensors, metadata


def _map(file: Path, dtype: str, shape: tuple[int, ...], start: int) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, NUMPY_OF[dtype])
    return np.memmap(file, NUMPY_OF[dtype], "r", start, shape if shape else (1,)).reshape(shape)


def _open_pickle(file: Path) -> dict[str, tuple[TensorInfo, Callable[[], np.ndarray]]]:
    content = pickle_reader.load(file)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    found = {str(name): value for name, value in content.items() if isinstance(value, StoredTensor)} \
        if isinstance(content, Mapping) else {}
    if not found:
        raise CheckpointError(f"{file} holds no dictionary of tensors", remedy="A foreign original needs `bertkit convert`.")
    return {name: (TensorInfo(name, tensor.shape, tensor.dtype), tensor.read) for name, tensor in found.items()}


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float32 numbers, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(numbers: np.ndarray) -> np.ndarray:
    """float32 numbers as bfloat16 bits, rounded to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FC0), rounded)


# -- writing ----------------------------------------------------------------------------------------------------
def write_checkpoint(
    directory: str | os.PathLike, tensors: Mapping[str, LazyTensor], *, dtype: str | None = None,
    max_shard_size: int | str = "5GB", metadata: Mapping[str, str] | None = None,
    extra_files: Mapping[str, str | bytes] | None = None, show_progress: bool = False,
) -> list[Path]:
    """Write a checkpoint, one tensor at a time; the same tensors give the same bytes.

    Everything is written under temporary names first and takes its place only when it is complete: a crash, a full
    disk or Ctrl-C leaves the old checkpoint as it was. The directory may be the one that `tensors` are read from.

    Args:
        directory: where to; made when absent.
        tensors: what to write, in this order.
        dtype: "float32", "float16" or "bfloat16" for all floating tensors; None keeps each one's own.
        max_shard_size: largest file, in bytes or as "2GB"; more tensors go to further files, with an index.
        metadata: free text in the file's header.
        extra_files: further files of the same checkpoint, e.g. config.json, by name.
        show_progress: show a bar of bytes on a terminal.

    Returns:
        The weights files.

    Raises:
        CheckpointError: when the target cannot be written; it is as it was before.
    """
    directory = Path(directory)
    target = None if dtype is None else _dtype_name(dtype)
    infos = {name: TensorInfo(name, tensor.shape, target if target and tensor.dtype in FLOATS else tensor.dtype)
             for name, tensor in tensors.items()}
    shards = _split(infos, parse_size(max_shard_size))
    names = [f"{WEIGHTS}.safetensors"] if len(shards) == 1 else [
        f"{WEIGHTS}-{place:05d}-of-{len(shards):05d}.safetensors" for place in range(1, len(shards) + 1)]
    files: dict[str, Callable[[Any], None]] = {}
    bar = progress(None, "writing", total=sum(info.nbytes for info in infos.values()), unit="B") if show_progress else None
    for name, shard in zip(names, shards, strict=True):
        files[name] = partial(_write_safetensors, shard, tensors, {"format": "pt", **(metadata or {})}, bar)
    index = f"{WEIGHTS}.safetensors.index.json"
    if len(shards) > 1:
        files[index] = partial(_write_bytes, _index_text(names, shards).encode())
    files |= {name: partial(_write_bytes, data.encode() if isinstance(data, str) else data)
              for name, data in (extra_files or {}).items()}
    # A reader prefers the single file, then the index. So the old form of the weights is removed only when the new
    # one is complete, and at every moment a reader finds one of the two whole.
    stale = re.compile(rf"{WEIGHTS}(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
    try:
        _replace_all(directory, files)
    finally:
        if bar is not None:
            bar.close()
    for old in sorted(directory.iterdir(), key=lambda item: item.name != index):
        if stale.fullmatch(old.name) and old.name not in files:
            old.unlink()
    return [directory / name for name in names]


def write_files(directory: str | os.PathLike, files: Mapping[str, str | bytes]) -> None:
    """Write small files into a directory, all or none of them.

    Raises:
        CheckpointError: when the target cannot be written; it is as it was before.
    """
    _replace_all(Path(directory), {
        name: partial(_write_bytes, data.encode() if isinstance(data, str) else data) for name, data in files.items()})


def _replace_all(directory: Path, files: Mapping[str, Callable[[Any], None]]) -> None:
    """Write every file under a temporary name, then rename them all."""
    made = not directory.exists()
    temporary = {name: directory / f".{name}.{os.getpid()}.part" for name in files}
    done = False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, write in files.items():
            with temporary[name].open("wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
        for name, part in temporary.items():
            os.replace(part, directory / name)
        _sync_directory(directory)
        done = True
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(f"{directory} could not be written: {error.strerror or error}",
                              remedy="The disk is full. " * full + "What was there before is unchanged.") from error
    finally:
        if not done:
            for part in temporary.values():
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):
                    directory.rmdir()


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_bytes(data: bytes, stream: Any) -> None:
    stream.write(data)


def _write_safetensors(infos: list[TensorInfo], tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str], bar: Any,
                       stream: Any) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for info in infos:
        header[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [end, end + info.nbytes]}
        end += info.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for info in infos:
        numbers = _converted(tensors[info.name].read(), info.dtype)
        if numbers.shape != info.shape:
            raise CheckpointError(f"{info.name}: got shape {list(numbers.shape)}, expected {list(info.shape)}")
        stream.write(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data)
        if bar is not None:
            bar.update(info.nbytes)


def _converted(tensor: np.ndarray | RawTensor, dtype: str) -> np.ndarray:
    if isinstance(tensor, RawTensor):
        if tensor.dtype == dtype:
            return tensor.bits
        tensor = widen(tensor.bits)
    if dtype == "BF16":
        return narrow(tensor)
    return np.asarray(tensor, NUMPY_OF[dtype])


def _split(infos: Mapping[str, TensorInfo], limit: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for info in infos.values():
        if shards[-1] and size + info.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(info)
        size += info.nbytes
    return shards


def _index_text(names: list[str], shards: list[list[TensorInfo]]) -> str:
    places = {info.name: name for name, shard in zip(names, shards, strict=True) for info in shard}
    total = sum(info.nbytes for shard in shards for info in shard)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n"


def parse_size(size: int | str) -> int:
    """A number of bytes from e.g. 1000, "200MB" or "2GiB".

    Raises:
        CheckpointError: when it is none, or not positive.

    Example:
        >>> parse_size("2GB"), parse_size("1KiB")
        (2000000000, 1024)
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", str(size))
    try:
        count = int(float(match[1]) * units[match[2].upper()]) if match else 0
    except (KeyError, ValueError):
        count = 0
    if count <= 0:
        raise CheckpointError(f"max_shard_size: got {size!r}, expected a number of bytes, or e.g. '200MB' or '5GB'")
    return count


def _dtype_name(dtype: str) -> str:
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPE_NAMES)}")
    return DTYPE_NAMES[dtype]
