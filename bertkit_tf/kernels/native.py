"""The compiled kernels as operations of TensorFlow: eager and in `tf.function`.

The operations are registered through TensorFlow's C interface by a library that is built without TensorFlow, so one
library serves every version. They run on the CPU, with as many threads as TensorFlow uses for one operation. XLA and
saved models know nothing of them: those take portable code. `bertkit.core.native` chooses the level.

Shape suffixes: B batch, L length, E width; those of YOSO are explained in `bertkit_tf.kernels.lsh`, whose operations run here
where they can.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from bertkit.core import native, native_lsh
from bertkit.core.errors import BackendError

NO_MASK = np.zeros((0, 0), np.uint8)
"""An operation has a fixed number of inputs: an empty mask is none."""


@functools.cache
def _operations() -> Any:
    path = native.library().path.with_name(native.file_name("bertkit_tf"))
    try:
        return tf.load_op_library(str(path))
    except tf.errors.NotFoundError as error:
        raise BackendError("TensorFlow cannot load bertkit's operations", [str(error)], native.INSTALL) from error


@tf.autograph.experimental.do_not_convert
def level() -> str:
    """The level that calls use now, see `bertkit.core.native.level`; a `tf.function` keeps the one it was traced with.

    What is being traced for XLA is portable.
    """
    return native.PORTABLE if _under_xla() or native.level() == native.PORTABLE or _refused() else native.level()


@functools.cache
def _refused() -> str | None:
    """What TensorFlow says where it cannot load the operations: portable code serves then, unless others are asked for."""
    try:
        _operations()
        return None
    except BackendError as error:
        if native.kernels_status().choice != "auto":
            raise
        warnings.warn(f"bertkit runs portable kernels, which are slower: {error}", stacklevel=2)
        return str(error)


@tf.autograph.experimental.do_not_convert
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
        tf.errors.InvalidArgumentError: an id without a row in its table, or tensors that do not fit together.
        BackendError: there is no compiled library, or TensorFlow cannot load it.
    """
    ids = [tf.cast(ids, tf.int64) for ids in (word_ids_BL, type_ids_BL, position_ids_BL)]
    mask_BL = NO_MASK if mask_BL is None else tf.cast(mask_BL, tf.uint8)
    hidden = _operations().bertkit_ibert_encode(
        packed=packed, words=words, types=types, positions=positions, word_ids=ids[0], type_ids=ids[1], position_ids=ids[2],
        mask=mask_BL, states=states, threads=threads())
    hidden.set_shape([states, None, None, None])
    return hidden


# ---- YOSO --------------------------------------------------------------------------------


@tf.autograph.experimental.do_not_convert
def serves_lsh(vectors: Tensor, hash_code_len: int) -> bool:
    """Whether compiled kernels take these: on the CPU, not in float64, with tables that they are made for."""
    return (vectors.dtype != tf.float64 and hash_code_len <= native_lsh.LONGEST_CODE
            and not tf.config.list_logical_devices("GPU") and level() != native.PORTABLE)


def hash_codes(x_BNLD: Tensor, mask_BL: Tensor, num_hash: int, hash_code_len: int, hashes: Tensor) -> Tensor:
    """Codes by signed Hadamard transforms, or by Gaussian projections, `[B, N, L, M]`, int32."""
    codes = _operations().bertkit_lsh_hash(
        vectors=_floats(x_BNLD), mask=_mask(mask_BL), functions=_functions(hashes), hashes=num_hash, **_where(hash_code_len))
    return _of_shape(codes, *x_BNLD.shape[:3], num_hash)


def cumulate(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, key_mask_BS: Tensor, key_codes_BNSM: Tensor, value_BNSE: Tensor,
    hash_code_len: int,
) -> Tensor:
    """Sums over colliding keys, `[B, N, L, E]`, of the dtype of the values."""
    sums = _operations().bertkit_lsh_sum(
        query_mask=_mask(query_mask_BL), query_codes=query_codes_BNLM, key_mask=_mask(key_mask_BS), key_codes=key_codes_BNSM,
        values=_floats(value_BNSE), **_where(hash_code_len))
    return tf.cast(_of_shape(sums, *query_codes_BNLM.shape[:3], value_BNSE.shape[3]), value_BNSE.dtype)


