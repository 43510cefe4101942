"""Checkpoint directories: safetensors and PyTorch files read tensor by tensor, and safetensors written in one step."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertkit.core.atomic import StagedFiles, is_plain_name, start_flushing, write_files
from bertkit.core.errors import CheckpointError
from bertkit.core.files import pickle_reader
from bertkit.core.files.byte_source import ByteSource, as_source
from bertkit.core.files.crc32c import crc32c
from bertkit.core.hub import TOKENIZER_ALONE
from bertkit.core.progress import progress
from bertkit.core.tensors import FLOAT_DTYPES, STORED_AS, LazyTensor, RawTensor, converted, from_bits, lazy, stored, widen

__all__ = [
    "Checkpoint", "LazyTensor", "RawTensor", "TensorInfo", "open_checkpoint", "parse_size", "write_checkpoint", "write_files",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHECKSUM = "crc32c"
"""Key of a safetensors file's metadata: the CRC-32C of all bytes behind its header, as eight hexadecimal digits."""
SHARD = re.compile(r"model(\.r\d+)?-\d{5}-of-\d{5}\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FOREIGN = {
    ".h5": "Keras (HDF5)",
    ".keras": "Keras",
    ".pt": "PyTorch, of another program",
    ".pth": "PyTorch, of another program",
    ".ckpt": "TensorFlow or PyTorch Lightning",
    ".index": "TensorFlow",
    ".meta": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".tflite": "TensorFlow Lite",
    ".zip": "an archive, such as NVIDIA's",
    ".nemo": "NVIDIA NeMo",
}
LARGEST_HEADER = 100_000_000
SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says about a tensor without reading it; `dtype` in the spelling of safetensors, such as "F32"."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the values in a file."""
        return math.prod(self.shape) * STORED_AS[self.dtype].itemsize


class Checkpoint:
    """The tensors of a checkpoint by the names that they have there, each read when it is asked for.

    The files are mapped into memory. Arrays stay valid after the checkpoint is closed, and when its files are replaced.

    Args:
        path: the directory or file that was opened.
        files: the files with weights.
        format: "safetensors" or "pytorch_model.bin".
        tensors: the tensors by name.
        metadata: free text that a safetensors file carries.
        checks: for each file what compares its checksum, and gives what is wrong, if anything.

    Example:
        >>> with open_checkpoint("dir") as checkpoint:  # doctest: +SKIP
        ...     checkpoint.read("classifier.weight")
    """

    def __init__(
        self, path: Path, files: list[Path], format: str, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str],
        checks: Iterable[Callable[[], str]] = (),
    ) -> None:
        self.path, self.files, self.format, self.metadata = path, files, format, dict(metadata)
        self._tensors, self._checks = dict(tensors), tuple(checks)

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor."""
        tensor = self.lazy(name)
        return TensorInfo(name, tensor.shape, tensor.dtype)

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor; bfloat16 is widened to float32, exactly."""
        return widen(self.lazy(name)())

    def read_raw(self, name: str) -> tuple[np.ndarray, str]:
        """The values of a tensor as the file holds them, and their dtype; bfloat16 as its bits, in uint16."""
        return stored(self.lazy(name)())

    def lazy(self, name: str) -> LazyTensor:
        """A tensor that is read when it is called: what `write_checkpoint` takes.

        Raises:
            CheckpointError: when there is none of that name.
        """
        if name not in self._tensors:
            similar = [f"there is {other}" for other in get_close_matches(name, self._tensors)]
            raise CheckpointError(f"{self.path} has no tensor {name!r}", similar)
        return self._tensors[name]

    def verify(self) -> None:
        """Compare the checksum of each file with its bytes, where no wrong number may pass.

        Raises:
            CheckpointError: when they differ, or when a file has no checksum.
        """
        problems = [problem for check in self._checks if (problem := check())]
        if problems:
            raise CheckpointError(f"{self.path} cannot be trusted", problems,
                                  "Fetch it again, or write it with save_pretrained.")

    def close(self) -> None:
        """Forget the files; arrays that were read stay valid."""
        self._tensors, self._checks = {}, ()

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- reading ------------------------------------------------------------------------------------------------------------
def open_checkpoint(path: str | os.PathLike[str], *, variant: str | None = None) -> Checkpoint:
    """Open the weights of a directory, or a single file of weights.

    Of a directory, the first of these is taken: `model.safetensors`, the shards of `model.safetensors.index.json`,
    `pytorch_model.bin`, the shards of `pytorch_model.bin.index.json`.

    Args:
        path: a directory, or a file: .safetensors, .index.json, .bin, .pt, .pth.
        variant: take e.g. `model.fp16.safetensors` for "fp16".

    Raises:
        CheckpointError: when there are no weights, or when they are damaged, incomplete or hostile.
    """
    path = Path(path)
    try:
        if path.is_dir():
            candidates = weight_names(variant)
            found = next((path / name for name in candidates if (path / name).is_file()), None)
            if found is None:
                raise _no_weights(path, candidates)
            return _open_file(path, found)
        if not path.exists():
            raise CheckpointError(f"there is no {path}", remedy="Give a directory with weights, or a file of weights.")
        return _open_file(path, path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def weight_names(variant: str | None = None) -> list[str]:
    """Names of the files that a directory's weights are found by, the preferred one first."""
    mark = f".{variant}" if variant else ""
    return [
        f"model{mark}.safetensors",
        f"model.safetensors.index{mark}.json",
        f"pytorch_model{mark}.bin",
        f"pytorch_model.bin.index{mark}.json",
    ]


def _open_file(path: Path, file: Path) -> Checkpoint:
    if file.suffix == ".json":
        return _open_shards(path, file)
    content = _read_file(file)
    return Checkpoint(path, [file], _format_of(file), content.tensors, content.metadata, [content.check])


def _format_of(file: Path) -> str:
    return "safetensors" if file.suffix == ".safetensors" else "pytorch_model.bin"


@dataclass(frozen=True)
class _Content:
    """What a file holds, and what compares its checksum."""

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]
    check: Callable[[], str]


