"""The conversion of a checkpoint directory into another: plan everything, write it once, report what was done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.convert.old_rules import RenamedCheckpoint
from bertkit.convert.source import Source, open_source, params_of, task_of, unknown_tensors
from bertkit.convert.warm_start import SOURCES, warm_start
from bertkit.core.checkpoint import LazyTensor, write_checkpoint
from bertkit.core.config import CONFIG_NAME
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.initial import initial_value
from bertkit.core.loading import LoadPlan, Tensors, plan_loading
from bertkit.core.spec import Param, Variant
from bertkit.core.variants import VARIANTS, find_variant

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass
class Report:
    """What a conversion did.

    Args:
        source, target: from where to where.
        architecture: the class that the result is of.
        files: the files that were written.
        tensors, parameters, bytes: size of the result.
        dtype: of its floating tensors.
        renamed: old name by new name, of the tensors whose name changed.
        left_out: tensors of the source that have no place in the result.
        made: tensors that the source lacks and that have a natural value (empty statistics, unused maps).
        missing: tensors that the source lacks; a model that loads the result initialises them.
        notes: what else a user should know.
    """

    source: str
    target: str
    architecture: str
    files: list[str] = field(default_factory=list)
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    dtype: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python objects."""
        return asdict(self)


def convert(
    source: str | os.PathLike, target: str | os.PathLike, *, to: str | None = None, source_type: str | None = None,
    task: str | None = None, dtype: str | None = None, max_shard_size: int | str = "5GB", overwrite: bool = False,
    show_progress: bool = False,
) -> Report:
    """Convert a checkpoint directory: today's names, safetensors, another dtype, other shards, another model.

    Tensors are read, changed and written one at a time. The target takes its place when it is complete.

    Args:
        source: a checkpoint directory or a hub id.
        target: directory to write; both PyTorch and TensorFlow read it.
        to: make another variant of it: "ibert" or "mobilebert", from BERT or RoBERTa.
        source_type: what the source is ("bert", "mobilebert", ...), instead of config.json's `model_type`.
        task: the class of the result, e.g. "ForMaskedLM"; default the source's own.
        dtype: "float32", "float16" or "bfloat16"; default each tensor's own.
        max_shard_size: largest file, in bytes or as "2GB".
        overwrite: allow a target that is not empty.
        show_progress: show a bar on a terminal.

    Raises:
        CheckpointError: when the source does not fit its configuration, holds unknown tensors or lacks some, or
            when the target cannot be written; the target is then as it was.
        ConfigError: when the configuration is impossible, or cannot be expressed by the target.

    Example:
        >>> convert("path/to/bert", "path/to/ibert", to="ibert").architecture  # doctest: +SKIP
        'IBertModel'
    """
    directory = Path(target)
    if not overwrite and directory.is_dir() and any(directory.iterdir()):
        raise CheckpointError(f"{directory} is not empty", remedy="Choose another target, or pass --overwrite.")
    opened = open_source(source, source_type=source_type)
    model_type = opened.settings.get("model_type")
    if to is None or to == model_type:
        variant, config = _own_variant(opened)
        tensors: Any = opened.checkpoint
        suffix, left_out, notes = task_of(variant, config, tensors, task), [], []
    else:
        started = warm_start(opened, to, task)
        variant, config, tensors, suffix = VARIANTS[to], started.config, started.tensors, started.task
        left_out, notes = started.left_out, started.notes
    unknown = unknown_tensors(tensors, variant, config)
    if unknown:
        raise CheckpointError(f"{len(unknown)} tensor(s) that no class of {variant.name} has", unknown,
                              "Say what the source is with --from.")
    params = params_of(variant, suffix, config, tensors)
    plan = plan_loading(tensors, params, variant, config)
    chosen, made = _tensors_to_write(tensors, plan, params, config)
    lost = [name for name in plan.missing if name not in made]
    if lost and task is None:
        raise CheckpointError(f"the source lacks tensors of {variant.name}{suffix}", lost,
                              "Choose another class with --task, or name this one there to have them initialised on loading.")
    config.architectures = [variant.name + suffix]
    config.torch_dtype = dtype or _main_dtype(chosen)
    extra: dict[str, str | bytes] = {file.name: file.read_bytes() for file in opened.tokenizer_files}
    if not extra:
        notes.append("the source has no tokenizer files: none were copied")
    extra[CONFIG_NAME] = config.to_json_string()
    files = write_checkpoint(directory, chosen, dtype=dtype, max_shard_size=max_shard_size, extra_files=extra,
                             show_progress=show_progress)
    return Report(
        str(source), str(directory), variant.name + suffix, [*(file.name for file in files), *sorted(extra)], len(chosen),
        sum(_count(chosen[name].shape) for name in chosen if params[name].kind != "stat"),
        sum(file.stat().st_size for file in files), config.torch_dtype,
        {name: old for name, source in plan.sources.items() if (old := _name_in_file(tensors, source)) not in (name, None)},
        [*left_out, *_left_out(tensors, plan)], [*getattr(tensors, "added", ()), *made], lost, [*notes, *plan.conflicts])


def _own_variant(source: Source) -> tuple[Variant, Any]:
    model_type = source.settings.get("model_type")
    if model_type in SOURCES:
        raise ConfigError(f"{model_type} is not one of bertkit's models",
                          remedy="`bertkit convert SRC DST --to ibert` or `--to mobilebert` makes one of it.")
    if model_type is None:
        raise ConfigError(f"config.json of {source.directory} names no model_type",
                          remedy=f"Say what it is with --from: {', '.join((*VARIANTS, *SOURCES))}.")
    variant = find_variant(model_type)
    return variant, variant.config.from_dict(source.settings)


def _tensors_to_write(
    tensors: Any, plan: LoadPlan, params: Mapping[str, Param], config: Any
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


def _name_in_file(tensors: Tensors, name: str) -> str | None:
    """The name behind one of `tensors`; None for one that was added."""
    return tensors.sources.get(name) if isinstance(tensors, RenamedCheckpoint) else name


def _left_out(tensors: Tensors, plan: LoadPlan) -> list[str]:
    """Names in the file that the model does not take: other heads, tied copies, derived tensors, empty buffers."""
    taken = set(plan.sources.values())
    names = (_name_in_file(tensors, name) for name in tensors.names() if name not in taken)
    return [name for name in names if name is not None]


def _main_dtype(tensors: Mapping[str, LazyTensor]) -> str | None:
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + _count(tensor.shape)
    return DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]))


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
