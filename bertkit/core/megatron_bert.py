"""MegatronBERT: its configuration and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Annotated

from bertkit.core import bert
from bertkit.core.config import (
    ACTIVATION,
    NONE,
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
from bertkit.core.spec import (
    Params,
    Task,
    Variant,
    both,
    choice_head,
    embedding,
    labels_head,
    next_sentence_head,
    norm,
    span_head,
    under,
)


@configuration
class MegatronBertConfig(PretrainedConfig):
    """Configuration of MegatronBERT: BERT with the norms in front, as trained with Megatron-LM.

    Args:
        vocab_size: rows of the word-embedding table.
        hidden_size: width of the encoder.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: heads of each layer; divides `hidden_size`.
        intermediate_size: inner width of the feed-forward networks.
        hidden_act: activation of the feed-forward networks, and of the language-model head unless `head_act` is set.
        hidden_dropout_prob: dropout of the linear layers' outputs.
        attention_probs_dropout_prob: dropout of the attention probabilities.
        max_position_embeddings: longest sequence that the position table covers.
        type_vocab_size: rows of the token-type table.
        initializer_range: standard deviation of the initial weights.
        layer_norm_eps: epsilon of the layer norms.
        pad_token_id: id of the padding token.
        position_embedding_type: "absolute", "relative_key" or "relative_key_query".
        use_cache: whether a decoder gives its keys and values.
        head_act: activation of the language-model head, where it differs from the layers'; None takes `hidden_act`.
            Megatron-LM trains with the tanh form of GELU in its layers and the erf form in its head.
            (keyword only; not in transformers)
        **kwargs: the fields of `PretrainedConfig`, and any other key.

    Raises:
        ConfigError: listing every field with an impossible value.

    Reference:
        Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
        https://arxiv.org/abs/1909.08053

    Example:
        >>> MegatronBertConfig().hidden_size
        1024
    """

    model_type = "megatron-bert"

    vocab_size: Positive = 29056
    hidden_size: Positive = 1024
    num_hidden_layers: Layers = 24
    num_attention_heads: Positive = 16
    intermediate_size: Positive = 4096
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: Positive = 512
    type_vocab_size: Positive = 2
    initializer_range: NotNegativeReal = 0.02
    layer_norm_eps: NotNegativeReal = 1e-12
    pad_token_id: TokenId = 0
    position_embedding_type: PositionEmbedding = "absolute"
    use_cache: Flag = True
    head_act: Annotated[str | Callable | None, ACTIVATION | NONE] = field(default=None, kw_only=True)


def _attention(config: MegatronBertConfig, layer: int) -> Params:
    yield from norm("ln", config.hidden_size)
    yield from bert.attention(config.kept_heads(layer) * config.head_size, config.hidden_size)
    if config.position_embedding_type != "absolute":
        yield from embedding("self.distance_embedding", 2 * config.max_position_embeddings - 1, config.head_size)


def _layer(config: MegatronBertConfig, layer: int) -> Params:
    yield from under("attention", _attention(config, layer))
    if config.is_decoder and config.add_cross_attention:
        yield from under("crossattention", _attention(config, layer))
    yield from norm("ln", config.hidden_size)
    yield from bert.feed_forward(config)


def _encoder(config: MegatronBertConfig) -> Params:
    yield from bert.embeddings(config, positions=config.max_position_embeddings)
    for layer in range(config.num_hidden_layers):
        yield from under(f"encoder.layer.{layer}", _layer(config, layer))
    yield from norm("encoder.ln", config.hidden_size)


_language_model = partial(bert.language_model_head, prefix="bert")

MEGATRON_BERT = Variant(
    name="MegatronBert",
    prefix="bert",
    config=MegatronBertConfig,
    encoder=_encoder,
    pooler=bert.pooler,
    tasks={
        "Model": Task(pooled=True),
        "ForPreTraining": Task(both(_language_model, next_sentence_head), pooled=True),
        "ForMaskedLM": Task(_language_model),
        "ForCausalLM": Task(_language_model),
        "ForNextSentencePrediction": Task(next_sentence_head, pooled=True),
        "ForSequenceClassification": Task(labels_head, pooled=True),
        "ForMultipleChoice": Task(choice_head, pooled=True),
        "ForTokenClassification": Task(labels_head),
        "ForQuestionAnswering": Task(span_head),
    },
)
