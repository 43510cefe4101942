"""YOSO attention in portable PyTorch: hashing, sampling by hash tables, the expectation, their gradients.

Zeng et al., "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli Sampling",
arXiv 2111.09714. `bertkit.core.reference.lsh` states the same operations in a few lines of NumPy each.

The operations with loops are custom operators: `torch.compile` and `torch.export` keep each as one node, and
a faster implementation for a device can be registered under the same name. No operation holds a matrix of
size [L, S].

Shape suffixes: B batch, N heads, G = B * N groups, L queries, S keys, D head size, E value size, W weight
size, M hash functions (m in the paper), P parts of one fast hash, R rows of a block, T tiles. tau is
`hash_code_len`. Masks are 1 (keep) or 0 (drop), of any dtype.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from bertkit.core.errors import InputError
from bertkit.core.hashing import capacity_problems, hash_layout, hash_problems, power, shape_of_hashes, table_problems
from bertkit.core.inputs import check_codes, check_operation
from bertkit.core.native import PORTABLE, kernels_status
from bertkit.kernels import native

LONGEST_PAIRWISE = 8192
"""Up to this length, sampled gradients compare all pairs of codes (in blocks): quadratic, but faster."""


def fast_hash(
    query_BNLD: Tensor, query_mask_BL: Tensor, key_BNSD: Tensor, key_mask_BS: Tensor, num_hash: int,
    hash_code_len: int, signs_N3PD: Tensor,
) -> tuple[Tensor, Tensor]:
    """Hash by the signs of three Hadamard transforms with random sign flips, `H D2 H D1 H D0 x`.

    The additions run in float32 in a fixed order: codes equal those of TensorFlow and NumPy bit for bit.

    Args:
        query_BNLD, key_BNSD: `[B, N, L, D]` and `[B, N, S, D]`; only directions matter.
        query_mask_BL, key_mask_BS: 1 keeps a vector, 0 gives it code 0.
        num_hash: hash functions.
        hash_code_len: bits of a code.
        signs_N3PD: +1 and -1, from `bertkit.core.hashing.random_signs`.

    Returns:
        Codes `[B, N, L, num_hash]` and `[B, N, S, num_hash]`, int32, without gradient.

    Raises:
        InputError: the numbers do not make a hash function, or the tensors do not fit together.

    Example:
        >>> from bertkit.core.hashing import random_signs
        >>> x, mask = torch.randn(1, 2, 7, 64), torch.ones(1, 7)
        >>> signs = torch.from_numpy(random_signs(0, num_heads=2, head_dim=64, num_hash=5, hash_code_len=9))
        >>> fast_hash(x, mask, x, mask, num_hash=5, hash_code_len=9, signs_N3PD=signs)[0].shape
        torch.Size([1, 2, 7, 5])
    """
    wrong = _wrong_hashes("signs_N3PD", signs_N3PD, query_BNLD, num_hash, hash_code_len, True)
    _check("fast_hash", wrong, query_BNLD=query_BNLD, query_mask_BL=query_mask_BL, key_BNSD=key_BNSD, key_mask_BS=key_mask_BS)
    return _hash_both(query_BNLD, query_mask_BL, key_BNSD, key_mask_BS, num_hash, hash_code_len, signs_N3PD)


def gaussian_hash(
    query_BNLD: Tensor, query_mask_BL: Tensor, key_BNSD: Tensor, key_mask_BS: Tensor, num_hash: int,
    hash_code_len: int, projections_NDK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Hash by the sides of random Gaussian hyperplanes: two unit vectors collide with (1 - angle / pi)**tau.

    The order of additions is that of the matrix product: a vector within rounding of a hyperplane may fall on
    either side in another framework.

    Args:
        query_BNLD, key_BNSD: `[B, N, L, D]` and `[B, N, S, D]`; only directions matter.
        query_mask_BL, key_mask_BS: 1 keeps a vector, 0 gives it code 0.
        num_hash: hash functions.
        hash_code_len: bits of a code.
        projections_NDK: `[N, D, num_hash * hash_code_len]`, from `bertkit.core.hashing.random_projections`.

    Returns:
        Codes `[B, N, L, num_hash]` and `[B, N, S, num_hash]`, int32, without gradient.

    Raises:
        InputError: the numbers do not make a hash function, or the tensors do not fit together.

    Example:
        >>> from bertkit.core.hashing import random_projections
        >>> x, mask = torch.randn(1, 2, 7, 64), torch.ones(1, 7)
        >>> projections = torch.from_numpy(random_projections(0, 2, head_dim=64, num_hash=5, hash_code_len=9))
        >>> gaussian_hash(x, mask, x, mask, num_hash=5, hash_code_len=9, projections_NDK=projections)[0].shape
        torch.Size([1, 2, 7, 5])
    """
    wrong = _wrong_hashes("projections_NDK", projections_NDK, query_BNLD, num_hash, hash_code_len, False)
    _check("gaussian_hash", wrong, query_BNLD=query_BNLD, query_mask_BL=query_mask_BL, key_BNSD=key_BNSD,
           key_mask_BS=key_mask_BS)
    return _hash_both(query_BNLD, query_mask_BL, key_BNSD, key_mask_BS, num_hash, hash_code_len, projections_NDK)


