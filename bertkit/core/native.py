"""The compiled kernels: where they are, which of them this CPU runs, and which are asked for.

Nothing is looked for before the kernels are first needed. Where they cannot serve, portable code does, with the same
results: `BERTKIT_KERNELS` and `use_kernels` choose, `kernels_status` and the command `bertkit kernels` tell.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import bertkit.core
from bertkit.core.errors import BackendError

ABI = 4
"""BK_ABI of csrc/bertkit.h."""
LEVELS = ("scalar", "avx2", "avxvnni", "avx512", "amx")
"""Instruction sets, the later the faster; their numbers are those of csrc/bertkit.h."""
PORTABLE = "portable"
CHOICES = ("auto", "native", PORTABLE, *LEVELS)
"""The best there is; the same, but an error where that is portable code; never compiled code; exactly this level."""
INSTALL = ("With a C++ compiler at hand, install bertkit again from its sources (pip install --force-reinstall --no-deps .); "
           "in a checkout that is not installed, run `make native`.")
ELSE = "`bertkit kernels` shows what can be had here; auto is the best of it."


@dataclass(frozen=True)
class Library:
    """The loaded library, and for each level None where it runs here, or what it lacks."""

    path: Path
    functions: ctypes.CDLL
    levels: Mapping[str, str | None]

    @property
    def best(self) -> str:
        """The highest level that runs here."""
        return next(level for level in reversed(LEVELS) if self.levels[level] is None)


class OpenMP(ctypes.Structure):
    """bk_openmp of csrc/bertkit.h: the threads of an OpenMP runtime."""

    _fields_ = [("parallel", ctypes.c_void_p), ("thread", ctypes.c_void_p), ("threads", ctypes.c_void_p)]


@dataclass(frozen=True)
class KernelsStatus:
    """Which kernels serve, and why.

    Attributes:
        level: "portable" or one of `LEVELS`; None where what is asked for cannot be had.
        reason: why this level.
        choice: what is asked for, one of `CHOICES`.
        asked_by: who asks for it.
        library: the compiled library, if there is one that can be used.
        levels: for each level of that library, None where it runs here, or what it lacks.
        cores: CPU cores that this process may use.
        triton: whether there is Triton, which serves YOSO in PyTorch on a GPU unless portable kernels are asked for.
    """

    level: str | None
    reason: str
    choice: str
    asked_by: str
    library: str | None
    levels: dict[str, str | None]
    cores: int
    triton: bool


@dataclass(frozen=True)
class _Request:
    choice: str
    asked_by: str


class _State:
    """What this process has found and chosen so far; None where nobody has needed it yet."""

    lock = threading.RLock()
    request: _Request | None = None
    library: Library | str | None = None
    level: str | None = None
    warned = False


def level() -> str:
    """The level that calls use now: "portable" or one of `LEVELS`.

    Raises:
        BackendError: `BERTKIT_KERNELS` is no choice, or the kernels that it or `use_kernels` asks for cannot be had.

    Example:
        >>> level() in (PORTABLE, *LEVELS)
        True
    """
    if _State.level is None:
        with _State.lock:
            request = _request()
            found, reason = _resolve(request)
            if found is None:
                raise BackendError(f"{request.asked_by} asks for {request.choice} kernels, which cannot be had", [reason], ELSE)
            if found == PORTABLE and request.choice == "auto" and not _State.warned:
                _State.warned = True
                warnings.warn(f"bertkit runs portable kernels, which are slower: {reason} BERTKIT_KERNELS=portable silences "
                              "this.", stacklevel=2)
            _State.level = found
    return _State.level


def use_kernels(choice: str) -> KernelsChoice:
    """Choose the kernels for all threads of this process, from now on or for a `with` block.

    What is traced keeps what it was traced with.

    Args:
        choice: "auto", the best there is; "native", the best compiled ones; "portable"; or a level: "scalar", "avx2",
            "avxvnni", "avx512" or "amx".

    Raises:
        BackendError: there is no such choice, or it cannot be had here.

    Example:
        >>> with use_kernels("portable"):
        ...     level()
        'portable'
    """
    request = _checked(_Request(choice, "use_kernels"))
    with _State.lock:
        before = _State.request
        if choice != "auto":
            found, reason = _resolve(request)
            if found is None:
                raise BackendError(f"there are no {choice} kernels here", [reason], ELSE)
        _State.request, _State.level = request, None
    return KernelsChoice(before)


class KernelsChoice:
    """What `use_kernels` returns; leaving its `with` block brings back the choice before."""

    def __init__(self, before: _Request | None) -> None:
        self._before = before

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with _State.lock:
            _State.request, _State.level = self._before, None


def kernels_status() -> KernelsStatus:
    """Which kernels serve, why, and what this CPU lacks for better ones.

    Raises:
        BackendError: `BERTKIT_KERNELS` is no choice.

    Example:
        >>> kernels_status().level in (PORTABLE, *LEVELS)
        True
    """
    with _State.lock:
        request = _request()
        found, reason = _resolve(request)
        there = _found()
    usable = there if isinstance(there, Library) else None
    return KernelsStatus(
        level=found, reason=reason, choice=request.choice, asked_by=request.asked_by,
        library=str(usable.path) if usable else None, levels=dict(usable.levels) if usable else {}, cores=cores(),
        triton=importlib.util.find_spec("triton") is not None)


def library() -> Library:
    """The compiled library.

    Raises:
        BackendError: there is none, or it cannot be used.
    """
    with _State.lock:
        found = _found()
    if isinstance(found, str):
        raise BackendError("there are no compiled kernels here", [found])
    return found


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def openmp_of(path: Path) -> OpenMP | None:
    """The OpenMP runtime that a loaded library runs on, so that kernels may run on the same threads; None if there is none."""
    try:
        functions = ctypes.CDLL(str(path))
        addresses = (ctypes.cast(functions[name], ctypes.c_void_p)
                     for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"))
        return OpenMP(*addresses)
    except (OSError, AttributeError):
        return None


def file_name(name: str) -> str:
    """What the system calls a library, e.g. libbertkit.so."""
    return {"win32": f"{name}.dll", "darwin": f"lib{name}.dylib"}.get(sys.platform, f"lib{name}.so")


def _request() -> _Request:
    if _State.request is None:
        choice = os.environ.get("BERTKIT_KERNELS", "")
        _State.request = _checked(_Request(choice, "BERTKIT_KERNELS") if choice else _Request("auto", "the default"))
    return _State.request


def _checked(request: _Request) -> _Request:
    if request.choice not in CHOICES:
        raise BackendError(f"{request.asked_by}: got {request.choice!r}, expected one of {', '.join(CHOICES)}")
    return request


def _resolve(request: _Request) -> tuple[str | None, str]:
    """The level that answers a request, None where none does, and why."""
    if request.choice == PORTABLE:
        return PORTABLE, f"{request.asked_by} asks for it."
    found = _found()
    if isinstance(found, str):
        return PORTABLE if request.choice == "auto" else None, found
    if request.choice in ("auto", "native"):
        return found.best, "It is the best that this CPU and this build have."
    lacking = found.levels[request.choice]
    return (request.choice, f"{request.asked_by} asks for it.") if lacking is None else (None, f"{request.choice}: {lacking}.")


def _found() -> Library | str:
    """The library, or a sentence that says why there is none."""
    if _State.library is None:
        _State.library = _load()
    return _State.library


def _directories() -> list[Path]:
    """Where the libraries may be: an editable installation has them elsewhere than the modules, and a checkout has both."""
    chosen = os.environ.get("BERTKIT_LIBRARY")
    return [Path(chosen)] if chosen else [Path(directory, "_native") for directory in bertkit.core.__path__]


def _load() -> Library | str:
    directories = _directories()
    paths = [path for directory in directories if (path := directory / file_name("bertkit")).is_file()]
    if not paths:
        return f"There is no compiled library in {' or '.join(map(str, directories))}. {INSTALL}"
    path = max(paths, key=lambda path: path.stat().st_mtime)  # the one built last
    try:
        functions = ctypes.CDLL(str(path))
        abi = functions.bk_abi()
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded: {error}. {INSTALL}"
    if abi != ABI:
        return f"{path} is of another version of bertkit (its interface is number {abi}, expected {ABI}). {INSTALL}"
    functions.bk_error.restype = functions.bk_missing.restype = ctypes.c_char_p
    lacking = {level: functions.bk_missing(number) for number, level in enumerate(LEVELS)}
    return Library(path, functions, {level: text and text.decode() for level, text in lacking.items()})
