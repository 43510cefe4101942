"""Reading ahead: while one tensor is written, the next is read, unpacked and checked."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any

from bertkit.core.tensors import LazyTensor


class ReadAhead:
    """Tensors of which the next one is read, in a thread, while the caller is busy with the present one.

    Only one is read at a time, and only one waits. A caller who does not go through them in the order of their source gets
    the same values, only later.

    Args:
        tensors: the tensors by name.

    Example:
        >>> with ReadAhead({"a": LazyTensor((), "F32", lambda: 1), "b": LazyTensor((), "F32", lambda: 2)}) as ahead:
        ...     [tensor() for tensor in ahead.tensors.values()]
        [1, 2]
    """

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._sources = tensors
        self._next = dict(pairwise(sorted(tensors, key=lambda name: (tensors[name].position, name))))
        self._waiting: tuple[str, Future] | None = None
        self._pool = ThreadPoolExecutor(1, "bertkit-read-ahead")
        self.tensors = {name: replace(tensor, read=partial(self._read, name)) for name, tensor in tensors.items()}

    def _read(self, name: str) -> Any:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting[0] == name:
            value = waiting[1].result()
        else:
            value = self._pool.submit(self._sources[name]).result()
        following = self._next.get(name)
        if following is not None:
            self._waiting = following, self._pool.submit(self._sources[following])
        return value

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._waiting = None
        self._pool.shutdown(cancel_futures=True)
