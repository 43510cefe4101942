"""The compiled kernels as operators of PyTorch: eager, under `torch.compile` without a break, and in exported programs.

The operators are declared to PyTorch from Python and call a library that knows nothing of it, so one library serves
every version. They run on the CPU, on PyTorch's own threads. `bertkit.core.native` chooses the level.

Shape suffixes: B batch, L length, E width.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from bertkit.core import native, native_ibert

_OPERATORS = torch.library.Library("bertkit", "FRAGMENT")
_OPERATORS.define(
    "ibert_encode(Tensor packed, Tensor words, Tensor types, Tensor positions, Tensor word_ids, Tensor type_ids, "
    "Tensor position_ids, Tensor? mask, int states) -> Tensor")


@torch.compiler.assume_constant_result
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
