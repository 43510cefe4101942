"""The conversion of a checkpoint: find out what the source is, plan everything, write it once, report what was done."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertkit.convert.ahead import ReadAhead
from bertkit.convert.formats import FORMATS, find_format
from bertkit.convert.original import Format, Options, Original, Sample
from bertkit.convert.rules import Change, Translation
from bertkit.convert.source import KERAS_FILE, Source, has_weights, locate, open_source, params_of, task_of
from bertkit.convert.warm_start import SOURCES, TARGETS, warm_start
from bertkit.core.atomic import staged_directory, start_flushing
from bertkit.core.checkpoint import Checkpoint, LazyTensor, write_checkpoint
from bertkit.core.config import CONFIG_NAME
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.initial import initial_value
from bertkit.core.loading import LoadPlan, plan_loading
from bertkit.core.progress import progress
from bertkit.core.spec import Param
from bertkit.core.surgery import check_changeable
from bertkit.core.tensors import FLOAT_DTYPES, converted, stored
from bertkit.core.variants import VARIANTS

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
EXPONENTS = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""The bits of a number that are all set where it is infinite or none."""

BLOCK = 1 << 20


@dataclass
class Report:
    """What a conversion did.

    Args:
        source, target: from where to where.
        format: what the source is, in words.
        architecture: the class that the result is of.
        files: the files that were written.
        tensors, parameters, bytes: size of the result.
        dtype: of its floating tensors.
        changes: lines `old -> new`, by what was done ("renamed", "split", "merged", "transposed", ...).
        left_out: reason by name of what has no place in the result.
        made: reason by name of tensors that the source lacks and that have a natural value.
        missing: tensors that the source lacks; a model that loads the result initialises them.
        notes: what else a user should know.
    """

    source: str
    target: str
    format: str
    architecture: str
    files: list[str] = field(default_factory=list)
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    dtype: str | None = None
    changes: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python objects."""
        return asdict(self)


def convert(
    source: str | os.PathLike, target: str | os.PathLike, *, source_type: str | None = None, to: str | None = None,
    dtype: str | None = None, max_shard_size: int | str = "5GB", overwrite: bool = False, allow_nonfinite: bool = False,
    show_progress: bool = False, **options: Any,
) -> Report:
    """Convert a checkpoint of any known format into one that bertkit loads, or one of bertkit's into a foreign format.

    Tensors are read, changed and written one at a time. The target takes its place when it is complete.

    Args:
        source: a file, a directory or a hub id.
        target: directory to write.
        source_type: what the source is, where that cannot be seen: a format (see `FORMATS`) or, for a directory with a
            config.json that does not say it, a model type such as "bert".
        to: what to make of it: a format ("megatron-lm", "fairseq", ...), or another variant of a BERT or RoBERTa
            ("ibert", "mobilebert", "yoso"). Default: a directory that both PyTorch and TensorFlow read.
        dtype: "float32", "float16" or "bfloat16"; default each tensor's own.
        max_shard_size: largest file of weights, in bytes or as "2GB".
        overwrite: allow a target that is not empty.
        allow_nonfinite: allow weights that are infinite or NaN.
        show_progress: show a bar on a terminal.
        **options: fields of `Options`; each format knows some of them.

    Raises:
        CheckpointError: when the source is of no known format or of two, is damaged or does not fit its configuration,
            holds unknown tensors or lacks some, or when the target cannot be written; the target is then as it was.
        ConfigError: when the configuration is impossible, or cannot be expressed by the target, or is a frozen model's.

    Example:
        >>> convert("megatron_bert_345m_v0_1_uncased.zip", "megatron-bert").architecture  # doctest: +SKIP
        'MegatronBertForPreTraining'
    """
    writer = FORMATS.get(to or "")
    asked = _options(options)
    directory = Path(target)
    check_target(directory, writer, overwrite)
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise ConfigError(f"dtype: got {dtype!r}, expected one of {', '.join(FLOAT_DTYPES)}")
    original = read_original(source, asked, source_type=source_type, to=to)
    variant, config = original.variant, original.config
    check_changeable(config)
    tensors = Checkpoint(original.path, [], original.format, original.translation.tensors, {})
    suffix = task_of(variant, config, tensors, asked.task or original.task)
    params = params_of(variant, suffix, config, tensors)
    plan = plan_loading(tensors, params, variant, config)
    chosen, added = _tensors_to_write(tensors, plan, params, config)
    lost = [name for name in plan.missing if name not in added]
    if lost and asked.task is None:
        raise CheckpointError(f"{original.path} lacks tensors of {variant.name}{suffix}", lost,
                              "Choose another class with --task, or name this one there to have them initialised on loading.")
    if not allow_nonfinite:
        chosen = _only_finite(original.path, chosen)
    if dtype is not None:
        chosen = {name: converted(name, tensor, FLOAT_DTYPES[dtype]) for name, tensor in chosen.items()}
    config.architectures = [variant.name + suffix]
    config.torch_dtype = dtype or _main_dtype(chosen)
    notes, changes = [*original.notes, *plan.conflicts], _changes(original.translation, plan)
    made = {**original.made, **dict.fromkeys(added, "the source has none: its initial value")}
    if writer is None:
        if not original.tokenizer_files:
            notes.append("the source has no tokenizer files: none were copied")
        extra: dict[str, str | bytes] = {**original.tokenizer_files, CONFIG_NAME: config.to_json_string()}
        with ReadAhead(chosen) as ahead:
            weights = write_checkpoint(directory, ahead.tensors, max_shard_size=max_shard_size, extra_files=extra,
                                       show_progress=show_progress)
        written = [*weights, *(directory / name for name in sorted(extra))]
    else:
        ready = replace(original, translation=Translation(chosen), task=suffix, notes=[])
        written = _write_foreign(directory, writer, ready, asked, show_progress)
        notes += ready.notes
        changes += ready.translation.changes
    return Report(
        str(source), str(directory), original.format, variant.name + suffix,
        [file.relative_to(directory).as_posix() for file in written], len(chosen),
        sum(math.prod(chosen[name].shape) for name in chosen if params[name].kind != "stat"),
        sum(file.stat().st_size for file in written), config.torch_dtype, _lines(changes),
        {**original.translation.left_out, **_not_taken(tensors, plan, variant.name + suffix)},
        {name: reason for name, reason in made.items() if name in chosen}, lost, notes)


# -- reading ------------------------------------------------------------------------------------------------------------
def read_original(
    source: str | os.PathLike, options: Options, *, source_type: str | None = None, to: str | None = None
) -> Original:
    """See a checkpoint of any origin as one of bertkit's variants.

    Args:
        source, source_type, to: as for `convert`.
        options: what the user asks for.
    """
    if to is not None and to not in {**FORMATS, **TARGETS}:
        raise ConfigError(f"to: got {to!r}", [f"formats: {', '.join(name for name, f in FORMATS.items() if f.write)}",
                                              f"variants: {', '.join(TARGETS)}"])
    writer = FORMATS.get(to or "")
    written = writer.writing if writer else ()
    path = locate(source)
    model_type = source_type if source_type not in FORMATS else None
    if to in TARGETS and (start := _open_start(path, str(to), model_type)) is not None:
        _check_options(options, "a directory of transformers", ("task", "config"))
        return warm_start(start, str(to), options)
    format = find_format(path, source_type)
    if format is None:
        open_source(path)  # says what it is instead
        raise ConfigError(f"{path} is of no model that can be converted",
                          remedy=f"Of a BERT or RoBERTa --to makes one: {', '.join(TARGETS)}.")
    _check_options(options, format.title, (*format.reading, *written))
    opened = format.open(Sample(path))
    if model_type is not None:
        opened.settings["model_type"] = model_type
    original = format.read(opened, options)
    if writer is not None and original.config.model_type not in writer.model_types:
        others = [name for name, other in FORMATS.items() if other.write and original.config.model_type in other.model_types]
        raise ConfigError(f"{writer.title} holds {', '.join(writer.model_types)}, not {original.config.model_type}",
                          remedy=f"Formats that hold it: {', '.join(others)}.")
    if to in TARGETS and to != original.config.model_type:
        raise ConfigError(f"{original.path} is a {original.config.model_type}, of which no {to} can be made",
                          [f"from: {', '.join(SOURCES)}"])
    return original


def _open_start(path: Path, to: str, model_type: str | None) -> Source | None:
    """A directory of transformers whose model is another one than `to`; None for everything else."""
    if not has_weights(path) and not (path / KERAS_FILE).is_file():
        return None
    opened = open_source(path, source_type=model_type)
    return None if opened.settings.get("model_type") in (to, *VARIANTS) else opened


def _options(given: Mapping[str, Any]) -> Options:
    try:
        return Options(**given)
    except TypeError as error:
        raise ConfigError(f"convert: {str(error).rpartition('() ')[2]}",
                          remedy=f"Formats know these: {', '.join(Options.names())}.") from None


def _check_options(options: Options, what: str, known: Iterable[str]) -> None:
    strange = [f"{name}: means nothing here" for name in options.asked if name not in known]
    if strange:
        raise ConfigError(f"the source is {what}", strange, f"Here one can ask for: {', '.join(dict.fromkeys(known))}.")


# -- writing ------------------------------------------------------------------------------------------------------------
def check_target(directory: Path, writer: Format | None, overwrite: bool) -> None:
    """Refuse to write where something else is.

    Args:
        directory: the target.
        writer: the foreign format that is written, which replaces the directory as a whole; None for our own files.
        overwrite: whether the target may hold something.

    Raises:
        CheckpointError: when it is a file, or holds what must not be lost.
    """
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file", remedy="Name a directory to write.")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{directory} is not empty", remedy="Choose another target, or pass --overwrite.")
    if writer is not None and not writer.recognise(Sample(directory)):
        # A foreign checkpoint is a tree of files that is replaced as a whole: not one that holds something else.
        raise CheckpointError(f"{directory} holds something else than a checkpoint of {writer.title}",
                              remedy="Choose another target.")


def _write_foreign(
    directory: Path, writer: Format, original: Original, options: Options, show_progress: bool
) -> list[Path]:
    if writer.write is None:
        raise ConfigError(f"{writer.title} is read, not written")
    files = writer.write(original, options)
    total = sum(tensor.size for tensor in original.translation.tensors.values())
    bar = progress(None, f"writing {directory.name}", total=total, unit="B") if show_progress else None
    try:
        with staged_directory(directory) as made:
            for name, content in files.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                with open(made / name, "xb") as file:
                    if isinstance(content, bytes):
                        file.write(content)
                    else:
                        content(file, partial(_written, file, bar))
    finally:
        if bar is not None:
            bar.close()
    return [directory / name for name in files]


def _written(file: BinaryIO, bar: Any, count: int) -> None:
    start_flushing(file, max(file.tell() - count, 0), count)
    if bar is not None:
        bar.update(count)


def _tensors_to_write(
    tensors: Checkpoint, plan: LoadPlan, params: Mapping[str, Param], config: Any
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Every tensor of the result in the order of the spec; and those of them that the source lacks."""
    random = np.random.default_rng(0)
    made = {
        name: LazyTensor(param.shape, "F32", partial(initial_value, param, config, random))
        for name, param in params.items()
        if param.stored and name not in plan.sources and (param.kind == "stat" or 0 in param.shape)
    }
    return {name: made[name] if name in made else tensors.lazy(plan.sources[name])
            for name in params if name in made or name in plan.sources}, made


