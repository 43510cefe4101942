"""The compiled kernels as operations of TensorFlow: eager and in `tf.function`.

The operations are registered through TensorFlow's C interface by a library that is built without TensorFlow, so one
library serves every version. They run on the CPU, with as many threads as TensorFlow uses for one operation. XLA and
saved models know nothing of them: those take portable code. `bertkit.core.native` chooses the level.

Shape suffixes: B batch, L length, E width.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from bertkit.core import native
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
    return native.PORTABLE if _under_xla() else native.level()


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