def sample(
    query_BNLD: Tensor, key_BNSD: Tensor, value_BNSE: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor, num_hash: int,
    hash_code_len: int, hashes: Tensor,
) -> Tensor:
    """The same for the codes of queries and keys."""
    sums = _operations().bertkit_lsh_sampling(
        queries=_floats(query_BNLD), keys=_floats(key_BNSD), values=_floats(value_BNSE), query_mask=_mask(query_mask_BL),
        key_mask=_mask(key_mask_BS), functions=_functions(hashes), hashes=num_hash, **_where(hash_code_len))
    return tf.cast(_of_shape(sums, *query_BNLD.shape[:3], value_BNSE.shape[3]), value_BNSE.dtype)


def cumulate_weighted(
    query_mask_BL: Tensor, query_codes_BNLM: Tensor, query_weight_BNLW: Tensor, key_mask_BS: Tensor, key_codes_BNSM: Tensor,
    key_weight_BNSW: Tensor, value_BNSE: Tensor, hash_code_len: int,
) -> Tensor:
    """Weighted sums over colliding keys, `[B, N, L, E]`, of the dtype of the values."""
    sums = _operations().bertkit_lsh_weighted_sum(
        query_mask=_mask(query_mask_BL), query_codes=query_codes_BNLM, query_weights=_floats(query_weight_BNLW),
        key_mask=_mask(key_mask_BS), key_codes=key_codes_BNSM, key_weights=_floats(key_weight_BNSW),
        values=_floats(value_BNSE), **_where(hash_code_len))
    return tf.cast(_of_shape(sums, *query_codes_BNLM.shape[:3], value_BNSE.shape[3]), value_BNSE.dtype)


def sampling_gradients(
    query_BNLD: Tensor, key_BNSD: Tensor, value_BNSE: Tensor, query_mask_BL: Tensor, key_mask_BS: Tensor, grad_BNLE: Tensor,
    num_hash: int, hash_code_len: int, hashes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sampled gradients of query, key and value, each of its dtype."""
    grads = _operations().bertkit_lsh_gradients(
        queries=_floats(query_BNLD), keys=_floats(key_BNSD), values=_floats(value_BNSE), query_mask=_mask(query_mask_BL),
        key_mask=_mask(key_mask_BS), functions=_functions(hashes), grads=_floats(grad_BNLE), hashes=num_hash,
        **_where(hash_code_len))
    query, key, value = (
        tf.cast(_of_shape(grad, *x.shape), x.dtype) for grad, x in zip(grads, (query_BNLD, key_BNSD, value_BNSE), strict=True))
    return query, key, value


def _floats(x: Tensor) -> Tensor:
    return tf.cast(x, tf.float32)


def _mask(mask: Tensor) -> Tensor:
    return tf.cast(tf.cast(mask, tf.bool), tf.uint8)


def _functions(hashes: Tensor) -> Tensor:
    """Signs `[N, 3, P, D]`, or projections, whose second axis is 1."""
    hashes = _floats(hashes)
    return hashes if hashes.shape.rank == 4 else hashes[:, None]


def _of_shape(x: Tensor, *shape: int | None) -> Tensor:
    return tf.ensure_shape(x, shape)


def _where(hash_code_len: int) -> dict[str, int]:
    return {"level": native.LEVELS.index(native.level()), "threads": threads(), "code_bits": hash_code_len}


# ---- what both need ----------------------------------------------------------------------


def threads() -> int:
    """How many threads TensorFlow uses for one operation."""
    return tf.config.threading.get_intra_op_parallelism_threads() or native.cores()


def _under_xla() -> bool:
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False