def _read_file(file: Path) -> _Content:
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in PICKLES:
        return _Content(_read_pickle(file), {}, lambda: f"{file.name}: has no checksum")
    kind = FOREIGN.get(file.suffix)
    raise CheckpointError(
        f"{file} is no file of weights that can be opened",
        [f"{file.suffix}: {kind}"] if kind else [],
        f"Expected .safetensors, .index.json, {', '.join(PICKLES)}; `bertkit convert` reads some other formats.",
    )


def _open_shards(path: Path, index: Path) -> Checkpoint:
    places = _read_index(index)
    names = list(dict.fromkeys(places.values()))
    outside = [f"refused: {name!r} is no plain file name" for name in names if not is_plain_name(name)]
    missing = [f"missing: {name}" for name in names if is_plain_name(name) and not (index.parent / name).is_file()]
    if outside or missing:
        remedy = "Fetch the missing files into the same directory." if missing else "The index is hostile or damaged."
        raise CheckpointError(f"{index} names files that cannot be used", [*outside, *missing], remedy)
    tensors: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    lost, checks = [], []
    for name in names:
        content = _read_file(index.parent / name)
        held = content.tensors
        lost += [f"missing in {name}: {tensor}" for tensor, place in places.items() if place == name and tensor not in held]
        tensors |= {tensor: value for tensor, value in held.items() if places.get(tensor, name) == name}
        metadata |= content.metadata
        checks.append(content.check)
    if lost:
        raise CheckpointError(f"{index} names tensors that its files lack", lost, "Files of different checkpoints are mixed.")
    files = [index.parent / name for name in names]
    return Checkpoint(path, files, _format_of(files[0]), tensors, metadata, checks)


def _read_index(index: Path) -> dict[str, str]:
    content = _parse_json(index, index.read_bytes(), "file")
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f"{index} is no index", ["weight_map: expected an object with a file name for each tensor"])
    return places


def _read_pickle(file: Path) -> dict[str, LazyTensor]:
    content = pickle_reader.load(file)
    tensors = _tensors_of(content)
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if not tensors and isinstance(content, dict):
            tensors = _tensors_of(content.get(wrapper))
    if not tensors:
        keys = [f"holds: {key!r}" for key in list(content)[:20]] if isinstance(content, dict) else []
        raise CheckpointError(
            f"{file} holds no tensors by name", keys or [f"holds: {type(content).__name__}"],
            "Expected a state_dict; other programs' checkpoints are read by `bertkit convert`.",
        )
    return tensors


