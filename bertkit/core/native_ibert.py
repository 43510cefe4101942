"""I-BERT's encoder in integers, by the compiled kernels: `bertkit.core.reference.int8` says what they compute."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np

from bertkit.core import native
from bertkit.core.errors import BackendError, InputError
from bertkit.core.ibert import IBertConfig, native_tensors

Arrays = Mapping[str, np.ndarray]
BOOL, UINT8, INT8, INT64 = map(np.dtype, (np.bool_, np.uint8, np.int8, np.int64))
NO_MEMORY = -8
"""BK_NO_MEMORY of csrc/bertkit.h."""
LARGE_PAGE = 2 << 20
"""Packed weights may lie anywhere, but are read faster from the beginning of a large page on."""


class _Call(ctypes.Structure):
    """bk_ibert_call of csrc/bertkit.h."""

    _fields_ = [
        ("packed", ctypes.c_void_p), ("packed_size", ctypes.c_int64),
        ("words", ctypes.c_void_p), ("types", ctypes.c_void_p), ("positions", ctypes.c_void_p),
        ("word_rows", ctypes.c_int64), ("type_rows", ctypes.c_int64), ("position_rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("word_ids", ctypes.c_void_p), ("type_ids", ctypes.c_void_p), ("position_ids", ctypes.c_void_p),
        ("mask", ctypes.c_void_p), ("batch", ctypes.c_int64), ("length", ctypes.c_int64),
        ("states", ctypes.c_int64), ("hidden", ctypes.c_void_p), ("threads", ctypes.c_int64),
        ("openmp", ctypes.POINTER(native.OpenMP)),
    ]


def pack(config: IBertConfig, tensors: Arrays, level: str) -> np.ndarray:
    """Arrange the integer weights of an encoder as the kernels of a level want to read them.

    Args:
        config: configuration of the frozen model.
        tensors: its tensors, by the names of `bertkit.core.ibert.native_tensors`.
        level: one of `native.LEVELS`, e.g. `native.level()`.

    Returns:
        Bytes, uint8, for this level alone. They may be moved, and kept for a later process.

    Raises:
        BackendError: the level does not run here.
    """
    functions = native.library().functions
    layers = config.num_hidden_layers
    heads = [config.kept_heads(layer) for layer in range(layers)]
    dims = np.array([layers, config.hidden_size, config.head_size, config.intermediate_size, *heads], np.int64)
    arrays = [np.ascontiguousarray(tensors[name]) for name in native_tensors(config)]
    addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    functions.bk_ibert_pack.restype = ctypes.c_int64

    def run(packed: int | None, size: int) -> int:
        return _checked("bk_ibert_pack", functions.bk_ibert_pack(
            native.LEVELS.index(level), ctypes.c_void_p(dims.ctypes.data), len(dims), addresses, len(arrays),
            ctypes.c_void_p(packed), ctypes.c_int64(size)))

    size = run(None, 0)
    memory = np.empty(size + LARGE_PAGE, np.uint8)
    start = -memory.ctypes.data % LARGE_PAGE
    packed = memory[start:start + size]
    run(packed.ctypes.data, size)
    return packed


def encode(
    packed: np.ndarray, words: np.ndarray, types: np.ndarray, positions: np.ndarray, word_ids: np.ndarray,
    type_ids: np.ndarray, position_ids: np.ndarray, mask: np.ndarray | None, states: int, threads: int,
    openmp: native.OpenMP | None = None,
) -> np.ndarray:
    """Hidden states of an encoder, from ids to integers.

    Args:
        packed: from `pack`; its level is the one that runs.
        words, types, positions: the tables, [rows, E], int8.
        word_ids, type_ids, position_ids: [B, L], int64.
        mask: [B, L], False or 0 is padding, whose hidden states are 0 and cost nothing; bool or uint8.
        states: 1 for the last hidden state; layers + 1 for those of the embeddings and of every layer.
        threads: at most so many are used.
        openmp: whose threads; without it, the library's own.

    Returns:
        [states, B, L, E], int8.

    Raises:
        InputError: an id without a row in its table, or arrays that do not fit together.
    """
    tables = {"words": words, "types": types, "positions": positions}
    ids = {"word_ids": word_ids, "type_ids": type_ids, "position_ids": position_ids}
    _check(packed, tables, ids, mask)
    hidden = np.empty((states, *word_ids.shape, words.shape[1]), np.int8)
    arrays = {"packed": packed, **tables, **ids} if mask is None else {"packed": packed, **tables, **ids, "mask": mask}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    call = _Call(
        packed_size=packed.size, word_rows=len(words), type_rows=len(types), position_rows=len(positions),
        width=words.shape[1], batch=word_ids.shape[0], length=word_ids.shape[1], states=states, hidden=hidden.ctypes.data,
        threads=threads, openmp=openmp and ctypes.pointer(openmp),
        **{name: array.ctypes.data for name, array in arrays.items()})
    _checked("bk_ibert_encode", native.library().functions.bk_ibert_encode(ctypes.byref(call)))
    return hidden


def _check(packed: np.ndarray, tables: Arrays, ids: Arrays, mask: np.ndarray | None) -> None:
    width, shape = tables["words"].shape[-1:], ids["word_ids"].shape
    wanted: list[tuple[str, np.ndarray, tuple[np.dtype, ...], tuple[int, ...], int]]
    wanted = [("packed", packed, (UINT8,), packed.shape, 1)]
    wanted += [(name, table, (INT8,), (*table.shape[:1], *width), 2) for name, table in tables.items()]
    wanted += [(name, array, (INT64,), shape, 2) for name, array in ids.items()]
    wanted += [] if mask is None else [("mask", mask, (BOOL, UINT8), shape, 2)]
    problems = [
        f"{name}: got {array.dtype} {list(array.shape)}, expected {' or '.join(map(str, dtypes))} "
        f"{list(shape) if len(shape) == axes else f'with {axes} axes'}"
        for name, array, dtypes, shape, axes in wanted
        if array.dtype not in dtypes or array.shape != shape or array.ndim != axes]
    if problems:
        raise InputError("the arrays of an integer encoder do not fit together", problems)


def _checked(function: str, result: int) -> int:
    if result == NO_MEMORY:
        raise MemoryError(f"{function}: {native.library().functions.bk_error(result).decode()}")
    if result < 0:
        text = native.library().functions.bk_error(result).decode()
        kind = BackendError if function == "bk_ibert_pack" else InputError
        raise kind(f"{function}: {text}")
    return result
