"""Heads: what a task puts on top of an encoder. Each is a module that maps hidden states to scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bertkit.layers import Matrix, activation


class PredictionTransform(nn.Module):
    """Dense, activation and layer norm in front of a vocabulary."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = activation(getattr(config, "head_act", None) or config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(self.act(self.dense(hidden)))


class VocabularyPredictions(nn.Module):
    """Scores of all words; the decoder shares the word embeddings, its bias is `bias`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = self.decoder.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return self.decoder(self.transform(hidden))


class SplitVocabularyPredictions(nn.Module):
    """MobileBERT's scores: the narrow word embeddings, made as wide as the stream by a matrix of their own."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.dense = Matrix(config.hidden_size - config.embedding_size, config.vocab_size)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)
        self.bias = self.decoder.bias

    def forward(self, hidden: Tensor) -> Tensor:
        narrow = self.decoder.weight.shape[1]
        hidden = self.transform(hidden)
        return self.decoder(hidden[..., :narrow]) + hidden[..., narrow:] @ self.dense.weight.to(hidden.dtype)


class LanguageModelHead(nn.Module):
    """Scores of all words for each token."""

    predictions_class: type[nn.Module] = VocabularyPredictions

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.predictions = self.predictions_class(config)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.predictions(hidden)


class NextSentenceHead(nn.Module):
    """Whether the second segment follows the first, from the pooled first token."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.seq_relationship(pooled)


class PreTrainingHead(LanguageModelHead):
    """Word scores of each token and the next-sentence scores.

    Args:
        config: gives the sizes.
        binary: whether there are next-sentence scores; else they are None.
    """

    def __init__(self, config: Any, binary: bool = True) -> None:
        super().__init__(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2) if binary else None

    def forward(self, hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictions(hidden), None if self.seq_relationship is None else self.seq_relationship(pooled)


class SplitLanguageModelHead(LanguageModelHead):
    """`LanguageModelHead` with MobileBERT's split decoder."""

    predictions_class = SplitVocabularyPredictions


class SplitPreTrainingHead(PreTrainingHead):
    """`PreTrainingHead` with MobileBERT's split decoder."""

    predictions_class = SplitVocabularyPredictions


class RobertaLanguageModelHead(nn.Module):
    """RoBERTa's form of `LanguageModelHead`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = activation(config.hidden_act)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = self.make_decoder(config)
        self.bias = self.decoder.bias

    @staticmethod
    def make_decoder(config: Any) -> nn.Module:
        """The linear layer onto the vocabulary."""
        return nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.decoder(self.layer_norm(self.act(self.dense(hidden))))


class LabelClassifier(nn.Linear):
    """One linear layer onto the labels."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, config.num_labels)


class SpanClassifier(nn.Linear):
    """Start and end scores of each token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, 2)


class ChoiceScorer(nn.Linear):
    """One score per choice."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, 1)


class FirstTokenClassifier(nn.Module):
    """Two linear layers on the first token, with dropout before each.

    Args:
        config: gives the sizes and the dropout.
        act: activation between the layers; None takes the configuration's.
    """

    def __init__(self, config: Any, act: str | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = activation(act or config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        first = self.dropout(hidden[:, 0])
        return self.out_proj(self.dropout(self.act(self.dense(first))))


class TanhFirstTokenClassifier(FirstTokenClassifier):
    """`FirstTokenClassifier` with tanh, as in RoBERTa."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, "tanh")


class FirstTokenTransform(nn.Linear):
    """The first token through a linear layer and ReLU, in front of a scorer of choices."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(super().forward(hidden[:, 0]))