def lsh_cumulation(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, key_mask_BS: Tensor, key_codes_BNSM: Tensor,
    value_BNSE: Tensor, hashtable_capacity: int,
) -> Tensor:
    """Sum the values of the keys that collide with each query, averaged over the hash functions.

    Linear in L and S: for one hash function after the other, keys add their values to the buckets of a table
    and queries read their bucket. Sums are float32 at least. Differentiable in the values.

    Args:
        query_mask_BL, key_mask_BS: a masked query gets 0, a masked key gives nothing.
        query_codes_BNLM, key_codes_BNSM: codes below `hashtable_capacity`, int32.
        value_BNSE: the values.
        hashtable_capacity: 2**hash_code_len, the buckets of a table.

    Returns:
        `[B, N, L, E]`, of the dtype of the values.

    Raises:
        InputError: a code without a bucket, a table that is too large, or tensors that do not fit together.

    Example:
        >>> codes = torch.tensor([[[[0], [1], [0]]]], dtype=torch.int32)
        >>> mask, value = torch.ones(1, 3), torch.tensor([[[[1.0], [2.0], [4.0]]]])
        >>> lsh_cumulation(mask, codes, mask, codes, value, hashtable_capacity=2).flatten()
        tensor([5., 2., 5.])
    """
    _check(
        "lsh_cumulation", capacity_problems(hashtable_capacity, _width(value_BNSE)), query_mask_BL=query_mask_BL,
        query_codes_BNLM=query_codes_BNLM, key_mask_BS=key_mask_BS, key_codes_BNSM=key_codes_BNSM, value_BNSE=value_BNSE,
    )
    return _cumulate(
        query_mask_BL, query_codes_BNLM, key_mask_BS, key_codes_BNSM, value_BNSE, hashtable_capacity
    )


def lsh_weighted_cumulation(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, query_weight_BNLW: Tensor, key_mask_BS: Tensor,
    key_codes_BNSM: Tensor, key_weight_BNSW: Tensor, value_BNSE: Tensor, hashtable_capacity: int,
) -> Tensor:
    """Sum the values of the colliding keys, each times the dot product of the query's and the key's weights.

    Linear in L and S: a bucket holds the sum of its keys' outer products of weight and value, and a query
    multiplies it by its own weight. Sums are float32 at least. Differentiable in the weights and the values.

    Args:
        query_mask_BL, key_mask_BS: a masked query gets 0, a masked key gives nothing.
        query_codes_BNLM, key_codes_BNSM: codes below `hashtable_capacity`, int32.
        query_weight_BNLW, key_weight_BNSW: the weights.
        value_BNSE: the values.
        hashtable_capacity: 2**hash_code_len, the buckets of a table.

    Returns:
        `[B, N, L, E]`, of the dtype of the values.

    Raises:
        InputError: a code without a bucket, a table that is too large, or tensors that do not fit together.

    Example:
        >>> codes = torch.tensor([[[[0], [1], [0]]]], dtype=torch.int32)
        >>> mask, x = torch.ones(1, 3), torch.tensor([[[[1.0], [2.0], [4.0]]]])
        >>> lsh_weighted_cumulation(mask, codes, x, mask, codes, x, x, hashtable_capacity=2).flatten()
        tensor([17.,  8., 68.])
    """
    _check(
        "lsh_weighted_cumulation", capacity_problems(hashtable_capacity, _width(value_BNSE)), query_mask_BL=query_mask_BL,
        query_codes_BNLM=query_codes_BNLM, query_weight_BNLW=query_weight_BNLW, key_mask_BS=key_mask_BS,
        key_codes_BNSM=key_codes_BNSM, key_weight_BNSW=key_weight_BNSW, value_BNSE=value_BNSE,
    )
    return _cumulate_weighted(
        query_mask_BL, query_codes_BNLM, query_weight_BNLW, key_mask_BS, key_codes_BNSM, key_weight_BNSW,
        value_BNSE, hashtable_capacity,
    )


