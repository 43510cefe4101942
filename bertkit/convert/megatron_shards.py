"""The files of a Megatron checkpoint: finding those of one iteration, putting their tensors together, and dividing them.

Megatron writes one file for each pair of a tensor-parallel rank and a pipeline stage. Ranks hold slices of the large
matrices and copies of everything else; stages hold some of the layers each, numbered from 0 (with virtual stages: several
such groups of layers). Which tensor is divided how is a `Layout`, a small table; names are of no concern here otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np

from bertkit.convert.original import Sample
from bertkit.convert.rules import numbers_of
from bertkit.core.errors import CheckpointError
from bertkit.core.files import pickle_reader
from bertkit.core.files.archive import Archive
from bertkit.core.files.byte_source import ByteSource, as_source
from bertkit.core.tensors import LazyTensor, RawTensor, from_bits, lazy, stored

TRACKER = "latest_checkpointed_iteration.txt"
RANK = re.compile(r"mp_rank_(\d{2,3})(?:_(\d{3}))?")
ITERATION = re.compile(r"release|iter_\d{7,}")
MODEL_FILES = ("model_optim_rng.pt", "model_rng.pt")
OTHER_FILES = {"distrib_optim.pt": "optimizer state", "optim.pt": "optimizer state"}
CHUNK = re.compile(r"model(0|[1-9]\d?)?")
WRAPPER = "module."
MODEL_ROOTS = ("language_model", "embedding", "encoder")
LARGEST_TREE = 1_000_000
LONGEST_NAME = 1000
PIECE = 1 << 22

BAGGAGE = {
    "optimizer": "optimizer state",
    "lr_scheduler": "state of the learning rate",
    "opt_param_scheduler": "state of the learning rate",
    "client_lr_scheduler": "state of the learning rate",
    "rng_state": "random state",
    "random_rng_state": "random state",
    "np_rng_state": "random state",
    "torch_rng_state": "random state",
    "cuda_rng_state": "random state",
    "rng_tracker_states": "random state",
    "rerun_state_machine": "state of the training loop",
    "tokens": "state of the training loop",
    "num_floating_point_operations_so_far": "state of the training loop",
}
"""What lies beside the model in a file, and why it is left out."""

READ = ("args", "checkpoint_version", "iteration", "total_iters")
SAME_IN_A_RUN = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels", "max_position_embeddings",
    "padded_vocab_size", "layernorm_epsilon", "norm_epsilon", "bias_gelu_fusion", "openai_gelu", "onnx_safe",
    "bert_binary_head", "seed", "model_parallel_size", "tensor_model_parallel_size", "pipeline_model_parallel_size",
)
"""Arguments that all files of one run agree on."""


# -- the table ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Slices:
    """How the tensor-parallel ranks divide a tensor.

    Args:
        axis: the axis that is divided.
        folds: number of equal parts that the axis consists of, each of which is divided by itself. A rank holds its slice
            of the first part, then its slice of the second, and so on.
    """

    axis: int = 0
    folds: int = 1


@dataclass(frozen=True)
class Layout:
    """How ranks and stages divide a model, by the names that its files use.

    Args:
        layers: what the names of the layers' tensors begin with, up to the number: "language_model.encoder.layers.".
        slices: by name template, how the ranks divide a tensor; of a tensor that is not here each rank has a copy.
        first: what the names of the tensors of the first stage begin with; all others are in the last stage.
        copies: by the name of a tensor that repeats another on the last stage, the name of that other.

    Example:
        >>> layout = Layout("layers.", {"layers.{i}.fc.weight": Slices(0)})
        >>> layout.slices_of("layers.3.fc.weight"), layout.slices_of("layers.3.norm.weight")
        (Slices(axis=0, folds=1), None)
    """

    layers: str
    slices: Mapping[str, Slices]
    first: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)

    def slices_of(self, name: str) -> Slices | None:
        """How the ranks divide a tensor; None where each has a copy of it."""
        name = self.copies.get(name, name)
        return next((slices for template, slices in self.slices.items() if numbers_of(template, name) is not None), None)

    def layer_of(self, name: str) -> tuple[int, str] | None:
        """The number of the layer that a tensor belongs to, and what follows it in the name; None outside the layers."""
        end = name.find(".", len(self.layers))
        numbers = numbers_of(f"{self.layers}{{i}}", name[:end]) if end > 0 else None
        return (numbers["i"], name[end + 1:]) if numbers else None


# -- finding ------------------------------------------------------------------------------------------------------------
@dataclass
class Shard:
    """The file of one rank and stage.

    Args:
        file: its name.
        chunks: tensors by name, of each of its virtual stages.
        args: the arguments of the run, by name; empty where the file has none.
        version: the version of its layout.
        iteration: the step of the training that it was written at, if it says so.
    """

    file: str
    chunks: list[dict[str, LazyTensor]]
    args: dict[str, Any]
    version: float
    iteration: int | None


@dataclass
class Shards:
    """All files of one iteration of a checkpoint.

    Args:
        path: the file or directory that was opened.
        iteration: "release", or the directory of the iteration; empty where there is none.
        ranks: file by (tensor-parallel rank, pipeline stage).
        left_out: reason by name of what is no weight.
        around: all files of the source, such as a vocabulary.
    """

    path: Path
    iteration: str
    ranks: dict[tuple[int, int], Shard]
    left_out: dict[str, str]
    around: Files

    @property
    def files(self) -> list[str]:
        """Names of the files."""
        return [shard.file for shard in self.ranks.values()]

    @property
    def tensor_parallel(self) -> int:
        """Number of tensor-parallel ranks."""
        return 1 + max(tensor for tensor, _ in self.ranks)

    @property
    def pipeline_parallel(self) -> int:
        """Number of pipeline stages."""
        return 1 + max(stage for _, stage in self.ranks)

    @property
    def virtual(self) -> int:
        """Number of virtual stages in each file."""
        return len(self.ranks[0, 0].chunks)

    @property
    def args(self) -> dict[str, Any]:
        """The arguments of the run, by name; empty where the files have none."""
        return self.ranks[0, 0].args

    @property
    def version(self) -> float:
        """The version of the layout: 0 where the files name none."""
        return self.ranks[0, 0].version

    @property
    def names(self) -> set[str]:
        """Every name that any file uses; layers are numbered by file."""
        return {name for shard in self.ranks.values() for chunk in shard.chunks for name in chunk}

    def __str__(self) -> str:
        sizes = [f"{self.tensor_parallel} x {self.pipeline_parallel} shards"] if len(self.ranks) > 1 else []
        sizes += [f"{self.virtual} virtual stages each"] if self.virtual > 1 else []
        return ", ".join([f"checkpoint version {self.version:g}", *sizes])


class Files:
    """The files of a sample: in a directory, in a zip archive, or the one that it is.

    Args:
        sample: what was given.

    Raises:
        CheckpointError: when the archive is damaged or hostile.
    """

    def __init__(self, sample: Sample) -> None:
        self.path, self._archive = sample.path, None if sample.is_directory else _archive(sample.path)
        self._folder = sample.path if sample.is_directory else sample.path.parent
        self.names = list(self._archive.members) if self._archive else sample.names
        self.is_one = not sample.is_directory and not self._archive

    def open(self, name: str) -> Path | ByteSource:
        """What reads the file: `pickle_reader.load` takes either."""
        return self._archive.open(name) if self._archive else self._folder / name

    def start_of(self, name: str, count: int) -> bytes:
        """The first bytes of a file, at most `count`."""
        source = as_source(self.open(name))
        return source.read(0, min(count, source.size)).tobytes()

    @property
    def models(self) -> list[str]:
        """Names of the files of ranks, of whatever iteration, as Megatron names them."""
        return [name for name in self.names if PurePosixPath(name).name in MODEL_FILES]


def _archive(path: Path) -> Archive | None:
    """The zip archive that a file is, unless it is one of torch.save."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return None
    archive = Archive(as_source(path))
    return None if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in archive.members) else archive


