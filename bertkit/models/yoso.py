"""YOSO in PyTorch: attention by counting hash collisions. https://arxiv.org/abs/2111.09714"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertkit.core.errors import InputError
from bertkit.core.hashing import random_projections, random_signs, shape_of_hashes
from bertkit.core.yoso import POSITION_OFFSET, YOSO, YosoConfig
from bertkit.heads import (
    ChoiceScorer,
    FirstTokenClassifier,
    FirstTokenTransform,
    LabelClassifier,
    LanguageModelHead,
    SpanClassifier,
)
from bertkit.kernels.lsh import yoso_expectation, yoso_sampling
from bertkit.layers import FeedForward, keep_rows, merge_heads, split_heads, word_embedding
from bertkit.modeling import EncoderModel, LayerStack, head_masks
from bertkit.outputs import BaseModelOutputWithCrossAttentions
from bertkit.tasks import (
    FirstTokenMultipleChoice,
    MaskedLM,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)


def unit_vectors(x: Tensor) -> Tensor:
    """Vectors of length 1, in the dtype of `x`; zero stays zero, for which float16 has no small enough epsilon."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)


class YosoEmbeddings(nn.Module):
    """Words, token types and, where they are absolute, positions."""

    def __init__(self, config: YosoConfig) -> None:
        super().__init__()
        self.word_embeddings = word_embedding(config, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings + POSITION_OFFSET, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.absolute = config.position_embedding_type == "absolute"
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, token_type_ids: Tensor | None, position_ids: Tensor) -> Tensor:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        hidden = words + self.token_type_embeddings(token_type_ids)
        hidden = hidden + self.position_embeddings(position_ids) if self.absolute else hidden
        return self.dropout(self.LayerNorm(hidden))


