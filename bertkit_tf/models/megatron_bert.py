"""MegatronBERT in TensorFlow: BERT with the norms in front. https://arxiv.org/abs/1909.08053"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from bertkit.core.errors import InputError
from bertkit.core.megatron_bert import MEGATRON_BERT, MegatronBertConfig
from bertkit.core.spec import Param
from bertkit_tf.heads import ChoiceScorer, LabelClassifier, LanguageModelHead, NextSentenceHead, PreTrainingHead, SpanClassifier
from bertkit_tf.layers import (
    Block,
    Dense,
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    Pooler,
    additive_mask,
    attend,
    causal_mask,
    keep_rows,
    size,
    split_heads,
    word_embedding,
)
from bertkit_tf.modeling import LayerStack, TFEncoderModel, head_masks, unpack_inputs
from bertkit_tf.outputs import TFBaseModelOutputWithPoolingAndCrossAttentions, TFMegatronBertForPreTrainingOutput
from bertkit_tf.tasks import (
    CausalLM,
    MaskedLMWithEncoder,
    MultipleChoice,
    NextSentencePrediction,
    PreTraining,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)


class MegatronBertEmbeddings(Block):
    """Words, token types and, where they are absolute, positions; no norm."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.word_embeddings = word_embedding(config, config.hidden_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.absolute = config.position_embedding_type == "absolute"
        self.dropout = Dropout(config.hidden_dropout_prob)

    def call(self, words: tf.Tensor, token_type_ids: tf.Tensor | None, position_ids: tf.Tensor,
             training: bool | None) -> tf.Tensor:
        if token_type_ids is None:
            token_type_ids = tf.zeros_like(position_ids)
        hidden = words + self.token_type_embeddings(token_type_ids)
        return self.dropout(hidden + self.position_embeddings(position_ids) if self.absolute else hidden, training)


class MegatronBertSelfAttention(Block):
    """Attention to the sequence itself, with relative positions where configured, or to an encoder's states."""

    def __init__(self, config: MegatronBertConfig, heads: int) -> None:
        super().__init__()
        self.head_size, self.dropout = config.head_size, config.attention_probs_dropout_prob
        self.query = Dense(config.hidden_size, heads * self.head_size)
        self.key = Dense(config.hidden_size, heads * self.head_size)
        self.value = Dense(config.hidden_size, heads * self.head_size)
        self.position_embedding_type = config.position_embedding_type
        if self.position_embedding_type != "absolute":
            self.distance_embedding = Embedding(2 * config.max_position_embeddings - 1, self.head_size)

    def call(self, hidden: tf.Tensor, bias: tf.Tensor | None, head_mask: tf.Tensor | None, states: tf.Tensor | None,
             past: tuple[tf.Tensor, tf.Tensor] | None, first: Any, want_probabilities: bool,
             training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None, tuple]:
        query = split_heads(self.query(hidden), self.head_size)
        if states is not None and past is not None:
            key, value = past
        else:
            source = hidden if states is None else states
            key, value = split_heads(self.key(source), self.head_size), split_heads(self.value(source), self.head_size)
            if past is not None:
                key, value = tf.concat([past[0], key], 2), tf.concat([past[1], value], 2)
        relative = None if self.position_embedding_type == "absolute" else self.relative_scores(query, key, first)
        context, probabilities = attend(
            query, key, value, bias, dropout_rate=self.dropout, scores_bias=relative, head_mask=head_mask,
            want_probabilities=want_probabilities, training=training,
        )
        return context, probabilities, (key, value)

    def relative_scores(self, query_BNLD: tf.Tensor, key_BNSD: tf.Tensor, first: Any) -> tf.Tensor:
        """Scores of the distances between queries, which start at place `first`, and keys, which start at 0.

        Distances beyond the table count as its last.
        """
        length, total = size(query_BNLD, 2), size(key_BNSD, 2)
        reach = self.distance_embedding.embeddings.shape[0] // 2
        distance = tf.range(first, first + length)[:, None] - tf.range(total)
        table_LSD = tf.cast(self.distance_embedding(tf.clip_by_value(distance, -reach, reach) + reach), query_BNLD.dtype)
        scores = tf.einsum("bnld,lsd->bnls", query_BNLD, table_LSD)
        if self.position_embedding_type == "relative_key_query":
            scores = scores + tf.einsum("bnsd,lsd->bnls", key_BNSD, table_LSD)
        return scores