def _tensors_of(content: Any) -> dict[str, LazyTensor]:
    if not isinstance(content, dict):
        return {}
    return {
        name: lazy(value)
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, (LazyTensor, np.ndarray))
    }


def _no_weights(path: Path, candidates: list[str]) -> CheckpointError:
    names = sorted(item.name for item in path.iterdir())
    foreign = [f"foreign: {name} ({FOREIGN[Path(name).suffix]})" for name in names if Path(name).suffix in FOREIGN]
    others = [name for name in names if re.fullmatch(r"model\.\w+\.safetensors|pytorch_model\.\w+\.bin", name)]
    remedy = "Foreign formats are read by `bertkit convert`." if foreign else "Is it the right directory, and complete?"
    if others:
        remedy = f"Give variant={others[0].split('.')[1]!r} for {others[0]}."
    return CheckpointError(
        f"{path} holds no weights",
        [f"looked for: {', '.join(candidates)}", f"found: {', '.join(names[:20]) or 'nothing'}", *foreign],
        remedy,
    )


def _read_safetensors(file: Path) -> _Content:
    source = as_source(file)
    total = source.size
    start = source.read(0, min(512, total)).tobytes()
    length = int.from_bytes(start[:8], "little")
    if total < 8 or length > min(total - 8, LARGEST_HEADER):
        cause = f"the header claims {length} bytes, the file has {total}" if total >= 8 else f"it has {total} bytes"
        problems = [cause, pickle_reader.what_starts_with(start)]
        raise CheckpointError(f"{file} is no safetensors file, or cut off", problems, "Fetch it again.")
    header = _parse_json(file, source.read(8, 8 + length).tobytes(), "header")
    metadata = header.pop("__metadata__", {})
    problems = _problems_of_header(header, metadata, total - 8 - length)
    if problems:
        raise CheckpointError(f"{file} is damaged or hostile: its header is wrong", problems, "Fetch it again.")
    begin = 8 + length
    checksum = metadata.pop(CHECKSUM, None)
    tensors = {name: _stored_tensor(source, begin, entry) for name, entry in header.items()}
    return _Content(tensors, metadata, lambda: _wrong_checksum(file.name, source, begin, checksum))


def _wrong_checksum(name: str, source: ByteSource, begin: int, expected: str | None) -> str:
    if expected is None:
        return f"{name}: has no checksum"
    found = f"{crc32c(source.read(begin, source.size)):08x}"
    return "" if found == expected else f"{name} is damaged: its checksum is {found}, expected {expected}"


def _stored_tensor(source: ByteSource, start: int, entry: Mapping[str, Any]) -> LazyTensor:
    dtype, shape = entry["dtype"], entry["shape"]
    begin, end = (start + offset for offset in entry["data_offsets"])

    def read() -> np.ndarray | RawTensor:
        values = source.read(begin, end)
        if begin % STORED_AS[dtype].itemsize:  # other writers need not align a tensor to the size of its numbers
            values = values.copy()
        values = values.view(STORED_AS[dtype]).reshape(shape)
        return from_bits(values, dtype)

    return LazyTensor(tuple(shape), dtype, read, begin)


def _problems_of_header(header: Mapping[str, Any], metadata: Any, data_size: int) -> list[str]:
    problems = []
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        problems.append("__metadata__: expected an object of strings")
    for name, entry in header.items():
        problem = _problem_of_entry(entry, data_size)
        if problem:
            problems.append(f"{name}: {problem}")
    if problems:
        return problems
    # Tensors lie one after the other: no byte belongs to two of them, or to none.
    end = 0
    for name, (begin, next_end) in sorted(((n, e["data_offsets"]) for n, e in header.items()), key=lambda item: item[1]):
        if begin != end:
            problems.append(f"{name}: begins at byte {begin}, expected {end} ({'overlap' if begin < end else 'hole'})")
        end = max(end, next_end)
    if end != data_size:
        problems.append(f"the tensors end at byte {end}, the file at {data_size}")
    return problems


