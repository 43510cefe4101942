"""MobileBERT: its configuration and its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from bertkit.core import bert
from bertkit.core.config import (
    NONE,
    PROBABILITY,
    Activation,
    Flag,
    Layers,
    Networks,
    NotNegativeReal,
    Positive,
    PretrainedConfig,
    Probability,
    TokenId,
    configuration,
    one_of,
)
from bertkit.core.spec import (
    Param,
    Params,
    Task,
    Variant,
    both,
    choice_head,
    labels_head,
    linear,
    next_sentence_head,
    norm,
    span_head,
    under,
)


@configuration
class MobileBertConfig(PretrainedConfig):
    """Configuration of MobileBERT: thin layers between bottlenecks, with stacked feed-forward networks.

    Args:
        vocab_size: rows of the word-embedding table.
        hidden_size: width of the stream between the layers.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: heads of each layer; divides the width of attention, `true_hidden_size`.
        intermediate_size: inner width of the feed-forward networks.
        hidden_act: activation of the feed-forward networks and of the language-model head.
        hidden_dropout_prob: dropout of embeddings and layer outputs.
        attention_probs_dropout_prob: dropout of the attention probabilities.
        max_position_embeddings: longest sequence that the position table covers.
        type_vocab_size: rows of the token-type table.
        initializer_range: standard deviation of the initial weights.
        layer_norm_eps: epsilon of every layer norm.
        pad_token_id: id of the padding token.
        embedding_size: width of the word embeddings.
        trigram_input: whether each token also sees the embeddings of its two neighbours.
        use_bottleneck: whether layers work in a narrower space.
        intra_bottleneck_size: width of that space.
        use_bottleneck_attention: whether queries, keys and values all come from the bottleneck's input.
        key_query_shared_bottleneck: whether queries and keys share a bottleneck of their own.
        num_feedforward_networks: feed-forward networks of each layer.
        normalization_type: "no_norm" (an elementwise affine map) or "layer_norm".
        classifier_activation: whether the pooler has a linear layer and tanh; otherwise it is the first token.
        classifier_dropout: dropout before the classifiers; None takes `hidden_dropout_prob`.
        **kwargs: the fields of `PretrainedConfig`, and any other key.

    Raises:
        ConfigError: listing every field with an impossible value.

    Reference:
        Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
        https://arxiv.org/abs/2004.02984

    Example:
        >>> MobileBertConfig().true_hidden_size
        128
    """

    model_type = "mobilebert"
    derived = frozenset({"true_hidden_size"})

    vocab_size: Positive = 30522
    hidden_size: Positive = 512
    num_hidden_layers: Layers = 24
    num_attention_heads: Positive = 4
    intermediate_size: Positive = 512
    hidden_act: Activation = "relu"
    hidden_dropout_prob: Probability = 0.0
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: Positive = 512
    type_vocab_size: Positive = 2
    initializer_range: NotNegativeReal = 0.02
    layer_norm_eps: NotNegativeReal = 1e-12
    pad_token_id: TokenId = 0
    embedding_size: Positive = 128
    trigram_input: Flag = True
    use_bottleneck: Flag = True
    intra_bottleneck_size: Positive = 128
    use_bottleneck_attention: Flag = False
    key_query_shared_bottleneck: Flag = True
    num_feedforward_networks: Networks = 4
    normalization_type: Annotated[str, one_of("no_norm", "layer_norm")] = "no_norm"
    classifier_activation: Flag = True
    classifier_dropout: Annotated[float | None, PROBABILITY | NONE] = None

    @property
    def true_hidden_size(self) -> int:
        """Width in which the layers work: that of the bottleneck where there is one."""
        return self.intra_bottleneck_size if self.use_bottleneck else self.hidden_size

    @property
    def attention_size(self) -> int:
        """Width of attention over all heads before pruning."""
        return self.true_hidden_size

    @property
    def has_query_bottleneck(self) -> bool:
        """Whether queries and keys come from a bottleneck of their own."""
        return self.use_bottleneck and self.key_query_shared_bottleneck and not self.use_bottleneck_attention

    @property
    def query_size(self) -> int:
        """Width of what queries and keys are computed from."""
        in_bottleneck = self.use_bottleneck and (self.use_bottleneck_attention or self.key_query_shared_bottleneck)
        return self.true_hidden_size if in_bottleneck else self.hidden_size

    @property
    def value_size(self) -> int:
        """Width of what values are computed from."""
        return self.true_hidden_size if self.use_bottleneck and self.use_bottleneck_attention else self.hidden_size

    @property
    def transforms_embeddings(self) -> bool:
        """Whether a linear layer lies between the word embeddings and the stream."""
        return self.trigram_input or self.embedding_size != self.hidden_size

    @property
    def word_features(self) -> int:
        """Width of the word features of one token: three words wide where neighbours are seen."""
        return self.embedding_size * (3 if self.trigram_input else 1)

    def contradictions(self) -> list[str]:
        """Fields that are fine alone but not together."""
        found = super().contradictions()
        if self.embedding_size > self.hidden_size:
            found.append(f"embedding_size: got {self.embedding_size}, expected at most hidden_size={self.hidden_size}")
        return found


def _attention(config: MobileBertConfig, layer: int) -> Params:
    width, inner = config.true_hidden_size, config.kept_heads(layer) * config.head_size
    yield from linear("self.query", inner, config.query_size)
    yield from linear("self.key", inner, config.query_size)
    yield from linear("self.value", inner, config.value_size)
    yield from linear("output.dense", width, inner)
    yield from norm("output.LayerNorm", width)


def _feed_forward(config: MobileBertConfig) -> Params:
    yield from bert.feed_forward(config, config.true_hidden_size)
    yield from norm("output.LayerNorm", config.true_hidden_size)


def _bottleneck(outputs: int, inputs: int) -> Params:
    yield from linear("dense", outputs, inputs)
    yield from norm("LayerNorm", outputs)


def _layer(config: MobileBertConfig, layer: int) -> Params:
    width, inner = config.hidden_size, config.true_hidden_size
    yield from under("attention", _attention(config, layer))
    yield from _feed_forward(config)
    if config.use_bottleneck:
        yield from under("output.bottleneck", _bottleneck(width, inner))
        yield from under("bottleneck.input", _bottleneck(inner, width))
    if config.has_query_bottleneck:
        yield from under("bottleneck.attention", _bottleneck(inner, width))
    elif config.use_bottleneck and config.key_query_shared_bottleneck:
        # transformers makes one all the same, which nothing reads.
        for param in under("bottleneck.attention", _bottleneck(inner, width)):
            yield replace(param, kind="derived")
    for index in range(config.num_feedforward_networks - 1):
        yield from under(f"ffn.{index}", _feed_forward(config))


def _encoder(config: MobileBertConfig) -> Params:
    yield from bert.embeddings(config, positions=config.max_position_embeddings, columns=config.embedding_size)
    yield from linear("embeddings.embedding_transformation", config.hidden_size, config.word_features)
    yield from norm("embeddings.LayerNorm", config.hidden_size)
    for layer in range(config.num_hidden_layers):
        yield from under(f"encoder.layer.{layer}", _layer(config, layer))


def _pooler(config: MobileBertConfig) -> Params:
    if config.classifier_activation:
        yield from bert.pooler(config)


def _language_model(config: MobileBertConfig) -> Params:
    yield from bert.language_model_head(config, "mobilebert", config.embedding_size)
    rest = config.hidden_size - config.embedding_size
    yield Param("cls.predictions.dense.weight", (rest, config.vocab_size), "matrix")


MOBILEBERT = Variant(
    name="MobileBert",
    prefix="mobilebert",
    config=MobileBertConfig,
    encoder=_encoder,
    pooler=_pooler,
    tasks={
        "Model": Task(pooled=True),
        "ForPreTraining": Task(both(_language_model, next_sentence_head), pooled=True),
        "ForMaskedLM": Task(_language_model),
        "ForNextSentencePrediction": Task(next_sentence_head, pooled=True),
        "ForSequenceClassification": Task(labels_head, pooled=True),
        "ForMultipleChoice": Task(choice_head, pooled=True),
        "ForTokenClassification": Task(labels_head),
        "ForQuestionAnswering": Task(span_head),
    },
)