def expectation_weights(
    query_BNLD: Tensor, key_BNSD: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor, hash_code_len: int
) -> Tensor:
    """The probability that query i and key j collide, `(1 - arccos(q.k) / pi)**tau`; 0 if masked.

    Args:
        query_BNLD, key_BNSD: unit vectors.
        query_mask_BL, key_mask_BS: 1 keeps, 0 drops.
        hash_code_len: bits of a code.

    Returns:
        `[B, N, L, S]`, float32 at least. Its gradient is none of YOSO's: see `yoso_expectation`.

    Example:
        >>> x, mask = torch.eye(2)[None, None], torch.ones(1, 2)
        >>> expectation_weights(x, x, mask, mask, hash_code_len=2)[0, 0].tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    _check("expectation_weights", hash_problems(1, hash_code_len), query_BNLD=query_BNLD, key_BNSD=key_BNSD,
           query_mask_BL=query_mask_BL, key_mask_BS=key_mask_BS)
    kept = (query_mask_BL != 0)[:, None, :, None] & (key_mask_BS != 0)[:, None, None, :]
    with torch.autocast(query_BNLD.device.type, enabled=False):
        cosine_BNLS = _wide(query_BNLD) @ _wide(key_BNSD).mT
    return torch.where(kept, _collision_probability(cosine_BNLS, hash_code_len), 0.0)


def yoso_expectation(
    query_BNLD: Tensor, key_BNSD: Tensor, value_BNSE: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor,
    hash_code_len: int,
) -> Tensor:
    """YOSO-E: attention with the expected collisions; quadratic in time, linear in memory.

    Its gradient is the paper's: the true derivative of the collision probability is unbounded where query and
    key align, so its lower bound tau / 2 times the probability stands in for it.

    Args:
        query_BNLD, key_BNSD: unit vectors.
        value_BNSE: the values.
        query_mask_BL, key_mask_BS: 1 keeps, 0 drops: a masked query gets 0, a masked key gives nothing.
        hash_code_len: bits of a code.

    Returns:
        `[B, N, L, E]`, of the dtype of the values; rows are not normalised.

    Example:
        >>> x, mask = torch.eye(2)[None, None], torch.ones(1, 2)
        >>> yoso_expectation(x, x, x, mask, mask, hash_code_len=2)[0, 0].tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    _check("yoso_expectation", hash_problems(1, hash_code_len), query_BNLD=query_BNLD, key_BNSD=key_BNSD,
           value_BNSE=value_BNSE, query_mask_BL=query_mask_BL, key_mask_BS=key_mask_BS)
    return _expectation(query_BNLD, key_BNSD, value_BNSE, query_mask_BL, key_mask_BS, hash_code_len)


def yoso_sampling(
    query_BNLD: Tensor, key_BNSD: Tensor, value_BNSE: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor,
    hash_code_len: int, num_hash: int, use_fast_hash: bool, lsh_backward: bool, hashes: Tensor,
) -> Tensor:
    """YOSO: attention with counted collisions of `num_hash` hash functions; linear in time and memory.

    Args:
        query_BNLD, key_BNSD: unit vectors (without gradients any length does).
        value_BNSE: the values.
        query_mask_BL, key_mask_BS: 1 keeps, 0 drops: a masked query gets 0, a masked key gives nothing.
        hash_code_len: bits of a code.
        num_hash: hash functions.
        use_fast_hash: whether to hash by Hadamard transforms instead of Gaussian matrices.
        lsh_backward: whether gradients count the same collisions; otherwise they are those of
            `yoso_expectation`.
        hashes: signs for `fast_hash` or projections for `gaussian_hash`.

    Returns:
        `[B, N, L, E]`, of the dtype of the values; rows are not normalised. The hash itself has no gradient.

    Raises:
        InputError: the numbers do not make a hash function, or the tensors do not fit together.

    Example:
        >>> from bertkit.core.hashing import random_signs
        >>> x, mask = F.normalize(torch.randn(1, 2, 7, 64), dim=-1), torch.ones(1, 7)
        >>> signs = torch.from_numpy(random_signs(0, num_heads=2, head_dim=64, num_hash=5, hash_code_len=9))
        >>> yoso_sampling(x, x, x, mask, mask, 9, 5, True, True, signs).shape
        torch.Size([1, 2, 7, 64])
    """
    wrong = _wrong_hashes("hashes", hashes, query_BNLD, num_hash, hash_code_len, use_fast_hash)
    wrong += table_problems(hash_code_len, _width(value_BNSE))
    _check("yoso_sampling", wrong, query_BNLD=query_BNLD, key_BNSD=key_BNSD, value_BNSE=value_BNSE,
           query_mask_BL=query_mask_BL, key_mask_BS=key_mask_BS)
    return _sampling(
        query_BNLD, key_BNSD, value_BNSE, query_mask_BL, key_mask_BS, num_hash, hash_code_len,
        hashes.to(query_BNLD.device, torch.float32), lsh_backward,
    )


# ---- checks ------------------------------------------------------------------------------


def _check(name: str, problems: list[str], **tensors: Tensor) -> None:
    """Refuse, with one error, what does not fit together."""
    others = [f"{key}: got {type(x).__name__}, expected a torch.Tensor"
              for key, x in tensors.items() if not isinstance(x, Tensor)]
    if others:
        raise InputError(f"the inputs of {name} do not fit together", others)
    check_operation(name, {key: (x.shape, str(x.dtype).removeprefix("torch.")) for key, x in tensors.items()}, problems)


