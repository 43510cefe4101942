"""The vocabulary of conversion tables, and the engine that reads a table in both directions.

A rule says which of their tensors are which of ours, and what happens to the values on the way. Names are templates:
`{i}` stands for a number, `{i+1}` for the number after it. Every operation moves values without changing them, so a table
works on any dtype's bits, and a tensor that goes there and back is the same bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from bertkit.core.checkpoint import LazyTensor, RawTensor
from bertkit.core.errors import CheckpointError
from bertkit.core.tensors import from_bits, stored

Facts = Mapping[str, Any]
"""What operations need to know beside the values: number of heads, version of a layout, ..."""

Arrays = list[np.ndarray]
Move = Callable[[Arrays, Facts], Arrays]


# -- operations ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Operation:
    """What happens to the values of a rule's tensors.

    Args:
        name: what a report calls it, such as "transposed".
        to_ours: from the arrays of their names to those of ours.
        to_theirs: the inverse.
        undone: what a report calls the inverse, where it has another name.
    """

    name: str
    to_ours: Move
    to_theirs: Move
    undone: str = ""

    @property
    def inverse(self) -> Operation:
        """The operation of the other direction."""
        return Operation(self.undone or self.name, self.to_theirs, self.to_ours, self.name)


def _as_it_is(arrays: Arrays, facts: Facts) -> Arrays:
    return arrays


def _transpose(arrays: Arrays, facts: Facts) -> Arrays:
    return [array.T for array in arrays]


SAME = Operation("renamed", _as_it_is, _as_it_is)
TRANSPOSED = Operation("transposed", _transpose, _transpose)


# -- rules --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rule:
    """Some of their tensors that together are some of ours.

    Args:
        theirs: templates of their names.
        ours: templates of ours.
        operation: what happens on the way.

    Example:
        >>> Rule(("layers.{i}.fc.weight",), ("encoder.layer.{i}.dense.weight",)).operation.name
        'renamed'
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    operation: Operation = SAME

    @property
    def inverse(self) -> Rule:
        """The rule of the other direction."""
        return Rule(self.ours, self.theirs, self.operation.inverse)


Names = str | tuple[str, ...]


def tensor(theirs: Names, ours: Names | None = None, operation: Operation = SAME) -> list[Rule]:
    """One tensor, or a group of tensors that go together; the same names on both sides where only one is given."""
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    ours = (ours,) if isinstance(ours, str) else ours
    return [Rule(theirs, ours or theirs, operation)]


def module(theirs: Names, ours: Names | None = None, operation: Operation = SAME) -> list[Rule]:
    """Weight and bias of a linear layer or norm, or of a group of them."""
    (rule,) = tensor(theirs, ours, operation)
    return [
        Rule(tuple(f"{name}.{leaf}" for name in rule.theirs), tuple(f"{name}.{leaf}" for name in rule.ours), operation)
        for leaf in ("weight", "bias")
    ]


def table(*groups: Iterable[Rule]) -> list[Rule]:
    """All rules of some groups."""
    return [rule for group in groups for rule in group]


def inverted(rules: Iterable[Rule]) -> list[Rule]:
    """The same table in the other direction."""
    return [rule.inverse for rule in rules]


def prefixed(rules: Iterable[Rule], *, theirs: str = "", ours: str = "") -> list[Rule]:
    """The same table one level deeper on either side."""
    return [replace(rule, theirs=tuple(theirs + name for name in rule.theirs), ours=tuple(ours + name for name in rule.ours))
            for rule in rules]


# -- templates ----------------------------------------------------------------------------------------------------------
PLACE = re.compile(r"\{([a-z])(?:\+(\d+))?\}")


@cache
def _pattern(template: str) -> tuple[re.Pattern[str], tuple[tuple[str, int], ...]]:
    """A regular expression for a template, and letter and offset of each of its numbers."""
    places = tuple((match[1], int(match[2] or 0)) for match in PLACE.finditer(template))
    pieces = PLACE.split(template)[::3]
    return re.compile(r"(0|[1-9]\d{0,8})".join(map(re.escape, pieces))), places


def numbers_of(template: str, name: str) -> dict[str, int] | None:
    """The numbers with which a template gives a name, or None where it does not.

    Example:
        >>> numbers_of("layers.{i+1}.input", "layers.3.input"), numbers_of("layers.{i+1}.input", "layers.0.input")
        ({'i': 2}, None)
    """
    pattern, places = _pattern(template)
    match = pattern.fullmatch(name)
    if match is None:
        return None
    numbers = {letter: int(text) - offset for (letter, offset), text in zip(places, match.groups(), strict=True)}
    return numbers if all(number >= 0 for number in numbers.values()) else None


def filled(template: str, numbers: Mapping[str, int]) -> str:
    """The name that a template gives with some numbers.

    Example:
        >>> filled("layers.{i+1}.input", {"i": 2})
        'layers.3.input'
    """
    return PLACE.sub(lambda place: str(numbers[place[1]] + int(place[2] or 0)), template)


