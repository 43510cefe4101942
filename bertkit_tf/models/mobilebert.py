"""MobileBERT in TensorFlow: thin layers between bottlenecks. https://arxiv.org/abs/2004.02984"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from bertkit.core.mobilebert import MOBILEBERT, MobileBertConfig
from bertkit_tf.heads import (
    ChoiceScorer,
    LabelClassifier,
    NextSentenceHead,
    SpanClassifier,
    SplitLanguageModelHead,
    SplitPreTrainingHead,
)
from bertkit_tf.layers import (
    Block,
    Dense,
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    NoNorm,
    additive_mask,
    attend,
    keep_rows,
    size,
    split_heads,
    word_embedding,
)
from bertkit_tf.modeling import LayerStack, TFEncoderModel, head_masks, unpack_inputs
from bertkit_tf.outputs import TFBaseModelOutputWithPooling, TFMobileBertForPreTrainingOutput
from bertkit_tf.tasks import (
    MaskedLM,
    MultipleChoice,
    NextSentencePrediction,
    PreTraining,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)

NORMS: dict[str, Callable[[int, float], Block]] = {
    "no_norm": lambda size, eps: NoNorm(size),
    "layer_norm": lambda size, eps: LayerNorm(size, eps),
}


def norm(config: MobileBertConfig, size: int) -> Block:
    """The configured kind of norm."""
    return NORMS[config.normalization_type](size, config.layer_norm_eps)


class MobileBertEmbeddings(Block):
    """Narrow words, each beside its neighbours, made as wide as the stream; positions and token types added."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.trigram, self.transforms = config.trigram_input, config.transforms_embeddings
        self.word_embeddings = word_embedding(config, config.embedding_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_transformation = Dense(config.word_features, config.hidden_size)
        self.LayerNorm = norm(config, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def call(self, words: tf.Tensor, token_type_ids: tf.Tensor | None, position_ids: tf.Tensor,
             training: bool | None) -> tf.Tensor:
        if token_type_ids is None:
            token_type_ids = tf.zeros_like(position_ids)
        if self.trigram:
            padded = tf.pad(words, [[0, 0], [1, 1], [0, 0]])
            words = tf.concat([padded[:, 2:], words, padded[:, :-2]], 2)
        hidden = self.embedding_transformation(words) if self.transforms else words
        added = self.position_embeddings(position_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(tf.cast(hidden, added.dtype) + added), training)


class MobileBertBottleneckLayer(Block):
    """From the stream's width down to the layer's."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.dense = Dense(config.hidden_size, config.intra_bottleneck_size)
        self.LayerNorm = norm(config, config.intra_bottleneck_size)

    def call(self, stream: tf.Tensor) -> tf.Tensor:
        return self.LayerNorm(self.dense(stream))


class MobileBertBottleneck(Block):
    """What a layer sees of the stream: sources of queries and keys, of values, and of the residual."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.narrow_attention = config.use_bottleneck_attention
        self.input_ = MobileBertBottleneckLayer(config)
        self.attention = MobileBertBottleneckLayer(config) if config.has_query_bottleneck else None

    def call(self, stream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        narrow = self.input_(stream)
        if self.narrow_attention:
            return narrow, narrow, narrow
        return (stream if self.attention is None else self.attention(stream)), stream, narrow


class MobileBertSelfAttention(Block):
    """Attention whose queries and keys may come from elsewhere than its values."""

    def __init__(self, config: MobileBertConfig, heads: int) -> None:
        super().__init__()
        self.head_size, self.dropout = config.head_size, config.attention_probs_dropout_prob
        self.query = Dense(config.query_size, heads * self.head_size)
        self.key = Dense(config.query_size, heads * self.head_size)
        self.value = Dense(config.value_size, heads * self.head_size)

    def call(self, asking: tf.Tensor, values: tf.Tensor, bias: tf.Tensor | None, head_mask: tf.Tensor | None,
             want_probabilities: bool, training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None]:
        query, key = split_heads(self.query(asking), self.head_size), split_heads(self.key(asking), self.head_size)
        return attend(query, key, split_heads(self.value(values), self.head_size), bias,
                      dropout_rate=self.dropout, head_mask=head_mask, want_probabilities=want_probabilities, training=training)


class MobileBertResidual(Block):
    """Back to the layer's width, added to the residual, normed; dropout only where there is no bottleneck."""

    def __init__(self, config: MobileBertConfig, inputs: int) -> None:
        super().__init__()
        self.dense = Dense(inputs, config.true_hidden_size)
        self.LayerNorm = norm(config, config.true_hidden_size)
        self.dropout = Dropout(0.0 if config.use_bottleneck else config.hidden_dropout_prob)

    def call(self, hidden: tf.Tensor, residual: tf.Tensor, training: bool | None) -> tf.Tensor:
        return self.LayerNorm(residual + tf.cast(self.dropout(self.dense(hidden), training), residual.dtype))


class MobileBertAttention(Block):
    """Attention and its way back to the layer's width."""

    def __init__(self, config: MobileBertConfig, heads: int) -> None:
        super().__init__()
        self.self = MobileBertSelfAttention(config, heads)
        self.output_ = MobileBertResidual(config, heads * config.head_size)

    def call(self, residual: tf.Tensor, *inputs: Any, training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None]:
        context, probabilities = self.self(*inputs, training=training)
        return self.output_(context, residual, training), probabilities

    def keep_heads(self, heads: list[int]) -> None:
        """Keep only these heads."""
        index = np.array([h * self.self.head_size + d for h in heads for d in range(self.self.head_size)])
        for projection in (self.self.query, self.self.key, self.self.value):
            keep_rows(projection, index)
        keep_rows(self.output_.dense, index, 1)


class MobileBertFeedForward(Block):
    """A feed-forward network with its residual and norm."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.intermediate = FeedForward(config.true_hidden_size, config.intermediate_size, config.hidden_act)
        self.output_ = MobileBertResidual(config, config.intermediate_size)

    def call(self, hidden: tf.Tensor, training: bool | None) -> tf.Tensor:
        return self.output_(self.intermediate(hidden), hidden, training)


class MobileBertOutputBottleneck(Block):
    """From the layer's width back up into the stream."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.dense = Dense(config.true_hidden_size, config.hidden_size)
        self.LayerNorm = norm(config, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def call(self, hidden: tf.Tensor, stream: tf.Tensor, training: bool | None) -> tf.Tensor:
        return self.LayerNorm(stream + tf.cast(self.dropout(self.dense(hidden), training), stream.dtype))


class MobileBertOutput(MobileBertResidual):
    """The last residual of a layer and, where there is a bottleneck, the way out of it."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__(config, config.intermediate_size)
        self.bottleneck = MobileBertOutputBottleneck(config) if config.use_bottleneck else None

    def call(self, hidden: tf.Tensor, residual: tf.Tensor, stream: tf.Tensor, training: bool | None) -> tf.Tensor:
        hidden = super().call(hidden, residual, training)
        return hidden if self.bottleneck is None else self.bottleneck(hidden, stream, training)


class MobileBertLayer(Block):
    """One layer: into the bottleneck, attention, feed-forward networks, out of the bottleneck."""

    def __init__(self, config: MobileBertConfig, index: int) -> None:
        super().__init__()
        self.bottleneck = MobileBertBottleneck(config) if config.use_bottleneck else None
        self.attention = MobileBertAttention(config, config.kept_heads(index))
        self.ffn = [MobileBertFeedForward(config) for _ in range(config.num_feedforward_networks - 1)]
        self.intermediate = FeedForward(config.true_hidden_size, config.intermediate_size, config.hidden_act)
        self.output_ = MobileBertOutput(config)

    def attentions(self) -> list[MobileBertAttention]:
        """Every attention of the layer."""
        return [self.attention]

    def call(self, stream: tf.Tensor, bias: tf.Tensor | None, head_mask: tf.Tensor | None,
             want_probabilities: bool, training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None]:
        asking, values, residual = (stream,) * 3 if self.bottleneck is None else self.bottleneck(stream)
        hidden, probabilities = self.attention(residual, asking, values, bias, head_mask, want_probabilities,
                                               training=training)
        for network in self.ffn:
            hidden = network(hidden, training)
        return self.output_(self.intermediate(hidden), hidden, stream, training), probabilities


class MobileBertEncoder(LayerStack):
    """All layers."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__(MobileBertLayer(config, index) for index in range(config.num_hidden_layers))

    def call(self, stream: tf.Tensor, bias: tf.Tensor | None, head_mask: tf.Tensor | None, output_attentions: bool,
             output_hidden_states: bool, training: bool | None) -> dict[str, Any]:
        hidden_states, attentions = [stream], []
        for layer, mask in zip(self.layer, head_masks(head_mask, len(self.layer)), strict=True):
            stream, probabilities = self.run(layer, stream, bias, mask, output_attentions, training=training)
            hidden_states.append(stream)
            attentions.append(probabilities)
        return {
            "last_hidden_state": stream,
            "hidden_states": tuple(hidden_states) if output_hidden_states else None,
            "attentions": tuple(attentions) if output_attentions else None,
        }


class MobileBertPooler(Block):
    """The first token, through a linear layer and tanh where `classifier_activation` is set."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.dense = Dense(config.hidden_size, config.hidden_size) if config.classifier_activation else None

    def call(self, hidden: tf.Tensor) -> tf.Tensor:
        return hidden[:, 0] if self.dense is None else tf.cast(tf.tanh(self.dense(hidden[:, 0])), self.variable_dtype)


class TFMobileBertModel(TFEncoderModel, variant=MOBILEBERT):
    """MobileBERT without a head.

    Args:
        config: the configuration.
        add_pooling_layer: whether the output has `pooler_output`, made from the first token.

    Raises:
        ConfigError: when the configuration is impossible.

    Reference:
        Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
        https://arxiv.org/abs/2004.02984

    Example:
        >>> import tensorflow as tf
        >>> from bertkit_tf import MobileBertConfig, TFMobileBertModel
        >>> tiny = MobileBertConfig(num_hidden_layers=2)
        >>> TFMobileBertModel(tiny)(tf.constant([[5, 6, 7]])).last_hidden_state.shape
        TensorShape([1, 3, 512])
    """

    def layers_policy(self) -> Any:
        """The model's dtype policy; under mixed_float16 float32, as hidden states without layer norms reach 2.5e7."""
        mixed = self.compute_dtype == "float16" and self.variable_dtype == "float32"
        return "float32" if mixed and self.config.normalization_type == "no_norm" else self.dtype_policy

    def assemble(self, config: MobileBertConfig, add_pooling_layer: bool) -> None:
        self.embeddings = MobileBertEmbeddings(config)
        self.encoder = MobileBertEncoder(config)
        self.pooler = MobileBertPooler(config) if add_pooling_layer else None

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
    ) -> TFBaseModelOutputWithPooling | tuple:
        """Encode a batch of sequences.

        Args:
            input_ids: [batch, length] token ids.
            attention_mask: [batch, length] or [batch, length, length], 1 for tokens to attend to, 0 for padding.
            token_type_ids: [batch, length] segment of each token.
            position_ids: [batch, length] row of the position table for each token.
            head_mask: [heads] or [layers, heads], 1 keeps a head.
            inputs_embeds: [batch, length, embedding_size] word embeddings instead of `input_ids`.
            output_attentions, output_hidden_states, return_dict: default: what the configuration says.

        Raises:
            InputError: listing everything that does not fit.
        """
        self.check_inputs(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                          token_type_ids=token_type_ids, position_ids=position_ids, head_mask=head_mask)
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = tf.range(size(words, 1))[None]
        encoded = self.encoder(self.embeddings(words, token_type_ids, position_ids, training),
                               additive_mask(attention_mask, words.dtype), head_mask,
                               training=training, **self.flags(output_attentions, output_hidden_states))
        pooled = None if self.pooler is None else self.pooler(encoded["last_hidden_state"])
        return self.finish(TFBaseModelOutputWithPooling(pooler_output=pooled, **encoded), return_dict)


class TFMobileBertForPreTraining(PreTraining, encoder=TFMobileBertModel, cls=SplitPreTrainingHead):
    """MobileBERT with both heads of its pretraining: masked words and next sentence."""

    output_class = TFMobileBertForPreTrainingOutput


class TFMobileBertForMaskedLM(MaskedLM, encoder=TFMobileBertModel, cls=SplitLanguageModelHead):
    """MobileBERT with a language-model head over masked words."""


class TFMobileBertForNextSentencePrediction(NextSentencePrediction, encoder=TFMobileBertModel, cls=NextSentenceHead):
    """MobileBERT with a next-sentence head."""


class TFMobileBertForSequenceClassification(SequenceClassification, encoder=TFMobileBertModel, classifier=LabelClassifier):
    """MobileBERT with a linear classifier, or regressor, on the pooled first token."""


class TFMobileBertForMultipleChoice(MultipleChoice, encoder=TFMobileBertModel, classifier=ChoiceScorer):
    """MobileBERT with a scorer of choices on the pooled first token."""


class TFMobileBertForTokenClassification(TokenClassification, encoder=TFMobileBertModel, classifier=LabelClassifier):
    """MobileBERT with a linear classifier on each token."""


class TFMobileBertForQuestionAnswering(QuestionAnswering, encoder=TFMobileBertModel, qa_outputs=SpanClassifier):
    """MobileBERT with a linear layer for start and end of the answer."""
