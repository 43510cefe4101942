"""YOSO: its configuration and its weights."""

from __future__ import annotations

from dataclasses import field
from functools import partial
from typing import Annotated

from bertkit.core import bert
from bertkit.core.config import (
    COUNT,
    NONE,
    POSITIVE,
    Activation,
    Flag,
    Layers,
    NotNegativeReal,
    PositionEmbedding,
    Positive,
    PretrainedConfig,
    Probability,
    TokenId,
    configuration,
)
from bertkit.core.hashing import hash_problems, table_problems
from bertkit.core.spec import (
    Param,
    Params,
    Task,
    Variant,
    choice_head,
    first_token_head,
    labels_head,
    linear,
    norm,
    span_head,
    under,
)

POSITION_OFFSET = 2
"""The first two rows of the position table belong to no token."""


@configuration
class YosoConfig(PretrainedConfig):
    """Configuration of YOSO: attention by sampling collisions of a locality-sensitive hash.

    Args:
        vocab_size: rows of the word-embedding table.
        hidden_size: width of the encoder.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: heads of each layer; divides `hidden_size`.
        intermediate_size: inner width of the feed-forward networks.
        hidden_act: activation of the feed-forward networks and of the heads.
        hidden_dropout_prob: dropout of the linear layers' outputs.
        attention_probs_dropout_prob: accepted and unused: YOSO has no attention probabilities.
        max_position_embeddings: longest sequence; the table has two more rows.
        type_vocab_size: rows of the token-type table.
        initializer_range: standard deviation of the initial weights.
        layer_norm_eps: epsilon of the layer norms.
        position_embedding_type: "absolute" adds the position table; any other type leaves positions out.
        use_expectation: whether attention is the exact expectation (quadratic) instead of a sample (linear).
        hash_code_len: bits of a hash code.
        num_hash: number of hash functions.
        conv_window: odd width of a depthwise convolution over the values, or None.
        use_fast_hash: whether projections are Hadamard transforms instead of Gaussian matrices.
        lsh_backward: whether gradients are sampled too, instead of those of the expectation.
        pad_token_id, bos_token_id, eos_token_id: ids of the special tokens.
        hash_seed: seed of the hash functions. None draws new ones at every call; with a seed, each layer keeps
            its own, the same in PyTorch and TensorFlow. (keyword only; not in transformers)
        **kwargs: the fields of `PretrainedConfig`, and any other key.

    Raises:
        ConfigError: listing every field with an impossible value.

    Reference:
        Zeng et al., "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli Sampling",
        https://arxiv.org/abs/2111.09714

    Example:
        >>> YosoConfig(use_expectation=False, num_hash=16).hash_code_len
        9
    """

    model_type = "yoso"

    vocab_size: Positive = 50265
    hidden_size: Positive = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: Positive = 4096
    type_vocab_size: Positive = 1
    initializer_range: NotNegativeReal = 0.02
    layer_norm_eps: NotNegativeReal = 1e-12
    position_embedding_type: PositionEmbedding = "absolute"
    use_expectation: Flag = True
    hash_code_len: Positive = 9
    num_hash: Positive = 64
    conv_window: Annotated[int | None, POSITIVE | NONE] = None
    use_fast_hash: Flag = True
    lsh_backward: Flag = True
    pad_token_id: TokenId = 1
    bos_token_id: TokenId = 0
    eos_token_id: TokenId = 2
    hash_seed: Annotated[int | None, COUNT | NONE] = field(default=None, kw_only=True)

    def contradictions(self) -> list[str]:
        """Fields that are fine alone but not together."""
        found = super().contradictions()
        if self.conv_window is not None and self.conv_window % 2 == 0:
            found.append(f"conv_window: got {self.conv_window}, expected an odd width, which keeps the length")
        found += hash_problems(self.num_hash, self.hash_code_len)
        return found or ([] if self.use_expectation else table_problems(self.hash_code_len, self.head_size))


def _attention(config: YosoConfig, layer: int) -> Params:
    heads, width = config.kept_heads(layer), config.hidden_size
    yield from bert.attention(heads * config.head_size, width)
    if config.conv_window is not None:
        yield Param("self.conv.weight", (heads, 1, config.conv_window, 1), "conv")
    yield from norm("output.LayerNorm", width)


def _layer(config: YosoConfig, layer: int) -> Params:
    yield from under("attention", _attention(config, layer))
    yield from bert.feed_forward(config)
    yield from norm("output.LayerNorm", config.hidden_size)


def _encoder(config: YosoConfig) -> Params:
    yield from bert.embeddings(config, positions=config.max_position_embeddings + POSITION_OFFSET)
    yield from norm("embeddings.LayerNorm", config.hidden_size)
    for layer in range(config.num_hidden_layers):
        yield from under(f"encoder.layer.{layer}", _layer(config, layer))


def _choice(config: YosoConfig) -> Params:
    yield from linear("pre_classifier", config.hidden_size, config.hidden_size)
    yield from choice_head(config)


YOSO = Variant(
    name="Yoso",
    prefix="yoso",
    config=YosoConfig,
    encoder=_encoder,
    tasks={
        "Model": Task(),
        "ForMaskedLM": Task(partial(bert.language_model_head, prefix="yoso")),
        "ForSequenceClassification": Task(first_token_head),
        "ForMultipleChoice": Task(_choice),
        "ForTokenClassification": Task(labels_head),
        "ForQuestionAnswering": Task(span_head),
    },
)