def _wrong_hashes(
    name: str, hashes: Tensor, query: Tensor, num_hash: int, hash_code_len: int, fast: bool
) -> list[str]:
    problems = hash_problems(num_hash, hash_code_len)
    if not isinstance(hashes, Tensor):
        problems.append(f"{name}: got {type(hashes).__name__}, expected a torch.Tensor")
    if problems or not isinstance(query, Tensor) or query.dim() != 4 or query.shape[3] == 0:
        return problems
    expected = shape_of_hashes(fast, query.shape[1], query.shape[3], num_hash, hash_code_len)
    if hashes.shape != expected:
        return [f"{name}: got shape {list(hashes.shape)}, expected {list(expected)}"]
    # Where nothing has to wait for it.
    if fast and hashes.device.type == "cpu" and not torch.compiler.is_compiling():
        odd = (abs(hashes.detach().float().numpy()) != 1).any()  # NumPy takes a third of PyTorch's time for so few
        return [f"{name}: got other numbers than 1 and -1"] if odd else []
    return []


def _width(value: Tensor) -> int:
    return value.shape[-1] if isinstance(value, Tensor) and value.dim() else 1


def _check_codes(capacity: int, query_codes: Tensor, key_codes: Tensor) -> None:
    codes = {"query_codes_BNLM": query_codes, "key_codes_BNSM": key_codes}
    bounds = {name: [int(bound) for bound in x.aminmax()] for name, x in codes.items() if x.numel()}
    check_codes(bounds, capacity)


# ---- operators ---------------------------------------------------------------------------


def _hash_both(
    query: Tensor, query_mask: Tensor, key: Tensor, key_mask: Tensor, num_hash: int, hash_code_len: int, hashes: Tensor,
) -> tuple[Tensor, Tensor]:
    """Codes of both by signs `[N, 3, P, D]` or projections `[N, D, K]`."""
    codes, hashes = _fast_codes if hashes.dim() == 4 else _gaussian_codes, hashes.to(query.device, torch.float32)
    return (
        codes(query.detach(), query_mask, num_hash, hash_code_len, hashes),
        codes(key.detach(), key_mask, num_hash, hash_code_len, hashes),
    )


def _kernels(x: Tensor, hash_code_len: int) -> ModuleType | None:
    """The faster kernels for a tensor: `native` on a CPU, `lsh_triton` on a GPU; None where PyTorch's operations serve.

    Both hash and sum. `native` also does both in one call, for attention and its gradients; Triton is given codes for them.
    """
    if native.serves_lsh(x, hash_code_len):
        return native
    if not x.is_cuda or x.dtype == torch.float64 or kernels_status().choice == PORTABLE:
        return None
    return _kernels_of_gpu(x.device)


@functools.cache
def _kernels_of_gpu(device: torch.device) -> ModuleType | None:
    """Tried once: Triton may be missing, or lack a C compiler, or not know this GPU."""
    try:
        from bertkit.kernels import lsh_triton

        x, mask = torch.ones(1, 1, 1, 1, device=device), torch.ones(1, 1, device=device)
        lsh_triton.cumulate(mask, x.int(), mask, x.int(), x, 1)
    except Exception as error:
        warnings.warn(f"bertkit runs portable kernels on {device}, which are slower: Triton fails with {error!r}. "
                      "BERTKIT_KERNELS=portable silences this.")
        return None
    return lsh_triton


def _operator(name: str) -> Callable[[Callable], torch.library.CustomOpDef]:
    """Register a custom operator, computed as written: autocast would take angles in bfloat16."""

    def register(function: Callable) -> torch.library.CustomOpDef:
        @functools.wraps(function)
        def precise(*arguments):
            with torch.autocast(arguments[0].device.type, enabled=False):
                return function(*arguments)

        return torch.library.custom_op(f"bertkit::{name}", precise, mutates_args=())

    return register


