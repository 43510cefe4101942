"""I-BERT in TensorFlow: RoBERTa that can compute in integers. https://arxiv.org/abs/2101.01321"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bertkit.core import quantization as constants
from bertkit.core.ibert import IBERT, IBertConfig
from bertkit.core.quantization import EMBEDDING_BITS, NORM_BITS, STREAM_BITS
from bertkit_tf.heads import ChoiceScorer, LabelClassifier, RobertaLanguageModelHead, SpanClassifier, TanhFirstTokenClassifier
from bertkit_tf.integer import IntegerDecoder, IntegerEmbeddings, IntegerEncoder, IntegerInference, Kept
from bertkit_tf.layers import Block, Dropout, Pooler, additive_mask, attend, dropout, keep_rows, merge_heads, size, split_heads
from bertkit_tf.modeling import LayerStack, TFEncoderModel, head_masks, unpack_inputs
from bertkit_tf.outputs import TFBaseModelOutputWithPoolingAndCrossAttentions
from bertkit_tf.quantization import (
    IntGELU,
    IntLayerNorm,
    IntSoftmax,
    QuantActivation,
    QuantEmbedding,
    Quantised,
    QuantLinear,
    SecondActivation,
    apply_linear,
    check_calibrated,
    learning_once,
)
from bertkit_tf.tasks import (
    ChoicesFirstArgument,
    MaskedLM,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)


def modes(config: IBertConfig, nonlinear: str = "") -> dict[str, bool]:
    """How a block computes; `nonlinear` is its name in `config.force_dequant`."""
    forced = nonlinear and config.force_dequant in (nonlinear, "nonlinear")
    return {"quant_mode": config.quant_mode and not forced, "compat": config.hf_compat_scales}


def stream_activation(config: IBertConfig, features: int) -> QuantActivation:
    """What makes the 8 bits of the stream, or behind GELU, where features may have scales of their own."""
    return QuantActivation(STREAM_BITS, **modes(config), channels=features if config.channel_scales else None)


class IBertEmbeddings(Block):
    """Words, token types and positions, and their norm."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__()
        width, pad = config.hidden_size, config.pad_token_id
        self.word_embeddings = QuantEmbedding(config.vocab_size, width, pad, **modes(config))
        self.token_type_embeddings = QuantEmbedding(config.type_vocab_size, width, **modes(config))
        self.position_embeddings = QuantEmbedding(config.max_position_embeddings, width, pad, **modes(config))
        self.embeddings_act1 = QuantActivation(EMBEDDING_BITS, **modes(config))
        self.embeddings_act2 = QuantActivation(EMBEDDING_BITS)  # never used, but every checkpoint has its statistics
        self.LayerNorm = IntLayerNorm(width, config.layer_norm_eps, **modes(config, "layernorm"))
        self.output_activation = stream_activation(config, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def call(self, input_ids: tf.Tensor | None, inputs_embeds: tf.Tensor | None, token_type_ids: tf.Tensor,
             position_ids: tf.Tensor, training: bool | None) -> Quantised:
        words = self.word_embeddings(input_ids) if inputs_embeds is None else (inputs_embeds, None)
        hidden = self.embeddings_act1(*words, *self.token_type_embeddings(token_type_ids), training=training)
        hidden = self.embeddings_act1(*hidden, *self.position_embeddings(position_ids), training=training)
        hidden, scale = self.LayerNorm(*hidden, training=training)
        return self.output_activation(self.dropout(hidden, training), scale, training=training)


class IBertSelfAttention(Block):
    """Attention, in float or in integers."""

    def __init__(self, config: IBertConfig, heads: int) -> None:
        super().__init__()
        self.head_size, self.dropout = config.head_size, config.attention_probs_dropout_prob
        self.quant_mode = config.quant_mode
        self.query = QuantLinear(config.hidden_size, heads * self.head_size, **modes(config))
        self.key = QuantLinear(config.hidden_size, heads * self.head_size, **modes(config))
        self.value = QuantLinear(config.hidden_size, heads * self.head_size, **modes(config))
        self.query_activation = QuantActivation(STREAM_BITS, **modes(config))
        self.key_activation = QuantActivation(STREAM_BITS, **modes(config))
        self.value_activation = QuantActivation(STREAM_BITS, **modes(config))
        self.output_activation = QuantActivation(STREAM_BITS, **modes(config))
        self.softmax = IntSoftmax(**modes(config, "softmax"))
        self.observes_softmax = not config.hf_compat_scales and config.force_dequant not in ("softmax", "nonlinear")

    def call(self, hidden: tf.Tensor, scale: tf.Tensor | None, bias: tf.Tensor | None, head_mask: tf.Tensor | None,
             want_probabilities: bool, training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]:
        query, query_scale = self.query_activation(*apply_linear(self.query, hidden, scale), training=training)
        key, key_scale = self.key_activation(*apply_linear(self.key, hidden, scale), training=training)
        value, value_scale = self.value_activation(*apply_linear(self.value, hidden, scale), training=training)
        query_BNLD, key_BNSD, value_BNSD = (split_heads(x, self.head_size) for x in (query, key, value))
        if not self.quant_mode:
            if training and self.observes_softmax:
                self.softmax.observe(self.scores_scale(self.query_activation.scale(), self.key_activation.scale()))
            context, probabilities = attend(query_BNLD, key_BNSD, value_BNSD, bias, dropout_rate=self.dropout,
                                            head_mask=head_mask, want_probabilities=want_probabilities, training=training)
            return *self.output_activation(context, training=training), probabilities
        scores = tf.matmul(query_BNLD, key_BNSD, transpose_b=True) / math.sqrt(self.head_size)
        scores = scores if bias is None else scores + bias
        probabilities, context_scale = self.softmax(scores, self.scores_scale(query_scale, key_scale), training=training)
        probabilities = dropout(probabilities, self.dropout, training)
        if head_mask is not None:
            head_mask = tf.cast(head_mask, probabilities.dtype)
            probabilities *= tf.reshape(head_mask, [-1, 1, 1]) if head_mask.shape.rank == 1 else head_mask
        context = merge_heads(tf.matmul(probabilities, value_BNSD))
        context_scale = None if context_scale is None else context_scale * value_scale
        output = self.output_activation(context, context_scale, training=training)
        return *output, probabilities if want_probabilities else None

    def scores_scale(self, query_scale: tf.Tensor, key_scale: tf.Tensor) -> tf.Tensor:
        """The scale of the scores, [1]."""
        return query_scale * key_scale / math.sqrt(self.head_size)


class IBertOutput(Block):
    """Back to the stream's width, dropped out, added to the stream, normed."""

    def __init__(self, config: IBertConfig, inputs: int) -> None:
        super().__init__()
        self.dense = QuantLinear(inputs, config.hidden_size, **modes(config))
        self.ln_input_act = QuantActivation(NORM_BITS, **modes(config))
        self.LayerNorm = IntLayerNorm(config.hidden_size, config.layer_norm_eps, **modes(config, "layernorm"))
        self.output_activation = stream_activation(config, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def call(self, hidden: tf.Tensor, scale: tf.Tensor | None, stream: tf.Tensor, stream_scale: tf.Tensor | None,
             training: bool | None) -> Quantised:
        hidden, scale = apply_linear(self.dense, hidden, scale)
        total = self.ln_input_act(self.dropout(hidden, training), scale, stream, stream_scale, training)
        return self.output_activation(*self.LayerNorm(*total, training=training), training=training)


class IBertAttention(Block):
    """Attention and its way back into the stream."""

    def __init__(self, config: IBertConfig, heads: int) -> None:
        super().__init__()
        self.self = IBertSelfAttention(config, heads)
        self.output_ = IBertOutput(config, heads * config.head_size)

    def call(self, stream: tf.Tensor, scale: tf.Tensor | None, *inputs: Any,
             training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]:
        context, context_scale, probabilities = self.self(stream, scale, *inputs, training=training)
        return *self.output_(context, context_scale, stream, scale, training), probabilities

    def keep_heads(self, heads: list[int]) -> None:
        """Keep only these heads."""
        index = np.array([h * self.self.head_size + d for h in heads for d in range(self.self.head_size)])
        for projection in (self.self.query, self.self.key, self.self.value):
            keep_rows(projection, index)
        keep_rows(self.output_.dense, index, 1)


class IBertIntermediate(Block):
    """The first half of the feed-forward network."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__()
        self.dense = QuantLinear(config.hidden_size, config.intermediate_size, **modes(config), finest=constants.FINEST_GELU)
        self.act = IntGELU(**modes(config, "gelu"))
        self.output_activation = stream_activation(config, config.intermediate_size)

    def call(self, hidden: tf.Tensor, scale: tf.Tensor | None, training: bool | None) -> Quantised:
        return self.output_activation(*self.act(*apply_linear(self.dense, hidden, scale)), training=training)


class IBertLayer(Block):
    """One layer: attention and feed-forward."""

    def __init__(self, config: IBertConfig, index: int) -> None:
        super().__init__()
        self.attention = IBertAttention(config, config.kept_heads(index))
        self.intermediate = IBertIntermediate(config)
        self.output_ = IBertOutput(config, config.intermediate_size)
        self.pre_intermediate_act = SecondActivation(STREAM_BITS, **modes(config))
        self.pre_output_act = SecondActivation(STREAM_BITS, **modes(config))

    def attentions(self) -> list[IBertAttention]:
        """Every attention of the layer."""
        return [self.attention]

    def call(self, stream: tf.Tensor, scale: tf.Tensor | None, bias: tf.Tensor | None, head_mask: tf.Tensor | None,
             want_probabilities: bool, training: bool | None) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]:
        stream, scale, probabilities = self.attention(stream, scale, bias, head_mask, want_probabilities, training=training)
        stream, scale = self.pre_intermediate_act(stream, scale, training=training)
        inner = self.pre_output_act(*self.intermediate(stream, scale, training), training=training)
        return *self.output_(*inner, stream, scale, training), probabilities


class IBertEncoder(LayerStack):
    """All layers, each with the scale of its own input (or, as in transformers, of the embeddings)."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__(IBertLayer(config, index) for index in range(config.num_hidden_layers))
        self.compat = config.hf_compat_scales

    def call(self, stream: tf.Tensor, scale: tf.Tensor | None, bias: tf.Tensor | None, head_mask: tf.Tensor | None,
             output_attentions: bool, output_hidden_states: bool, training: bool | None) -> dict[str, Any]:
        hidden_states, attentions = [stream], []
        for layer, mask in zip(self.layer, head_masks(head_mask, len(self.layer)), strict=True):
            stream, own_scale, probabilities = self.run(layer, stream, scale, bias, mask, output_attentions,
                                                        training=training)
            scale = scale if self.compat else own_scale
            hidden_states.append(stream)
            attentions.append(probabilities)
        return {
            "last_hidden_state": stream,
            "hidden_states": tuple(hidden_states) if output_hidden_states else None,
            "attentions": tuple(attentions) if output_attentions else None,
        }

    def run(self, layer: Block, hidden: tf.Tensor, *inputs: Any, training: bool | None, **options: Any) -> tuple:
        """Call one layer; gradient checkpointing does not count a batch twice for the ranges."""
        layer = learning_once(layer) if self.checkpointing else layer
        return super().run(layer, hidden, *inputs, training=training, **options)


class TFIBertModel(IntegerInference, TFEncoderModel, variant=IBERT):
    """I-BERT without a head: in float, simulating its integer arithmetic where `config.quant_mode` is set, or in integers.

    Training mode gathers the range of every activation, in float as well. The usual way is to fine-tune in float,
    to load the result with `quant_mode=True`, and to go on training with a small learning rate. Float mode gives
    each fully masked row of attention equal probabilities; quantised, they are rounded to 1/256.

    `bertkit_tf.freeze` makes the model that computes in integers, and `config.integer_format` says that it is one. Its
    encoder is not trained any more. Probabilities of fully masked rows, and hidden states of padding, are 0 there.

    Args:
        config: the configuration.
        add_pooling_layer: whether the first token goes through a linear layer and tanh.

    Raises:
        ConfigError: when the configuration is impossible.

    Reference:
        Kim et al., "I-BERT: Integer-only BERT Quantization", https://arxiv.org/abs/2101.01321

    Example:
        >>> import tensorflow as tf
        >>> from bertkit_tf import IBertConfig, TFIBertModel
        >>> tiny = IBertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> TFIBertModel(tiny)(tf.constant([[0, 5, 2]])).last_hidden_state.shape
        TensorShape([1, 3, 32])
    """

    def assemble(self, config: IBertConfig, add_pooling_layer: bool) -> None:
        self.embeddings = IBertEmbeddings(config) if config.integer_format is None else IntegerEmbeddings(config)
        self.encoder = IBertEncoder(config) if config.integer_format is None else IntegerEncoder(config)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self._kept = Kept()
        self.calls_alone = config.integer_format is not None  # and hence the same in training and out of it

    @property
    def max_tokens(self) -> int:
        """Longest sequence that the position table covers; its first rows belong to no token."""
        return self.config.max_position_embeddings - self.config.first_position

    def positions(self, input_ids: tf.Tensor | None, inputs_embeds: tf.Tensor | None) -> tf.Tensor:
        """Rows of the position table: counting the tokens that are no padding, or all where only vectors are known."""
        first = self.config.first_position
        if input_ids is None:
            return tf.range(first, first + size(inputs_embeds, 1))[None]
        pad = self.config.pad_token_id
        if hasattr(input_ids, "numpy"):  # NumPy's operations are faster at so few numbers
            real = np.ones_like(input_ids) if pad is None else (input_ids.numpy() != pad).astype(input_ids.dtype.as_numpy_dtype)
            return tf.constant(real.cumsum(1, real.dtype) * real + real.dtype.type(first - 1))
        real = tf.ones_like(input_ids) if pad is None else tf.cast(input_ids != pad, input_ids.dtype)
        return tf.cumsum(real, 1) * real + first - 1

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
    ) -> TFBaseModelOutputWithPoolingAndCrossAttentions | tuple:
        """Encode a batch of sequences.

        Args:
            input_ids: [batch, length] token ids.
            attention_mask: [batch, length] or [batch, length, length], 1 for tokens to attend to, 0 for padding.
            token_type_ids: [batch, length] segment of each token.
            position_ids: [batch, length] row of the position table for each token; default: counting from
                `pad_token_id + 1`, where padding does not count.
            head_mask: [heads] or [layers, heads], 1 keeps a head.
            inputs_embeds: [batch, length, hidden_size] word embeddings instead of `input_ids`.
            output_attentions, output_hidden_states, return_dict: default: what the configuration says.

        Raises:
            InputError: listing everything that does not fit.
            CalibrationError: when a quantised model is evaluated before it has seen a batch in training mode.
        """
        self.check_inputs(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                          token_type_ids=token_type_ids, position_ids=position_ids)
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask,
                  "token_type_ids": token_type_ids, "position_ids": position_ids, "head_mask": head_mask}
        flags = self.flags(output_attentions, output_hidden_states)
        outputs = self.infer(inputs, training=training, **flags)
        return self.finish(TFBaseModelOutputWithPoolingAndCrossAttentions(**outputs), return_dict)

    def infer(self, inputs: Mapping[str, tf.Tensor], training: bool | None, **flags: bool) -> dict[str, Any]:
        """What a call gives, by name, from the inputs that are given."""
        names = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids", "head_mask")
        input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, head_mask = map(inputs.get, names)
        if position_ids is None:
            position_ids = self.positions(input_ids, inputs_embeds)
        if token_type_ids is None:
            token_type_ids = (np if isinstance(position_ids, np.ndarray) else tf).zeros_like(position_ids)
        if self.config.integer_format is not None:
            words = input_ids if inputs_embeds is None else inputs_embeds
            encoded = self.encode(words, attention_mask, token_type_ids, position_ids, head_mask, **flags)
        else:
            encoded = self.simulate(input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, head_mask,
                                    training, **flags)
        return {**encoded, "pooler_output": None if self.pooler is None else self.pooler(encoded["last_hidden_state"])}

    def simulate(self, input_ids: tf.Tensor | None, inputs_embeds: tf.Tensor | None, attention_mask: tf.Tensor | None,
                 token_type_ids: tf.Tensor, position_ids: tf.Tensor, head_mask: tf.Tensor | None, training: bool | None,
                 **flags: bool) -> dict[str, Any]:
        """Hidden states and probabilities in floating point, as if by integers where `config.quant_mode` is set."""
        if self.config.quant_mode and not training:
            check_calibrated(self)
        hidden, scale = self.embeddings(input_ids, inputs_embeds, token_type_ids, position_ids, training)
        return self.encoder(hidden, scale, additive_mask(attention_mask, hidden.dtype), head_mask, training=training, **flags)