def find_shards(sample: Sample) -> Shards:
    """The files of a checkpoint, opened; of several iterations those of the one that the tracker file names.

    Args:
        sample: a directory (of the run, of an iteration, or of a rank), a zip archive of one, or a single file.

    Raises:
        CheckpointError: when there is none or more than one, when a rank is missing, when a file is damaged, or when the
            files are of different runs.
    """
    files = Files(sample)
    iteration, found = _of_one_iteration(files)
    left_out = {name: OTHER_FILES[base] for name in files.names if (base := PurePosixPath(name).name) in OTHER_FILES}
    ranks: dict[tuple[int, int], Shard] = {}
    for place, name in sorted(found.items()):
        ranks[place], baggage = _open_shard(name, pickle_reader.load(files.open(name)))
        left_out |= baggage
    shards = Shards(sample.path, iteration, ranks, left_out, files)
    _check_complete(shards)
    _check_one_run(shards)
    return shards


def _place_of(name: str) -> tuple[int, int] | None:
    """Tensor-parallel rank and pipeline stage of a file; None where it is none of Megatron's."""
    path = PurePosixPath(name)
    rank = RANK.fullmatch(path.parent.name)
    return (int(rank[1]), int(rank[2] or 0)) if rank else None


def _of_one_iteration(files: Files) -> tuple[str, dict[tuple[int, int], str]]:
    """Name of the iteration, and file by rank and stage."""
    by_folder: dict[str, dict[tuple[int, int], str]] = {}
    for name in files.models:
        folder, place = str(PurePosixPath(name).parent.parent), _place_of(name)
        if place is None:
            continue
        twin = by_folder.setdefault(folder, {}).setdefault(place, name)
        if twin != name:
            raise CheckpointError(f"{files.path} has two files of one rank", [twin, name])
    if not by_folder:
        return "", {(0, 0): _single_file(files)}
    chosen = tracked_folder(files) if len(by_folder) > 1 else next(iter(by_folder))
    if chosen not in by_folder:
        raise CheckpointError(
            f"{files.path} holds {len(by_folder)} checkpoints",
            [f"{folder}: {len(found)} file(s)" for folder, found in sorted(by_folder.items())],
            f"Give the directory of one of them, or a {TRACKER} that names one.")
    name = PurePosixPath(chosen).name
    return name if ITERATION.fullmatch(name) else "", by_folder[chosen]


