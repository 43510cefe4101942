"""YOSO in TensorFlow: attention by counting hash collisions. https://arxiv.org/abs/2111.09714"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from bertkit.core.errors import InputError
from bertkit.core.hashing import random_projections, random_signs, shape_of_hashes
from bertkit.core.yoso import POSITION_OFFSET, YOSO, YosoConfig
from bertkit_tf.heads import (
    ChoiceScorer,
    FirstTokenClassifier,
    FirstTokenTransform,
    LabelClassifier,
    LanguageModelHead,
    SpanClassifier,
)
from bertkit_tf.kernels.lsh import yoso_expectation, yoso_sampling
from bertkit_tf.layers import (
    Block,
    Dense,
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    keep_rows,
    merge_heads,
    next_seed,
    replace_weight,
    size,
    split_heads,
    wide,
    word_embedding,
)
from bertkit_tf.modeling import LayerStack, TFEncoderModel, head_masks, unpack_inputs
from bertkit_tf.outputs import TFBaseModelOutputWithCrossAttentions
from bertkit_tf.tasks import (
    FirstTokenMultipleChoice,
    MaskedLM,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)


class YosoEmbeddings(Block):
    """Words, token types and, where they are absolute, positions."""

    def __init__(self, config: YosoConfig) -> None:
        super().__init__()
        self.word_embeddings = word_embedding(config, config.hidden_size)
        self.position_embeddings = Embedding(config.max_position_embeddings + POSITION_OFFSET, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.absolute = config.position_embedding_type == "absolute"
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def call(self, words: tf.Tensor, token_type_ids: tf.Tensor | None, position_ids: tf.Tensor,
             training: bool | None) -> tf.Tensor:
        if token_type_ids is None:
            token_type_ids = tf.zeros_like(position_ids)
        hidden = words + self.token_type_embeddings(token_type_ids)
        hidden = hidden + self.position_embeddings(position_ids) if self.absolute else hidden
        return self.dropout(self.LayerNorm(hidden), training)


def normalize(x_BNLD: tf.Tensor) -> tf.Tensor:
    """Unit vectors; a vector shorter than 1e-12 stays short."""
    x_BNLD = wide(x_BNLD)
    square = tf.reduce_sum(x_BNLD * x_BNLD, -1, keepdims=True)
    return x_BNLD * tf.math.rsqrt(tf.maximum(square, 1e-24))


class HeadConvolution(Block):
    """A convolution of each head with a window of its own over the length, as long as before."""

    def __init__(self, heads: int, window: int) -> None:
        super().__init__()
        self.kernel = self.variable("kernel", (window, 1, heads, 1))

    def call(self, x_BNLD: tf.Tensor) -> tf.Tensor:
        x_BLDN = tf.transpose(x_BNLD, [0, 2, 3, 1])
        convolved = tf.nn.depthwise_conv2d(x_BLDN, tf.cast(self.kernel.value, x_BLDN.dtype), [1, 1, 1, 1], "SAME")
        return tf.transpose(convolved, [0, 3, 1, 2])


class YosoSelfAttention(Block):
    """Attention whose weights are collisions of hash codes, expected or sampled.

    The hash functions are drawn anew at every call, or, where the configuration has a `hash_seed`, once. Set
    `hashes` to use given ones: signs [heads, 3, parts, padded head size] or projections [heads, head size, bits].
    """

    def __init__(self, config: YosoConfig, index: int) -> None:
        super().__init__()
        heads = config.kept_heads(index)
        self.head_size, self.expected, self.fast = config.head_size, config.use_expectation, config.use_fast_hash
        self.code_length, self.num_hash, self.lsh_backward = config.hash_code_len, config.num_hash, config.lsh_backward
        self.query = Dense(config.hidden_size, heads * self.head_size)
        self.key = Dense(config.hidden_size, heads * self.head_size)
        self.value = Dense(config.hidden_size, heads * self.head_size)
        self.conv = None
        if config.conv_window is not None:
            self.conv = HeadConvolution(heads, config.conv_window)
        self.hashes = self._seeded(config, index)

    @staticmethod
    def _seeded(config: YosoConfig, index: int) -> np.ndarray | None:
        if config.hash_seed is None or config.use_expectation:
            return None
        draw = random_signs if config.use_fast_hash else random_projections
        numbers = draw(config.hash_seed + index, config.num_attention_heads, config.head_size, config.num_hash,
                       config.hash_code_len)
        pruned = config.pruned_heads.get(index, ())
        return numbers[[h for h in range(config.num_attention_heads) if h not in pruned]]

    def draw_hashes(self, like: tf.Tensor) -> tf.Tensor:
        """The hash functions of this call."""
        if self.hashes is not None:
            return tf.convert_to_tensor(self.hashes)
        shape = shape_of_hashes(self.fast, like.shape[1], self.head_size, self.num_hash, self.code_length)
        if self.fast:
            return tf.random.stateless_uniform(shape, next_seed(), 0, 2, tf.int32) * 2 - 1
        return tf.random.stateless_normal(shape, next_seed())

    def call(self, hidden: tf.Tensor, mask_BS: tf.Tensor, head_mask: tf.Tensor | None,
             want_probabilities: bool) -> tuple[tf.Tensor, tf.Tensor | None]:
        query_BNLD = normalize(split_heads(self.query(hidden), self.head_size))
        key_BNSD = normalize(split_heads(self.key(hidden), self.head_size))
        value_BNSD = split_heads(self.value(hidden), self.head_size)
        hashes = None if self.expected else self.draw_hashes(query_BNLD)

        def collisions_with(values: tf.Tensor) -> tf.Tensor:
            if hashes is None:
                return yoso_expectation(query_BNLD, key_BNSD, values, mask_BS, mask_BS, self.code_length)
            return yoso_sampling(query_BNLD, key_BNSD, values, mask_BS, mask_BS, self.code_length, self.num_hash,
                                 self.fast, self.lsh_backward, hashes)

        context_BNLD = normalize(collisions_with(value_BNSD))
        if self.conv is not None:
            kept_B1S1 = tf.cast(mask_BS, tf.bool)[:, None, :, None]
            context_BNLD = context_BNLD + self.conv(tf.where(kept_B1S1, value_BNSD, tf.zeros((), value_BNSD.dtype)))
        if head_mask is not None:
            head_mask = tf.cast(head_mask, context_BNLD.dtype)
            context_BNLD *= tf.reshape(head_mask, [-1, 1, 1]) if head_mask.shape.rank == 1 else head_mask
        weights = None
        if want_probabilities:
            shape = tf.shape(value_BNSD)
            one_hot = tf.eye(shape[2], batch_shape=shape[:2], dtype=value_BNSD.dtype)
            weights = collisions_with(one_hot)
        return merge_heads(context_BNLD), weights


class YosoOutput(Block):
    """Back to the stream's width, dropped out, added to the stream, normed."""

    def __init__(self, config: YosoConfig, inputs: int) -> None:
        super().__init__()
        self.dense = Dense(inputs, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def call(self, hidden: tf.Tensor, stream: tf.Tensor, training: bool | None) -> tf.Tensor:
        return self.LayerNorm(stream + tf.cast(self.dropout(self.dense(hidden), training), stream.dtype))


class YosoAttention(Block):
    """Attention and its way back into the stream."""

    def __init__(self, config: YosoConfig, index: int) -> None:
        super().__init__()
        self.self = YosoSelfAttention(config, index)
        self.output_ = YosoOutput(config, config.kept_heads(index) * config.head_size)

    def call(self, stream: tf.Tensor, *inputs: Any, training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None]:
        context, weights = self.self(stream, *inputs)
        return self.output_(context, stream, training), weights

    def keep_heads(self, heads: list[int]) -> None:
        """Keep only these heads."""
        inner = self.self
        index = np.array([h * inner.head_size + d for h in heads for d in range(inner.head_size)])
        for projection in (inner.query, inner.key, inner.value):
            keep_rows(projection, index)
        keep_rows(self.output_.dense, index, 1)
        if inner.conv is not None:
            replace_weight(inner.conv, "kernel", np.asarray(inner.conv.kernel)[:, :, heads])
        if inner.hashes is not None:
            inner.hashes = inner.hashes[heads]


class YosoLayer(Block):
    """One layer: attention and feed-forward, each normed behind its residual."""

    def __init__(self, config: YosoConfig, index: int) -> None:
        super().__init__()
        self.attention = YosoAttention(config, index)
        self.intermediate = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.output_ = YosoOutput(config, config.intermediate_size)

    def attentions(self) -> list[YosoAttention]:
        """Every attention of the layer."""
        return [self.attention]

    def call(self, stream: tf.Tensor, mask: tf.Tensor, head_mask: tf.Tensor | None,
             want_probabilities: bool, training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None]:
        stream, weights = self.attention(stream, mask, head_mask, want_probabilities, training=training)
        return self.output_(self.intermediate(stream), stream, training), weights


class YosoEncoder(LayerStack):
    """All layers."""

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(YosoLayer(config, index) for index in range(config.num_hidden_layers))

    def call(self, stream: tf.Tensor, mask: tf.Tensor, head_mask: tf.Tensor | None, output_attentions: bool,
             output_hidden_states: bool, training: bool | None) -> dict[str, Any]:
        hidden_states, attentions = [stream], []
        for layer, kept in zip(self.layer, head_masks(head_mask, len(self.layer)), strict=True):
            stream, weights = self.run(layer, stream, mask, kept, output_attentions, training=training)
            hidden_states.append(stream)
            attentions.append(weights)
        return {
            "last_hidden_state": stream,
            "hidden_states": tuple(hidden_states) if output_hidden_states else None,
            "attentions": tuple(attentions) if output_attentions else None,
        }


class TFYosoModel(TFEncoderModel, variant=YOSO):
    """YOSO without a head.

    Args:
        config: the configuration; `use_expectation=False` samples, at a cost that grows linearly with the length.

    Raises:
        ConfigError: when the configuration is impossible.

    Reference:
        Zeng et al., "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli Sampling",
        https://arxiv.org/abs/2111.09714

    Example:
        >>> import tensorflow as tf
        >>> from bertkit_tf import YosoConfig, TFYosoModel
        >>> tiny = YosoConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> TFYosoModel(tiny)(tf.constant([[5, 6, 7]])).last_hidden_state.shape
        TensorShape([1, 3, 32])
    """

    def __init__(self, config: YosoConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **{**kwargs, "add_pooling_layer": False})

    def assemble(self, config: YosoConfig, add_pooling_layer: bool) -> None:
        self.embeddings = YosoEmbeddings(config)
        self.encoder = YosoEncoder(config)
        self.pooler = None

    @unpack_inputs
    def call(
        self,
        input_ids: tf.Tensor | None = None,
        attention_mask: tf.Tensor | None = None,
        token_type_ids: tf.Tensor | None = None,
        position_ids: tf.Tensor | None = None,
        head_mask: tf.Tensor | None = None,
        inputs_embeds: tf.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> TFBaseModelOutputWithCrossAttentions | tuple:
        """Encode a batch of sequences.

        Args:
            input_ids: [batch, length] token ids.
            attention_mask: [batch, length], 1 for tokens, 0 for padding.
            token_type_ids: [batch, length] segment of each token.
            position_ids: [batch, length] row of the position table for each token; the first token's is 2.
            head_mask: [heads] or [layers, heads], 1 keeps a head.
            inputs_embeds: [batch, length, hidden_size] word embeddings instead of `input_ids`.
            output_attentions: give each layer's collision probabilities, or counted frequencies where it samples:
                [batch, heads, length, length], not normalised.
            output_hidden_states, return_dict: default: what the configuration says.

        Raises:
            InputError: listing everything that does not fit.
        """
        self.check_inputs(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                          token_type_ids=token_type_ids, position_ids=position_ids, head_mask=head_mask)
        if attention_mask is not None and attention_mask.shape.rank != 2:
            raise InputError(f"attention_mask: got {attention_mask.shape.rank} dimensions, expected 2 [batch, length]: YOSO "
                             "masks tokens, not pairs of tokens")
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = size(words, 0), size(words, 1)
        if position_ids is None:
            position_ids = tf.range(POSITION_OFFSET, POSITION_OFFSET + length)[None]
        mask = tf.ones([batch, length], words.dtype) if attention_mask is None else attention_mask
        encoded = self.encoder(self.embeddings(words, token_type_ids, position_ids, training), mask,
                               head_mask, training=training, **self.flags(output_attentions, output_hidden_states))
        return self.finish(TFBaseModelOutputWithCrossAttentions(**encoded), return_dict)


class TFYosoForMaskedLM(MaskedLM, encoder=TFYosoModel, cls=LanguageModelHead):
    """YOSO with a language-model head over masked words."""


class TFYosoForSequenceClassification(SequenceClassification, encoder=TFYosoModel, classifier=FirstTokenClassifier):
    """YOSO with a two-layer classifier, or regressor, on the first token."""


class TFYosoForMultipleChoice(FirstTokenMultipleChoice, encoder=TFYosoModel, pre_classifier=FirstTokenTransform,
                            classifier=ChoiceScorer):
    """YOSO with a scorer of choices on the first token."""


class TFYosoForTokenClassification(TokenClassification, encoder=TFYosoModel, classifier=LabelClassifier):
    """YOSO with a linear classifier on each token."""


class TFYosoForQuestionAnswering(QuestionAnswering, encoder=TFYosoModel, qa_outputs=SpanClassifier):
    """YOSO with a linear layer for start and end of the answer."""