def _problem_of_entry(entry: Any, data_size: int) -> str:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        return "expected an object with dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in STORED_AS:
        return f"dtype {dtype!r}, expected one of {', '.join(STORED_AS)}"
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            return f"{what} {numbers!r:.80}, expected a list of integers >= 0"
    if len(shape) > 32:
        return f"{len(shape)} dimensions, expected at most 32"
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_size:
        return f"data_offsets {offsets}, expected begin <= end <= {data_size} (is the file cut off?)"
    size = math.prod(shape) * STORED_AS[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        return f"{offsets[1] - offsets[0]} bytes for {dtype} {shape}, expected {size}"
    return ""


def _parse_json(file: Path, content: bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        if twice:
            raise ValueError(f"these names appear more than once: {', '.join(twice[:10])}")
        return dict(pairs)

    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: its {what} is no valid JSON", [str(error)], "Fetch it again.") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{file} is damaged: its {what} is a JSON {type(parsed).__name__}, expected an object")
    return parsed


# -- writing ------------------------------------------------------------------------------------------------------------
def write_checkpoint(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | RawTensor | LazyTensor],
    *,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
    checksum: bool = False,
    extra_files: Mapping[str, str | bytes] | None = None,
    show_progress: bool = False,
) -> list[Path]:
    """Write tensors as safetensors, one at a time, and replace what the directory held in one step.

    The same tensors give the same bytes, in whatever order they come. The directory may be the one that they are
    being read from. Whatever fails on the way, the old checkpoint stays as it was.

    Args:
        directory: where to; made when absent.
        tensors: the tensors by name.
        dtype: "float32", "float16" or "bfloat16" for all floating tensors; None keeps each one's own.
        max_shard_size: largest file, in bytes or as "2GB"; more tensors go to further files, with an index.
        metadata: free text for the header, beside `{"format": "pt"}`.
        checksum: whether each file carries one, for `Checkpoint.verify`.
        extra_files: further files of the same checkpoint, such as config.json, by name. With a tokenizer among them, the
            files of the one before go: they would be read together with the new ones.
        show_progress: show a bar of bytes on a terminal.

    Returns:
        The files with weights.

    Raises:
        CheckpointError: when the target cannot be written, or when a tensor cannot be stored.

    Example:
        >>> write_checkpoint("dir", {"weight": np.zeros((2, 2), np.float32)})  # doctest: +SKIP
        [PosixPath('dir/model.safetensors')]
    """
    directory = Path(directory)
    extra_files = dict(extra_files or {})
    for name in extra_files:
        if name in (SINGLE, INDEX) or SHARD.fullmatch(name):
            raise CheckpointError(f"extra_files: {name} is the name of a file of weights")
    ready = _ready(tensors, dtype)
    shards = _split(ready, parse_size(max_shard_size))
    held = sorted(item.name for item in directory.iterdir()) if directory.is_dir() else []
    names = [SINGLE] if len(shards) == 1 else _shard_names(len(shards), held)
    described = {"format": "pt", **(metadata or {})}

    # A reader takes model.safetensors before the index, and the files that the index names. So there is one rename
    # that makes the new weights count, and both checkpoints are whole on its two sides:
    #   to one file:                 that file's own; the index and shards of before are retired after it;
    #   from one file to shards:     that of retiring the file, for the index that is already there counts from then on;
    #   from shards to shards:       the index's. The new shards have names that are not in use, hence even a reader that
    #                                still follows the old index never mixes the two.
    # Everything else moves before or after it without a reader noticing; only the small files (config.json) are new a
    # moment before the weights are.
    total = sum(tensor.size for tensor in ready.values())
    bar = progress(None, f"writing {directory.name}", total=total, unit="B") if show_progress else None
    try:
        with StagedFiles(directory) as files:
            for name, content in extra_files.items():
                files.write(name, content)
            for name, shard in zip(names, shards, strict=True):
                with files.open(name) as file:
                    write_safetensors(file, shard, described, bar.update if bar is not None else lambda count: None,
                                      checksum=checksum)
            if len(shards) > 1:
                files.write(INDEX, _index_of(names, shards, total))
            old = [name for name in held if SHARD.fullmatch(name) and name not in names]
            if not extra_files.keys().isdisjoint(TOKENIZER_ALONE):
                old += [name for name in held if name in TOKENIZER_ALONE and name not in extra_files]
            files.commit(retire=[SINGLE, *old] if len(shards) > 1 else [INDEX, *old])
    finally:
        if bar is not None:
            bar.close()
    return [directory / name for name in names]