def tracked_folder(files: Files) -> str:
    """The folder that the tracker file names; empty where there is no such file."""
    trackers = [name for name in files.names if PurePosixPath(name).name == TRACKER]
    if len(trackers) != 1:
        return ""
    word = files.start_of(trackers[0], 100).decode("ascii", "replace").strip()
    if word.isascii() and word.isdecimal():
        word = f"iter_{int(word):07d}"
    if ITERATION.fullmatch(word) is None:
        raise CheckpointError(f"{files.path}: {trackers[0]} says {word[:40]!r}", remedy="Expected a number, or `release`.")
    return str(PurePosixPath(trackers[0]).parent / word)


def _single_file(files: Files) -> str:
    """The only file that may hold a model; one of several ranks is refused."""
    candidates = files.names if files.is_one else files.models
    if len(candidates) != 1:
        raise CheckpointError(
            f"{files.path} holds no file of a Megatron rank", [f"holds: {name}" for name in files.names[:12]],
            "Expected is mp_rank_00/model_optim_rng.pt, in `release` or in a directory such as iter_0100000.")
    rank = files.path if not files.is_one else files.path.parent
    if RANK.fullmatch(rank.name):
        ranks = sorted(other.name for other in rank.parent.iterdir() if RANK.fullmatch(other.name)
                       and any((other / name).is_file() for name in MODEL_FILES))
        if len(ranks) > 1:
            raise CheckpointError(f"{files.path} is one of {len(ranks)} files of a model", [f"there: {', '.join(ranks[:64])}"],
                                  f"Give the directory that holds all of them: {rank.parent}")
    return candidates[0]


