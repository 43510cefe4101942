"""YOSO's hashing and sums by the compiled kernels: `bertkit.core.reference.lsh` says what they compute.

Shape suffixes: B batch, N heads, L queries, S keys, D head size, W weight size, E value size, M hash functions, P parts of
one fast hash. Masks are bool or uint8; False or 0 drops a row. None drops none.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertkit.core import native
from bertkit.core.errors import InputError

Array = np.ndarray
FLOAT, INT32, BOOL, UINT8 = map(np.dtype, (np.float32, np.int32, np.bool_, np.uint8))
NO_MEMORY = -8
"""BK_NO_MEMORY of csrc/bertkit.h."""
LONGEST_CODE = 24
"""Bits of the longest codes that the kernels make tables for."""


@dataclass(frozen=True)
class Threads:
    """Where the kernels run: the level, how many threads at most, and whose (None: the library's own)."""

    level: str
    count: int
    openmp: native.OpenMP | None = None


class _Of(ctypes.Structure):
    """bk_lsh of csrc/bertkit.h; the next ones are bk_lsh_side, bk_lsh_hash and so on."""

    _fields_ = [("level", ctypes.c_int64), ("threads", ctypes.c_int64), ("openmp", ctypes.POINTER(native.OpenMP)),
                *((name, ctypes.c_int64) for name in ("sequences", "heads", "hashes", "code_bits"))]


class _Functions(ctypes.Structure):
    _fields_ = [("width", ctypes.c_int64), ("parts", ctypes.c_int64), ("size", ctypes.c_int64), ("numbers", ctypes.c_void_p)]


class _Vectors(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("sequence", "head", "row"))]


class _Side(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_int64), ("mask", ctypes.c_void_p), ("codes", ctypes.c_void_p), ("vectors", _Vectors)]


class _Hash(ctypes.Structure):
    _fields_ = [("of", _Of), ("functions", _Functions), ("side", _Side), ("codes", ctypes.c_void_p)]


class _Sum(ctypes.Structure):
    _fields_ = [("of", _Of), ("functions", _Functions), ("queries", _Side), ("keys", _Side), ("width", ctypes.c_int64),
                ("values", _Vectors), ("sums", ctypes.c_void_p)]


class _WeightedSum(ctypes.Structure):
    _fields_ = [("of", _Of), ("queries", _Side), ("keys", _Side), ("weight_width", ctypes.c_int64), ("width", ctypes.c_int64),
                *((name, _Vectors) for name in ("query_weights", "key_weights", "values")), ("sums", ctypes.c_void_p)]


class _Gradients(ctypes.Structure):
    _fields_ = [("of", _Of), ("functions", _Functions), ("queries", _Side), ("keys", _Side), ("width", ctypes.c_int64),
                ("scale", ctypes.c_float), *((name, _Vectors) for name in ("values", "grads")),
                *((name, ctypes.c_void_p) for name in ("query_grads", "key_grads", "value_grads"))]


def hash_codes(
    vectors_BNLD: Array, mask_BL: Array | None, num_hash: int, hash_code_len: int, hashes: Array, threads: Threads,
) -> Array:
    """Hash vectors.

    Args:
        vectors_BNLD: the vectors.
        mask_BL: a dropped vector has code 0.
        num_hash: hash functions.
        hash_code_len: bits of a code.
        hashes: signs of Hadamard transforms, `[N, 3, P, padded D]`, or Gaussian projections, `[N, D, M * hash_code_len]`.
        threads: where to run.

    Returns:
        Codes `[B, N, L, M]`, int32.

    Raises:
        InputError: the arrays do not fit together.
    """
    arrays = _Arrays()
    of, functions = arrays.functions(vectors_BNLD, num_hash, hash_code_len, hashes, threads)
    codes = np.empty((*vectors_BNLD.shape[:3], num_hash), np.int32)
    call = _Hash(of=of, functions=functions, side=arrays.hashed("vectors", vectors_BNLD, mask_BL, vectors_BNLD),
                 codes=codes.ctypes.data)
    arrays.check()
    _run("bk_lsh_run_hash", call)
    return codes


