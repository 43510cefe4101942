"""The frozen I-BERT: layers that hold integers and compute with integers, from ids to the last hidden state.

The weights are variables that nobody trains or casts, under the names of the simulated model. `bertkit_tf.kernels.int8` has
the arithmetic, `bertkit_tf.kernels.native` the same in compiled code, which serves where it can: both give the integers
of `bertkit.core.reference.int8`, bit for bit. `freeze` makes such a model of a calibrated one.

Shape suffixes: B batch, L length, N heads, S keys, D head size, E width.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import keras
import numpy as np
import tensorflow as tf

from bertkit.core import native_ibert
from bertkit.core.errors import BertkitError, InputError
from bertkit.core.freezing import freeze_tensors
from bertkit.core.ibert import IBERT, IBertConfig, check_ibert, native_tensors
from bertkit.core.native import PORTABLE
from bertkit.core.quantization import EMBEDDING_BITS, NORM_BITS
from bertkit_tf import state
from bertkit_tf.kernels import int8, native
from bertkit_tf.layers import Block, matmul, merge_heads, split_heads, wide
from bertkit_tf.modeling import LayerStack, TFPreTrainedModel, head_masks
from bertkit_tf.quantization import quantise

Model = TypeVar("Model", bound=TFPreTrainedModel)
ALIGNMENT = 64
"""Where TensorFlow's tensors begin: at multiples of so many bytes."""


def freeze(model: Model) -> Model:
    """Turn a calibrated I-BERT, in float or simulated, into one that computes in integers alone.

    Args:
        model: any class of I-BERT; it stays as it is.

    Returns:
        A model of the same class whose encoder is frozen. Its head is a copy, and can be trained: compile it for that.

    Raises:
        ConfigError: for a model whose arithmetic is not all in integers, or that is frozen already.
        CalibrationError: naming every activation whose range is empty, not finite, or has no width.
        FreezeError: naming every layer in which a number may not fit its width, or is not finite.

    Reference:
        Kim et al., "I-BERT: Integer-only BERT Quantization", https://arxiv.org/abs/2101.01321

    Example:
        >>> from bertkit_tf import TFIBertModel, freeze
        >>> model = TFIBertModel.from_pretrained("calibrated")  # doctest: +SKIP
        >>> freeze(model).save_pretrained("frozen")  # doctest: +SKIP
    """
    check_ibert(model, TFPreTrainedModel, "freeze")
    stored = {name: param for name, param in model.params().items() if param.stored}
    tensors = {name: state.to_disk(param, tf.cast(state.get_variable(model, param).value, tf.float32).numpy())
               for name, param in stored.items()}
    pooled = model.base_model.pooler is not None
    config, frozen = freeze_tensors(tensors, model.config, model.task, pooled)
    options = {"add_pooling_layer": pooled} if model.task == "Model" else {}
    result = type(model)(config, initialise=False, name=model.name, dtype=model.dtype_policy, **options)
    params = result.params()
    for name, tensor in frozen.items():
        state.set_value(result, params[name], tensor)
    return result


# -- what holds integers --------------------------------------------------------------------------------------------
class IntegerVariable(keras.Variable):
    """A variable of a frozen model: its memory is made with its first values, and it counts when it is given others.

    A model has hundreds of them. To make each one with zeros and to replace those was most of the time of loading it.
    """

    changes: ClassVar[int] = 0
    """How often such a variable was given other values: what was made of them before is out of date."""

    def _initialize_with_initializer(self, initializer: Callable[..., tf.Tensor]) -> None:
        self._value = None
        if tf.distribute.has_strategy():  # which has to make the variable itself
            self._initialize(initializer(self._shape, self._dtype))

    def _initialize(self, value: tf.Tensor) -> None:
        with tf.init_scope():
            super()._initialize(value)
        if not tf.distribute.has_strategy():
            self._value.__class__ = counting(type(self._value))

    @property
    def value(self) -> tf.Variable:
        """The variable of TensorFlow."""
        if self._value is None:
            with tf.init_scope():
                self._initialize(tf.zeros(self._shape, self._dtype))
        return super().value

    def _convert_to_tensor(self, value: Any, dtype: str | None = None) -> tf.Tensor:
        fits = isinstance(value, np.ndarray) and value.dtype.name == dtype and value.size
        return copied(value) if fits else super()._convert_to_tensor(value, dtype)

    @property
    def is_counted(self) -> bool:
        """Whether its values are those whose changes are counted: strategies and stateless calls have others."""
        return isinstance(self.value, Counting) and self.value is self._value

    def _direct_assign(self, value: tf.Tensor) -> None:
        if self._value is None and tf.executing_eagerly():
            self._initialize(value)
        else:
            self.value.assign(value)