# -- the engine ---------------------------------------------------------------------------------------------------------
class Change(NamedTuple):
    """What happened to some tensors: the name of the operation, their names before and after."""

    operation: str
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass
class Translation:
    """Tensors under other names.

    Args:
        tensors: by their new names.
        changes: what was done; tensors that kept their name are not listed.
        left_out: reason by name of those that the table leaves out on purpose.
        unknown: names that the table does not know.
        problems: groups that lack a tensor, or whose tensors do not go together.
    """

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def check(self, what: str, remedy: str = "") -> Translation:
        """This translation, if it is complete.

        Raises:
            CheckpointError: listing unknown names, and groups that do not go together.
        """
        problems = [*(f"unknown: {name}" for name in self.unknown), *self.problems]
        if problems:
            raise CheckpointError(what, problems, remedy)
        return self


def translate(
    tensors: Mapping[str, LazyTensor], rules: Sequence[Rule], facts: Facts | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Translation:
    """See tensors under the other names of a table; values are moved when they are read.

    Args:
        tensors: by their present names.
        rules: the table; from `theirs` to `ours` of each rule. See `inverted` for the other direction.
        facts: what its operations need to know.
        left_out: reasons by template (or by prefix that ends in `*`) of tensors to leave out.

    Example:
        >>> rules = tensor("layers.{i}.w", "encoder.{i}.weight")
        >>> made = translate({"layers.0.w": LazyTensor((2,), "F32", lambda: np.ones(2, np.float32))}, rules)
        >>> made.tensors["encoder.0.weight"]()
        array([1., 1.], dtype=float32)
        >>> made.changes
        [Change(operation='renamed', old=('layers.0.w',), new=('encoder.0.weight',))]
    """
    facts, result = facts or {}, Translation()
    groups: dict[tuple[int, tuple[tuple[str, int], ...]], list[str]] = {}
    for name in tensors:
        found = _place(name, rules)
        reason = None if found else _reason(name, left_out or {})
        if found:
            groups.setdefault(found, []).append(name)
        elif reason is not None:
            result.left_out[name] = reason
        else:
            result.unknown.append(name)
    for (index, numbers), present in groups.items():
        rule = rules[index]
        old = [filled(name, dict(numbers)) for name in rule.theirs]
        new = [filled(name, dict(numbers)) for name in rule.ours]
        lacking = [name for name in old if name not in present]
        if lacking:
            result.problems.append(f"missing: {', '.join(lacking)}, which goes with {present[0]}")
            continue
        try:
            moved = _moved([tensors[name] for name in old], rule.operation, facts, len(new))
        except (ValueError, IndexError, MemoryError) as error:
            shapes = ", ".join(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}" for name in old)
            result.problems.append(f"cannot be {rule.operation.name}: {shapes}: {error}")
            continue
        twice = [name for name in new if name in result.tensors]
        result.problems += [f"twice: {name}, the second time from {' and '.join(old)}" for name in twice]
        result.tensors |= dict(zip(new, moved, strict=True))
        if old != new or rule.operation is not SAME:
            result.changes.append(Change(rule.operation.name, tuple(old), tuple(new)))
    return result


def _place(name: str, rules: Sequence[Rule]) -> tuple[int, tuple[tuple[str, int], ...]] | None:
    for index, rule in enumerate(rules):
        for template in rule.theirs:
            numbers = numbers_of(template, name)
            if numbers is not None:
                return index, tuple(sorted(numbers.items()))
    return None


def _reason(name: str, left_out: Mapping[str, str]) -> str | None:
    for template, reason in left_out.items():
        fits = name.startswith(template[:-1]) if template.endswith("*") else numbers_of(template, name) is not None
        if fits:
            return reason
    return None


def _moved(sources: list[LazyTensor], operation: Operation, facts: Facts, count: int) -> list[LazyTensor]:
    if operation is SAME:
        if len(sources) != count:
            raise ValueError(f"{len(sources)} tensors cannot become {count} by a change of name")
        return sources
    dtypes = {source.dtype for source in sources}
    if len(dtypes) > 1:
        raise ValueError(f"the dtypes differ: {', '.join(sorted(dtypes))}")
    group = _Group(sources, operation, facts)
    # What an operation does to shapes is seen by doing it to arrays that have shapes and next to no memory.
    shadows = operation.to_ours([np.broadcast_to(np.uint8(0), source.shape) for source in sources], facts)
    if len(shadows) != count:
        raise ValueError(f"gives {len(shadows)} tensors, expected {count}")
    return [LazyTensor(shadow.shape, sources[0].dtype, partial(group.read, place), sources[0].position)
            for place, shadow in enumerate(shadows)]


class _Group:
    """The tensors of one rule, moved together; those that were not asked for yet wait for it."""

    def __init__(self, sources: list[LazyTensor], operation: Operation, facts: Facts) -> None:
        self._sources, self._operation, self._facts = sources, operation, facts
        self._waiting: dict[int, np.ndarray] = {}

    def read(self, place: int) -> np.ndarray | RawTensor:
        if place not in self._waiting:
            bits = [stored(source())[0] for source in self._sources]
            self._waiting = dict(enumerate(self._operation.to_ours(bits, self._facts)))
        values, dtype = self._waiting.pop(place), self._sources[0].dtype
        return from_bits(values, dtype)