class YosoSelfAttention(nn.Module):
    """Attention whose weights are collisions of hash codes, expected or sampled.

    The hash functions are drawn anew at every call, or, where the configuration has a `hash_seed`, once. Set
    `hashes` to use given ones: signs [heads, 3, parts, padded head size] or projections [heads, head size, bits].
    """

    hashes: Tensor | None

    def __init__(self, config: YosoConfig, index: int) -> None:
        super().__init__()
        heads = config.kept_heads(index)
        self.head_size, self.expected, self.fast = config.head_size, config.use_expectation, config.use_fast_hash
        self.code_length, self.num_hash, self.lsh_backward = config.hash_code_len, config.num_hash, config.lsh_backward
        self.query = nn.Linear(config.hidden_size, heads * self.head_size)
        self.key = nn.Linear(config.hidden_size, heads * self.head_size)
        self.value = nn.Linear(config.hidden_size, heads * self.head_size)
        self.conv = None
        if config.conv_window is not None:
            self.conv = nn.Conv2d(heads, heads, (config.conv_window, 1), padding=(config.conv_window // 2, 0),
                                  groups=heads, bias=False)
        self.register_buffer("hashes", self._seeded(config, index), persistent=False)

    @staticmethod
    def _seeded(config: YosoConfig, index: int) -> Tensor | None:
        if config.hash_seed is None or config.use_expectation:
            return None
        draw = random_signs if config.use_fast_hash else random_projections
        numbers = draw(config.hash_seed + index, config.num_attention_heads, config.head_size, config.num_hash,
                       config.hash_code_len)
        pruned = config.pruned_heads.get(index, ())
        return torch.from_numpy(numbers[[h for h in range(config.num_attention_heads) if h not in pruned]])

    def draw_hashes(self, like: Tensor) -> Tensor:
        """The hash functions of this call."""
        if self.hashes is not None:
            return self.hashes
        shape = shape_of_hashes(self.fast, like.shape[1], self.head_size, self.num_hash, self.code_length)
        if self.fast:
            return torch.randint(0, 2, shape, device=like.device) * 2 - 1
        return torch.randn(shape, device=like.device)

    def forward(self, hidden: Tensor, mask_BS: Tensor, head_mask: Tensor | None,
                want_probabilities: bool) -> tuple[Tensor, Tensor | None]:
        query_BNLD = unit_vectors(split_heads(self.query(hidden), self.head_size))
        key_BNSD = unit_vectors(split_heads(self.key(hidden), self.head_size))
        value_BNSD = split_heads(self.value(hidden), self.head_size)
        hashes = None if self.expected else self.draw_hashes(query_BNLD)

        def collisions_with(values: Tensor) -> Tensor:
            if hashes is None:
                return yoso_expectation(query_BNLD, key_BNSD, values, mask_BS, mask_BS, self.code_length)
            return yoso_sampling(query_BNLD, key_BNSD, values, mask_BS, mask_BS, self.code_length, self.num_hash,
                                 self.fast, self.lsh_backward, hashes)

        context_BNLD = unit_vectors(collisions_with(value_BNSD))
        if self.conv is not None and value_BNSD.shape[2]:  # PyTorch convolves no tokens at all into an error
            context_BNLD = context_BNLD + self.conv(value_BNSD.masked_fill((mask_BS == 0)[:, None, :, None], 0.0))
        if head_mask is not None:
            context_BNLD = context_BNLD * (head_mask.view(-1, 1, 1) if head_mask.dim() == 1 else head_mask)
        weights = None
        if want_probabilities:
            one_hot = torch.eye(hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
            weights = collisions_with(one_hot.expand(*value_BNSD.shape[:2], -1, -1))
        return merge_heads(context_BNLD), weights


class YosoOutput(nn.Module):
    """Back to the stream's width, dropped out, added to the stream, normed."""

    def __init__(self, config: YosoConfig, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, stream: Tensor) -> Tensor:
        return self.LayerNorm(stream + self.dropout(self.dense(hidden)))


class YosoAttention(nn.Module):
    """Attention and its way back into the stream."""

    def __init__(self, config: YosoConfig, index: int) -> None:
        super().__init__()
        self.self = YosoSelfAttention(config, index)
        self.output = YosoOutput(config, config.kept_heads(index) * config.head_size)

    def forward(self, stream: Tensor, *inputs: Any) -> tuple[Tensor, Tensor | None]:
        context, weights = self.self(stream, *inputs)
        return self.output(context, stream), weights

    def keep_heads(self, heads: list[int]) -> None:
        """Keep only these heads."""
        inner = self.self
        index = torch.tensor([h * inner.head_size + d for h in heads for d in range(inner.head_size)])
        for projection in (inner.query, inner.key, inner.value):
            keep_rows(projection, index)
        keep_rows(self.output.dense, index, 1)
        if inner.conv is not None:
            inner.conv.weight = nn.Parameter(inner.conv.weight[heads].detach().clone())
            inner.conv.in_channels = inner.conv.out_channels = inner.conv.groups = len(heads)
        if inner.hashes is not None:
            inner.hashes = inner.hashes[heads]


class YosoLayer(nn.Module):
    """One layer: attention and feed-forward, each normed behind its residual."""

    def __init__(self, config: YosoConfig, index: int) -> None:
        super().__init__()
        self.attention = YosoAttention(config, index)
        self.intermediate = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.output = YosoOutput(config, config.intermediate_size)

    def attentions(self) -> list[YosoAttention]:
        """Every attention of the layer."""
        return [self.attention]

    def forward(self, stream: Tensor, mask: Tensor, head_mask: Tensor | None,
                want_probabilities: bool) -> tuple[Tensor, Tensor | None]:
        stream, weights = self.attention(stream, mask, head_mask, want_probabilities)
        return self.output(self.intermediate(stream), stream), weights


class YosoEncoder(LayerStack):
    """All layers."""

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(YosoLayer(config, index) for index in range(config.num_hidden_layers))

    def forward(self, stream: Tensor, mask: Tensor, head_mask: Tensor | None, output_attentions: bool,
                output_hidden_states: bool) -> dict[str, Any]:
        hidden_states, attentions = [stream], []
        for layer, kept in zip(self.layer, head_masks(head_mask, len(self.layer)), strict=True):
            stream, weights = self.run(layer, stream, mask, kept, output_attentions)
            hidden_states.append(stream)
            attentions.append(weights)
        return {
            "last_hidden_state": stream,
            "hidden_states": tuple(hidden_states) if output_hidden_states else None,
            "attentions": tuple(attentions) if output_attentions else None,
        }


class YosoModel(EncoderModel, variant=YOSO):
    """YOSO without a head.

    Args:
        config: the configuration; `use_expectation=False` samples, at a cost that grows linearly with the length.

    Raises:
        ConfigError: when the configuration is impossible.

    Reference:
        Zeng et al., "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli Sampling",
        https://arxiv.org/abs/2111.09714

    Example:
        >>> import torch
        >>> from bertkit import YosoConfig, YosoModel
        >>> tiny = YosoConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> YosoModel(tiny)(torch.tensor([[5, 6, 7]])).last_hidden_state.shape
        torch.Size([1, 3, 32])
    """

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(config, add_pooling_layer=False)

    def assemble(self, config: YosoConfig, add_pooling_layer: bool) -> None:
        self.embeddings = YosoEmbeddings(config)
        self.encoder = YosoEncoder(config)
        self.pooler = None

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
    ) -> BaseModelOutputWithCrossAttentions | tuple:
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
        if attention_mask is not None and attention_mask.dim() != 2:
            raise InputError(f"attention_mask: got {attention_mask.dim()} dimensions, expected 2 [batch, length]: YOSO "
                             "masks tokens, not pairs of tokens")
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = words.shape[:2]
        if position_ids is None:
            position_ids = torch.arange(POSITION_OFFSET, POSITION_OFFSET + length, device=words.device)[None]
        mask = words.new_ones(batch, length) if attention_mask is None else attention_mask
        encoded = self.encoder(self.embeddings(words, token_type_ids, position_ids), mask, head_mask,
                               **self.flags(output_attentions, output_hidden_states))
        return self.finish(BaseModelOutputWithCrossAttentions(**encoded), return_dict)


class YosoForMaskedLM(MaskedLM, encoder=YosoModel, cls=LanguageModelHead):
    """YOSO with a language-model head over masked words."""


class YosoForSequenceClassification(SequenceClassification, encoder=YosoModel, classifier=FirstTokenClassifier):
    """YOSO with a two-layer classifier, or regressor, on the first token."""


class YosoForMultipleChoice(FirstTokenMultipleChoice, encoder=YosoModel, pre_classifier=FirstTokenTransform,
                            classifier=ChoiceScorer):
    """YOSO with a scorer of choices on the first token."""


class YosoForTokenClassification(TokenClassification, encoder=YosoModel, classifier=LabelClassifier):
    """YOSO with a linear classifier on each token."""


class YosoForQuestionAnswering(QuestionAnswering, encoder=YosoModel, qa_outputs=SpanClassifier):
    """YOSO with a linear layer for start and end of the answer."""
