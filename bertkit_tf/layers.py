"""Layers that the TensorFlow models share: weights made in the constructor, activations, norms, attention.

Shape suffixes: B batch, N heads, L query length, S key length, D head size, E width.

Dtypes: variables and the stream between the layers have the policy's variable dtype, products its compute dtype.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.core.errors import BackendError, InputError

if keras.backend.backend() != "tensorflow":
    raise BackendError(
        f"Keras runs on the backend {keras.backend.backend()!r}, bertkit_tf needs 'tensorflow'",
        remedy="Set KERAS_BACKEND=tensorflow (or ~/.keras/keras.json) before Keras is imported; for PyTorch use bertkit.",
    )

_local = threading.local()


@contextlib.contextmanager
def dtype_policy(policy: Any) -> Iterator[None]:
    """Blocks made inside take this dtype policy."""
    before = getattr(_local, "policy", None)
    _local.policy = policy
    try:
        yield
    finally:
        _local.policy = before


class Block(keras.layers.Layer):
    """A Keras layer inside a model: complete after its constructor, and called without Keras's bookkeeping.

    The model around it does that bookkeeping once; doing it again for every small layer costs about a millisecond
    a call. Subclasses make their weights in the constructor and compute in `call`.
    """

    def __init__(self) -> None:
        super().__init__(dtype=getattr(_local, "policy", None))
        self.built = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def variable(self, name: str, shape: tuple[int, ...], trainable: bool = True) -> keras.Variable:
        """A variable of the policy's variable dtype; the model gives it its value."""
        return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=trainable, autocast=False)

    def replace(self, name: str, value: keras.Variable | Block) -> None:
        """Put another variable or layer in the place of one.

        Keras by itself would go on training and saving the old one too; `del` would collect garbage each time.
        """
        old = getattr(self, name)
        if isinstance(old, keras.Variable):
            self._untrack_variable(old)
        else:
            self._tracker.untrack(old)
        setattr(self, name, value)


class Dense(Block):
    """A linear layer.

    Args:
        inputs: width of the input.
        outputs: width of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = self.variable("kernel", (inputs, outputs))
        self.bias = self.variable("bias", (outputs,))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.cast(x, self.compute_dtype)
        return matmul(x, tf.cast(self.kernel.value, x.dtype)) + tf.cast(self.bias.value, x.dtype)


def matmul(x: tf.Tensor, kernel: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """The last dimension of `x` times a matrix, as one product whatever the rank."""
    if x.shape.rank == 2:
        return tf.matmul(x, kernel, transpose_b=transpose_b)
    outputs = kernel.shape[0 if transpose_b else 1]
    flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel, transpose_b=transpose_b)
    return tf.reshape(flat, tf.concat([tf.shape(x)[:-1], [outputs]], 0))


class Matrix(Block):
    """A weight used as it lies on disk, without a layer's meaning of its own."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = self.variable("weight", (rows, columns))


class Embedding(Block):
    """A lookup table."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.embeddings = self.variable("embeddings", (rows, columns))

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.embeddings.value, ids)


class PaddedEmbedding(Embedding):
    """A lookup table whose row of the padding token is not trained by looking it up.

    Args:
        rows, columns: size of the table.
        pad: the row, or None.
    """

    def __init__(self, rows: int, columns: int, pad: int | None) -> None:
        super().__init__(rows, columns)
        self.pad = pad if pad is not None and 0 <= pad < rows else None

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        found = super().call(ids)
        if self.pad is None:
            return found
        return tf.where(tf.expand_dims(ids == tf.cast(self.pad, ids.dtype), -1), tf.stop_gradient(found), found)


def word_embedding(config: Any, columns: int) -> PaddedEmbedding:
    """The table of words."""
    return PaddedEmbedding(config.vocab_size, columns, config.pad_token_id)


class LayerNorm(Block):
    """Layer normalisation in float32 at least.

    Args:
        size: number of features, the last dimension of the input.
        eps: what keeps the variance from being zero.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = self.variable("gamma", (size,))
        self.beta = self.variable("beta", (size,))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = wide(x)
        mean = tf.reduce_mean(x, -1, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(x, mean), -1, keepdims=True)
        x = (x - mean) * tf.math.rsqrt(variance + self.eps)
        return tf.cast(x * tf.cast(self.gamma.value, x.dtype) + tf.cast(self.beta.value, x.dtype), self.variable_dtype)