def _only_finite(path: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors, which refuse to be read when a number in them is infinite or none."""

    def read(name: str) -> Any:
        value = tensors[name]()
        if _strange(value):
            problems = [f"{other}: {count} of {math.prod(tensor.shape):,}"
                        for other, tensor in tensors.items() if (count := _strange(tensor()))]
            raise CheckpointError(f"{path} holds numbers that are infinite or NaN", problems,
                                  "The training went wrong, or the file is damaged. --allow-nonfinite takes them all the same.")
        return value

    return {name: replace(tensor, read=partial(read, name)) if tensor.dtype in EXPONENTS else tensor
            for name, tensor in tensors.items()}


def _strange(value: Any) -> int:
    """How many numbers of a tensor are infinite or NaN."""
    bits, dtype = stored(value)
    if dtype not in EXPONENTS:
        return 0
    bits = np.ascontiguousarray(bits).reshape(-1)
    bits = bits.view(f"u{bits.itemsize}")
    mask = bits.dtype.type(EXPONENTS[dtype])
    return sum(int(np.count_nonzero((bits[start:start + BLOCK] & mask) == mask)) for start in range(0, len(bits), BLOCK))


# -- the report -----------------------------------------------------------------------------------------------------------
def _changes(translation: Translation, plan: LoadPlan) -> list[Change]:
    """What was done, with the names that the tensors got in the end."""
    final = {name: new for new, name in plan.sources.items()}
    changed = {name for change in translation.changes for name in change.new}
    changes = [Change(change.operation, change.old, tuple(final.get(name, name) for name in change.new))
               for change in translation.changes if any(name in final for name in change.new)]
    return changes + [Change("renamed", (name,), (new,))
                      for name, new in final.items() if name != new and name not in changed]


def _lines(changes: Iterable[Change]) -> dict[str, list[str]]:
    """By operation, a line for each change."""
    lines: dict[str, list[str]] = {}
    for change in changes:
        lines.setdefault(change.operation, []).append(f"{' + '.join(change.old)} -> {' + '.join(change.new)}")
    return lines


def _not_taken(tensors: Checkpoint, plan: LoadPlan, class_name: str) -> dict[str, str]:
    """Tensors that the class does not take: other heads, tied copies, derived tensors, empty buffers."""
    taken = set(plan.sources.values())
    return {name: f"not a tensor of {class_name}, or a copy" for name in tensors.names() if name not in taken}


def _main_dtype(tensors: Mapping[str, LazyTensor]) -> str | None:
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]))
