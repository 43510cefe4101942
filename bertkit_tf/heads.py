"""Heads: what a task puts on top of an encoder. Each is a module that maps hidden states to scores."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from bertkit_tf.layers import Block, Dense, Dropout, LayerNorm, Matrix, activation, matmul


class PredictionTransform(Block):
    """Dense, activation and layer norm in front of a vocabulary."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Dense(config.hidden_size, config.hidden_size)
        self.act = activation(getattr(config, "head_act", None) or config.hidden_act)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def call(self, hidden: tf.Tensor) -> tf.Tensor:
        return self.LayerNorm(self.act(self.dense(hidden)))


class Decoder(Block):
    """Scores of all words by a table of their embeddings, which the model shares with the words where configured.

    Args:
        config: gives the number of words, and whether the table is shared.
        columns: width of the table.
    """

    def __init__(self, config: Any, columns: int) -> None:
        super().__init__()
        self.embeddings = None if config.tie_word_embeddings else self.variable("embeddings", (config.vocab_size, columns))
        self.bias = None

    def call(self, hidden: tf.Tensor) -> tf.Tensor:
        hidden = tf.cast(hidden, self.compute_dtype)
        scores = matmul(hidden, tf.cast(self.embeddings.value, hidden.dtype), transpose_b=True)
        return scores + tf.cast(self.bias.value, scores.dtype)


class VocabularyPredictions(Block):
    """Scores of all words; the decoder shares the word embeddings, its bias is `bias`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = Decoder(config, config.hidden_size)
        self.bias = self.variable("bias", (config.vocab_size,))

    def call(self, hidden: tf.Tensor) -> tf.Tensor:
        return self.decoder(self.transform(hidden))


class SplitVocabularyPredictions(Block):
    """MobileBERT's scores: the narrow word embeddings, made as wide as the stream by a matrix of their own."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.dense = Matrix(config.hidden_size - config.embedding_size, config.vocab_size)
        self.decoder = Decoder(config, config.embedding_size)
        self.bias = self.variable("bias", (config.vocab_size,))

    def call(self, hidden: tf.Tensor) -> tf.Tensor:
        narrow = self.decoder.embeddings.shape[1]
        hidden = self.transform(hidden)
        scores = self.decoder(hidden[..., :narrow])
        return scores + matmul(tf.cast(hidden[..., narrow:], scores.dtype), tf.cast(self.dense.weight.value, scores.dtype))


class LanguageModelHead(Block):
    """Scores of all words for each token."""

    predictions_class: type[Block] = VocabularyPredictions

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.predictions = self.predictions_class(config)

    def call(self, hidden: tf.Tensor) -> tf.Tensor:
        return self.predictions(hidden)


class NextSentenceHead(Block):
    """Whether the second segment follows the first, from the pooled first token."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.seq_relationship = Dense(config.hidden_size, 2)

    def call(self, pooled: tf.Tensor) -> tf.Tensor:
        return self.seq_relationship(pooled)


class PreTrainingHead(LanguageModelHead):
    """Word scores of each token and the next-sentence scores.

    Args:
        config: gives the sizes.
        binary: whether there are next-sentence scores; else they are None.
    """

    def __init__(self, config: Any, binary: bool = True) -> None:
        super().__init__(config)
        self.seq_relationship = Dense(config.hidden_size, 2) if binary else None

    def call(self, hidden: tf.Tensor, pooled: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.predictions(hidden), None if self.seq_relationship is None else self.seq_relationship(pooled)


class SplitLanguageModelHead(LanguageModelHead):
    """`LanguageModelHead` with MobileBERT's split decoder."""

    predictions_class = SplitVocabularyPredictions


class SplitPreTrainingHead(PreTrainingHead):
    """`PreTrainingHead` with MobileBERT's split decoder."""

    predictions_class = SplitVocabularyPredictions


class RobertaLanguageModelHead(Block):
    """RoBERTa's form of `LanguageModelHead`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Dense(config.hidden_size, config.hidden_size)
        self.act = activation(config.hidden_act)
        self.layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.decoder = self.make_decoder(config)
        self.bias = self.variable("bias", (config.vocab_size,))

    @staticmethod
    def make_decoder(config: Any) -> Block:
        """The linear layer onto the vocabulary."""
        return Decoder(config, config.hidden_size)

    def call(self, hidden: tf.Tensor) -> tf.Tensor:
        return self.decoder(self.layer_norm(self.act(self.dense(hidden))))


class LabelClassifier(Dense):
    """One linear layer onto the labels."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, config.num_labels)


class SpanClassifier(Dense):
    """Start and end scores of each token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, 2)


class ChoiceScorer(Dense):
    """One score per choice."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, 1)


class FirstTokenClassifier(Block):
    """Two linear layers on the first token, with dropout before each.

    Args:
        config: gives the sizes and the dropout.
        act: activation between the layers; None takes the configuration's.
    """

    def __init__(self, config: Any, act: str | None = None) -> None:
        super().__init__()
        self.dense = Dense(config.hidden_size, config.hidden_size)
        self.act = activation(act or config.hidden_act)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.out_proj = Dense(config.hidden_size, config.num_labels)

    def call(self, hidden: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        first = self.dropout(hidden[:, 0], training)
        return self.out_proj(self.dropout(self.act(self.dense(first)), training))


class TanhFirstTokenClassifier(FirstTokenClassifier):
    """`FirstTokenClassifier` with tanh, as in RoBERTa."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, "tanh")


class FirstTokenTransform(Dense):
    """The first token through a linear layer and ReLU, in front of a scorer of choices."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, config.hidden_size)

    def call(self, hidden: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(super().call(hidden[:, 0]))
