"""Which tensor of a checkpoint goes where: old names, prefixes, ties, and one complete error when it does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np

from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.spec import Param, Variant
from bertkit.core.tensors import NAME_OF

OLD_LEAVES = {"gamma": "weight", "beta": "bias"}
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that data-parallel and compiled modules put before every name."""
MOST_PROBLEMS = 100
"""As many are told in one error."""


class Tensors(Protocol):
    """What a checkpoint offers: names, shapes, and arrays on demand."""

    def names(self) -> Iterable[str]: ...
    def info(self, name: str) -> Any: ...
    def read(self, name: str) -> np.ndarray: ...


@dataclass
class LoadPlan:
    """Where each tensor of a model comes from.

    Args:
        sources: name in the file by canonical name; each tensor of a group of ties appears once.
        missing: canonical names that the file lacks and that get initial values.
        unexpected: names in the file that the model does not take.
        mismatched: `(name, shape in the file, shape in the model)` of tensors that get initial values.
        conflicts: ties whose two copies in the file differ, with the largest difference.
        unusable: what is wrong with tensors of a frozen model; nothing can take their place.
    """

    sources: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)

    def as_info(self) -> dict[str, list]:
        """The dictionary that `output_loading_info=True` gives."""
        return {
            "missing_keys": list(self.missing),
            "unexpected_keys": list(self.unexpected),
            "mismatched_keys": list(self.mismatched),
            "error_msgs": [],
        }