class IBertLanguageModelHead(RobertaLanguageModelHead):
    """Scores of all words for each token; the decoder of a frozen model has 8 bit weights."""

    @staticmethod
    def make_decoder(config: IBertConfig) -> Block:
        """The linear layer onto the vocabulary."""
        if config.integer_format is None:
            return RobertaLanguageModelHead.make_decoder(config)
        return IntegerDecoder(config.hidden_size, config.vocab_size)


class TFIBertForMaskedLM(MaskedLM, encoder=TFIBertModel, lm_head=IBertLanguageModelHead):
    """I-BERT with a language-model head over masked words; the head computes in float."""


class TFIBertForSequenceClassification(SequenceClassification, encoder=TFIBertModel, classifier=TanhFirstTokenClassifier):
    """I-BERT with a two-layer classifier, or regressor, on the first token; the head computes in float."""


class TFIBertForMultipleChoice(ChoicesFirstArgument, encoder=TFIBertModel, classifier=ChoiceScorer):
    """I-BERT with a scorer of choices on the pooled first token; the head computes in float."""


class TFIBertForTokenClassification(TokenClassification, encoder=TFIBertModel, classifier=LabelClassifier):
    """I-BERT with a linear classifier on each token; the head computes in float."""


class TFIBertForQuestionAnswering(QuestionAnswering, encoder=TFIBertModel, qa_outputs=SpanClassifier):
    """I-BERT with a linear layer for start and end of the answer; the head computes in float."""