@_operator("fast_hash")
def _fast_codes(x: Tensor, mask: Tensor, num_hash: int, hash_code_len: int, signs: Tensor) -> Tensor:
    batch, heads, count, head_dim = x.shape
    layout = hash_layout(head_dim, num_hash, hash_code_len)
    if kernels := _kernels(x, hash_code_len):
        return kernels.hash_codes(x, mask, num_hash, hash_code_len, signs)
    size, parts, used = layout.padded_dim, layout.num_part, layout.hashes_per_part * hash_code_len
    # Vectors lie along the last axis, so that every butterfly adds long contiguous runs.
    x_GDL = F.pad(_kept(x, mask).float().mT, (0, 0, 0, size - head_dim))
    signs_G3PD1 = signs.repeat(batch, 1, 1, 1).unsqueeze(-1)
    codes_GML = x_GDL.new_empty(batch * heads, num_hash, count, dtype=torch.int32)
    for groups in _blocks(batch * heads, parts * size * count, x.device):
        for columns in _blocks(count, parts * size * (groups.stop - groups.start), x.device):
            block = x_GDL[groups, None, :, columns]
            for step in range(3):
                block = _hadamard_transform(block * signs_G3PD1[groups, step])
            bits_GMTL = (block[:, :, :used] > 0).unflatten(2, (-1, hash_code_len)).flatten(1, 2)[:, :num_hash]
            codes_GML[groups, :, columns] = _codes(bits_GMTL)
    return _finished(codes_GML.mT, heads, mask, 1, torch.int32).contiguous()


@_fast_codes.register_fake
def _(x, mask, num_hash, hash_code_len, signs):
    return x.new_empty(*x.shape[:3], num_hash, dtype=torch.int32)


@_operator("gaussian_hash")
def _gaussian_codes(x: Tensor, mask: Tensor, num_hash: int, hash_code_len: int, projections: Tensor) -> Tensor:
    if native.serves_lsh(x, hash_code_len):
        return native.hash_codes(x, mask, num_hash, hash_code_len, projections)
    codes_BNLM = x.new_empty(*x.shape[:3], num_hash, dtype=torch.int32)
    for rows in _blocks(x.shape[2], x.shape[0] * projections.shape[0] * projections.shape[2], x.device):
        bits_GMTL = (x[:, :, rows].float() @ projections > 0).flatten(0, 1).mT.unflatten(1, (num_hash, hash_code_len))
        codes_BNLM[:, :, rows] = _finished(_codes(bits_GMTL).mT, x.shape[1], mask[:, rows], 1, torch.int32)
    return codes_BNLM


@_gaussian_codes.register_fake
def _(x, mask, num_hash, hash_code_len, projections):
    return x.new_empty(*x.shape[:3], num_hash, dtype=torch.int32)


@_operator("lsh_cumulation")
def _cumulate(
    query_mask: Tensor, query_codes: Tensor, key_mask: Tensor, key_codes: Tensor, value: Tensor, capacity: int
) -> Tensor:
    _check_codes(capacity, query_codes, key_codes)
    return _sums(query_mask, query_codes, key_mask, key_codes, value, capacity)


def _sums(
    query_mask: Tensor, query_codes: Tensor, key_mask: Tensor, key_codes: Tensor, value: Tensor, capacity: int
) -> Tensor:
    if kernels := _kernels(value, _bits(capacity)):
        return kernels.cumulate(query_mask, query_codes, key_mask, key_codes, value, _bits(capacity))
    batch, heads, _, width = value.shape
    queries, num_hash = query_codes.shape[2:]
    value_GSE = _kept(value, key_mask)
    query_codes, key_codes = query_codes.flatten(0, 1), key_codes.flatten(0, 1)
    output_GLE = value_GSE.new_zeros(batch * heads, queries, width)
    for groups in _blocks(batch * heads, capacity * width, value.device):
        values, output = value_GSE[groups].flatten(0, 1), output_GLE[groups].flatten(0, 1)
        first_bucket = torch.arange(groups.stop - groups.start, device=value.device).unsqueeze(1) * capacity
        table = values.new_empty(first_bucket.numel() * capacity, width)
        for m in range(num_hash):
            table.zero_().index_add_(0, (key_codes[groups, :, m] + first_bucket).flatten(), values)
            output += table.index_select(0, (query_codes[groups, :, m] + first_bucket).flatten())
    return _finished(output_GLE, heads, query_mask, 1.0 / num_hash, value.dtype)


@_cumulate.register_fake
def _(query_mask, query_codes, key_mask, key_codes, value, capacity):
    return value.new_empty(*query_codes.shape[:3], value.shape[3])


def _save_cumulate(ctx, inputs, output) -> None:
    *tensors, _, ctx.capacity = inputs
    ctx.save_for_backward(*tensors)


def _cumulate_backward(ctx, grad):
    query_mask, query_codes, key_mask, key_codes = ctx.saved_tensors
    grad_value = _cumulate(key_mask, key_codes, query_mask, query_codes, grad, ctx.capacity)
    return None, None, None, None, grad_value, None


_cumulate.register_autograd(_cumulate_backward, setup_context=_save_cumulate)


@_operator("lsh_weighted_cumulation")
def _cumulate_weighted(
    query_mask: Tensor, query_codes: Tensor, query_weight: Tensor, key_mask: Tensor, key_codes: Tensor,
    key_weight: Tensor, value: Tensor, capacity: int,
) -> Tensor:
    _check_codes(capacity, query_codes, key_codes)
    return _weighted_sums(query_mask, query_codes, query_weight, key_mask, key_codes, key_weight, value, capacity)


