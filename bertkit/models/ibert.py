"""I-BERT in PyTorch: RoBERTa that can compute in integers. https://arxiv.org/abs/2101.01321"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertkit.core import quantization as constants
from bertkit.core.ibert import IBERT, IBertConfig
from bertkit.core.quantization import EMBEDDING_BITS, NORM_BITS, STREAM_BITS
from bertkit.heads import ChoiceScorer, LabelClassifier, RobertaLanguageModelHead, SpanClassifier, TanhFirstTokenClassifier
from bertkit.integer import IntegerDecoder, IntegerEmbeddings, IntegerEncoder, IntegerInference
from bertkit.layers import Pooler, additive_mask, attend, keep_rows, merge_heads, split_heads
from bertkit.modeling import EncoderModel, LayerStack, head_masks
from bertkit.outputs import BaseModelOutputWithPoolingAndCrossAttentions
from bertkit.quantization import (
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
    full_precision,
    learning_once,
)
from bertkit.tasks import (
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


class IBertEmbeddings(nn.Module):
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
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, token_type_ids: Tensor | None,
                position_ids: Tensor) -> Quantised:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        words = self.word_embeddings(input_ids) if inputs_embeds is None else (inputs_embeds, None)
        hidden = self.embeddings_act1(*words, *self.token_type_embeddings(token_type_ids))
        hidden = self.embeddings_act1(*hidden, *self.position_embeddings(position_ids))
        hidden, scale = self.LayerNorm(*hidden)
        return self.output_activation(self.dropout(hidden), scale)


class IBertSelfAttention(nn.Module):
    """Attention; the fused kernel in float mode, in integers step by step."""

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

    def forward(self, hidden: Tensor, scale: Tensor | None, bias: Tensor | None, head_mask: Tensor | None,
                want_probabilities: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        query, query_scale = self.query_activation(*apply_linear(self.query, hidden, scale))
        key, key_scale = self.key_activation(*apply_linear(self.key, hidden, scale))
        value, value_scale = self.value_activation(*apply_linear(self.value, hidden, scale))
        query_BNLD, key_BNSD, value_BNSD = (split_heads(x, self.head_size) for x in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        if not self.quant_mode:
            if self.training and self.observes_softmax:
                self.softmax.observe(self.scores_scale(self.query_activation.scale(), self.key_activation.scale()))
            context, probabilities = attend(query_BNLD, key_BNSD, value_BNSD, bias, dropout=dropout, head_mask=head_mask,
                                            want_probabilities=want_probabilities)
            return *self.output_activation(context), probabilities
        with full_precision(hidden):
            scores = query_BNLD @ key_BNSD.transpose(-1, -2) / math.sqrt(self.head_size)
            scores = scores if bias is None else scores + bias
            probabilities, context_scale = self.softmax(scores, self.scores_scale(query_scale, key_scale))
            probabilities = F.dropout(probabilities, dropout)
            if head_mask is not None:
                probabilities = probabilities * (head_mask.view(-1, 1, 1) if head_mask.dim() == 1 else head_mask)
            context = merge_heads(probabilities @ value_BNSD)
        context_scale = None if context_scale is None else context_scale * value_scale
        return *self.output_activation(context, context_scale), probabilities if want_probabilities else None

    def scores_scale(self, query_scale: Tensor, key_scale: Tensor) -> Tensor:
        """The scale of the scores, [1]."""
        return query_scale * key_scale / math.sqrt(self.head_size)


class IBertOutput(nn.Module):
    """Back to the stream's width, dropped out, added to the stream, normed."""

    def __init__(self, config: IBertConfig, inputs: int) -> None:
        super().__init__()
        self.dense = QuantLinear(inputs, config.hidden_size, **modes(config))
        self.ln_input_act = QuantActivation(NORM_BITS, **modes(config))
        self.LayerNorm = IntLayerNorm(config.hidden_size, config.layer_norm_eps, **modes(config, "layernorm"))
        self.output_activation = stream_activation(config, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, scale: Tensor | None, stream: Tensor, stream_scale: Tensor | None) -> Quantised:
        hidden, scale = apply_linear(self.dense, hidden, scale)
        total = self.ln_input_act(self.dropout(hidden), scale, stream, stream_scale)
        return self.output_activation(*self.LayerNorm(*total))