class NoNorm(Block):
    """Scale and shift each feature, in float32 also where the rest of the model is in half precision.

    MobileBERT's activations reach 1e7, which float16 cannot hold.

    Args:
        size: number of features, the last dimension of the input.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma = self.variable("gamma", (size,))
        self.beta = self.variable("beta", (size,))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, self.variable_dtype) * self.gamma.value + self.beta.value


class Dropout(Block):
    """Drop features at random in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return dropout(x, self.rate, training)


def dropout(x: tf.Tensor, rate: float, training: bool | None) -> tf.Tensor:
    """Drop features at random in training; the same ones when a checkpointed layer is computed again."""
    return tf.nn.experimental.stateless_dropout(x, rate, seed=next_seed()) if training and rate else x


def next_seed() -> tf.Tensor:
    """A seed for one stateless random operation."""
    scope = getattr(_local, "seeds", None)
    if scope is None:
        return random_seed()
    scope["count"] += 1
    return tf.random.experimental.stateless_fold_in(scope["seed"], scope["count"])


def random_seed() -> tf.Tensor:
    """A new seed for stateless random operations, drawn from TensorFlow's global generator."""
    return tf.random.uniform([2], maxval=np.iinfo(np.int32).max, dtype=tf.int32)


@contextlib.contextmanager
def seeded(seed: tf.Tensor) -> Iterator[None]:
    """Random numbers inside follow from `seed` alone, so that the same code draws the same ones again."""
    before = getattr(_local, "seeds", None)
    _local.seeds = {"seed": seed, "count": 0}
    try:
        yield
    finally:
        _local.seeds = before


def wide(x: tf.Tensor) -> tf.Tensor:
    """In float32 at least."""
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x


def gelu(x: tf.Tensor) -> tf.Tensor:
    """x times the normal distribution function, in the form that exporters recognise."""
    return 0.5 * x * (1.0 + tf.math.erf(x * 0.7071067811865476))


ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": gelu,
    "gelu_new": lambda x: 0.5 * x * (1.0 + tf.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "selu": tf.nn.selu,
    "silu": lambda x: x * tf.sigmoid(x),
    "swish": lambda x: x * tf.sigmoid(x),
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
}


