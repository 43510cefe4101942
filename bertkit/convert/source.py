"""What a conversion reads: a checkpoint directory, its configuration, its tokenizer files and its task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertkit.convert.keras_h5 import KerasWeights
from bertkit.core.checkpoint import Checkpoint, open_checkpoint
from bertkit.core.config import CONFIG_NAME, read_config_dict
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.files import pickle_reader
from bertkit.core.hub import CONFIG_FILES, TOKENIZER_FILES, WEIGHT_FILES, resolve_directory
from bertkit.core.loading import LoadPlan, Tensors, plan_loading
from bertkit.core.spec import Param, Variant, no_head

KERAS_FILE = "tf_model.h5"
SIGNATURES = {
    b"\x89HDF": "Keras weights (HDF5)",
    b"PK\x03\x04": "a zip archive, or a PyTorch file",
    b"\x80\x02": "a pickle, or a PyTorch file",
    b"\x80\x04": "a pickle",
    b"GGUF": "a GGUF model",
}
"""What a file is, by its first bytes."""

SUFFIXES = {
    ".h5": "Keras weights (HDF5)",
    ".keras": "a Keras archive",
    ".index": "a TensorFlow checkpoint",
    ".pb": "a TensorFlow graph",
    ".pt": "a PyTorch file of another tool",
    ".pth": "a PyTorch file of another tool",
    ".ckpt": "a checkpoint of another tool",
    ".msgpack": "Flax weights",
    ".onnx": "an ONNX model",
    ".gguf": "a GGUF model",
    ".zip": "an archive",
}
"""What a file is, by the end of its name."""

TORCH_SUFFIXES = (".pt", ".pth")

EXPECTED = ("Expected is a directory with config.json and model.safetensors, or a checkpoint of another format that "
            "`bertkit convert --help` lists, whole and with its usual file names; --from FORMAT says which.")


@dataclass
class Source:
    """An opened checkpoint directory.

    Args:
        directory: where it is.
        settings: the content of config.json.
        checkpoint: its tensors.
    """

    directory: Path
    settings: dict[str, Any]
    checkpoint: Checkpoint | KerasWeights

    @property
    def tokenizer_files(self) -> list[Path]:
        """The files of its tokenizer."""
        names = [name for name in TOKENIZER_FILES if name != CONFIG_NAME]
        return [self.directory / name for name in names if (self.directory / name).is_file()]


def open_source(name_or_path: str | os.PathLike, *, source_type: str | None = None) -> Source:
    """Open a checkpoint directory, or a repository of the hub.

    Args:
        name_or_path: the directory or hub id.
        source_type: `model_type` instead of what config.json says.

    Raises:
        CheckpointError: when there is no such directory, or it holds no weights that can be read, with what it holds.
        ConfigError: when config.json is no JSON object.
    """
    directory = locate(name_or_path)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is a single file: {_kind_of(directory)}", remedy=EXPECTED)
    native = has_weights(directory)
    keras = directory / KERAS_FILE
    if not native and not keras.is_file():
        found = sorted(item for item in directory.iterdir() if item.is_file())
        foreign = [f"{item.name}: {_damage_of(item) or _kind_of(item)}" for item in found if item.suffix in SUFFIXES]
        listed = ", ".join(item.name for item in found[:12]) or "nothing"
        raise CheckpointError(f"{directory} holds no weights that can be read", foreign or [f"it holds: {listed}"], EXPECTED)
    settings = read_config_dict(directory)
    if source_type is not None:
        settings["model_type"] = source_type
    if not isinstance(settings.get("model_type", ""), str):
        raise ConfigError(f"{directory / CONFIG_NAME}: model_type: got {settings['model_type']!r}, expected a string")
    return Source(directory, settings, open_checkpoint(directory) if native else KerasWeights(keras))


def locate(name_or_path: str | os.PathLike) -> Path:
    """The local file or directory behind a path or hub id; of what TensorFlow calls a checkpoint, the index file.

    Raises:
        CheckpointError: when there is none.
    """
    index = Path(f"{os.fspath(name_or_path)}.index")
    if not Path(name_or_path).exists() and index.is_file():
        return index
    return resolve_directory(name_or_path, allow_patterns=[*CONFIG_FILES, *WEIGHT_FILES, *TOKENIZER_FILES])


def has_weights(directory: Path) -> bool:
    """Whether a directory holds weights as bertkit and transformers write them."""
    return directory.is_dir() and any(item.match(pattern) for item in directory.iterdir() for pattern in WEIGHT_FILES)


def _kind_of(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(8)
    known = (what for signature, what in SIGNATURES.items() if start.startswith(signature))
    return next(known, None) or SUFFIXES.get(file.suffix, "not a format that bertkit knows")


def _damage_of(file: Path) -> str:
    """Why a file of torch.save cannot be read; empty where it can, and for all other files."""
    try:
        if file.suffix in TORCH_SUFFIXES:
            pickle_reader.load(file)
    except CheckpointError as error:
        return error.headline.removeprefix(f"{file} ").removeprefix(f"{file}: ")
    return ""


# -- tasks ------------------------------------------------------------------------------------------------------
def find_task(
    settings: Mapping[str, Any], class_prefix: str, tasks: Iterable[str], fits: Callable[[str], int | None],
    wanted: str | None = None,
) -> str:
    """The task of a checkpoint: what the user wants, what config.json says, or what the tensors show.

    Args:
        settings: the content of config.json.
        class_prefix: what the names of its classes begin with, e.g. "MobileBert".
        tasks: the tasks to choose from.
        fits: number of a task's tensors in the file, or None where one is lacking.
        wanted: what the user asked for: a task such as "ForMaskedLM", or the name of a class.

    Raises:
        ConfigError: when `wanted` is no task, or when nothing tells which task it is.
    """
    tasks = list(tasks)
    choose = f"Choose one with --task: {', '.join(tasks)}."
    if wanted is not None:
        task = wanted.removeprefix("TF").removeprefix(class_prefix)
        if task not in tasks:
            raise ConfigError(f"task: got {wanted!r}", remedy=choose)
        return task
    architectures = settings.get("architectures")
    for architecture in architectures if isinstance(architectures, list | tuple) else ():
        task = str(architecture).removeprefix("TF").removeprefix(class_prefix)
        if task in tasks:
            return task
    counts = {task: count for task in tasks if (count := fits(task)) is not None}
    best = [task for task, count in counts.items() if count == max(counts.values())]
    if len(best) != 1:
        raise ConfigError("config.json names no architecture, and the tensors fit "
                          f"{' and '.join(best) or 'no class'} alike", remedy=choose)
    return best[0]


def task_of(variant: Variant, config: Any, tensors: Tensors, wanted: str | None = None) -> str:
    """The task of a checkpoint of one of bertkit's variants; see `find_task`."""

    def fits(task: str) -> int | None:
        plan = plan_leniently(tensors, params_of(variant, task, config, tensors), variant, config)
        return None if plan.missing or plan.mismatched else len(plan.sources)

    return find_task(config.to_dict(), variant.name, variant.tasks, fits, wanted)


def has_pooler(tensors: Tensors) -> bool:
    """Whether a checkpoint has a pooler."""
    return any(name.endswith("pooler.dense.weight") for name in tensors.names())


def params_of(variant: Variant, task: str, config: Any, tensors: Tensors) -> dict[str, Param]:
    """The tensors of a class; of a bare encoder without its pooler, where the checkpoint has none."""
    return variant.params(task, config, pooled=has_pooler(tensors) if task == "Model" else None)


def plan_leniently(tensors: Tensors, params: Mapping[str, Param], variant: Variant, config: Any) -> LoadPlan:
    """`plan_loading` that reports what does not fit instead of raising."""
    # Without a body no tensor is one that a checkpoint must have.
    return plan_loading(tensors, params, replace(variant, encoder=no_head), config, ignore_mismatched_sizes=True)


def unknown_tensors(tensors: Tensors, variant: Variant, config: Any) -> list[str]:
    """Names that no class of the variant has a place for."""
    plans = [plan_leniently(tensors, variant.params(task, config), variant, config) for task in variant.tasks]
    elsewhere = [set(plan.unexpected) for plan in plans[1:]]
    return [name for name in plans[0].unexpected if all(name in unexpected for unexpected in elsewhere)]