def cumulation(
    query_mask_BL: Array | None, query_codes_BNLM: Array, key_mask_BS: Array | None, key_codes_BNSM: Array, value_BNSE: Array,
    hash_code_len: int, threads: Threads,
) -> Array:
    """Sum the values of the keys that collide with each query, averaged over the hash functions.

    Returns:
        `[B, N, L, E]`, float32.

    Raises:
        InputError: a code is outside of its table, or the arrays do not fit together.
    """
    arrays = _Arrays()
    width = value_BNSE.shape[3]
    sums = np.empty((*query_codes_BNLM.shape[:3], width), np.float32)
    call = _Sum(
        **arrays.sides(query_mask_BL, query_codes_BNLM, key_mask_BS, key_codes_BNSM, hash_code_len, threads),
        width=width,
        values=arrays.vectors("value", value_BNSE, (*key_codes_BNSM.shape[:3], width)), sums=sums.ctypes.data)
    arrays.check()
    _run("bk_lsh_run_sum", call)
    return sums


def sampling(
    query_BNLD: Array, key_BNSD: Array, value_BNSE: Array, query_mask_BL: Array | None, key_mask_BS: Array | None,
    num_hash: int, hash_code_len: int, hashes: Array, threads: Threads,
) -> Array:
    """The same for the codes of queries and keys, of which each thread has those of one head at a time.

    Returns:
        `[B, N, L, E]`, float32.

    Raises:
        InputError: the arrays do not fit together.
    """
    arrays = _Arrays()
    of, functions = arrays.functions(query_BNLD, num_hash, hash_code_len, hashes, threads)
    width = value_BNSE.shape[3]
    sums = np.empty((*query_BNLD.shape[:3], width), np.float32)
    call = _Sum(
        of=of, functions=functions, queries=arrays.hashed("query", query_BNLD, query_mask_BL, query_BNLD),
        keys=arrays.hashed("key", key_BNSD, key_mask_BS, query_BNLD), width=width,
        values=arrays.vectors("value", value_BNSE, (*key_BNSD.shape[:3], width)), sums=sums.ctypes.data)
    arrays.check()
    _run("bk_lsh_run_sum", call)
    return sums


def weighted_cumulation(
    query_mask_BL: Array | None, query_codes_BNLM: Array, query_weight_BNLW: Array, key_mask_BS: Array | None,
    key_codes_BNSM: Array, key_weight_BNSW: Array, value_BNSE: Array, hash_code_len: int, threads: Threads,
) -> Array:
    """Sums as `cumulation` gives them, each value times the dot product of the query's and the key's weights.

    Returns:
        `[B, N, L, E]`, float32.

    Raises:
        InputError: a code is outside of its table, or the arrays do not fit together.
    """
    arrays = _Arrays()
    queries, keys, weight_width, width = (
        query_codes_BNLM.shape[:3], key_codes_BNSM.shape[:3], query_weight_BNLW.shape[3], value_BNSE.shape[3])
    sums = np.empty((*queries, width), np.float32)
    call = _WeightedSum(
        **arrays.sides(query_mask_BL, query_codes_BNLM, key_mask_BS, key_codes_BNSM, hash_code_len, threads),
        weight_width=weight_width, width=width,
        query_weights=arrays.vectors("query_weight", query_weight_BNLW, (*queries, weight_width)),
        key_weights=arrays.vectors("key_weight", key_weight_BNSW, (*keys, weight_width)),
        values=arrays.vectors("value", value_BNSE, (*keys, width)), sums=sums.ctypes.data)
    arrays.check()
    _run("bk_lsh_run_weighted_sum", call)
    return sums


def sampling_gradients(
    query_BNLD: Array, key_BNSD: Array, value_BNSE: Array, query_mask_BL: Array | None, key_mask_BS: Array | None,
    grad_BNLE: Array, num_hash: int, hash_code_len: int, hashes: Array, threads: Threads,
) -> tuple[Array, Array, Array]:
    """The sampled gradients of YOSO's attention with respect to query, key and value.

    Returns:
        Three arrays, float32, of the shapes of query, key and value.

    Raises:
        InputError: the arrays do not fit together.
    """
    arrays = _Arrays()
    of, functions = arrays.functions(query_BNLD, num_hash, hash_code_len, hashes, threads)
    width = value_BNSE.shape[3]
    outputs = [np.empty(x.shape, np.float32) for x in (query_BNLD, key_BNSD, value_BNSE)]
    call = _Gradients(
        of=of, functions=functions, queries=arrays.hashed("query", query_BNLD, query_mask_BL, query_BNLD),
        keys=arrays.hashed("key", key_BNSD, key_mask_BS, query_BNLD), width=width, scale=hash_code_len / 2,
        values=arrays.vectors("value", value_BNSE, (*key_BNSD.shape[:3], width)),
        grads=arrays.vectors("grad", grad_BNLE, (*query_BNLD.shape[:3], width)),
        **dict(zip(("query_grads", "key_grads", "value_grads"), (x.ctypes.data for x in outputs), strict=True)))
    arrays.check()
    _run("bk_lsh_run_gradients", call)
    return outputs[0], outputs[1], outputs[2]


