"""The compiled kernels as operators of PyTorch: eager, under `torch.compile` without a break, and in exported programs.

The operators are declared to PyTorch from Python and call a library that knows nothing of it, so one library serves
every version. They run on the CPU, on PyTorch's own threads. `bertkit.core.native` chooses the level.

Shape suffixes: B batch, L length, E width; those of YOSO are explained in `bertkit.kernels.lsh`, whose operators run here
where they can.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bertkit.core import native, native_ibert, native_lsh

_OPERATORS = torch.library.Library("bertkit", "FRAGMENT")
_OPERATORS.define(
    "ibert_encode(Tensor packed, Tensor words, Tensor types, Tensor positions, Tensor word_ids, Tensor type_ids, "
    "Tensor position_ids, Tensor? mask, int states) -> Tensor")


def constant_when_traced(function: Callable) -> Callable:
    """What `torch.compiler.assume_constant_result` does, which loads the compiler: as slow as loading the rest of PyTorch."""
    function._dynamo_marked_constant = True
    return function


@constant_when_traced
def level() -> str:
    """The level that calls use now, see `bertkit.core.native.level`; a compiled model keeps the one it was traced with."""
    return native.level()


def ibert_encode(
    packed: Tensor, words: Tensor, types: Tensor, positions: Tensor, word_ids_BL: Tensor, type_ids_BL: Tensor,
    position_ids_BL: Tensor, mask_BL: Tensor | None = None, states: int = 1,
) -> Tensor:
    """I-BERT's encoder in integers, from ids to hidden states.

    Args:
        packed: the weights, from `bertkit.core.native_ibert.pack`, uint8; their level is the one that runs.
        words, types, positions: the tables, `[rows, E]`, int8.
        word_ids_BL, type_ids_BL, position_ids_BL: rows of the tables.
        mask_BL: bool or uint8; False or 0 is padding, whose hidden states are 0 and cost nothing. None: there is none.
        states: 1 for the last hidden state; layers + 1 for those of the embeddings and of every layer.

    Returns:
        `[states, B, L, E]`, int8.

    Raises:
        InputError: an id without a row in its table, or tensors that do not fit together.
    """
    ids = (ids.to(torch.int64) for ids in (word_ids_BL, type_ids_BL, position_ids_BL))
    return torch.ops.bertkit.ibert_encode(packed, words, types, positions, *ids, mask_BL, states)


def _ibert_encode(packed, words, types, positions, word_ids, type_ids, position_ids, mask, states) -> Tensor:
    tensors = (packed, words, types, positions, word_ids, type_ids, position_ids)
    arrays = (tensor.numpy() for tensor in tensors)
    mask = None if mask is None else mask.numpy()
    return torch.from_numpy(native_ibert.encode(
        *arrays, mask, states=states, threads=torch.get_num_threads(), openmp=_openmp()))


@functools.cache
def _openmp() -> native.OpenMP | None:
    """What PyTorch runs its own operators on; where that is not OpenMP, the kernels have threads of their own."""
    return native.openmp_of(Path(torch.__file__).parent / "lib" / native.file_name("torch_cpu"))


_OPERATORS.impl("ibert_encode", _ibert_encode, "CPU")


@torch.library.register_fake("bertkit::ibert_encode", lib=_OPERATORS)
def _(packed, words, types, positions, word_ids, type_ids, position_ids, mask, states):
    return words.new_empty(states, *word_ids.shape, words.shape[1])


# ---- YOSO --------------------------------------------------------------------------------


def serves_lsh(vectors: Tensor, hash_code_len: int) -> bool:
    """Whether compiled kernels take these: on the CPU, not in float64, with tables that they are made for."""
    return (vectors.device.type == "cpu" and vectors.dtype != torch.float64
            and hash_code_len <= native_lsh.LONGEST_CODE and native.level() != native.PORTABLE)


def hash_codes(x_BNLD: Tensor, mask_BL: Tensor, num_hash: int, hash_code_len: int, hashes: Tensor) -> Tensor:
    """Codes by signed Hadamard transforms, or by Gaussian projections, `[B, N, L, M]`, int32."""
    return torch.from_numpy(native_lsh.hash_codes(
        _floats(x_BNLD), _mask(mask_BL), num_hash, hash_code_len, _floats(hashes), _threads()))


def cumulate(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, key_mask_BS: Tensor, key_codes_BNSM: Tensor, value_BNSE: Tensor,
    hash_code_len: int,
) -> Tensor:
    """Sums over colliding keys, `[B, N, L, E]`, of the dtype of the values."""
    sums = native_lsh.cumulation(
        _mask(query_mask_BL), query_codes_BNLM.numpy(), _mask(key_mask_BS), key_codes_BNSM.numpy(), _floats(value_BNSE),
        hash_code_len, _threads())
    return torch.from_numpy(sums).to(value_BNSE.dtype)


def sample(
    query_BNLD: Tensor, key_BNSD: Tensor, value_BNSE: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor, num_hash: int,
    hash_code_len: int, hashes: Tensor,
) -> Tensor:
    """The same for the codes of queries and keys."""
    sums = native_lsh.sampling(
        *map(_floats, (query_BNLD, key_BNSD, value_BNSE)), _mask(query_mask_BL), _mask(key_mask_BS), num_hash, hash_code_len,
        _floats(hashes), _threads())
    return torch.from_numpy(sums).to(value_BNSE.dtype)


def cumulate_weighted(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, query_weight_BNLW: Tensor, key_mask_BS: Tensor, key_codes_BNSM: Tensor,
    key_weight_BNSW: Tensor, value_BNSE: Tensor, hash_code_len: int,
) -> Tensor:
    """Weighted sums over colliding keys, `[B, N, L, E]`, of the dtype of the values."""
    sums = native_lsh.weighted_cumulation(
        _mask(query_mask_BL), query_codes_BNLM.numpy(), _floats(query_weight_BNLW), _mask(key_mask_BS), key_codes_BNSM.numpy(),
        _floats(key_weight_BNSW), _floats(value_BNSE), hash_code_len, _threads())
    return torch.from_numpy(sums).to(value_BNSE.dtype)


def sampling_gradients(
    query_BNLD: Tensor, key_BNSD: Tensor, value_BNSE: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor, grad_BNLE: Tensor,
    num_hash: int, hash_code_len: int, hashes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sampled gradients of query, key and value, each of its dtype."""
    inputs = query_BNLD, key_BNSD, value_BNSE
    grads = native_lsh.sampling_gradients(
        *map(_floats, inputs), _mask(query_mask_BL), _mask(key_mask_BS), _floats(grad_BNLE), num_hash, hash_code_len,
        _floats(hashes), _threads())
    query, key, value = (torch.from_numpy(grad).to(x.dtype) for grad, x in zip(grads, inputs, strict=True))
    return query, key, value


def _floats(x: Tensor) -> np.ndarray:
    return x.float().numpy()


def _mask(mask: Tensor) -> np.ndarray:
    return (mask != 0).numpy()


def _threads() -> native_lsh.Threads:
    return native_lsh.Threads(native.level(), torch.get_num_threads(), _openmp())
