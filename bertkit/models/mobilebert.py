"""MobileBERT in PyTorch: thin layers between bottlenecks. https://arxiv.org/abs/2004.02984"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertkit.core.mobilebert import MOBILEBERT, MobileBertConfig
from bertkit.heads import (
    ChoiceScorer,
    LabelClassifier,
    NextSentenceHead,
    SpanClassifier,
    SplitLanguageModelHead,
    SplitPreTrainingHead,
)
from bertkit.layers import FeedForward, NoNorm, additive_mask, attend, keep_rows, split_heads, word_embedding
from bertkit.modeling import EncoderModel, LayerStack, head_masks
from bertkit.outputs import BaseModelOutputWithPooling, MobileBertForPreTrainingOutput
from bertkit.tasks import (
    MaskedLM,
    MultipleChoice,
    NextSentencePrediction,
    PreTraining,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)

NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "no_norm": lambda size, eps: NoNorm(size),
    "layer_norm": lambda size, eps: nn.LayerNorm(size, eps=eps),
}


def norm(config: MobileBertConfig, size: int) -> nn.Module:
    """The configured kind of norm."""
    return NORMS[config.normalization_type](size, config.layer_norm_eps)


class MobileBertEmbeddings(nn.Module):
    """Narrow words, each beside its neighbours, made as wide as the stream; positions and token types added."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.trigram, self.transforms = config.trigram_input, config.transforms_embeddings
        self.word_embeddings = word_embedding(config, config.embedding_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_transformation = nn.Linear(config.word_features, config.hidden_size)
        self.LayerNorm = norm(config, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, token_type_ids: Tensor | None, position_ids: Tensor) -> Tensor:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        if self.trigram:
            padded = F.pad(words, (0, 0, 1, 1))
            words = torch.cat([padded[:, 2:], words, padded[:, :-2]], 2)
        hidden = self.embedding_transformation(words) if self.transforms else words
        hidden = hidden + self.position_embeddings(position_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(hidden))


class MobileBertBottleneckLayer(nn.Module):
    """From the stream's width down to the layer's."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intra_bottleneck_size)
        self.LayerNorm = norm(config, config.intra_bottleneck_size)

    def forward(self, stream: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(stream))


class MobileBertBottleneck(nn.Module):
    """What a layer sees of the stream: sources of queries and keys, of values, and of the residual."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.narrow_attention = config.use_bottleneck_attention
        self.input = MobileBertBottleneckLayer(config)
        self.attention = MobileBertBottleneckLayer(config) if config.has_query_bottleneck else None

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        narrow = self.input(stream)
        if self.narrow_attention:
            return narrow, narrow, narrow
        return (stream if self.attention is None else self.attention(stream)), stream, narrow


class MobileBertSelfAttention(nn.Module):
    """Attention whose queries and keys may come from elsewhere than its values."""

    def __init__(self, config: MobileBertConfig, heads: int) -> None:
        super().__init__()
        self.head_size, self.dropout = config.head_size, config.attention_probs_dropout_prob
        self.query = nn.Linear(config.query_size, heads * self.head_size)
        self.key = nn.Linear(config.query_size, heads * self.head_size)
        self.value = nn.Linear(config.value_size, heads * self.head_size)

    def forward(self, asking: Tensor, values: Tensor, bias: Tensor | None, head_mask: Tensor | None,
                want_probabilities: bool) -> tuple[Tensor, Tensor | None]:
        query, key = split_heads(self.query(asking), self.head_size), split_heads(self.key(asking), self.head_size)
        return attend(query, key, split_heads(self.value(values), self.head_size), bias,
                      dropout=self.dropout if self.training else 0.0, head_mask=head_mask,
                      want_probabilities=want_probabilities)


class MobileBertResidual(nn.Module):
    """Back to the layer's width, added to the residual, normed; dropout only where there is no bottleneck."""

    def __init__(self, config: MobileBertConfig, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.true_hidden_size)
        self.LayerNorm = norm(config, config.true_hidden_size)
        self.dropout = nn.Dropout(0.0 if config.use_bottleneck else config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dropout(self.dense(hidden)))


class MobileBertAttention(nn.Module):
    """Attention and its way back to the layer's width."""

    def __init__(self, config: MobileBertConfig, heads: int) -> None:
        super().__init__()
        self.self = MobileBertSelfAttention(config, heads)
        self.output = MobileBertResidual(config, heads * config.head_size)

    def forward(self, residual: Tensor, *inputs: Any) -> tuple[Tensor, Tensor | None]:
        context, probabilities = self.self(*inputs)
        return self.output(context, residual), probabilities

    def keep_heads(self, heads: list[int]) -> None:
        """Keep only these heads."""
        index = torch.tensor([h * self.self.head_size + d for h in heads for d in range(self.self.head_size)])
        for projection in (self.self.query, self.self.key, self.self.value):
            keep_rows(projection, index)
        keep_rows(self.output.dense, index, 1)


class MobileBertFeedForward(nn.Module):
    """A feed-forward network with its residual and norm."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.intermediate = FeedForward(config.true_hidden_size, config.intermediate_size, config.hidden_act)
        self.output = MobileBertResidual(config, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.output(self.intermediate(hidden), hidden)


class MobileBertOutputBottleneck(nn.Module):
    """From the layer's width back up into the stream."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.true_hidden_size, config.hidden_size)
        self.LayerNorm = norm(config, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, stream: Tensor) -> Tensor:
        return self.LayerNorm(stream + self.dropout(self.dense(hidden)))


class MobileBertOutput(MobileBertResidual):
    """The last residual of a layer and, where there is a bottleneck, the way out of it."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__(config, config.intermediate_size)
        self.bottleneck = MobileBertOutputBottleneck(config) if config.use_bottleneck else None

    def forward(self, hidden: Tensor, residual: Tensor, stream: Tensor) -> Tensor:
        hidden = super().forward(hidden, residual)
        return hidden if self.bottleneck is None else self.bottleneck(hidden, stream)


class MobileBertLayer(nn.Module):
    """One layer: into the bottleneck, attention, feed-forward networks, out of the bottleneck."""

    def __init__(self, config: MobileBertConfig, index: int) -> None:
        super().__init__()
        self.bottleneck = MobileBertBottleneck(config) if config.use_bottleneck else None
        self.attention = MobileBertAttention(config, config.kept_heads(index))
        self.ffn = nn.ModuleList(MobileBertFeedForward(config) for _ in range(config.num_feedforward_networks - 1))
        self.intermediate = FeedForward(config.true_hidden_size, config.intermediate_size, config.hidden_act)
        self.output = MobileBertOutput(config)

    def attentions(self) -> list[MobileBertAttention]:
        """Every attention of the layer."""
        return [self.attention]

    def forward(self, stream: Tensor, bias: Tensor | None, head_mask: Tensor | None,
                want_probabilities: bool) -> tuple[Tensor, Tensor | None]:
        asking, values, residual = (stream,) * 3 if self.bottleneck is None else self.bottleneck(stream)
        hidden, probabilities = self.attention(residual, asking, values, bias, head_mask, want_probabilities)
        for network in self.ffn:
            hidden = network(hidden)
        return self.output(self.intermediate(hidden), hidden, stream), probabilities


class MobileBertEncoder(LayerStack):
    """All layers."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__(MobileBertLayer(config, index) for index in range(config.num_hidden_layers))

    def forward(self, stream: Tensor, bias: Tensor | None, head_mask: Tensor | None, output_attentions: bool,
                output_hidden_states: bool) -> dict[str, Any]:
        hidden_states, attentions = [stream], []
        for layer, mask in zip(self.layer, head_masks(head_mask, len(self.layer)), strict=True):
            stream, probabilities = self.run(layer, stream, bias, mask, output_attentions)
            hidden_states.append(stream)
            attentions.append(probabilities)
        return {
            "last_hidden_state": stream,
            "hidden_states": tuple(hidden_states) if output_hidden_states else None,
            "attentions": tuple(attentions) if output_attentions else None,
        }


class MobileBertPooler(nn.Module):
    """The first token, through a linear layer and tanh where `classifier_activation` is set."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if config.classifier_activation else None

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0] if self.dense is None else torch.tanh(self.dense(hidden[:, 0]))


class MobileBertModel(EncoderModel, variant=MOBILEBERT):
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
        >>> import torch
        >>> from bertkit import MobileBertConfig, MobileBertModel
        >>> tiny = MobileBertConfig(num_hidden_layers=2)
        >>> MobileBertModel(tiny)(torch.tensor([[5, 6, 7]])).last_hidden_state.shape
        torch.Size([1, 3, 512])
    """

    def assemble(self, config: MobileBertConfig, add_pooling_layer: bool) -> None:
        self.embeddings = MobileBertEmbeddings(config)
        self.encoder = MobileBertEncoder(config)
        self.pooler = MobileBertPooler(config) if add_pooling_layer else None

    @property
    def exceeds_float16(self) -> bool:
        """Whether hidden states grow beyond what float16 can hold: without layer norms they reach 2.5e7."""
        return self.config.normalization_type == "no_norm"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """Encode a batch of sequences.

        Args:
            input_ids: [batch, length] token ids.
            attention_mask: [batch, length] or [batch, length, length], 1 for tokens to attend to, 0 for padding.
            token_type_ids: [batch, length] segment of each token.
            position_ids: [batch, length] row of the position table for each token.
            head_mask: [heads] or [layers, heads], 1 keeps a head.
            inputs_embeds: [batch, length, embedding_size] word embeddings instead of `input_ids`.
            output_hidden_states, output_attentions, return_dict: default: what the configuration says.

        Raises:
            InputError: listing everything that does not fit.
        """
        self.check_inputs(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                          token_type_ids=token_type_ids, position_ids=position_ids, head_mask=head_mask)
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(words.shape[1], device=words.device)[None]
        encoded = self.encoder(self.embeddings(words, token_type_ids, position_ids),
                               additive_mask(attention_mask, words.dtype), head_mask,
                               **self.flags(output_attentions, output_hidden_states))
        pooled = None if self.pooler is None else self.pooler(encoded["last_hidden_state"])
        return self.finish(BaseModelOutputWithPooling(pooler_output=pooled, **encoded), return_dict)


class MobileBertForPreTraining(PreTraining, encoder=MobileBertModel, cls=SplitPreTrainingHead):
    """MobileBERT with both heads of its pretraining: masked words and next sentence."""

    output_class = MobileBertForPreTrainingOutput


class MobileBertForMaskedLM(MaskedLM, encoder=MobileBertModel, cls=SplitLanguageModelHead):
    """MobileBERT with a language-model head over masked words."""


class MobileBertForNextSentencePrediction(NextSentencePrediction, encoder=MobileBertModel, cls=NextSentenceHead):
    """MobileBERT with a next-sentence head."""


class MobileBertForSequenceClassification(SequenceClassification, encoder=MobileBertModel, classifier=LabelClassifier):
    """MobileBERT with a linear classifier, or regressor, on the pooled first token."""


class MobileBertForMultipleChoice(MultipleChoice, encoder=MobileBertModel, classifier=ChoiceScorer):
    """MobileBERT with a scorer of choices on the pooled first token."""


class MobileBertForTokenClassification(TokenClassification, encoder=MobileBertModel, classifier=LabelClassifier):
    """MobileBERT with a linear classifier on each token."""


class MobileBertForQuestionAnswering(QuestionAnswering, encoder=MobileBertModel, qa_outputs=SpanClassifier):
    """MobileBERT with a linear layer for start and end of the answer."""
