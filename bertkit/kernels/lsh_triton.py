"""YOSO's hashing, sums and gradients on a GPU, in Triton: one source for every generation of GPUs, compiled when first used.

`bertkit.core.reference.lsh` says what the functions compute; `bertkit.kernels.lsh` checks what they are given, and calls them.
Rows are sorted by their codes, and no two programs add to one place, so results repeat bit for bit. Sums are float32. Work is
linear in the rows, however unevenly codes are spread over the buckets.

Shape suffixes: B batch, N heads, G = B * N groups, L queries, S keys, D head size, E value size, W weight size, M hash
functions, P parts of one fast hash. Masks are 1 (keep) or 0 (drop).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertkit.core.hashing import hash_layout

LARGEST_TABLES = 2**24
"""Numbers in the tables that there are at a time: 64 MiB, about what a GPU caches."""
SORTING = 8
"""A row that is being sorted takes the memory of so many numbers."""
HASHED = 2048
"""Numbers that a program transforms."""
WIDEST = 64
"""Columns that a program adds up."""


class _Buckets(NamedTuple):
    """Rows by hash function, group and code: which row, counted through all of them, and where each bucket starts."""

    rows: Tensor
    starts: Tensor


def hash_codes(x_BNLD: Tensor, mask_BL: Tensor, num_hash: int, hash_code_len: int, signs_N3PD: Tensor) -> Tensor:
    """Codes by signed Hadamard transforms, `[B, N, L, M]`, int32."""
    batch, heads, count, width = x_BNLD.shape
    layout = hash_layout(width, num_hash, hash_code_len)
    codes = torch.empty(batch, heads, count, num_hash, dtype=torch.int32, device=x_BNLD.device)
    height = max(1, HASHED // layout.padded_dim)
    blocks = triton.cdiv(count, height)
    _launch(_hash, (batch * heads * blocks, layout.num_part), x_BNLD.contiguous(), (mask_BL != 0).to(torch.int8),
            signs_N3PD.contiguous(), codes, heads, count, width, blocks, num_hash, layout.num_part, layout.hashes_per_part,
            hash_code_len, HEIGHT=height, SIZE=layout.padded_dim, STAGES=layout.padded_dim.bit_length() - 1)
    return codes


def cumulate(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, key_mask_BS: Tensor, key_codes_BNSM: Tensor, value_BNSE: Tensor,
    hash_code_len: int,
) -> Tensor:
    """Sums over colliding keys, `[B, N, L, E]`, of the dtype of the values. A code without a bucket collides with none."""
    capacity, num_hash = 2**hash_code_len, query_codes_BNLM.shape[3]
    query_codes_GLM, key_codes_GSM = _codes(query_codes_BNLM, query_mask_BL), _codes(key_codes_BNSM, key_mask_BS)
    value_GSE, sums_GLE = _rows(value_BNSE), _zeros(query_codes_BNLM, value_BNSE)
    memory = max(capacity * value_GSE.shape[2], SORTING * value_GSE.shape[1])
    for groups, hashes in _portions(len(value_GSE), num_hash, memory):
        keys = _sorted(key_codes_GSM[groups, :, hashes], capacity)
        _add_sums(sums_GLE[groups], query_codes_GLM[groups, :, hashes], keys, value_GSE[groups], capacity)
    return _finished(sums_GLE, 1 / num_hash, query_codes_BNLM, value_BNSE)


def cumulate_weighted(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, query_weight_BNLW: Tensor, key_mask_BS: Tensor, key_codes_BNSM: Tensor,
    key_weight_BNSW: Tensor, value_BNSE: Tensor, hash_code_len: int,
) -> Tensor:
    """The same with weights, `[B, N, L, E]`, of the dtype of the values."""
    capacity, num_hash = 2**hash_code_len, query_codes_BNLM.shape[3]
    query_codes_GLM, key_codes_GSM = _codes(query_codes_BNLM, query_mask_BL), _codes(key_codes_BNSM, key_mask_BS)
    query_weight_GLW, key_weight_GSW, value_GSE = map(_rows, (query_weight_BNLW, key_weight_BNSW, value_BNSE))
    sums_GLE = _zeros(query_codes_BNLM, value_BNSE)
    memory = max(capacity, SORTING * (query_weight_GLW.shape[1] + value_GSE.shape[1]))
    for groups, hashes in _portions(len(value_GSE), num_hash, memory):
        queries = _sorted(query_codes_GLM[groups, :, hashes], capacity)
        keys = _sorted(key_codes_GSM[groups, :, hashes], capacity)
        _add_weighted_sums(sums_GLE[groups], queries, query_weight_GLW[groups], keys, key_weight_GSW[groups],
                           value_GSE[groups], capacity)
    return _finished(sums_GLE, 1 / num_hash, query_codes_BNLM, value_BNSE)


def sampling_gradients(
    query_BNLD: Tensor, key_BNSD: Tensor, value_BNSE: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor,
    query_codes_BNLM: Tensor, key_codes_BNSM: Tensor, grad_BNLE: Tensor, hash_code_len: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sampled gradients of query, key and value, each of its dtype."""
    capacity, num_hash = 2**hash_code_len, query_codes_BNLM.shape[3]
    query_codes_GLM, key_codes_GSM = _codes(query_codes_BNLM, query_mask_BL), _codes(key_codes_BNSM, key_mask_BS)
    query_GLD, key_GSD, value_GSE, grad_GLE = map(_rows, (query_BNLD, key_BNSD, value_BNSE, grad_BNLE))
    grad_query, grad_key, grad_value = (_zeros(x, x) for x in (query_BNLD, key_BNSD, value_BNSE))
    memory = max(capacity * value_GSE.shape[2], SORTING * (query_GLD.shape[1] + key_GSD.shape[1]))
    for groups, hashes in _portions(len(query_GLD), num_hash, memory):
        queries = _sorted(query_codes_GLM[groups, :, hashes], capacity)
        keys = _sorted(key_codes_GSM[groups, :, hashes], capacity)
        query, key, value, grad = (x[groups] for x in (query_GLD, key_GSD, value_GSE, grad_GLE))
        _add_weighted_sums(grad_query[groups], queries, grad, keys, value, key, capacity)
        _add_weighted_sums(grad_key[groups], keys, value, queries, grad, query, capacity)
        _add_sums(grad_value[groups], key_codes_GSM[groups, :, hashes], queries, grad, capacity)
    scale = hash_code_len / 2 / num_hash
    return (_finished(grad_query, scale, query_BNLD, query_BNLD), _finished(grad_key, scale, key_BNSD, key_BNSD),
            _finished(grad_value, 1 / num_hash, value_BNSE, value_BNSE))