def parse_size(size: int | str) -> int:
    """A number of bytes from e.g. 1000, "200MB" or "2GiB".

    Raises:
        CheckpointError: when it is none, or not positive.

    Example:
        >>> parse_size("2GB"), parse_size("1KiB")
        (2000000000, 1024)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    count = int(float(match[1]) * SIZES.get(match[2].upper(), 0)) if match else 0
    if count <= 0:
        raise CheckpointError(f"max_shard_size: got {size!r}, expected a number of bytes, or e.g. '200MB' or '5GB'")
    return count


def _ready(tensors: Mapping[str, np.ndarray | RawTensor | LazyTensor], dtype: str | None) -> dict[str, LazyTensor]:
    """The tensors as they will be stored, in the order of a safetensors file: wide numbers first, then by name."""
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"dtype: got {dtype!r}, expected one of {', '.join(FLOAT_DTYPES)}")
    ready = {}
    for name in sorted(tensors):
        try:
            tensor = lazy(tensors[name])
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error.headline}", error.problems, error.remedy) from error
        ready[name] = converted(name, tensor, FLOAT_DTYPES[dtype]) if dtype else tensor
    return ready


def _split(tensors: Mapping[str, LazyTensor], limit: int) -> list[dict[str, LazyTensor]]:
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.size > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.size
    return shards


def _shard_names(count: int, held: Iterable[str]) -> list[str]:
    """The usual names, or if one of them is in use those of another revision."""
    in_use, revision = set(held), 1
    while True:
        stem = f"model.r{revision}" if revision > 1 else "model"
        names = [f"{stem}-{place:05d}-of-{count:05d}.safetensors" for place in range(1, count + 1)]
        if not in_use & set(names):
            return names
        revision += 1


def _index_of(names: list[str], shards: list[dict[str, LazyTensor]], total: int) -> str:
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    content = {"metadata": {"total_size": total}, "weight_map": places}
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str],
    wrote: Callable[[int], Any] = lambda count: None, *, checksum: bool = False,
) -> None:
    """Write the bytes that the safetensors library writes for the same tensors, without holding all of them.

    Args:
        file: a new file, opened for binary writing.
        tensors: the tensors by name.
        metadata: free text for the header; transformers wants `{"format": "pt"}`.
        wrote: is told of each tensor's bytes when they are written.
        checksum: whether the header gets the CRC-32C of what follows it.
    """
    widest_first = list(STORED_AS)[::-1]
    order = sorted(tensors, key=lambda name: (widest_first.index(tensors[name].dtype), name))
    places: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        places[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    found = 0
    start = file.write(_header(metadata, places, found if checksum else None))
    # Values go to their places in the order in which they lie in their source, which may be compressed; a checksum wants
    # them in the order of the file.
    for name in order if checksum else sorted(order, key=lambda name: tensors[name].position):
        begin = start + places[name]["data_offsets"][0]
        file.seek(begin)
        found = _write_values(file, name, tensors[name], found if checksum else None)
        start_flushing(file, begin, tensors[name].size)
        wrote(tensors[name].size)
    if checksum:
        file.seek(0)
        file.write(_header(metadata, places, found))


def _header(metadata: Mapping[str, str], places: Mapping[str, Any], checksum: int | None) -> bytes:
    """The first bytes of a safetensors file; of one length, whatever the checksum."""
    described = dict(metadata) if checksum is None else {**metadata, CHECKSUM: f"{checksum:08x}"}
    header = {"__metadata__": {key: described[key] for key in sorted(described)}, **places}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_values(file: BinaryIO, name: str, tensor: LazyTensor, before: int | None) -> int:
    """Write a tensor; with the checksum of what lies before it, give the one that includes it."""
    # A function of its own, so that a tensor is gone before the next one is read.
    bits, dtype = stored(tensor())
    if (bits.shape, dtype) != (tensor.shape, tensor.dtype):
        raise CheckpointError(f"{name}: got {dtype} {list(bits.shape)}, expected {tensor.dtype} {list(tensor.shape)}")
    content = np.ascontiguousarray(bits).reshape(-1).view(np.uint8)
    file.write(content.data)
    return 0 if before is None else crc32c(content, before)