def _weighted_sums(
    query_mask: Tensor, query_codes: Tensor, query_weight: Tensor, key_mask: Tensor, key_codes: Tensor,
    key_weight: Tensor, value: Tensor, capacity: int,
) -> Tensor:
    if kernels := _kernels(value, _bits(capacity)):
        return kernels.cumulate_weighted(
            query_mask, query_codes, query_weight, key_mask, key_codes, key_weight, value, _bits(capacity)
        )
    batch, heads, _, width = value.shape
    queries, num_hash = query_codes.shape[2:]
    # The row of zeros behind the last one fills up the tiles.
    value_GSE, key_weight_GSW, query_weight_GLW = (
        F.pad(_kept(x, mask), (0, 0, 0, 1))
        for x, mask in ((value, key_mask), (key_weight, key_mask), (query_weight, query_mask))
    )
    output_GLE = value_GSE.new_zeros(batch * heads, queries + 1, width)
    for m in range(num_hash):
        query_tiles = _tiles(query_codes[..., m], query_mask, capacity)
        key_tiles = _tiles(key_codes[..., m], key_mask, capacity)
        for g, (query_rows, query_buckets, key_rows, key_buckets) in enumerate(
            zip(*query_tiles, *key_tiles, strict=True)
        ):
            values_TRE = value_GSE[g][key_rows]
            for columns in _blocks(query_weight.shape[3], max(len(key_rows), capacity) * width, value.device):
                outer_TWE = key_weight_GSW[g, :, columns][key_rows].mT @ values_TRE
                table = outer_TWE.new_zeros(capacity, *outer_TWE.shape[1:])
                table.index_add_(0, key_buckets, outer_TWE)
                read_TRE = query_weight_GLW[g, :, columns][query_rows] @ table[query_buckets]
                output_GLE[g].index_add_(0, query_rows.flatten(), read_TRE.flatten(0, 1))
    return _finished(output_GLE[:, :-1], heads, query_mask, 1.0 / num_hash, value.dtype)


@_cumulate_weighted.register_fake
def _(query_mask, query_codes, query_weight, key_mask, key_codes, key_weight, value, capacity):
    return value.new_empty(*query_codes.shape[:3], value.shape[3])


def _save_cumulate_weighted(ctx, inputs, output) -> None:
    *tensors, ctx.capacity = inputs
    ctx.save_for_backward(*tensors)


def _cumulate_weighted_backward(ctx, grad):
    query_mask, query_codes, query_weight, key_mask, key_codes, key_weight, value = ctx.saved_tensors
    queries, keys, capacity = (query_mask, query_codes), (key_mask, key_codes), ctx.capacity
    grad_query = _cumulate_weighted(*queries, grad, *keys, value, key_weight, capacity).to(query_weight.dtype)
    grad_key = _cumulate_weighted(*keys, value, *queries, grad, query_weight, capacity).to(key_weight.dtype)
    grad_value = _cumulate_weighted(*keys, key_weight, *queries, query_weight, grad, capacity)
    return None, None, grad_query, None, None, grad_key, grad_value, None


_cumulate_weighted.register_autograd(_cumulate_weighted_backward, setup_context=_save_cumulate_weighted)


@_operator("yoso_expectation")
def _expectation(
    query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor, key_mask: Tensor, hash_code_len: int
) -> Tensor:
    query_GLD = _kept(query, query_mask)
    key_GSD, value_GSE = _kept(key, key_mask), _kept(value, key_mask)
    groups, queries, keys = len(query_GLD), query.shape[2], key.shape[2]
    output_GLE = value_GSE.new_empty(groups, queries, value.shape[3])
    for rows in _blocks(queries, groups * keys, value.device):
        weights_GRS = _collision_probability(query_GLD[:, rows] @ key_GSD.mT, hash_code_len)
        output_GLE[:, rows] = weights_GRS @ value_GSE
    return _finished(output_GLE, value.shape[1], query_mask, 1, value.dtype)


@_expectation.register_fake
def _(query, key, value, query_mask, key_mask, hash_code_len):
    return value.new_empty(*query.shape[:3], value.shape[3])


def _save_expectation(ctx, inputs, output) -> None:
    *tensors, ctx.hash_code_len = inputs
    ctx.save_for_backward(*tensors)


def _expectation_backward(ctx, grad):
    return *_expectation_gradients(*ctx.saved_tensors, grad, ctx.hash_code_len), None, None, None


_expectation.register_autograd(_expectation_backward, setup_context=_save_expectation)


@_operator("yoso_expectation_gradients")
def _expectation_gradients(
    query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor, key_mask: Tensor, grad: Tensor,
    hash_code_len: int,
) -> tuple[Tensor, Tensor, Tensor]:
    def weights(rows: slice) -> Tensor:
        return _collision_probability(query_GLD[:, rows] @ key_GSD.mT, hash_code_len)

    query_GLD, key_GSD = _kept(query, query_mask), _kept(key, key_mask)
    return _blockwise_gradients(weights, query, key, value, query_mask, key_mask, grad, hash_code_len)