# -- one file -----------------------------------------------------------------------------------------------------------
def _open_shard(file: str, content: Any) -> tuple[Shard, dict[str, str]]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} is no Megatron checkpoint", [f"it holds a {type(content).__name__}"])
    if any(root in content for root in MODEL_ROOTS):
        content = {"model": content}
    keys = sorted((key for key in content if isinstance(key, str) and CHUNK.fullmatch(key)), key=lambda key: (len(key), key))
    if not keys or (len(keys) > 1 and keys != [f"model{number}" for number in range(len(keys))]):
        raise CheckpointError(f"{file} is no Megatron checkpoint", [f"holds: {key}" for key in list(content)[:12]],
                              "Expected is an entry `model`, or `model0`, `model1`, ... of virtual stages.")
    version, args = content.get("checkpoint_version", 0), arguments(content.get("args"))
    if isinstance(version, bool) or not isinstance(version, int | float) or version not in (0, 1, 2, 3):
        raise CheckpointError(f"{file}: checkpoint_version is {version!r:.40}", remedy="Expected is 0, 1, 2 or 3.")
    iteration = content.get("iteration", content.get("total_iters"))
    baggage, chunks = {}, []
    for key in content:
        if key not in (*keys, *READ):
            baggage[str(key)] = BAGGAGE.get(str(key), "not a part of the model")
    for key in keys:
        chunk, extra = flattened(file, content[key])
        chunks.append(chunk)
        baggage |= extra
    return Shard(file, chunks, args, float(version), iteration if isinstance(iteration, int) else None), baggage


def arguments(args: Any) -> dict[str, Any]:
    """The arguments of a run by name; those that are no plain values are left out.

    Example:
        >>> arguments(SimpleNamespace(hidden_size=64, params_dtype=object()))
        {'hidden_size': 64}
    """
    values = vars(args) if isinstance(args, SimpleNamespace) else args if isinstance(args, Mapping) else {}
    return {name: value for name, value in values.items()
            if isinstance(name, str) and (value is None or isinstance(value, bool | int | float | str))}