def copied(array: np.ndarray) -> tf.Tensor:
    """A tensor of the same values, which are copied once: TensorFlow would do it again where memory is not as it likes it."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    values = memory[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    values[...] = array
    return tf.experimental.dlpack.from_dlpack(values.__dlpack__())


class Counting:
    """What a class of TensorFlow's variables needs to count, in `IntegerVariable.changes`, whatever changes one."""

    def assign(self, *args: Any, **kwargs: Any) -> Any:
        return counted(super().assign, *args, **kwargs)

    def assign_add(self, *args: Any, **kwargs: Any) -> Any:
        return counted(super().assign_add, *args, **kwargs)

    def assign_sub(self, *args: Any, **kwargs: Any) -> Any:
        return counted(super().assign_sub, *args, **kwargs)

    def _lazy_read(self, *args: Any, **kwargs: Any) -> Any:  # behind every change of a part
        return counted(super()._lazy_read, *args, **kwargs)

    def _restore_from_tensors(self, *args: Any, **kwargs: Any) -> Any:  # saved models have it traced
        restored = super()._restore_from_tensors(*args, **kwargs)
        IntegerVariable.changes += 1
        return restored


@functools.cache
def counting(kind: type) -> type:
    """A class of TensorFlow's variables that counts changes."""
    return type(kind.__name__, (Counting, kind), {})