@_expectation_gradients.register_fake
def _(query, key, value, query_mask, key_mask, grad, hash_code_len):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


@_operator("yoso_sampling")
def _sampling(
    query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor, key_mask: Tensor, num_hash: int, hash_code_len: int,
    hashes: Tensor, lsh_backward: bool,
) -> Tensor:
    if native.serves_lsh(value, hash_code_len):
        return native.sample(query, key, value, query_mask, key_mask, num_hash, hash_code_len, hashes)
    query_codes, key_codes = _hash_both(query, query_mask, key, key_mask, num_hash, hash_code_len, hashes)
    return _sums(query_mask, query_codes, key_mask, key_codes, value, 2**hash_code_len)


@_sampling.register_fake
def _(query, key, value, query_mask, key_mask, num_hash, hash_code_len, hashes, lsh_backward):
    return value.new_empty(*query.shape[:3], value.shape[3])


def _save_sampling(ctx, inputs, output) -> None:
    # No codes: for many hash functions they take more memory than the vectors, and hashing takes little of the time.
    *tensors, ctx.num_hash, ctx.hash_code_len, hashes, ctx.lsh_backward = inputs
    ctx.save_for_backward(*tensors, hashes)


def _sampling_backward(ctx, grad):
    *tensors, hashes = ctx.saved_tensors
    if ctx.lsh_backward:
        grads = _sampling_gradients(*tensors, grad, ctx.num_hash, ctx.hash_code_len, hashes)
    else:
        grads = _expectation_gradients(*tensors, grad, ctx.hash_code_len)
    return *grads, None, None, None, None, None, None


_sampling.register_autograd(_sampling_backward, setup_context=_save_sampling)


