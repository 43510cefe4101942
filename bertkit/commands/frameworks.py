"""A checkpoint's model in either framework, behind one face: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.convert.source import Source, has_pooler, open_source, params_of, plan_leniently, task_of
from bertkit.core.errors import BackendError, CheckpointError, ConfigError
from bertkit.core.loading import plan_loading
from bertkit.core.spec import Variant
from bertkit.core.tokenization import AutoTokenizer
from bertkit.core.variants import VARIANTS

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Framework:
    """A framework: its name for people, the module that shows that it is installed, and ours on top of it."""

    name: str
    module: str
    package: str
    class_prefix: str
    extra: str

    @property
    def installed(self) -> bool:
        """Whether it can be imported; looked up without importing it."""
        return find_spec(self.module) is not None


FRAMEWORKS = {
    "torch": Framework("PyTorch", "torch", "bertkit", "", "torch"),
    "tf": Framework("TensorFlow", "tensorflow", "bertkit_tf", "TF", "tf-cpu"),
}


def need(*names: str) -> None:
    """Check that frameworks are installed.

    Raises:
        BackendError: naming those that are not, and how to install them.
    """
    lacking = [FRAMEWORKS[name] for name in names if not FRAMEWORKS[name].installed]
    if lacking:
        raise BackendError(f"{' and '.join(f.name for f in lacking)} not installed",
                           remedy=f"Install with: pip install 'bertkit[{','.join(f.extra for f in lacking)}]'")


def first_installed() -> str:
    """The first framework that is installed.

    Raises:
        BackendError: when there is none.
    """
    found = [name for name, framework in FRAMEWORKS.items() if framework.installed]
    if not found:
        raise BackendError("neither PyTorch nor TensorFlow is installed",
                           remedy="Install one with: pip install 'bertkit[torch]' or pip install 'bertkit[tf-cpu]'")
    return found[0]


@dataclass
class Opened:
    """A checkpoint of one of the four variants, checked against its configuration and ready to be loaded."""

    source: Source
    variant: Variant
    config: Any
    task: str
    pooled: bool
    notes: list[str]

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self.source.directory

    @property
    def class_name(self) -> str:
        """The PyTorch class."""
        return self.variant.name + self.task

    @property
    def max_tokens(self) -> int:
        """Longest sequence that the position table covers."""
        return self.config.max_position_embeddings - getattr(self.config, "first_position", 0)


def open_model(name_or_path: str, task: str | None = None) -> Opened:
    """Open a checkpoint for a task, and make sure that every tensor of that class is there.

    Raises:
        CheckpointError: when the checkpoint does not fit its configuration, or lacks tensors of the class.
        ConfigError: when it is of none of the four variants, or the task is none of its own.
    """
    source = open_source(name_or_path)
    variant, config = own_variant(source)
    suffix = task_of(variant, config, source.checkpoint, task)
    params = params_of(variant, suffix, config, source.checkpoint)
    plan = plan_loading(source.checkpoint, params, variant, config)
    if plan.missing:
        fits = [name for name in variant.tasks if not plan_leniently(
            source.checkpoint, params_of(variant, name, config, source.checkpoint), variant, config).missing]
        lost = [f"missing: {name}" for name in plan.missing]
        raise CheckpointError(f"{source.directory} has no weights for {variant.name}{suffix}", lost,
                              f"It has all of: {', '.join(variant.name + name for name in fits)}.")
    return Opened(source, variant, config, suffix, has_pooler(source.checkpoint), list(plan.conflicts))


def own_variant(source: Source) -> tuple[Variant, Any]:
    """Variant and configuration of a checkpoint.

    Raises:
        ConfigError: when it is of none of the four variants.
    """
    model_type = source.settings.get("model_type")
    if model_type not in VARIANTS:
        raise ConfigError(f"{source.directory}: model_type is {model_type!r}, expected one of {', '.join(map(repr, VARIANTS))}",
                          remedy="`bertkit convert SRC DST --to ibert` makes an I-BERT of a BERT or RoBERTa.")
    return VARIANTS[model_type], VARIANTS[model_type].config.from_dict(source.settings)


def open_tokenizer(opened: Opened) -> Any:
    """The tokenizer beside the weights, limited to what the model takes.

    Raises:
        TokenizerError: when there is none, or its files cannot be read.
    """
    tokenizer = AutoTokenizer.from_pretrained(opened.directory)
    tokenizer.model_max_length = min(tokenizer.model_max_length, opened.max_tokens)
    return tokenizer


class Runner:
    """A loaded model that takes and gives NumPy arrays.

    Args:
        opened: the checkpoint.
        framework: "torch" or "tf".
        **settings: values that override the configuration's.
    """

    def __init__(self, opened: Opened, framework: str, **settings: Any) -> None:
        need(framework)
        chosen = FRAMEWORKS[framework]
        self.framework, self.class_name = framework, chosen.class_prefix + opened.class_name
        pooler = {"add_pooling_layer": opened.pooled} if opened.task == "Model" and has_choice(opened.variant) else {}
        with warnings.catch_warnings(), _without_greetings():
            warnings.simplefilter("ignore", UserWarning)  # open_model has looked at everything that loading warns about
            model_class = getattr(import_module(chosen.package), self.class_name)
            self.model = model_class.from_pretrained(opened.directory, **pooler, **settings)

    @classmethod
    def of(cls, model: Any, framework: str) -> Runner:
        """The same for a model that is there already."""
        runner = cls.__new__(cls)
        runner.framework, runner.class_name, runner.model = framework, type(model).__name__, model
        return runner

    def __call__(self, inputs: Mapping[str, np.ndarray], **flags: bool) -> Arrays:
        """All outputs by name; a tuple (hidden states) stays one."""
        if self.framework == "tf":
            outputs = self.model(dict(inputs), training=False, **flags)
        else:
            import torch

            with torch.inference_mode():
                outputs = self.model(**{name: torch.from_numpy(array) for name, array in inputs.items()}, **flags)
        return {name: _to_numpy(value) for name, value in outputs.items()}


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Keep what TensorFlow's C++ side says while it is loaded off standard error, unless loading fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as said, contextlib.ExitStack() as stack:
        sys.stderr.flush()
        kept = os.dup(2)
        stack.callback(os.close, kept)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)


def has_choice(variant: Variant) -> bool:
    """Whether the encoder's class lets the user choose to have a pooler."""
    return variant.tasks["Model"].pooled


def _to_numpy(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_to_numpy(item) for item in value)
    return np.asarray(value.float().numpy() if hasattr(value, "detach") else value)
