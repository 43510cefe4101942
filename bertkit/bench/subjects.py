"""What a benchmark measures: a subject is one engine in one setting, and lives in a process of its own."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

PRECISIONS = {"fp32": 4, "bf16": 2, "int8": 1}
"""Precisions of products, and the bytes of a weight in each."""


@dataclass(frozen=True)
class Setup:
    """What all subjects of a run share; it travels to their processes as JSON.

    Args:
        directory: where the files lie that are made once, such as weights and other engines' models.
        threads: threads of each subject.
        config: the model's configuration, as `to_dict` gives it.
        weights: how many weights its products read.
    """

    directory: str
    threads: int
    config: dict[str, Any]
    weights: int

    def file(self, name: str) -> Path:
        """A file or directory that is made once."""
        return Path(self.directory, name)

    def to_json(self) -> str:
        """The setup as one line."""
        return json.dumps(asdict(self))


class Engine(ABC):
    """A model that is ready to be timed."""

    def prepare(self, ids: np.ndarray) -> None:
        """Get ready for token ids of this shape, compile what has to be compiled, and forget the last ones.

        Args:
            ids: [batch, length], int64.
        """
        self.ids = ids

    @abstractmethod
    def run(self) -> Any:
        """One forward pass over the prepared ids, complete when it returns."""

    @abstractmethod
    def hidden(self, output: Any) -> np.ndarray:
        """What `run` returned as the last hidden state, [batch, length, hidden]."""

    @abstractmethod
    def evidence(self) -> str:
        """In what precision the products really run, as far as the engine can be made to tell."""

    def shares(self) -> dict[str, float]:
        """What a pass spends its time on: shares by operation, by the engine's own profile; empty where it has none."""
        return {}

    def turn(self, seconds: float) -> list[float]:
        """The time of each of the passes that fit into `seconds`, at least one, after one that is not counted.

        The one that is not counted brings the weights back into the caches; where a pass is longer than the turn,
        that makes no difference, and it is left out.
        """
        times = [self.seconds()]
        if times[0] < seconds:
            times = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            times.append(self.seconds())
        return times

    def seconds(self) -> float:
        """The time of one pass."""
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


@dataclass(frozen=True)
class Subject:
    """An engine in one setting.

    Args:
        name: what it is called on the command line, e.g. "openvino-int8".
        title: what it is called in tables.
        precision: of its products, a key of `PRECISIONS`.
        start: loads it; called in its process.
        needs: modules that must be installed.
        made_of: names of what is made once before it starts, in order; keys of a suite's `ARTEFACTS`.
        ours: whether it is bertkit's.
        simulated: whether it computes floats that hold integers; then it is no peer.
        most_tokens: batches with more tokens are left out, as it is too slow; None: none are.
        environment: variables of its process.
    """

    name: str
    title: str
    precision: str
    start: Callable[[Setup], Engine]
    needs: tuple[str, ...]
    made_of: tuple[str, ...] = ("checkpoint",)
    ours: bool = False
    simulated: bool = False
    most_tokens: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def lacking(self) -> list[str]:
        """The modules that are not installed; looked up without importing them."""
        return [module for module in self.needs if find_spec(module) is None]

    def is_too_slow(self, batch: int, length: int) -> bool:
        """Whether a batch of this shape is left out."""
        return self.most_tokens is not None and batch * length > self.most_tokens


def largest_shares(times: Iterable[tuple[str, float]], most: int = 5) -> dict[str, float]:
    """Shares of the time by operation, the largest first, the rest as one.

    Example:
        >>> largest_shares([("a", 1.0), ("b", 2.0), ("b", 4.0), ("c", 1.0)], most=1)
        {'b': 0.75, 'rest': 0.25}
    """
    sums: dict[str, float] = {}
    for name, seconds in times:
        sums[name] = sums.get(name, 0.0) + seconds
    whole = sum(sums.values())
    if whole <= 0:
        return {}
    ordered = sorted(((name, seconds / whole) for name, seconds in sums.items()), key=lambda item: -item[1])
    rest = sum(share for _, share in ordered[most:])
    return dict(ordered[:most]) | ({"rest": rest} if rest > 0 else {})


def token_ids(batch: int, length: int, words: int, seed: int = 0) -> np.ndarray:
    """Random ids without special tokens, [batch, length], int64.

    Example:
        >>> token_ids(2, 3, 100).shape
        (2, 3)
    """
    return np.random.default_rng(seed).integers(5, words, (batch, length))


def choose(subjects: Sequence[Subject], patterns: Sequence[str]) -> list[Subject]:
    """The subjects whose names match any of some patterns, such as "openvino-*"; all where there are no patterns.

    Raises:
        InputError: naming the patterns without a subject, and the subjects.
    """
    from fnmatch import fnmatchcase

    from bertkit.core.errors import InputError

    names = [subject.name for subject in subjects]
    useless = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if useless:
        raise InputError(f"there is no subject {' or '.join(useless)}", remedy=f"There are: {', '.join(names)}")
    return [subject for subject in subjects
            if not patterns or any(fnmatchcase(subject.name, pattern) for pattern in patterns)]