class MegatronBertOutput(Block):
    """Back to the stream's width, dropped out and added to the stream."""

    def __init__(self, config: MegatronBertConfig, inputs: int) -> None:
        super().__init__()
        self.dense = Dense(inputs, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def call(self, hidden: tf.Tensor, stream: tf.Tensor, training: bool | None) -> tf.Tensor:
        return stream + tf.cast(self.dropout(self.dense(hidden), training), stream.dtype)


class MegatronBertAttention(Block):
    """Norm, attention, and back into the stream."""

    def __init__(self, config: MegatronBertConfig, heads: int) -> None:
        super().__init__()
        self.ln = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self = MegatronBertSelfAttention(config, heads)
        self.output_ = MegatronBertOutput(config, heads * config.head_size)

    def call(self, stream: tf.Tensor, *inputs: Any, training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None, tuple]:
        context, probabilities, cache = self.self(self.ln(stream), *inputs, training=training)
        return self.output_(context, stream, training), probabilities, cache

    def keep_heads(self, heads: list[int]) -> None:
        """Keep only these heads."""
        index = np.array([h * self.self.head_size + d for h in heads for d in range(self.self.head_size)])
        for projection in (self.self.query, self.self.key, self.self.value):
            keep_rows(projection, index)
        keep_rows(self.output_.dense, index, 1)


class MegatronBertLayer(Block):
    """One layer: attention, cross-attention where configured, feed-forward."""

    def __init__(self, config: MegatronBertConfig, index: int) -> None:
        super().__init__()
        heads = config.kept_heads(index)
        self.attention = MegatronBertAttention(config, heads)
        if config.is_decoder and config.add_cross_attention:
            self.crossattention = MegatronBertAttention(config, heads)
        self.ln = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.output_ = MegatronBertOutput(config, config.intermediate_size)

    def attentions(self) -> list[MegatronBertAttention]:
        """Every attention of the layer."""
        return [self.attention, *([self.crossattention] if hasattr(self, "crossattention") else [])]

    def call(self, stream: tf.Tensor, bias: tf.Tensor | None, head_mask: tf.Tensor | None, states: tf.Tensor | None,
             states_bias: tf.Tensor | None, past: tuple | None, want_probabilities: bool, training: bool | None) -> tuple:
        first = 0 if past is None else size(past[0], 2)
        stream, probabilities, cache = self.attention(
            stream, bias, head_mask, None, None if past is None else past[:2], first, want_probabilities,
            training=training)
        cross_probabilities = None
        if states is not None:
            stream, cross_probabilities, cross_cache = self.crossattention(
                stream, states_bias, head_mask, states, None if past is None else past[2:], first, want_probabilities,
                training=training)
            cache = cache + cross_cache
        stream = self.output_(self.intermediate(self.ln(stream)), stream, training)
        return stream, probabilities, cross_probabilities, *cache


class MegatronBertEncoder(LayerStack):
    """All layers and the norm behind them; the last hidden state is the normed one."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__(MegatronBertLayer(config, index) for index in range(config.num_hidden_layers))
        self.ln = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def call(self, stream: tf.Tensor, bias: tf.Tensor | None, head_mask: tf.Tensor | None, states: tf.Tensor | None,
             states_bias: tf.Tensor | None, past: tuple | None, use_cache: bool, output_attentions: bool,
             output_hidden_states: bool, training: bool | None) -> dict[str, Any]:
        hidden_states, attentions, cross_attentions, caches = [], [], [], []
        masks = head_masks(head_mask, len(self.layer))
        for index, layer in enumerate(self.layer):
            hidden_states.append(stream)
            stream, probabilities, cross_probabilities, *cache = self.run(
                layer, stream, bias, masks[index], states, states_bias, None if past is None else past[index],
                output_attentions, training=training)
            attentions.append(probabilities)
            cross_attentions.append(cross_probabilities)
            caches.append(tuple(cache))
        stream = self.ln(stream)
        return {
            "last_hidden_state": stream,
            "past_key_values": tuple(caches) if use_cache else None,
            "hidden_states": (*hidden_states, stream) if output_hidden_states else None,
            "attentions": tuple(attentions) if output_attentions else None,
            "cross_attentions": tuple(cross_attentions) if output_attentions and states is not None else None,
        }


class TFMegatronBertModel(TFEncoderModel, variant=MEGATRON_BERT):
    """MegatronBERT without a head: an encoder, or a decoder where `config.is_decoder` is set.

    Args:
        config: the configuration.
        add_pooling_layer: whether the first token goes through a linear layer and tanh.

    Raises:
        ConfigError: when the configuration is impossible.

    Reference:
        Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
        https://arxiv.org/abs/1909.08053

    Example:
        >>> import tensorflow as tf
        >>> from bertkit_tf import MegatronBertConfig, TFMegatronBertModel
        >>> tiny = MegatronBertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> TFMegatronBertModel(tiny)(tf.constant([[5, 6, 7]])).last_hidden_state.shape
        TensorShape([1, 3, 32])
    """

    def assemble(self, config: MegatronBertConfig, add_pooling_layer: bool) -> None:
        self.embeddings = MegatronBertEmbeddings(config)
        self.encoder = MegatronBertEncoder(config)
        self.pooler = Pooler(config) if add_pooling_layer else None

    @unpack_inputs
    def call(
        self,
        input_ids: tf.Tensor | None = None,
        attention_mask: tf.Tensor | None = None,
        token_type_ids: tf.Tensor | None = None,
        position_ids: tf.Tensor | None = None,
        head_mask: tf.Tensor | None = None,
        inputs_embeds: tf.Tensor | None = None,
        encoder_hidden_states: tf.Tensor | None = None,
        encoder_attention_mask: tf.Tensor | None = None,
        past_key_values: tuple | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> TFBaseModelOutputWithPoolingAndCrossAttentions | tuple:
        """Encode a batch of sequences.

        Args:
            input_ids: [batch, length] token ids.
            attention_mask: [batch, length] or [batch, length, length], 1 for tokens to attend to, 0 for padding;
                with a cache, the cached tokens come first.
            token_type_ids: [batch, length] segment of each token.
            position_ids: [batch, length] row of the position table for each token.
            head_mask: [heads] or [layers, heads], 1 keeps a head.
            inputs_embeds: [batch, length, hidden_size] word embeddings instead of `input_ids`.
            encoder_hidden_states: [batch, encoder length, hidden_size] states for cross-attention.
            encoder_attention_mask: [batch, encoder length], 0 for padding.
            past_key_values: the cache that an earlier call gave; then only new tokens are passed in.
            use_cache: give the cache (decoders only).
            output_attentions, output_hidden_states, return_dict: default: what the configuration says.

        Raises:
            InputError: listing everything that does not fit.
        """
        past = 0 if past_key_values is None else size(past_key_values[0][0], 2)
        self.check_inputs(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                          token_type_ids=token_type_ids, position_ids=position_ids, head_mask=head_mask,
                          encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=encoder_attention_mask,
                          past=past)
        if encoder_hidden_states is not None and self.config.is_decoder and not self.config.add_cross_attention:
            raise InputError("encoder_hidden_states: this decoder has no cross-attention",
                             remedy="Make it with add_cross_attention=True.")
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = size(words, 0), size(words, 1)
        if position_ids is None:
            position_ids = tf.range(past, past + length)[None]
        config = self.config
        if config.is_decoder and (attention_mask is None or attention_mask.shape.rank == 2):
            seen = tf.ones([batch, past + length]) if attention_mask is None else attention_mask
            attention_mask = causal_mask(tf.cast(seen, words.dtype), length)
        states = encoder_hidden_states if config.is_decoder and config.add_cross_attention else None
        flags = self.flags(output_attentions, output_hidden_states)
        encoded = self.encoder(
            self.embeddings(words, token_type_ids, position_ids, training), additive_mask(attention_mask, words.dtype),
            head_mask, states, additive_mask(encoder_attention_mask, words.dtype), past_key_values,
            config.is_decoder and (config.use_cache if use_cache is None else use_cache), training=training, **flags,
        )
        pooled = None if self.pooler is None else self.pooler(encoded["last_hidden_state"])
        return self.finish(TFBaseModelOutputWithPoolingAndCrossAttentions(pooler_output=pooled, **encoded), return_dict)


class TFMegatronBertForPreTraining(PreTraining, encoder=TFMegatronBertModel, cls=PreTrainingHead):
    """MegatronBERT with both heads of its pretraining: masked words and sentence order.

    Args:
        config: the configuration.
        add_binary_head: whether there is a head for sentence order; without it the loss is that of the words.
    """

    output_class = TFMegatronBertForPreTrainingOutput

    def __init__(self, config: MegatronBertConfig, *inputs: Any, add_binary_head: bool = True, **kwargs: Any) -> None:
        super().__init__(config, *inputs, add_binary_head=add_binary_head, **kwargs)

    def assemble(self, config: MegatronBertConfig, add_binary_head: bool) -> None:
        self.bert = self.make_encoder(config)
        self.cls = PreTrainingHead(config, binary=add_binary_head)

    def params(self) -> dict[str, Param]:
        found = super().params()
        return found if self.cls.seq_relationship is not None else {
            name: param for name, param in found.items() if not name.startswith("cls.seq_relationship.")}


class TFMegatronBertForMaskedLM(MaskedLMWithEncoder, encoder=TFMegatronBertModel, cls=LanguageModelHead):
    """MegatronBERT with a language-model head over masked words."""


class TFMegatronBertForCausalLM(CausalLM, encoder=TFMegatronBertModel, cls=LanguageModelHead):
    """MegatronBERT with a language-model head over the next word; set `is_decoder=True`."""


class TFMegatronBertForNextSentencePrediction(NextSentencePrediction, encoder=TFMegatronBertModel, cls=NextSentenceHead):
    """MegatronBERT with a next-sentence head."""


class TFMegatronBertForSequenceClassification(SequenceClassification, encoder=TFMegatronBertModel, classifier=LabelClassifier):
    """MegatronBERT with a linear classifier, or regressor, on the pooled first token."""


class TFMegatronBertForMultipleChoice(MultipleChoice, encoder=TFMegatronBertModel, classifier=ChoiceScorer):
    """MegatronBERT with a scorer of choices on the pooled first token."""


class TFMegatronBertForTokenClassification(TokenClassification, encoder=TFMegatronBertModel, classifier=LabelClassifier):
    """MegatronBERT with a linear classifier on each token."""


class TFMegatronBertForQuestionAnswering(QuestionAnswering, encoder=TFMegatronBertModel, qa_outputs=SpanClassifier):
    """MegatronBERT with a linear layer for start and end of the answer."""