def counted(change: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Change a variable, then count it: whoever sees the number sees the values, too."""
    if not tf.executing_eagerly():
        raise BertkitError("a tf.function assigns a weight of a frozen model, which compiled kernels would not notice",
                           remedy="Assign it outside of tf.function.")
    result = change(*args, **kwargs)
    IntegerVariable.changes += 1
    return result


class Kept:
    """What is made of variables when it is first needed, and again when they changed.

    It is no dictionary, so that Keras does not save what follows from other variables.
    """

    def __init__(self) -> None:
        self.made: dict[Any, tuple[int, Any]] = {}
        self.lock = threading.Lock()

    def get(self, key: Any, make: Callable[[Any], Any]) -> Any:
        """What `make` gives for a key."""
        with self.lock:
            changes = IntegerVariable.changes
            if key not in self.made or self.made[key][0] != changes:
                self.made[key] = changes, make(key)
            return self.made[key][1]


def in_place(variable: IntegerVariable) -> np.ndarray:
    """The values where they lie; they stay what they are, since a change of the variable takes other memory."""
    return np.asarray(variable.value.read_value())


def compiled(variable: IntegerVariable) -> str:
    """The level of the kernels that may serve where this variable is: none on other devices, or where changes do not count."""
    served = variable.is_counted and "GPU" not in variable.value.device and not tf.distribute.has_strategy()
    return native.level() if served else PORTABLE


class IntegerBlock(Block):
    """A block with variables that keep their dtype: integers stay integers, and scales float32, under every policy."""

    def integers(self, name: str, *shape: int, dtype: str = "int32") -> IntegerVariable:
        """Make a variable; the model gives it its values."""
        with keras.name_scope(self.name):
            return IntegerVariable(tf.zeros, shape, dtype, trainable=False, autocast=False, name=name)


class IntegerEmbedding(IntegerBlock):
    """A lookup table of 8 bits.

    Args:
        rows, columns: size of the table.
        scaled: whether it knows the scales of its integers.
    """

    def __init__(self, rows: int, columns: int, scaled: bool = False) -> None:
        super().__init__()
        self.weight_integer = self.integers("weight_integer", rows, columns, dtype="int8")
        self.multiplier = self.integers("multiplier", columns)
        self.right_shift = self.integers("right_shift", columns)
        if scaled:
            self.weight_scaling_factor = self.integers("weight_scaling_factor", columns, dtype="float32")

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Look up `ids` [...]: integers [..., columns] at the scale of the sum of all tables."""
        return int8.rescale(tf.gather(self.weight_integer.value, ids), self.multiplier.value, self.right_shift.value)


class IntegerLinear(IntegerBlock):
    """A linear layer from 8 to 32 bits."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_integer = self.integers("weight_integer", outputs, inputs, dtype="int8")
        self.bias_integer = self.integers("bias_integer", outputs)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return int8.linear(x, self.weight_integer.value, self.bias_integer.value)


class IntegerActivation(IntegerBlock):
    """The way from one scale to another, and to 8 bits."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.multiplier = self.integers("multiplier", size)
        self.right_shift = self.integers("right_shift", size)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return int8.to_stream(int8.rescale(x, self.multiplier.value, self.right_shift.value))


class IntegerSum(IntegerActivation):
    """The sum of a value and the stream, each from its own scale, in as many bits as layer norms read."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.identity_multiplier = self.integers("identity_multiplier", size)
        self.identity_right_shift = self.integers("identity_right_shift", size)

    def call(self, x: tf.Tensor, stream: tf.Tensor) -> tf.Tensor:
        x = int8.rescale(x, self.multiplier.value, self.right_shift.value)
        stream = int8.rescale(stream, self.identity_multiplier.value, self.identity_right_shift.value)
        return int8.saturate(x + stream, NORM_BITS)


class IntegerScale(IntegerBlock):
    """The scale of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.act_scaling_factor = self.integers("act_scaling_factor", 1, dtype="float32")


class IntegerStream(IntegerActivation):
    """The way from a layer norm into the stream, whose scales leave the encoder with it."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.offset = self.integers("offset", size, dtype="int64")
        self.act_scaling_factor = self.integers("act_scaling_factor", size, dtype="float32")


class IntegerLayerNorm(IntegerBlock):
    """Layer normalisation; its gain and bias are in the activation behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = self.integers("shift", 1)

    def call(self, x: tf.Tensor, activation: IntegerStream) -> tf.Tensor:
        numbers = (self.shift, activation.multiplier, activation.right_shift, activation.offset)
        return int8.layer_norm(x, *(number.value for number in numbers))


class IntegerGELU(IntegerBlock):
    """GELU by a polynomial."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.clip = self.integers("clip", size)
        self.one = self.integers("one", size, dtype="int64")
        self.unit = self.integers("unit", size)
        self.drop = self.integers("drop", size)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return int8.gelu(x, *(number.value for number in (self.clip, self.one, self.unit, self.drop)))


class IntegerSoftmax(IntegerBlock):
    """The numbers of softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.constants = self.integers("constants", 4)
        self.act = IntegerActivation(1)


# -- blocks ---------------------------------------------------------------------------------------------------------
class IntegerEmbeddings(IntegerBlock):
    """Words, token types and positions, and their norm."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = IntegerEmbedding(config.vocab_size, width)
        self.token_type_embeddings = IntegerEmbedding(config.type_vocab_size, width, scaled=True)
        self.position_embeddings = IntegerEmbedding(config.max_position_embeddings, width)
        self.embeddings_act1 = IntegerScale()
        self.LayerNorm = IntegerLayerNorm()
        self.output_activation = IntegerStream(width)

    def call(self, words: tf.Tensor, token_type_ids: tf.Tensor, position_ids: tf.Tensor) -> tf.Tensor:
        """The stream [B, L, E] of ids [B, L], or of integers that `quantised` gives for vectors in the place of words."""
        if words.shape.rank == 2:
            words = int8.saturate(self.word_embeddings(words) + self.token_type_embeddings(token_type_ids), EMBEDDING_BITS)
        total = int8.saturate(words + self.position_embeddings(position_ids), EMBEDDING_BITS)
        return self.LayerNorm(total, self.output_activation)

    def quantised(self, vectors: tf.Tensor, token_type_ids: tf.Tensor) -> tf.Tensor:
        """Vectors [B, L, E] plus token types as integers: the last floating-point numbers before the encoder."""
        types = self.token_type_embeddings
        found = tf.cast(tf.gather(types.weight_integer.value, token_type_ids), tf.float32)
        total = wide(vectors) + found * types.weight_scaling_factor.value
        return int8.wide(quantise(total, self.embeddings_act1.act_scaling_factor.value, EMBEDDING_BITS))


class IntegerSelfAttention(IntegerBlock):
    """Attention."""

    def __init__(self, config: IBertConfig, heads: int) -> None:
        super().__init__()
        self.head_size = config.head_size
        width, inner = config.hidden_size, heads * self.head_size
        self.query, self.key, self.value = (IntegerLinear(width, inner) for _ in range(3))
        self.query_activation, self.key_activation, self.value_activation = (IntegerActivation(inner) for _ in range(3))
        self.softmax = IntegerSoftmax()
        self.output_activation = IntegerActivation(1)

    def call(self, stream: tf.Tensor, keep: tf.Tensor | None, heads: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Context [B, L, E] and probabilities [B, N, L, S] in 1/256."""
        query_BNLD = split_heads(self.query_activation(self.query(stream)), self.head_size)
        key_BNSD = split_heads(self.key_activation(self.key(stream)), self.head_size)
        value_BNSD = split_heads(self.value_activation(self.value(stream)), self.head_size)
        context_BNLD, probabilities = int8.attend(
            query_BNLD, key_BNSD, value_BNSD, keep, heads, self.softmax.constants.value, self.softmax.act.multiplier.value,
            self.softmax.act.right_shift.value)
        return self.output_activation(merge_heads(context_BNLD)), probabilities


class IntegerOutput(IntegerBlock):
    """Back to the stream's width, added to the stream, normed."""

    def __init__(self, config: IBertConfig, inputs: int) -> None:
        super().__init__()
        self.dense = IntegerLinear(inputs, config.hidden_size)
        self.ln_input_act = IntegerSum(config.hidden_size)
        self.LayerNorm = IntegerLayerNorm()
        self.output_activation = IntegerStream(config.hidden_size)

    def call(self, x: tf.Tensor, stream: tf.Tensor) -> tf.Tensor:
        return self.LayerNorm(self.ln_input_act(self.dense(x), stream), self.output_activation)


class IntegerAttention(IntegerBlock):
    """Attention and its way back into the stream."""

    def __init__(self, config: IBertConfig, heads: int) -> None:
        super().__init__()
        self.self = IntegerSelfAttention(config, heads)
        self.output_ = IntegerOutput(config, heads * config.head_size)

    def call(self, stream: tf.Tensor, keep: tf.Tensor | None, heads: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        context, probabilities = self.self(stream, keep, heads)
        return self.output_(context, stream), probabilities


class IntegerIntermediate(IntegerBlock):
    """The first half of the feed-forward network."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__()
        self.dense = IntegerLinear(config.hidden_size, config.intermediate_size)
        self.gelu = IntegerGELU(config.intermediate_size)
        self.output_activation = IntegerActivation(config.intermediate_size)

    def call(self, stream: tf.Tensor) -> tf.Tensor:
        return self.output_activation(self.gelu(self.dense(stream)))


class IntegerLayer(IntegerBlock):
    """One layer: attention and feed-forward."""

    def __init__(self, config: IBertConfig, index: int) -> None:
        super().__init__()
        self.attention = IntegerAttention(config, config.kept_heads(index))
        self.intermediate = IntegerIntermediate(config)
        self.output_ = IntegerOutput(config, config.intermediate_size)

    def call(self, stream: tf.Tensor, keep: tf.Tensor | None, heads: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        stream, probabilities = self.attention(stream, keep, heads)
        return self.output_(self.intermediate(stream), stream), probabilities


class IntegerEncoder(LayerStack):
    """All layers."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__(IntegerLayer(config, index) for index in range(config.num_hidden_layers))
        # Keras compiles what it may, for half a minute and again for each length, and past the compiled kernels.
        self.supports_jit = False

    def _clear_losses(self) -> None:
        """There are none; Keras would look for them in hundreds of layers at each call."""

    def call(self, stream: tf.Tensor, mask: tf.Tensor | None, head_mask: tf.Tensor | None) -> tuple[list, list]:
        """Hidden states [B, L, E], the stream as it came first, and probabilities [B, N, L, S] of each layer.

        Args:
            stream: [B, L, E], int8.
            mask: [B, S], [B, L, S] or [B, 1 or N, L, S], true for tokens to attend to. Tokens that a [B, S] mask leaves
                out are 0 in every hidden state.
            head_mask: [heads] or [layers, heads] of 0 and 1.
        """
        keep, real = mask, None
        if mask is not None:
            keep, real = (mask[:, None, None], mask[..., None]) if mask.shape.rank == 2 else (mask, None)
            keep = keep[:, None] if keep.shape.rank == 3 else keep
        stream = stream if real is None else tf.where(real, stream, tf.zeros([], stream.dtype))
        states, probabilities = [stream], []
        for layer, heads in zip(self.layer, head_masks(head_mask, len(self.layer)), strict=True):
            stream, found = layer(stream, keep, _which_heads(heads))
            stream = stream if real is None else tf.where(real, stream, tf.zeros([], stream.dtype))
            states.append(stream)
            probabilities.append(found)
        return states, probabilities


def _which_heads(heads: tf.Tensor | None) -> tf.Tensor | None:
    if heads is None:
        return None
    if hasattr(heads, "numpy") and not np.isin(heads.numpy(), (0, 1)).all():
        raise InputError("head_mask: got values other than 0 and 1, which integers cannot be multiplied by")
    return tf.cast(tf.reshape(heads, [-1, 1, 1]) if heads.shape.rank == 1 else heads, tf.bool)


class IntegerDecoder(IntegerBlock):
    """The decoder onto the vocabulary, whose 8 bit weight is a floating-point one when it computes.

    Args:
        inputs: width of the head.
        words: number of words.
    """

    def __init__(self, inputs: int, words: int) -> None:
        super().__init__()
        self.weight_integer = self.integers("weight_integer", words, inputs, dtype="int8")
        self.weight_scaling_factor = self.integers("weight_scaling_factor", words, dtype="float32")
        self.bias = None
        self._kept = Kept()

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.cast(x, self.compute_dtype)
        scores = matmul(x, self.weight(x.dtype), transpose_b=True)
        return scores * tf.cast(self.weight_scaling_factor.value, x.dtype) + tf.cast(self.bias.value, x.dtype)


    def weight(self, dtype: tf.DType) -> tf.Tensor:
        """[words, inputs] in floating point; where compiled kernels serve it is kept."""
        if compiled(self.weight_integer) == PORTABLE:
            return self.as_floats(dtype)
        if tf.executing_eagerly():
            return self._kept.get(dtype, self.as_floats)
        floats = tf.numpy_function(lambda: np.asarray(self._kept.get(dtype, self.as_floats)), [], dtype)
        return tf.ensure_shape(floats, self.weight_integer.shape)

    def as_floats(self, dtype: tf.DType) -> tf.Tensor:
        """The integers as they are."""
        return tf.cast(self.weight_integer.value, dtype)


# -- the whole encoder ----------------------------------------------------------------------------------------------
class IntegerInference:
    """How a frozen encoder gets from ids to hidden states; a part of `TFIBertModel`."""

    config: IBertConfig
    embeddings: IntegerEmbeddings
    encoder: IntegerEncoder

    def encode(self, words: tf.Tensor, attention_mask: tf.Tensor | None, token_type_ids: tf.Tensor, position_ids: tf.Tensor,
               head_mask: tf.Tensor | None, output_attentions: bool, output_hidden_states: bool) -> dict[str, Any]:
        """The hidden states and probabilities that a call asks for, in floating point.

        Args:
            words: [B, L] ids, or [B, L, E] vectors.
            attention_mask: [B, L], [B, L, S] or [B, 1 or N, L, S], 0 for padding.
            token_type_ids, position_ids: [B, L] or [1, L].
            head_mask: [heads] or [layers, heads] of 0 and 1.
            output_attentions, output_hidden_states: what is asked for beside the last hidden state.
        """
        if words.dtype.is_floating:
            words = self.embeddings.quantised(words, token_type_ids)
        states, probabilities = self.integers(words, attention_mask, token_type_ids, position_ids, head_mask,
                                              output_attentions, output_hidden_states)
        layers = len(self.encoder.layer)
        shown = range(layers + 1) if output_hidden_states else [layers]
        hidden_states = [tf.cast(states[index - layers - 1], tf.float32) * self.scale(index) for index in shown]
        return {
            "last_hidden_state": hidden_states[-1],
            "hidden_states": tuple(hidden_states) if output_hidden_states else None,
            "attentions": tuple(tf.cast(p, tf.float32) * (1 / 256) for p in probabilities) if output_attentions else None,
        }

    def integers(self, words: tf.Tensor, attention_mask: tf.Tensor | None, token_type_ids: tf.Tensor, position_ids: tf.Tensor,
                 head_mask: tf.Tensor | None, output_attentions: bool, output_hidden_states: bool) -> tuple[list, list]:
        """The integers behind `encode`; of hidden states at least the last one. No floating-point number is on the way."""
        level = self.level(words, attention_mask, head_mask, output_attentions)
        count = len(self.encoder.layer) + 1 if output_hidden_states else 1
        if level != PORTABLE and tf.executing_eagerly():  # as in PyTorch: operations of TensorFlow are slower than NumPy's
            tables = self._kept.get("tables", self.tables)
            ids = [np.asarray(np.broadcast_to(x, words.shape), np.int64) for x in (words, token_type_ids, position_ids)]
            mask = None if attention_mask is None else np.asarray(attention_mask) != 0
            packed = self._kept.get(level, self.pack)
            return list(native_ibert.encode(packed, *tables, *ids, mask, count, native.threads())), []
        mask = None if attention_mask is None else tf.cast(attention_mask, tf.bool)
        if level == PORTABLE:
            return self.encoder(self.embeddings(words, token_type_ids, position_ids), mask, head_mask)
        tables = (self.embeddings.word_embeddings, self.embeddings.token_type_embeddings, self.embeddings.position_embeddings)
        ids = (words, *(tf.broadcast_to(x, tf.shape(words)) for x in (token_type_ids, position_ids)))
        # Graphs ask for the packed weights at each call, since the variables may have changed. Nothing is copied.
        packed = tf.ensure_shape(tf.numpy_function(lambda: self._kept.get(level, self.pack), [], tf.uint8), [None])
        states = native.ibert_encode(packed, *(table.weight_integer.value for table in tables), *ids, mask, count)
        return tf.unstack(tf.ensure_shape(states, [count, *words.shape, self.config.hidden_size])), []

    def level(self, words: tf.Tensor | None, mask: tf.Tensor | None, head_mask: tf.Tensor | None,
              output_attentions: bool) -> str:
        """The level of the kernels that serve a call: compiled ones know neither other masks nor other devices."""
        plain = words is not None and words.shape.rank == 2 and (mask is None or mask.shape.rank == 2) and head_mask is None
        return compiled(self.embeddings.word_embeddings.weight_integer) if plain and not output_attentions else PORTABLE

    def scale(self, layers: int) -> tf.Tensor:
        """The scales of the hidden state behind so many layers, [E]."""
        block = self.encoder.layer[layers - 1].output_ if layers else self.embeddings
        return block.output_activation.act_scaling_factor.value

    def tables(self, _: str) -> list[np.ndarray]:
        """The tables of words, types and positions."""
        blocks = (self.embeddings.word_embeddings, self.embeddings.token_type_embeddings, self.embeddings.position_embeddings)
        return [in_place(block.weight_integer) for block in blocks]

    def pack(self, level: str) -> np.ndarray:
        """The weights as the compiled kernels of a level read them."""
        params = IBERT.params("Model", self.config, pooled=False)
        tensors = {name: in_place(state.get_variable(self, params[name])) for name in native_tensors(self.config)}
        return native_ibert.pack(self.config, tensors, level)