def activation(name: str | Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function behind a configuration's `hidden_act`, which may be a function already."""
    return name if callable(name) else ACTIVATIONS[name]


def additive_mask(mask: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor | None:
    """Turn a 0/1 mask into what is added to attention scores: 0, or the lowest number of the dtype.

    Args:
        mask: [B, S], [B, L, S] or [B, 1 or N, L, S], or None for no mask.
        dtype: floating dtype of the scores.

    Returns:
        [B, 1 or N, 1 or L, S], or None.

    Raises:
        InputError: for a mask of another rank.
    """
    if mask is None:
        return None
    if mask.shape.rank not in (2, 3, 4):
        raise InputError(f"attention_mask: got {mask.shape.rank} dimensions, expected 2 [batch, length] "
                         "or 3 [batch, length, length]")
    while mask.shape.rank < 4:
        mask = tf.expand_dims(mask, 1)
    return (1.0 - tf.cast(mask, dtype)) * dtype.min


def causal_mask(mask: tf.Tensor, length: Any) -> tf.Tensor:
    """Forbid each of the last `length` positions to see later ones.

    Args:
        mask: [B, S] padding mask of all positions, the cached ones first.
        length: number of new positions, at the end of S.

    Returns:
        [B, length, S] mask of 0 and 1.
    """
    keys = tf.range(tf.shape(mask)[1])
    seen = keys[None, :] <= keys[tf.shape(mask)[1] - length :, None]
    return tf.cast(seen, mask.dtype)[None] * tf.expand_dims(mask, 1)


def attend(
    query_BNLD: tf.Tensor,
    key_BNSD: tf.Tensor,
    value_BNSD: tf.Tensor,
    bias: tf.Tensor | None = None,
    *,
    dropout_rate: float = 0.0,
    scores_bias: tf.Tensor | None = None,
    head_mask: tf.Tensor | None = None,
    want_probabilities: bool = False,
    training: bool | None = None,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Scaled dot-product attention.

    Args:
        query_BNLD, key_BNSD, value_BNSD: projections by head.
        bias: what is added to the scaled scores, broadcastable to [B, N, L, S].
        dropout_rate: probability of dropping a probability in training.
        scores_bias: what is added to the scores before scaling (relative positions), [B, N, L, S].
        head_mask: factor of each head's probabilities, [N] or broadcastable to [B, N, L, S].
        want_probabilities: give the probabilities too.
        training: whether to drop out.

    Returns:
        Context [B, L, E] and probabilities [B, N, L, S] or None.
    """
    scores = tf.matmul(query_BNLD, key_BNSD, transpose_b=True)
    if scores_bias is not None:
        scores = scores + scores_bias
    scores = wide(scores) / math.sqrt(query_BNLD.shape[-1])
    if bias is not None:
        scores = scores + tf.cast(bias, scores.dtype)
    probabilities = dropout(tf.nn.softmax(scores), dropout_rate, training)
    if head_mask is not None:
        head_mask = tf.cast(head_mask, probabilities.dtype)
        probabilities = probabilities * (tf.reshape(head_mask, [-1, 1, 1]) if head_mask.shape.rank == 1 else head_mask)
    context_BNLD = tf.matmul(tf.cast(probabilities, value_BNSD.dtype), value_BNSD)
    return merge_heads(context_BNLD), probabilities if want_probabilities else None


def size(x: tf.Tensor, axis: int) -> Any:
    """Length of an axis: a number where it is known, else a tensor."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


def split_heads(x_BLE: tf.Tensor, size: int) -> tf.Tensor:
    """[B, L, E] -> [B, N, L, D]."""
    shape = tf.shape(x_BLE)
    return tf.transpose(tf.reshape(x_BLE, [shape[0], shape[1], x_BLE.shape[-1] // size, size]), [0, 2, 1, 3])


def merge_heads(x_BNLD: tf.Tensor) -> tf.Tensor:
    """[B, N, L, D] -> [B, L, E]."""
    shape = tf.shape(x_BNLD)
    width = x_BNLD.shape[1] * x_BNLD.shape[3]
    return tf.reshape(tf.transpose(x_BNLD, [0, 2, 1, 3]), [shape[0], shape[2], width])


def replace_weight(owner: Block, name: str, value: np.ndarray) -> keras.Variable:
    """Put a new variable, of the shape of `value`, in the place of one of a block's."""
    variable = owner.variable(name, value.shape, trainable=getattr(owner, name).trainable)
    owner.replace(name, variable)
    variable.assign(value)
    return variable


def keep_rows(layer: Dense, index: np.ndarray, dim: int = 0) -> None:
    """Cut a linear layer down to some of its outputs (dim 0) or inputs (dim 1), in place."""
    replace_weight(layer, "kernel", np.take(np.asarray(layer.kernel), index, 1 - dim))
    # The bias too where it stays the same: Keras's files know a layer's variables by the order of their making.
    bias = np.asarray(layer.bias)
    replace_weight(layer, "bias", bias[index] if dim == 0 else bias)


class Pooler(Block):
    """The first token through a linear layer and tanh.

    Args:
        config: gives `hidden_size`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Dense(config.hidden_size, config.hidden_size)

    def call(self, hidden_BLE: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.tanh(self.dense(hidden_BLE[:, 0])), self.variable_dtype)


class FeedForward(Block):
    """Dense and activation: the first half of a feed-forward network.

    Args:
        inputs: width of the input.
        outputs: inner width.
        act: name of the activation, or a function.
    """

    def __init__(self, inputs: int, outputs: int, act: str | Callable[[tf.Tensor], tf.Tensor]) -> None:
        super().__init__()
        self.dense = Dense(inputs, outputs)
        self.act = activation(act)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.act(self.dense(x))