def check_overrides(config_class: type, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse keywords of `from_pretrained` that mean nothing: neither options nor values of the configuration.

    Args:
        config_class: the configuration class.
        values: what config.json holds; its keys may be overridden, also those that bertkit does not know.
        overrides: the keywords that are left.

    Raises:
        ConfigError: naming each, with what was probably meant.
    """
    known = [*(item.name for item in fields(config_class)), "num_labels", *values]
    problems = []
    for name in overrides:
        if name not in known:
            close = get_close_matches(name, known, 1)
            problems.append(f"{name}: {f'did you mean {close[0]}?' if close else 'unknown'}")
    if problems:
        raise ConfigError("from_pretrained does not take these keywords", problems)


def plan_loading(
    checkpoint: Tensors, params: Mapping[str, Param], variant: Variant, config: Any, *, ignore_mismatched_sizes: bool = False
) -> LoadPlan:
    """Decide where every tensor of a model comes from.

    Tensors of a head (and the pooler) may be missing: they get initial values. A missing tensor of the encoder, or
    any tensor of another shape, means that the file does not belong to the model. A frozen model's integers have no
    initial values, and no other dtype than their own.

    Args:
        checkpoint: the opened file or directory.
        params: the model's tensors by canonical name.
        variant: the model's family.
        config: the model's configuration.
        ignore_mismatched_sizes: give initial values to tensors of another shape instead of failing.

    Raises:
        CheckpointError: listing all missing, unexpected, misshapen and mistyped tensors and the likely cause.
    """
    found = _canonical_names(checkpoint.names(), params, variant)
    ties: dict[str | None, list[str]] = {}
    for param in params.values():
        ties.setdefault(param.tied_to, []).append(param.name)
    plan = LoadPlan()
    for name, param in params.items():
        if param.kind == "derived" or param.tied_to in params:
            continue
        copies = [copy for copy in (name, *ties.get(name, ())) if copy in found]
        if not copies:
            if param.kind != "stat":
                plan.missing.append(name)
            continue
        source = found[copies[0]]
        shape = tuple(checkpoint.info(source).shape)
        if param.frozen_dtype is not None:
            plan.unusable += _unusable(param, shape, checkpoint.info(source).dtype)
            plan.sources[name] = source
        elif shape != param.shape:
            plan.mismatched.append((name, shape, param.shape))
        else:
            plan.sources[name] = source
            plan.conflicts += _conflicts(checkpoint, name, [found[copy] for copy in copies])
    plan.unexpected = [
        source for name, source in found.items() if name not in params and not _ignored(name, variant)
    ]
    _raise_if_foreign(plan, params, variant, config, ignore_mismatched_sizes)
    return plan


def check_saved(class_name: str, params: Mapping[str, Param], held: Iterable[str]) -> None:
    """Refuse to write a model that holds other tensors than its weight spec says: a checkpoint would lose them.

    Args:
        class_name: the model's class, for the message.
        params: the weight spec.
        held: names of the tensors that the model holds.

    Raises:
        CheckpointError: naming what is too much and what is not there.
    """
    held = {*held}
    problems = [f"not in the weight spec: {name}" for name in sorted(held - {*params})]
    problems += [f"not in the model: {name}" for name, param in params.items() if param.stored and name not in held]
    if problems:
        raise CheckpointError(f"{class_name} was changed and cannot be saved as one", problems,
                              "Save its state_dict (PyTorch) or weights (Keras), or the adapter by its own library.")


def warn_about(plan: LoadPlan, class_name: str, where: str) -> None:
    """One warning for everything that a user should know after loading."""
    lines = []
    fresh = [*plan.missing, *(name for name, _, _ in plan.mismatched)]
    if fresh:
        lines.append(f"newly initialised, train them before use: {', '.join(fresh)}")
    if plan.unexpected:
        lines.append(f"in the checkpoint but not in the model, left out: {', '.join(plan.unexpected)}")
    lines += plan.conflicts
    if lines:
        warnings.warn(f"{class_name} from {where}:\n  " + "\n  ".join(lines), stacklevel=3)


def _canonical_names(names: Iterable[str], params: Mapping[str, Param], variant: Variant) -> dict[str, str]:
    names = list(names)
    for wrapper in WRAPPERS:
        if names and all(name.startswith(wrapper) for name in names):
            return {c: wrapper + n for c, n in _canonical_names([n[len(wrapper):] for n in names], params, variant).items()}
    prefix = f"{variant.prefix}."
    model_has_prefix = any(name.startswith(prefix) for name in params)
    file_has_prefix = any(name.startswith(prefix) for name in names)
    found = {}
    for name in names:
        head, _, leaf = name.rpartition(".")
        canonical = f"{head}.{OLD_LEAVES[leaf]}" if leaf in OLD_LEAVES else name
        if file_has_prefix and not model_has_prefix:
            canonical = canonical.removeprefix(prefix)
        elif model_has_prefix and not file_has_prefix and prefix + canonical in params:
            canonical = prefix + canonical
        found[canonical] = name
    return found


def _unusable(param: Param, shape: tuple[int, ...], dtype: str) -> list[str]:
    expected = NAME_OF[np.dtype(param.frozen_dtype)]
    problems = [] if dtype == expected else [f"dtype of {param.name}: got {dtype}, expected {expected}"]
    if shape != param.shape:
        problems.append(f"shape of {param.name}: got {list(shape)}, expected {list(param.shape)}")
    return problems


def _conflicts(checkpoint: Tensors, name: str, sources: list[str]) -> list[str]:
    if len(sources) < 2:
        return []
    first = checkpoint.read(sources[0])
    found = []
    for source in sources[1:]:
        copy = checkpoint.read(source)
        if copy.shape == first.shape and not np.array_equal(copy, first):
            distance = np.abs(copy.astype(np.float64) - first.astype(np.float64)).max()
            found.append(f"{source} differs from {name}, which it is tied to, by up to {distance:.3g}; {name} is used")
    return found


def _ignored(name: str, variant: Variant) -> bool:
    return name.removeprefix(f"{variant.prefix}.") in variant.ignored


def _raise_if_foreign(
    plan: LoadPlan, params: Mapping[str, Param], variant: Variant, config: Any, ignore_mismatched_sizes: bool
) -> None:
    from bertkit.core.variants import VARIANTS

    body = {param.name for param in variant.encoder(config)}
    if not body:  # whoever compares heads alone
        return
    integers = [name for name in plan.missing if params[name].frozen_dtype is not None]
    lost = [name for name in plan.missing if name.removeprefix(f"{variant.prefix}.") in body or name in integers]
    wrong = [] if ignore_mismatched_sizes else plan.mismatched
    if not lost and not wrong and not plan.unusable:
        return
    problems = [*(f"missing: {name}" for name in lost), *plan.unusable]
    problems += [f"unexpected: {name}" for name in plan.unexpected]
    problems += [f"shape of {name}: got {list(got)}, expected {list(expected)}" for name, got, expected in wrong]
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"... and {len(problems) - MOST_PROBLEMS} more"]
    causes = [_cause_of_shape(name, got, expected, config) for name, got, expected in wrong]
    if integers or plan.unusable:
        causes.append("config.json describes a frozen model (integer_format), but the file holds another one, or a part of it; "
                      "freeze() makes one, save_pretrained() writes it")
    elif any(name.endswith((".multiplier", ".right_shift")) for name in plan.unexpected):
        causes.append("the file holds a frozen model, but config.json does not say so (integer_format)")
    elif lost:
        other = [v.name for v in VARIANTS.values() if v is not variant
                 and any(name.startswith(f"{v.prefix}.") for name in plan.unexpected)]
        if other:
            causes.append(f"the names are those of {' or '.join(other)}, not of {variant.name}")
        elif plan.sources:
            causes.append("config.json describes a larger or other model than the one that was saved "
                          "(num_hidden_layers, position_embedding_type, ...)")
        else:
            causes.append(f"the file holds no {variant.name} weights at all; a foreign original needs `bertkit convert`")
    remedy = "Likely cause: " + "; ".join(dict.fromkeys(cause for cause in causes if cause)) + "."
    raise CheckpointError(f"the checkpoint does not fit {variant.name}", problems, remedy)


def _cause_of_shape(name: str, got: tuple[int, ...], expected: tuple[int, ...], config: Any) -> str:
    if len(got) == len(expected):
        for found, wanted in zip(got, expected, strict=True):
            if found != wanted and wanted == config.vocab_size:
                return f"vocab_size is {wanted} in config.json, but the file has {found} rows"
            if found != wanted and wanted == config.num_labels and name.startswith(("classifier", "qa_outputs")):
                return (f"the head was trained with {found} label(s) and {wanted} are asked for: pass num_labels={found}, "
                        "or ignore_mismatched_sizes=True for a new head")
            if found != wanted and "position_embeddings" in name:
                return f"the file has {found} position rows, max_position_embeddings asks for {wanted}"
    return "config.json belongs to another model (hidden_size, intermediate_size, ...)"
