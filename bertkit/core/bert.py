"""Fragments of the weight spec that the BERT-shaped variants share."""

from __future__ import annotations

from typing import Any

from bertkit.core.spec import Params, embedding, linear, norm, tied_decoder

WORDS = "embeddings.word_embeddings.weight"


def embeddings(config: Any, *, positions: int, columns: int | None = None) -> Params:
    """Word, position and token-type tables."""
    yield from embedding("embeddings.word_embeddings", config.vocab_size, columns or config.hidden_size)
    yield from embedding("embeddings.position_embeddings", positions, config.hidden_size)
    yield from embedding("embeddings.token_type_embeddings", config.type_vocab_size, config.hidden_size)


def attention(inner: int, width: int, *, values_from: int | None = None) -> Params:
    """Projections of attention: `inner` is the width over all kept heads, `width` that of the stream around it."""
    yield from linear("self.query", inner, width)
    yield from linear("self.key", inner, width)
    yield from linear("self.value", inner, values_from or width)
    yield from linear("output.dense", width, inner)


def feed_forward(config: Any, width: int | None = None) -> Params:
    """The two linear layers of a feed-forward network."""
    width = width or config.hidden_size
    yield from linear("intermediate.dense", config.intermediate_size, width)
    yield from linear("output.dense", width, config.intermediate_size)


def pooler(config: Any) -> Params:
    """One linear layer on the first token."""
    yield from linear("pooler.dense", config.hidden_size, config.hidden_size)


def language_model_head(config: Any, prefix: str, columns: int | None = None) -> Params:
    """Dense, activation, norm, and a decoder onto the vocabulary."""
    name, width = "cls.predictions", config.hidden_size
    yield from linear(f"{name}.transform.dense", width, width)
    yield from norm(f"{name}.transform.LayerNorm", width)
    yield from tied_decoder(name, config, f"{prefix}.{WORDS}", columns or width)