def flattened(file: str, tree: Any) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The tensors of nested dictionaries by their dotted names, without the wrappers of data-parallel training.

    Returns:
        The tensors, and reason by name of what is no weight.

    Raises:
        CheckpointError: when something else than a tensor is in the tree, when two tensors have one name, or when the tree
            is built to be endless.
    """
    tensors: dict[str, LazyTensor] = {}
    left_out: dict[str, str] = {}
    problems: list[str] = []
    waiting: list[tuple[str, Any]] = [("", tree)]
    budget = LARGEST_TREE
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            budget -= 1 + len(value)
            if budget < 0 or len(name) > LONGEST_NAME:
                raise CheckpointError(f"{file} is refused: its model has more than {LARGEST_TREE} entries, or no end")
            waiting += [(f"{name}.{key}" if name else str(key), value[key]) for key in reversed(value)]
            continue
        while name.startswith(WRAPPER):
            name = name[len(WRAPPER):]
        if name.endswith("_extra_state"):
            left_out[name] = "state of Transformer Engine"
        elif not isinstance(value, LazyTensor | np.ndarray):
            problems.append(f"{name}: got a {type(value).__name__}, expected a tensor")
        elif name in tensors:
            problems.append(f"{name}: is there twice")
        else:
            tensors[name] = lazy(value)
    if problems:
        raise CheckpointError(f"{file}: its model does not consist of tensors", problems[:40])
    return tensors, left_out


# -- all files ----------------------------------------------------------------------------------------------------------
def _check_complete(shards: Shards) -> None:
    args = shards.ranks[min(shards.ranks)].args
    tensor = max(shards.tensor_parallel, _size(args, "tensor_model_parallel_size"), _size(args, "model_parallel_size"))
    pipeline = max(shards.pipeline_parallel, _size(args, "pipeline_model_parallel_size"))
    lacking = [place for place in product(range(tensor), range(pipeline)) if place not in shards.ranks]
    if not lacking:
        return

    def listed(places: list[tuple[int, int]]) -> str:
        return ", ".join(directory_of(*place, pipeline) for place in places[:64])

    raise CheckpointError(
        f"{shards.path} is incomplete: {len(shards.ranks)} of {tensor * pipeline} files "
        f"({tensor} tensor-parallel ranks x {pipeline} pipeline stages)",
        [f"there: {listed(list(shards.ranks))}", f"not there: {listed(lacking)}"],
        "Give the directory that holds the files of all ranks.")


def _size(args: Mapping[str, Any], name: str) -> int:
    value = args.get(name)
    return value if isinstance(value, int) and 0 < value < 1000 else 1


def _check_one_run(shards: Shards) -> None:
    first = shards.ranks[0, 0]
    problems = []
    for shard in shards.ranks.values():
        if len(shard.chunks) != len(first.chunks):
            problems.append(f"virtual stages: {len(first.chunks)} in {first.file}, {len(shard.chunks)} in {shard.file}")
        for name, of in (("checkpoint_version", lambda one: one.version), ("iteration", lambda one: one.iteration)):
            if of(shard) != of(first):
                problems.append(f"{name}: {of(first)} in {first.file}, {of(shard)} in {shard.file}")
        problems += [f"{name}: {first.args.get(name)!r} in {first.file}, {shard.args.get(name)!r} in {shard.file}"
                     for name in SAME_IN_A_RUN if first.args.get(name) != shard.args.get(name)]
    if problems:
        raise CheckpointError(f"{shards.path} holds files of different runs", problems[:40],
                              "Give the files of all ranks of one and the same iteration.")


def directory_of(tensor: int, stage: int, pipeline_parallel: int) -> str:
    """The directory of a rank.

    Example:
        >>> directory_of(3, 0, 1), directory_of(3, 1, 2)
        ('mp_rank_03', 'mp_rank_03_001')
    """
    return f"mp_rank_{tensor:02d}" + (f"_{stage:03d}" if pipeline_parallel > 1 else "")


# -- merging ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Piece:
    """A tensor of one file."""

    file: str
    name: str
    tensor: LazyTensor


def merge(shards: Shards, layout: Layout) -> dict[str, LazyTensor]:
    """The tensors of the whole model, under the names of the files with the layers numbered through.

    Copies (on the ranks, and of the word embeddings on the last stage) must be equal bit for bit; that is checked when the
    tensor is read.

    Args:
        shards: the files.
        layout: how they divide the model.

    Raises:
        CheckpointError: when the files do not fit together; when a tensor is read whose copies differ.
    """
    problems: list[str] = []
    pieces = _gather(shards, layout, problems)
    merged = {}
    for name, by_rank in pieces.items():
        slices = layout.slices_of(name) if shards.tensor_parallel > 1 else None
        parts = list(by_rank.values()) if slices else [[piece for rank in by_rank.values() for piece in rank]]
        problem = _mismatch(name, parts, slices)
        if problem:
            problems.append(problem)
        else:
            merged[name] = _together(parts, slices)
    if problems:
        raise CheckpointError(f"{shards.path}: its files do not fit together", problems[:40],
                              "Give the files of all ranks of one and the same iteration.")
    return merged


def _gather(shards: Shards, layout: Layout, problems: list[str]) -> dict[str, dict[int, list[_Piece]]]:
    """By name in the whole model and rank, the tensors that are (slices or copies of) it."""
    pieces: dict[str, dict[int, list[_Piece]]] = {}
    before = 0
    # Layers run through the stages once for each virtual stage.
    for chunk, stage in product(range(shards.virtual), range(shards.pipeline_parallel)):
        group = {rank: shards.ranks[rank, stage] for rank in range(shards.tensor_parallel)}
        names = group[0].chunks[chunk]
        for shard in group.values():
            for name in sorted(names.keys() ^ shard.chunks[chunk].keys()):
                there, lacks = (shard, group[0]) if name not in names else (group[0], shard)
                problems.append(f"{name}: is in {there.file}, but not in {lacks.file}")
        for name in names:
            layer = layout.layer_of(name)
            whole = f"{layout.layers}{before + layer[0]}.{layer[1]}" if layer else layout.copies.get(name, name)
            for rank, shard in group.items():
                if name in shard.chunks[chunk]:
                    piece = _Piece(shard.file, name, shard.chunks[chunk][name])
                    pieces.setdefault(whole, {}).setdefault(rank, []).append(piece)
        before += 1 + max((layer[0] for name in names if (layer := layout.layer_of(name))), default=-1)
    return pieces


def _mismatch(name: str, parts: list[list[_Piece]], slices: Slices | None) -> str | None:
    """What is wrong with the shapes and dtypes of the pieces of a tensor."""
    first = parts[0][0]
    for piece in (piece for copies in parts for piece in copies):
        mine, other = piece.tensor, first.tensor
        if mine.dtype != other.dtype or mine.shape != other.shape:
            return (f"{name}: {other.dtype} {list(other.shape)} in {first.file}, "
                    f"{mine.dtype} {list(mine.shape)} in {piece.file}")
    shape = first.tensor.shape
    if slices and (len(shape) <= slices.axis or shape[slices.axis] % slices.folds):
        return f"{name}: {list(shape)} in {first.file} cannot be a slice of axis {slices.axis} in {slices.folds} part(s)"
    return None


def _together(parts: list[list[_Piece]], slices: Slices | None) -> LazyTensor:
    first = parts[0][0].tensor
    if len(parts) == 1 and len(parts[0]) == 1:
        return first
    shape = list(first.shape)
    if slices:
        shape[slices.axis] *= len(parts)
    return LazyTensor(tuple(shape), first.dtype, partial(_read, parts, slices, tuple(shape)))


def _read(parts: list[list[_Piece]], slices: Slices | None, shape: tuple[int, ...]) -> np.ndarray | RawTensor:
    if slices is None:
        values, dtype = _agreed(parts[0])
    else:
        first, dtype = _agreed(parts[0])
        values = np.empty(shape, first.dtype)
        for place, copies in enumerate(parts):
            part = first if place == 0 else _agreed(copies)[0]
            if place and _twice(first, part):
                raise CheckpointError(
                    f"{parts[0][0].file} and {copies[0].file} hold the same slice of {copies[0].name}",
                    ["one file is a copy of the other"],
                    "Give the files of all ranks of one and the same iteration.")
            _slice(values, slices, place, len(parts))[...] = _folded(part, slices)
    return from_bits(values, dtype)


def _twice(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two slices of a matrix are the same, which those of a trained or initialised one never are."""
    return one.ndim == 2 and one.size > 1 and bool(np.any(one[:1] != one[0, 0])) and _same_bits(one, other)