class _Arrays:
    """The arrays of a call: what is wrong with them, and that they live as long as it."""

    def __init__(self) -> None:
        self._kept: list[Array] = []
        self._problems: list[str] = []

    def address(self, name: str, array: Array, dtype: np.dtype, shape: tuple[int, ...]) -> int:
        if array.dtype != dtype or array.shape != shape:
            self._problems.append(f"{name}: got {array.dtype} {list(array.shape)}, expected {dtype} {list(shape)}")
        self._kept.append(np.ascontiguousarray(array))
        return self._kept[-1].ctypes.data

    def mask(self, name: str, mask: Array | None, shape: tuple[int, ...]) -> int | None:
        return None if mask is None else self.address(name, mask, BOOL if mask.dtype == BOOL else UINT8, shape)

    def functions(self, vectors_BNLD: Array, num_hash: int, hash_code_len: int, hashes: Array,
                  threads: Threads) -> tuple[_Of, _Functions]:
        """Hash functions, for each head of vectors."""
        _, heads, _, width = vectors_BNLD.shape
        parts, size = hashes.shape[2:] if hashes.ndim == 4 else (0, 0)
        shape = (heads, 3, parts, size) if parts else (heads, width, num_hash * hash_code_len)
        return (_of(vectors_BNLD, num_hash, hash_code_len, threads),
                _Functions(width, parts, size, self.address("hashes", hashes, FLOAT, shape)))

    def vectors(self, name: str, vectors: Array, shape: tuple[int, ...]) -> _Vectors:
        """Vectors as they lie in memory, if the numbers of each are dense: those of a head may lie between those of others."""
        steps = vectors.strides
        if (vectors.dtype != FLOAT or vectors.shape != shape or steps[3] != FLOAT.itemsize or steps[2] == 0
                or any(step % FLOAT.itemsize for step in steps)):
            return _Vectors(self.address(name, vectors, FLOAT, shape))
        self._kept.append(vectors)
        return _Vectors(vectors.ctypes.data, *(step // FLOAT.itemsize for step in steps[:3]))

    def hashed(self, name: str, vectors: Array, mask: Array | None, others_BNLD: Array) -> _Side:
        """A side without codes, of as many sequences and heads, and as wide, as the others."""
        batch, heads, _, width = others_BNLD.shape
        rows = vectors.shape[2]
        return _Side(rows, self.mask(f"{name}_mask", mask, (batch, rows)),
                     vectors=self.vectors(name, vectors, (batch, heads, rows, width)))

    def sides(self, query_mask: Array | None, query_codes: Array, key_mask: Array | None, key_codes: Array,
              hash_code_len: int, threads: Threads) -> dict[str, Any]:
        """What sums have in common. Codes of keys have to belong to the same groups and hashes as those of queries."""
        batch, heads, _, num_hash = query_codes.shape

        def side(name: str, mask: Array | None, codes: Array) -> _Side:
            rows = codes.shape[2]
            return _Side(rows, self.mask(f"{name}_mask", mask, (batch, rows)),
                         self.address(f"{name}_codes", codes, INT32, (batch, heads, rows, num_hash)))

        return {"of": _of(query_codes, num_hash, hash_code_len, threads), "queries": side("query", query_mask, query_codes),
                "keys": side("key", key_mask, key_codes)}

    def check(self) -> None:
        if self._problems:
            raise InputError("the arrays of YOSO's kernels do not fit together", self._problems)


def _of(array_BN: Array, num_hash: int, hash_code_len: int, threads: Threads) -> _Of:
    return _Of(native.LEVELS.index(threads.level), threads.count, threads.openmp and ctypes.pointer(threads.openmp),
               array_BN.shape[0], array_BN.shape[1], num_hash, hash_code_len)


def _run(function: str, call: ctypes.Structure) -> None:
    functions = native.library().functions
    result = getattr(functions, function)(ctypes.byref(call))
    if result < 0:
        text = f"{function}: {functions.bk_error(result).decode()}"
        raise MemoryError(text) if result == NO_MEMORY else InputError(text)