# ---- pieces ------------------------------------------------------------------------------


def _codes(codes_BNLM: Tensor, mask_BL: Tensor) -> Tensor:
    """Merge batch and heads; masked rows get a code that is none."""
    return codes_BNLM.int().masked_fill((mask_BL == 0)[:, None, :, None], -1).flatten(0, 1).contiguous()


def _rows(x_BNLD: Tensor) -> Tensor:
    return x_BNLD.flatten(0, 1).contiguous()


def _zeros(rows_BNL: Tensor, value_BNSE: Tensor) -> Tensor:
    """Room for the sums of so many rows and values so wide, `[G, L, E]`."""
    batch, heads, count = rows_BNL.shape[:3]
    return torch.zeros(batch * heads, count, value_BNSE.shape[3], dtype=torch.float32, device=value_BNSE.device)


def _finished(sums_GLE: Tensor, scale: float, rows_BNL: Tensor, value_BNSE: Tensor) -> Tensor:
    return sums_GLE.mul_(scale).view(*rows_BNL.shape[:3], value_BNSE.shape[3]).to(value_BNSE.dtype)


def _portions(groups: int, num_hash: int, memory: int) -> Iterator[tuple[slice, slice]]:
    """Groups and hash functions to take at once; `memory` is the numbers that one of each needs."""
    both = max(1, LARGEST_TABLES // memory)
    many_groups = max(1, min(groups, both))
    many_hashes = both // many_groups
    for group in range(0, groups, many_groups):
        for number in range(0, num_hash, many_hashes):
            yield slice(group, group + many_groups), slice(number, number + many_hashes)


def _sorted(codes_GSM: Tensor, capacity: int) -> _Buckets:
    """Sort the rows of each hash function and group by code; a row without a code goes behind the last bucket."""
    groups, _, hashes = codes_GSM.shape
    codes_MGS = codes_GSM.permute(2, 0, 1)
    codes_MGS = torch.where((codes_MGS >= 0) & (codes_MGS < capacity), codes_MGS, capacity)
    buckets = torch.arange(hashes * groups * (capacity + 1), dtype=torch.int32, device=codes_GSM.device)
    labels, rows = (codes_MGS + buckets[:: capacity + 1].view(hashes, groups, 1)).flatten().sort(stable=True)
    return _Buckets(rows, torch.searchsorted(labels, buckets, out_int32=True))


def _add_sums(sums_GLE: Tensor, query_codes_GLM: Tensor, keys: _Buckets, value_GSE: Tensor, capacity: int) -> None:
    """Add up the values of each bucket in a table, and let each query read the buckets of its codes."""
    groups, queries, hashes = query_codes_GLM.shape
    count, width = value_GSE.shape[1:]
    table_MGCE = torch.empty(hashes, groups, capacity, width, dtype=torch.float32, device=value_GSE.device)
    columns = _power_of_two(width, WIDEST)
    _launch(_sum_buckets, (hashes * groups * capacity, triton.cdiv(width, columns)), value_GSE, *keys, table_MGCE, groups,
            count, capacity, width, HEIGHT=16, COLUMNS=columns, num_warps=1)
    blocks = triton.cdiv(queries, 16)
    _launch(_read_buckets, (groups * blocks, triton.cdiv(width, columns)), table_MGCE, query_codes_GLM,
            query_codes_GLM.stride(1), sums_GLE, groups, blocks, queries, hashes, capacity, width, HEIGHT=16, COLUMNS=columns,
            num_warps=1)


def _add_weighted_sums(
    sums_GLE: Tensor, queries: _Buckets, query_weight_GLW: Tensor, keys: _Buckets, key_weight_GSW: Tensor, value_GSE: Tensor,
    capacity: int,
) -> None:
    """Bring the queries and the keys of each bucket together.

    Under one hash function a query is in one bucket, so that one program adds to it; one function follows the other.
    """
    groups, query_count, weight_width = query_weight_GLW.shape
    key_count, width = value_GSE.shape[1:]
    hashes = len(keys.starts) // (groups * (capacity + 1))
    columns = _power_of_two(width, WIDEST)
    height = _power_of_two(max(query_count, key_count) // capacity, 32)
    for number in range(hashes):
        for first_weight in range(0, weight_width, WIDEST):
            _launch(_meet, (groups * capacity, triton.cdiv(width, columns)), query_weight_GLW, *queries, key_weight_GSW,
                    value_GSE, *keys, sums_GLE, number, groups, query_count, key_count, capacity, first_weight, weight_width,
                    width, HEIGHT=height, WEIGHTS=_power_of_two(weight_width, WIDEST), COLUMNS=columns, num_warps=height // 4)


def _power_of_two(size: int, largest: int) -> int:
    """For the sides of tiles: products take at least 16."""
    return min(largest, max(16, triton.next_power_of_2(size)))


def _launch(kernel: triton.JITFunction, programs: tuple[int, int], *arguments: Tensor | int, **constants: int) -> None:
    """Run a kernel where its tensors are, which need not be the current device."""
    if programs[0] and programs[1]:
        with torch.cuda.device_of(arguments[0]):
            kernel[programs](*arguments, **constants, enable_fp_fusion=True)


# ---- kernels -----------------------------------------------------------------------------
# A row's place is computed in 64 bits: large batches have more numbers than 32 bits count. Lengths are not compiled in.


@triton.jit(do_not_specialize=["count", "blocks"])
def _hash(vectors, mask, signs, codes, heads, count, width, blocks, num_hash, parts, hashes_per_part, hash_code_len,
          HEIGHT: tl.constexpr, SIZE: tl.constexpr, STAGES: tl.constexpr):
    """A program: one part of the hash functions of HEIGHT rows of a group."""
    group, part = tl.program_id(0) // blocks, tl.program_id(1)
    rows = tl.program_id(0) % blocks * HEIGHT + tl.arange(0, HEIGHT)
    there = rows < count
    kept = tl.load(mask + group // heads * count + rows, mask=there, other=0) != 0
    places = group.to(tl.int64) * count + rows
    x = _tile(vectors, places, kept, 0, width, SIZE)  # zeros in masked rows, whose codes then are 0
    for step in tl.static_range(3):
        # A product with 1 or -1 is exact, so that fusing it with a sum changes no bit.
        x *= tl.load(signs + ((group % heads * 3 + step) * parts + part) * SIZE + tl.arange(0, SIZE))[None, :]
        for stage in tl.static_range(STAGES):
            x = _butterflies(x, HEIGHT, SIZE, 1 << stage)
    first = part * hashes_per_part
    for number in range(first, tl.minimum(first + hashes_per_part, num_hash)):
        bits = tl.arange(0, SIZE) - (number - first) * hash_code_len
        weights = tl.where((bits >= 0) & (bits < hash_code_len), 1 << (bits & 31), 0)
        tl.store(codes + places * num_hash + number, tl.sum(tl.where(x > 0, weights[None, :], 0), axis=1), mask=there)


@triton.jit
def _butterflies(x, HEIGHT: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr):
    """Sums and differences of numbers STRIDE apart."""
    pairs = tl.permute(tl.reshape(x, [HEIGHT, SIZE // (2 * STRIDE), 2, STRIDE]), [0, 1, 3, 2])
    first, second = tl.split(pairs)
    pairs = tl.join(first + second, first - second)
    return tl.reshape(tl.permute(pairs, [0, 1, 3, 2]), [HEIGHT, SIZE])


@triton.jit(do_not_specialize=["groups", "count"])
def _sum_buckets(values, rows, starts, table, groups, count, capacity, width, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr):
    """A program: one bucket of a hash function and group."""
    segment, first_column = (tl.program_id(0) // capacity).to(tl.int64), tl.program_id(1) * COLUMNS
    start, stop = _limits(starts, segment, tl.program_id(0) % capacity, capacity)
    total = tl.zeros([HEIGHT, COLUMNS], tl.float32)
    for at in range(start, stop, HEIGHT):
        places, there = _places(rows, at, stop, segment, groups, count, HEIGHT)
        total += _tile(values, places, there, first_column, width, COLUMNS)
    columns = first_column + tl.arange(0, COLUMNS)
    tl.store(table + tl.program_id(0).to(tl.int64) * width + columns, tl.sum(total, axis=0), mask=columns < width)


@triton.jit(do_not_specialize=["groups", "blocks", "count", "hashes"])
def _read_buckets(table, codes, code_stride, sums, groups, blocks, count, hashes, capacity, width, HEIGHT: tl.constexpr,
                  COLUMNS: tl.constexpr):
    """A program: HEIGHT queries of a group."""
    group, first_column = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(1) * COLUMNS
    rows = tl.program_id(0) % blocks * HEIGHT + tl.arange(0, HEIGHT)
    there = rows < count
    places = group * count + rows
    total = tl.zeros([HEIGHT, COLUMNS], tl.float32)
    for number in range(hashes):
        code = tl.load(codes + places * code_stride + number, mask=there, other=-1)
        found = (code >= 0) & (code < capacity)
        total += _tile(table, (number * groups + group) * capacity + code, found, first_column, width, COLUMNS)
    _add(sums, places, there, first_column, width, total, COLUMNS)


@triton.jit(do_not_specialize=["number", "groups", "query_count", "key_count"])
def _meet(query_weights, query_rows, query_starts, key_weights, values, key_rows, key_starts, sums, number, groups, query_count,
          key_count, capacity, first_weight, weight_width, width, HEIGHT: tl.constexpr, WEIGHTS: tl.constexpr,
          COLUMNS: tl.constexpr):
    """A program: one bucket of a group."""
    group, first_column = (tl.program_id(0) // capacity).to(tl.int64), tl.program_id(1) * COLUMNS
    segment, code = number * groups + group, tl.program_id(0) % capacity
    query_start, query_stop = _limits(query_starts, segment, code, capacity)
    key_start, key_stop = _limits(key_starts, segment, code, capacity)
    queries, keys = (query_stop - query_start).to(tl.int64), (key_stop - key_start).to(tl.int64)
    if queries * keys * (weight_width + width) <= (queries + keys) * weight_width * width:
        # Few rows: a query's dot products with all keys are less work than a matrix of weights and values.
        if keys > 0:
            for query_at in range(query_start, query_stop, HEIGHT):
                query_places, asked = _places(query_rows, query_at, query_stop, segment, groups, query_count, HEIGHT)
                query_weight = _tile(query_weights, query_places, asked, first_weight, weight_width, WEIGHTS)
                total = tl.zeros([HEIGHT, COLUMNS], tl.float32)
                for key_at in range(key_start, key_stop, HEIGHT):
                    places, there = _places(key_rows, key_at, key_stop, segment, groups, key_count, HEIGHT)
                    key_weight = _tile(key_weights, places, there, first_weight, weight_width, WEIGHTS)
                    value = _tile(values, places, there, first_column, width, COLUMNS)
                    total += _product(_product(query_weight, tl.trans(key_weight)), value)
                _add(sums, query_places, asked, first_column, width, total, COLUMNS)
    else:
        outer = tl.zeros([WEIGHTS, COLUMNS], tl.float32)
        for key_at in range(key_start, key_stop, HEIGHT):
            places, there = _places(key_rows, key_at, key_stop, segment, groups, key_count, HEIGHT)
            key_weight = _tile(key_weights, places, there, first_weight, weight_width, WEIGHTS)
            outer += _product(tl.trans(key_weight), _tile(values, places, there, first_column, width, COLUMNS))
        for query_at in range(query_start, query_stop, HEIGHT):
            query_places, asked = _places(query_rows, query_at, query_stop, segment, groups, query_count, HEIGHT)
            query_weight = _tile(query_weights, query_places, asked, first_weight, weight_width, WEIGHTS)
            _add(sums, query_places, asked, first_column, width, _product(query_weight, outer), COLUMNS)


@triton.jit
def _limits(starts, segment, code, capacity):
    """Where a bucket starts and stops in the sorted rows."""
    start = starts + segment * (capacity + 1) + code
    return tl.load(start), tl.load(start + 1)


@triton.jit
def _places(rows, at, stop, segment, groups, count, HEIGHT: tl.constexpr):
    """Some rows of a bucket, counted through the groups, and which of them there are."""
    at += tl.arange(0, HEIGHT)
    there = at < stop
    return tl.load(rows + at, mask=there, other=0) + (segment % groups - segment) * count, there


@triton.jit
def _tile(x, places, there, first_column, width, COLUMNS: tl.constexpr):
    """Some columns of some rows, in float32; 0 where there is nothing."""
    columns = first_column + tl.arange(0, COLUMNS)
    return tl.load(x + places[:, None] * width + columns[None, :], mask=there[:, None] & (columns < width)[None, :],
                   other=0).to(tl.float32)


@triton.jit
def _add(sums, places, there, first_column, width, total, COLUMNS: tl.constexpr):
    columns = first_column + tl.arange(0, COLUMNS)
    at = sums + places[:, None] * width + columns[None, :]
    mask = there[:, None] & (columns < width)[None, :]
    tl.store(at, tl.load(at, mask=mask, other=0) + total, mask=mask)


@triton.jit
def _product(x, y):
    return tl.dot(x, y, input_precision="ieee")  # tensor cores would round float32 to 10 bits