class IBertAttention(nn.Module):
    """Attention and its way back into the stream."""

    def __init__(self, config: IBertConfig, heads: int) -> None:
        super().__init__()
        self.self = IBertSelfAttention(config, heads)
        self.output = IBertOutput(config, heads * config.head_size)

    def forward(self, stream: Tensor, scale: Tensor | None, *inputs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        context, context_scale, probabilities = self.self(stream, scale, *inputs)
        return *self.output(context, context_scale, stream, scale), probabilities

    def keep_heads(self, heads: list[int]) -> None:
        """Keep only these heads."""
        index = torch.tensor([h * self.self.head_size + d for h in heads for d in range(self.self.head_size)])
        for projection in (self.self.query, self.self.key, self.self.value):
            keep_rows(projection, index)
        keep_rows(self.output.dense, index, 1)


class IBertIntermediate(nn.Module):
    """The first half of the feed-forward network."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__()
        self.dense = QuantLinear(config.hidden_size, config.intermediate_size, **modes(config), finest=constants.FINEST_GELU)
        self.act = IntGELU(**modes(config, "gelu"))
        self.output_activation = stream_activation(config, config.intermediate_size)

    def forward(self, hidden: Tensor, scale: Tensor | None) -> Quantised:
        return self.output_activation(*self.act(*apply_linear(self.dense, hidden, scale)))


class IBertLayer(nn.Module):
    """One layer: attention and feed-forward."""

    def __init__(self, config: IBertConfig, index: int) -> None:
        super().__init__()
        self.attention = IBertAttention(config, config.kept_heads(index))
        self.intermediate = IBertIntermediate(config)
        self.output = IBertOutput(config, config.intermediate_size)
        self.pre_intermediate_act = SecondActivation(STREAM_BITS, **modes(config))
        self.pre_output_act = SecondActivation(STREAM_BITS, **modes(config))

    def attentions(self) -> list[IBertAttention]:
        """Every attention of the layer."""
        return [self.attention]

    def forward(self, stream: Tensor, scale: Tensor | None, bias: Tensor | None, head_mask: Tensor | None,
                want_probabilities: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        stream, scale, probabilities = self.attention(stream, scale, bias, head_mask, want_probabilities)
        stream, scale = self.pre_intermediate_act(stream, scale)
        inner = self.pre_output_act(*self.intermediate(stream, scale))
        return *self.output(*inner, stream, scale), probabilities


class IBertEncoder(LayerStack):
    """All layers, each with the scale of its own input (or, as in transformers, of the embeddings)."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__(IBertLayer(config, index) for index in range(config.num_hidden_layers))
        self.compat = config.hf_compat_scales

    def forward(self, stream: Tensor, scale: Tensor | None, bias: Tensor | None, head_mask: Tensor | None,
                output_attentions: bool, output_hidden_states: bool) -> dict[str, Any]:
        hidden_states, attentions = [stream], []
        for layer, mask in zip(self.layer, head_masks(head_mask, len(self.layer)), strict=True):
            stream, own_scale, probabilities = self.run(layer, stream, scale, bias, mask, output_attentions)
            scale = scale if self.compat else own_scale
            hidden_states.append(stream)
            attentions.append(probabilities)
        return {
            "last_hidden_state": stream,
            "hidden_states": tuple(hidden_states) if output_hidden_states else None,
            "attentions": tuple(attentions) if output_attentions else None,
        }

    def run(self, layer: nn.Module, *inputs: Any, **options: Any) -> Any:
        """Call one layer; gradient checkpointing does not count a batch twice for the ranges."""
        return super().run(layer if self.checkpointing is None else learning_once(layer), *inputs, **options)


class IBertModel(IntegerInference, EncoderModel, variant=IBERT):
    """I-BERT without a head: in float, simulating its integer arithmetic where `config.quant_mode` is set, or in integers.

    Training mode gathers the range of every activation, in float as well. The usual way is to fine-tune in float,
    to load the result with `quant_mode=True`, and to go on training with a small learning rate. Float mode gives
    each fully masked row of attention equal probabilities; quantised, they are rounded to 1/256.

    `bertkit.freeze` makes the model that computes in integers, and `config.integer_format` says that it is one. Its
    encoder is not trained any more. Probabilities of fully masked rows, and hidden states of padding, are 0 there.

    Args:
        config: the configuration.
        add_pooling_layer: whether the first token goes through a linear layer and tanh.

    Raises:
        ConfigError: when the configuration is impossible.

    Reference:
        Kim et al., "I-BERT: Integer-only BERT Quantization", https://arxiv.org/abs/2101.01321

    Example:
        >>> import torch
        >>> from bertkit import IBertConfig, IBertModel
        >>> tiny = IBertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> IBertModel(tiny)(torch.tensor([[0, 5, 2]])).last_hidden_state.shape
        torch.Size([1, 3, 32])
    """

    def assemble(self, config: IBertConfig, add_pooling_layer: bool) -> None:
        self.embeddings = IBertEmbeddings(config) if config.integer_format is None else IntegerEmbeddings(config)
        self.encoder = IBertEncoder(config) if config.integer_format is None else IntegerEncoder(config)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self._packed = None

    @property
    def max_tokens(self) -> int:
        """Longest sequence that the position table covers; its first rows belong to no token."""
        return self.config.max_position_embeddings - self.config.first_position

    def positions(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Rows of the position table: counting the tokens that are no padding, or all where only vectors are known."""
        first = self.config.first_position
        if input_ids is None:
            return torch.arange(first, first + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        pad = self.config.pad_token_id
        real = torch.ones_like(input_ids) if pad is None else input_ids.ne(pad).to(input_ids.dtype)
        return real.cumsum(1) * real + first - 1

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple:
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
                          token_type_ids=token_type_ids, position_ids=position_ids, head_mask=head_mask)
        if position_ids is None:
            position_ids = self.positions(input_ids, inputs_embeds)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        flags = self.flags(output_attentions, output_hidden_states)
        if self.config.integer_format is not None:
            words = input_ids if inputs_embeds is None else inputs_embeds
            encoded = self.encode(words, attention_mask, token_type_ids, position_ids, head_mask, **flags)
        else:
            encoded = self.simulate(input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, head_mask, **flags)
        pooled = None if self.pooler is None else self.pooler(encoded["last_hidden_state"])
        return self.finish(BaseModelOutputWithPoolingAndCrossAttentions(pooler_output=pooled, **encoded), return_dict)

    def simulate(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None,
                 token_type_ids: Tensor, position_ids: Tensor, head_mask: Tensor | None, **flags: bool) -> dict[str, Any]:
        """Hidden states and probabilities in floating point, as if by integers where `config.quant_mode` is set."""
        if self.config.quant_mode and not self.training:
            check_calibrated(self)
        hidden, scale = self.embeddings(input_ids, inputs_embeds, token_type_ids, position_ids)
        encoded = self.encoder(hidden, scale, additive_mask(attention_mask, hidden.dtype), head_mask, **flags)
        if self.config.quant_mode:  # the head has the dtype of the weights
            encoded["last_hidden_state"] = encoded["last_hidden_state"].to(self.embeddings.word_embeddings.weight.dtype)
        return encoded


class IBertLanguageModelHead(RobertaLanguageModelHead):
    """Scores of all words for each token; the decoder of a frozen model has 8 bit weights."""

    @staticmethod
    def make_decoder(config: IBertConfig) -> nn.Module:
        """The linear layer onto the vocabulary."""
        if config.integer_format is None:
            return RobertaLanguageModelHead.make_decoder(config)
        return IntegerDecoder(config.hidden_size, config.vocab_size)


class IBertForMaskedLM(MaskedLM, encoder=IBertModel, lm_head=IBertLanguageModelHead):
    """I-BERT with a language-model head over masked words; the head computes in float."""


class IBertForSequenceClassification(SequenceClassification, encoder=IBertModel, classifier=TanhFirstTokenClassifier):
    """I-BERT with a two-layer classifier, or regressor, on the first token; the head computes in float."""


class IBertForMultipleChoice(ChoicesFirstArgument, encoder=IBertModel, classifier=ChoiceScorer):
    """I-BERT with a scorer of choices on the pooled first token; the head computes in float."""


class IBertForTokenClassification(TokenClassification, encoder=IBertModel, classifier=LabelClassifier):
    """I-BERT with a linear classifier on each token; the head computes in float."""


class IBertForQuestionAnswering(QuestionAnswering, encoder=IBertModel, qa_outputs=SpanClassifier):
    """I-BERT with a linear layer for start and end of the answer; the head computes in float."""
