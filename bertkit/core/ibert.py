"""I-BERT: its configuration and its weights."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from bertkit.core import bert
from bertkit.core.config import (
    Flag,
    Layers,
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
    choice_head,
    embedding,
    first_token_head,
    labels_head,
    linear,
    norm,
    span_head,
    tied_decoder,
    under,
)


@configuration
class IBertConfig(PretrainedConfig):
    """Configuration of I-BERT: RoBERTa whose whole inference is integer arithmetic.

    Args:
        vocab_size: rows of the word-embedding table.
        hidden_size: width of the encoder.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: heads of each layer; divides `hidden_size`.
        intermediate_size: inner width of the feed-forward networks.
        hidden_act: "gelu", the only activation with an integer form.
        hidden_dropout_prob: dropout of the linear layers' outputs.
        attention_probs_dropout_prob: dropout of the attention probabilities.
        max_position_embeddings: rows of the position table; positions start at `pad_token_id + 1`, so 512 rows
            take 510 tokens.
        type_vocab_size: rows of the token-type table.
        initializer_range: standard deviation of the initial weights.
        layer_norm_eps: epsilon of the layer norms in float mode.
        pad_token_id, bos_token_id, eos_token_id: ids of the special tokens.
        position_embedding_type: "absolute".
        quant_mode: whether the model simulates its integer arithmetic.
        force_dequant: which non-linear layers stay in float all the same: "none", "gelu", "softmax", "layernorm"
            or "nonlinear" (all three).
        hf_compat_scales: reproduce transformers, where every layer takes the scale of the embeddings for its
            input's, and token types are lost where embeddings are passed in. Set it for weights that were
            fine-tuned there. (keyword only; not in transformers)
        **kwargs: the fields of `PretrainedConfig`, and any other key.

    Raises:
        ConfigError: listing every field with an impossible value.

    Reference:
        Kim et al., "I-BERT: Integer-only BERT Quantization", https://arxiv.org/abs/2101.01321

    Example:
        >>> IBertConfig(quant_mode=True).force_dequant
        'none'
    """

    model_type = "ibert"

    vocab_size: Positive = 30522
    hidden_size: Positive = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    hidden_act: Annotated[str, one_of("gelu")] = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: Positive = 512
    type_vocab_size: Positive = 2
    initializer_range: NotNegativeReal = 0.02
    layer_norm_eps: NotNegativeReal = 1e-12
    pad_token_id: TokenId = 1
    bos_token_id: TokenId = 0
    eos_token_id: TokenId = 2
    position_embedding_type: Annotated[str, one_of("absolute")] = "absolute"
    quant_mode: Flag = False
    force_dequant: Annotated[str, one_of("none", "gelu", "softmax", "layernorm", "nonlinear")] = "none"
    hf_compat_scales: Flag = field(default=False, kw_only=True)

    def contradictions(self) -> list[str]:
        """Fields that are fine alone but not together."""
        found = super().contradictions()
        if self.max_position_embeddings <= self.first_position:
            found.append(f"max_position_embeddings: got {self.max_position_embeddings}, expected more than "
                         f"{self.first_position}, where positions start (pad_token_id + 1)")
        return found

    @property
    def first_position(self) -> int:
        """Row of the position table that the first token takes."""
        return (self.pad_token_id or 0) + 1


def _activation(name: str) -> Params:
    for statistic in ("x_min", "x_max", "act_scaling_factor"):
        yield Param(f"{name}.{statistic}", (1,), "stat")


def _linear(name: str, outputs: int, inputs: int) -> Params:
    yield from linear(name, outputs, inputs)
    yield Param(f"{name}.weight_integer", (outputs, inputs), "derived")
    yield Param(f"{name}.fc_scaling_factor", (outputs,), "derived")
    yield Param(f"{name}.bias_integer", (outputs,), "derived")


def _norm(name: str, size: int) -> Params:
    yield from norm(name, size)
    yield Param(f"{name}.shift", (1,), "stat")
    yield from _activation(f"{name}.activation")


def _embedding(name: str, rows: int, columns: int) -> Params:
    yield from embedding(name, rows, columns)
    yield Param(f"{name}.weight_scaling_factor", (1,), "derived")
    yield Param(f"{name}.weight_integer", (rows, columns), "derived")


def _residual(inputs: int, width: int) -> Params:
    yield from _linear("dense", width, inputs)
    yield from _activation("ln_input_act")
    yield from _norm("LayerNorm", width)
    yield from _activation("output_activation")


def _layer(config: IBertConfig, layer: int) -> Params:
    width, inner = config.hidden_size, config.kept_heads(layer) * config.head_size
    for name in ("query", "key", "value"):
        yield from _linear(f"attention.self.{name}", inner, width)
        yield from _activation(f"attention.self.{name}_activation")
    yield from _activation("attention.self.output_activation")
    yield from _activation("attention.self.softmax.act")
    yield from under("attention.output", _residual(inner, width))
    yield from _linear("intermediate.dense", config.intermediate_size, width)
    yield from _activation("intermediate.output_activation")
    yield from under("output", _residual(config.intermediate_size, width))
    yield from _activation("pre_intermediate_act")
    yield from _activation("pre_output_act")


def _encoder(config: IBertConfig) -> Params:
    width = config.hidden_size
    yield from _embedding("embeddings.word_embeddings", config.vocab_size, width)
    yield from _embedding("embeddings.token_type_embeddings", config.type_vocab_size, width)
    yield from _embedding("embeddings.position_embeddings", config.max_position_embeddings, width)
    yield from _activation("embeddings.embeddings_act1")
    yield from _activation("embeddings.embeddings_act2")
    yield from _norm("embeddings.LayerNorm", width)
    yield from _activation("embeddings.output_activation")
    for layer in range(config.num_hidden_layers):
        yield from under(f"encoder.layer.{layer}", _layer(config, layer))


def _language_model(config: IBertConfig) -> Params:
    width = config.hidden_size
    yield from linear("lm_head.dense", width, width)
    yield from norm("lm_head.layer_norm", width)
    yield from tied_decoder("lm_head", config, f"ibert.{bert.WORDS}", width)


IBERT = Variant(
    name="IBert",
    prefix="ibert",
    config=IBertConfig,
    encoder=_encoder,
    pooler=bert.pooler,
    tasks={
        "Model": Task(pooled=True),
        "ForMaskedLM": Task(_language_model),
        "ForSequenceClassification": Task(first_token_head),
        "ForMultipleChoice": Task(choice_head, pooled=True),
        "ForTokenClassification": Task(labels_head),
        "ForQuestionAnswering": Task(span_head),
    },
)