def _folded(values: np.ndarray, slices: Slices) -> np.ndarray:
    """The values with the folds of the divided axis as an axis of their own."""
    shape, axis = values.shape, slices.axis
    return values.reshape(*shape[:axis], slices.folds, shape[axis] // slices.folds, *shape[axis + 1:])


def _slice(values: np.ndarray, slices: Slices, place: int, count: int) -> np.ndarray:
    """A rank's part of a whole tensor, folded; a view."""
    folded = _folded(values, slices)
    size = folded.shape[slices.axis + 1] // count
    return folded[(slice(None),) * (slices.axis + 1) + (slice(place * size, (place + 1) * size),)]


def _agreed(copies: list[_Piece]) -> tuple[np.ndarray, str]:
    """The bits of the first copy, when all others are the same."""
    first = copies[0]
    values, dtype = stored(first.tensor())
    for piece in copies[1:]:
        if not _same_bits(values, stored(piece.tensor())[0]):
            raise CheckpointError(
                "copies of a tensor differ: the files are of different runs, or damaged",
                [f"{first.name} in {first.file}", f"{piece.name} in {piece.file}"],
                "Give the files of all ranks of one and the same iteration.")
    return values, dtype


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    # In pieces, so that the comparison takes no memory to speak of; as bits, so that NaN equals NaN.
    one, other = np.ascontiguousarray(one).reshape(-1).view(np.uint8), np.ascontiguousarray(other).reshape(-1).view(np.uint8)
    return all(np.array_equal(one[start:start + PIECE], other[start:start + PIECE]) for start in range(0, len(one), PIECE))


# -- dividing -----------------------------------------------------------------------------------------------------------
def split(
    tensors: Mapping[str, LazyTensor], layout: Layout, tensor_parallel: int = 1, pipeline_parallel: int = 1
) -> dict[tuple[int, int], dict[str, LazyTensor]]:
    """Divide a model among ranks and stages: the inverse of `merge`.

    Args:
        tensors: the whole model, under the names of the files.
        layout: how to divide it.
        tensor_parallel: number of ranks.
        pipeline_parallel: number of stages.

    Returns:
        By (rank, stage), the tensors of that file by name; layers are numbered from 0 in each.

    Raises:
        CheckpointError: when an axis or the layers cannot be divided into so many parts.
    """
    layers = 1 + max((layer[0] for name in tensors if (layer := layout.layer_of(name))), default=-1)
    problems = [f"{layers} layers cannot be divided into {pipeline_parallel} stages"] if layers % pipeline_parallel else []
    per_stage = max(layers // pipeline_parallel, 1)
    ranks: dict[tuple[int, int], dict[str, LazyTensor]] = {
        (rank, stage): {} for stage in range(pipeline_parallel) for rank in range(tensor_parallel)}
    for name, tensor in tensors.items():
        layer, slices = layout.layer_of(name), layout.slices_of(name) if tensor_parallel > 1 else None
        if slices and tensor.shape[slices.axis] % (slices.folds * tensor_parallel):
            problems.append(f"{name}: axis {slices.axis} of {list(tensor.shape)} cannot be divided into {slices.folds} x "
                            f"{tensor_parallel} parts")
        if problems:
            continue
        homes = _homes(name, layer, layout, per_stage, pipeline_parallel)
        for rank, (stage, local) in product(range(tensor_parallel), homes):
            ranks[rank, stage][local] = _part(tensor, slices, rank, tensor_parallel)
    if problems:
        raise CheckpointError("the model cannot be divided like that", problems[:40],
                              "Choose other numbers of ranks and stages.")
    return ranks


def _homes(
    name: str, layer: tuple[int, str] | None, layout: Layout, per_stage: int, stages: int
) -> list[tuple[int, str]]:
    """The stages that hold a tensor, and its name there."""
    if layer:
        stage, local = divmod(layer[0], per_stage)
        return [(stage, f"{layout.layers}{local}.{layer[1]}")]
    copies = [(stages - 1, copy) for copy, original in layout.copies.items() if original == name and stages > 1]
    return [(0 if name.startswith(layout.first) else stages - 1, name), *copies]


def _part(tensor: LazyTensor, slices: Slices | None, rank: int, count: int) -> LazyTensor:
    if slices is None:
        return tensor
    shape = list(tensor.shape)
    shape[slices.axis] //= count

    def read() -> np.ndarray | RawTensor:
        values, dtype = stored(tensor())
        part = np.ascontiguousarray(_slice(values, slices, rank, count)).reshape(shape)
        return from_bits(part, dtype)

    return LazyTensor(tuple(shape), tensor.dtype, read)