@_operator("yoso_sampling_gradients")
def _sampling_gradients(
    query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor, key_mask: Tensor, grad: Tensor, num_hash: int,
    hash_code_len: int, hashes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    def weights(rows: slice) -> Tensor:
        return _collision_rate(query_codes_GLM[:, rows], key_codes_GSM)

    if native.serves_lsh(query, hash_code_len):
        return native.sampling_gradients(query, key, value, query_mask, key_mask, grad, num_hash, hash_code_len, hashes)
    query_codes, key_codes = _hash_both(query, query_mask, key, key_mask, num_hash, hash_code_len, hashes)
    if kernels := _kernels(query, hash_code_len):
        return kernels.sampling_gradients(
            query, key, value, query_mask, key_mask, query_codes, key_codes, grad, hash_code_len
        )
    if query.shape[2] * key.shape[2] <= LONGEST_PAIRWISE**2:
        # Narrow codes are compared faster.
        narrow = torch.int16 if max(2**hash_code_len, query_codes.shape[3]) < 2**15 else torch.int32
        query_codes_GLM, key_codes_GSM = (x.flatten(0, 1).to(narrow) for x in (query_codes, key_codes))
        return _blockwise_gradients(weights, query, key, value, query_mask, key_mask, grad, hash_code_len)
    queries, keys, capacity = (query_mask, query_codes), (key_mask, key_codes), 2**hash_code_len
    scale = hash_code_len / 2
    return (
        _weighted_sums(*queries, grad, *keys, value, _wide(key), capacity).mul(scale).to(query.dtype),
        _weighted_sums(*keys, value, *queries, grad, _wide(query), capacity).mul(scale).to(key.dtype),
        _sums(*keys, *queries, grad, capacity).to(value.dtype),
    )


@_sampling_gradients.register_fake
def _(query, key, value, query_mask, key_mask, grad, num_hash, hash_code_len, hashes):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


# ---- pieces ------------------------------------------------------------------------------


def _codes(bits_GMTL: Tensor) -> Tensor:
    weights_T = 2 ** torch.arange(bits_GMTL.shape[2], dtype=torch.int32, device=bits_GMTL.device)
    return (bits_GMTL * weights_T[:, None]).sum(dim=2, dtype=torch.int32)


def _bits(capacity: int) -> int:
    """Of the codes of a table with so many buckets."""
    return max(1, (capacity - 1).bit_length())


def _wide(x: Tensor) -> Tensor:
    """Sums need float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _kept(x_BNLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Zero the masked rows (whatever they hold, even NaN), widen, and merge batch and heads."""
    return _wide(x_BNLD).masked_fill((mask_BL == 0)[:, None, :, None], 0.0).flatten(0, 1)


def _finished(output_GLE: Tensor, heads: int, mask_BL: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Scale, zero the masked rows, and split batch and heads."""
    output_BNLE = output_GLE.unflatten(0, (len(mask_BL), heads)) * scale
    return output_BNLE.masked_fill((mask_BL == 0)[:, None, :, None], 0).to(dtype)


def _hadamard_transform(x: Tensor) -> Tensor:
    """Transform the axis before the last: butterflies of stride 1, 2, 4, ... in the order of the reference.

    `x` is overwritten.
    """
    size, stride, spare = x.shape[-2], 1, torch.empty_like(x)
    while stride < size:
        (first, second), (total, difference) = (
            y.unflatten(-2, (size // (2 * stride), 2, stride)).unbind(-3) for y in (x, spare)
        )
        torch.add(first, second, out=total)
        torch.sub(first, second, out=difference)
        x, spare, stride = spare, x, 2 * stride
    return x


def _blocks(count: int, elements_each: int, device: torch.device) -> Iterator[slice]:
    """Cut `count` items into blocks that fit a processor's cache, or keep an accelerator busy."""
    elements = 2**20 if device.type == "cpu" else 2**26
    size = max(1, elements // max(1, elements_each))
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _collision_probability(cosine: Tensor, hash_code_len: int) -> Tensor:
    # Rounding makes the dot product of a unit vector with itself exceed 1, where acos is NaN.
    return power(1.0 - torch.acos(cosine.clamp(-1.0, 1.0)) / math.pi, hash_code_len)


def _collision_rate(query_codes_GRM: Tensor, key_codes_GSM: Tensor) -> Tensor:
    queries, num_hash = query_codes_GRM.shape[1:]
    count = query_codes_GRM.new_zeros(len(query_codes_GRM), queries, key_codes_GSM.shape[1])
    # A comparison is vectorised where its result has the type of the codes, not where it is boolean.
    collide = torch.empty_like(count)
    for m in range(num_hash):
        count += torch.eq(query_codes_GRM[:, :, None, m], key_codes_GSM[:, None, :, m], out=collide)
    return count / num_hash


def _blockwise_gradients(
    weights_of: Callable[[slice], Tensor], query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor,
    key_mask: Tensor, grad: Tensor, hash_code_len: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's gradients of `weights @ value`, with the weights of a block of queries at a time."""
    query_GLD, key_GSD = _kept(query, query_mask), _kept(key, key_mask)
    value_GSE, grad_GLE = _kept(value, key_mask), _kept(grad, query_mask)
    grad_query = torch.empty_like(query_GLD)
    grad_key, grad_value = torch.zeros_like(key_GSD), torch.zeros_like(value_GSE)
    heads = query.shape[1]
    for rows in _blocks(query_GLD.shape[1], len(query_GLD) * key_GSD.shape[1], query.device):
        weights_GRS = weights_of(rows)
        grad_value += weights_GRS.mT @ grad_GLE[:, rows]
        weights_GRS = (grad_GLE[:, rows] @ value_GSE.mT).mul_(weights_GRS)
        grad_query[:, rows] = weights_GRS @ key_GSD
        grad_key += weights_GRS.mT @ query_GLD[:, rows]
    return (
        _finished(grad_query, heads, query_mask, hash_code_len / 2, query.dtype),
        _finished(grad_key, heads, key_mask, hash_code_len / 2, key.dtype),
        _finished(grad_value, heads, key_mask, 1.0, value.dtype),
    )


def _tiles(codes_BNS: Tensor, mask_BS: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Bring the rows of each bucket together in tiles of a fixed height that no two buckets share.

    The number of tiles depends on shapes alone: a bucket wastes less than one tile.

    Returns:
        Rows `[G, T, R]`, S where a tile has room left, and the bucket `[G, T]` of each tile.
    """
    batch, heads, count = codes_BNS.shape
    height = min(max(count // capacity, 4), 64)
    tiles = (count + min(count, capacity) * (height - 1)) // height
    # Masked rows go to a bucket behind the last one, whose tiles are dropped.
    codes_GS = codes_BNS.masked_fill((mask_BS == 0)[:, None, :], capacity).flatten(0, 1).long()
    codes_GS, order_GS = codes_GS.sort(dim=1, stable=True)
    sizes = codes_GS.new_zeros(batch * heads, capacity + 1)
    sizes.scatter_add_(1, codes_GS, torch.ones_like(codes_GS))
    heights = (sizes + height - 1) // height * height
    place = torch.arange(count, device=codes_GS.device) + (
        (heights.cumsum(1) - heights) - (sizes.cumsum(1) - sizes)
    ).gather(1, codes_GS)
    place.masked_fill_(codes_GS == capacity, tiles * height)
    rows = codes_GS.new_full((batch * heads, tiles * height + 1), count).scatter_(1, place, order_GS)
    buckets = codes_GS.new_zeros(batch * heads, tiles + 1).scatter_(1, place // height, codes_GS)
    return rows[:, :-1].unflatten(1, (tiles, height)), buckets[:, :-1]
