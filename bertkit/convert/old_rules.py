"""The vocabulary of conversion tables: pairs of name templates, and a checkpoint seen through them.

A table maps their names to ours; `{i}` and `{j}` stand for the numbers in a name. Each row is one to one, so that a
table can be read in both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertkit.core.checkpoint import LazyTensor, RawTensor

Table = dict[str, str]
Row = tuple[str, str]
NUMBERS = ("i", "j", "k")


# -- words ------------------------------------------------------------------------------------------------------
def tensor(theirs: str, ours: str | None = None) -> list[Row]:
    """One tensor; the same name on both sides where only one is given."""
    return [(theirs, ours or theirs)]


def module(theirs: str, ours: str | None = None) -> list[Row]:
    """Weight and bias of one linear layer or norm."""
    return [(f"{theirs}.{leaf}", f"{ours or theirs}.{leaf}") for leaf in ("weight", "bias")]


def table(*rows: Iterable[Row]) -> Table:
    """A table of rows."""
    return {theirs: ours for group in rows for theirs, ours in group}


def inverted(rows: Table) -> Table:
    """The same table in the other direction."""
    return {ours: theirs for theirs, ours in rows.items()}


# -- reading ----------------------------------------------------------------------------------------------------
def rename(name: str, rows: Table) -> str | None:
    """Our name of their tensor, or None where the table has no row for it.

    Example:
        >>> rename("layers.11.fc.bias", {"layers.{i}.fc.bias": "encoder.layer.{i}.dense.bias"})
        'encoder.layer.11.dense.bias'
    """
    numbers = [segment for segment in name.split(".") if segment.isdigit()]
    places = iter(NUMBERS)
    template = ".".join(f"{{{next(places, '?')}}}" if segment.isdigit() else segment for segment in name.split("."))
    found = rows.get(template)
    return None if found is None else found.format(**dict(zip(NUMBERS, numbers, strict=False)))


@dataclass(frozen=True)
class Rows:
    """Take rows off the top of a matrix, then put rows of zeros there."""

    dropped: int = 0
    zeros: int = 0

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that an array of `shape` gets."""
        return (shape[0] - self.dropped + self.zeros, *shape[1:])

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The array with other rows; works on the bits of bfloat16 too."""
        top = np.zeros((self.zeros, *array.shape[1:]), array.dtype)
        return np.concatenate([top, array[self.dropped:]])


@dataclass
class RenamedCheckpoint:
    """A checkpoint seen under our names.

    Args:
        checkpoint: theirs.
        sources: their name by ours.
        operations: what happens to a tensor on the way, by our name.
        added: float32 arrays that they do not have, by our name.
    """

    checkpoint: Any
    sources: dict[str, str]
    operations: Mapping[str, Rows] = field(default_factory=dict)
    added: Mapping[str, np.ndarray] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Our names."""
        return [*self.sources, *self.added]

    def info(self, name: str) -> LazyTensor:
        """Shape and dtype as we see them."""
        return self.lazy(name)

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor; bfloat16 is widened."""
        if name in self.added:
            return self.added[name]
        operation = self.operations.get(name)
        array = self.checkpoint.read(self.sources[name])
        return operation.apply(array) if operation else array

    def lazy(self, name: str) -> LazyTensor:
        """A tensor as `write_checkpoint` takes it."""
        if name in self.added:
            return LazyTensor(self.added[name].shape, "F32", lambda: self.added[name])
        operation = self.operations.get(name)
        whole = self.checkpoint.lazy(self.sources[name])
        if operation is None:
            return whole

        def read() -> np.ndarray | RawTensor:
            value: Any = whole.read()
            if isinstance(value, RawTensor):
                return RawTensor(operation.apply(value.bits), value.dtype)
            return operation.apply(value)

        return LazyTensor(operation.shape(whole.shape), whole.dtype, read)
