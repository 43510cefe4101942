"""I-BERT: its configuration and its weights."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from bertkit.core import bert
from bertkit.core.config import (
    NONE,
    Check,
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
from bertkit.core.errors import BertkitError
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

INTEGER_FORMAT = 1
"""Version of the frozen models' tensors: their names, and what `bertkit.core.reference.int8` does with them."""
IS_INTEGER_FORMAT = Check(f"{INTEGER_FORMAT} (the version that this bertkit runs: freeze the float model with it)",
                          lambda v: v == INTEGER_FORMAT)


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
        channel_scales: whether the 8 bit numbers that linear layers share with the residual stream, and those behind GELU,
            have a scale for each channel, which the weights that read them take in; `calibrate` sets it. (keyword only;
            not in transformers)
        integer_format: None, or the version of a frozen model's integers, which `freeze` sets. (keyword only; not in
            transformers)
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
    channel_scales: Flag = field(default=False, kw_only=True)
    integer_format: Annotated[int | None, IS_INTEGER_FORMAT | NONE] = field(default=None, kw_only=True)

    def contradictions(self) -> list[str]:
        """Fields that are fine alone but not together."""
        found = super().contradictions()
        if self.max_position_embeddings <= self.first_position:
            found.append(f"max_position_embeddings: got {self.max_position_embeddings}, expected more than "
                         f"{self.first_position}, where positions start (pad_token_id + 1)")
        if self.integer_format is not None and (not self.quant_mode or self.force_dequant != "none" or self.hf_compat_scales):
            found.append("integer_format: a frozen model has quant_mode=True, force_dequant='none' and hf_compat_scales=False")
        if self.channel_scales and self.hf_compat_scales:
            found.append("channel_scales and hf_compat_scales: transformers knows no scales for each channel")
        return found

    @property
    def first_position(self) -> int:
        """Row of the position table that the first token takes."""
        return (self.pad_token_id or 0) + 1


def _activation(name: str) -> Params:
    for statistic in ("x_min", "x_max", "act_scaling_factor"):
        yield Param(f"{name}.{statistic}", (1,), "stat")


def _channels(config: IBertConfig, name: str, size: int) -> Params:
    yield from _activation(name)
    if config.channel_scales:
        yield Param(f"{name}.channel_scale", (size,), "stat")


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


def _residual(config: IBertConfig, inputs: int, width: int) -> Params:
    yield from _linear("dense", width, inputs)
    yield from _activation("ln_input_act")
    yield from _norm("LayerNorm", width)
    yield from _channels(config, "output_activation", width)


def _layer(config: IBertConfig, layer: int) -> Params:
    width, inner = config.hidden_size, config.kept_heads(layer) * config.head_size
    for name in ("query", "key", "value"):
        yield from _linear(f"attention.self.{name}", inner, width)
        yield from _activation(f"attention.self.{name}_activation")
    yield from _activation("attention.self.output_activation")
    yield from _activation("attention.self.softmax.act")
    yield from under("attention.output", _residual(config, inner, width))
    yield from _linear("intermediate.dense", config.intermediate_size, width)
    yield from _channels(config, "intermediate.output_activation", config.intermediate_size)
    yield from under("output", _residual(config, config.intermediate_size, width))
    yield from _activation("pre_intermediate_act")
    yield from _activation("pre_output_act")


def _encoder(config: IBertConfig) -> Params:
    yield from _trainable(config) if config.integer_format is None else _frozen(config)


def _trainable(config: IBertConfig) -> Params:
    width = config.hidden_size
    yield from _embedding("embeddings.word_embeddings", config.vocab_size, width)
    yield from _embedding("embeddings.token_type_embeddings", config.type_vocab_size, width)
    yield from _embedding("embeddings.position_embeddings", config.max_position_embeddings, width)
    yield from _activation("embeddings.embeddings_act1")
    yield from _activation("embeddings.embeddings_act2")
    yield from _norm("embeddings.LayerNorm", width)
    yield from _channels(config, "embeddings.output_activation", width)
    for layer in range(config.num_hidden_layers):
        yield from under(f"encoder.layer.{layer}", _layer(config, layer))


def _language_model(config: IBertConfig) -> Params:
    width = config.hidden_size
    yield from linear("lm_head.dense", width, width)
    yield from norm("lm_head.layer_norm", width)
    decoder = tied_decoder("lm_head", config, f"ibert.{bert.WORDS}", width)
    if config.integer_format is None:
        yield from decoder
    else:
        yield from (param for param in decoder if param.name != "lm_head.decoder.weight")
        yield Param("lm_head.decoder.weight_integer", (config.vocab_size, width), "int8")
        yield Param("lm_head.decoder.weight_scaling_factor", (config.vocab_size,), "scale")


# -- the frozen model ---------------------------------------------------------------------------------------------
def _rescaling(name: str, size: int, kind: str = "") -> Params:
    yield Param(f"{name}.{kind}multiplier", (size,), "int32")
    yield Param(f"{name}.{kind}right_shift", (size,), "int32")


def _integer_linear(name: str, outputs: int, inputs: int) -> Params:
    yield Param(f"{name}.weight_integer", (outputs, inputs), "int8")
    yield Param(f"{name}.bias_integer", (outputs,), "int32")


def _integer_norm(width: int) -> Params:
    yield Param("LayerNorm.shift", (1,), "int32")
    yield from _rescaling("output_activation", width)
    yield Param("output_activation.offset", (width,), "int64")
    yield Param("output_activation.act_scaling_factor", (width,), "scale")


def _integer_residual(inputs: int, width: int) -> Params:
    yield from _integer_linear("dense", width, inputs)
    yield from _rescaling("ln_input_act", width)
    yield from _rescaling("ln_input_act", width, "identity_")
    yield from _integer_norm(width)


def _integer_layer(config: IBertConfig, layer: int) -> Params:
    width, inner = config.hidden_size, config.kept_heads(layer) * config.head_size
    for name in ("query", "key", "value"):
        yield from _integer_linear(f"attention.self.{name}", inner, width)
        yield from _rescaling(f"attention.self.{name}_activation", inner)
    yield Param("attention.self.softmax.constants", (4,), "int32")
    yield from _rescaling("attention.self.softmax.act", 1)
    yield from _rescaling("attention.self.output_activation", 1)
    yield from under("attention.output", _integer_residual(inner, width))
    yield from _integer_linear("intermediate.dense", config.intermediate_size, width)
    yield Param("intermediate.gelu.clip", (config.intermediate_size,), "int32")
    yield Param("intermediate.gelu.one", (config.intermediate_size,), "int64")
    yield Param("intermediate.gelu.unit", (config.intermediate_size,), "int32")
    yield Param("intermediate.gelu.drop", (config.intermediate_size,), "int32")
    yield from _rescaling("intermediate.output_activation", config.intermediate_size)
    yield from under("output", _integer_residual(config.intermediate_size, width))


def _frozen(config: IBertConfig) -> Params:
    width = config.hidden_size
    rows = {"word": config.vocab_size, "token_type": config.type_vocab_size, "position": config.max_position_embeddings}
    for name, size in rows.items():
        yield Param(f"embeddings.{name}_embeddings.weight_integer", (size, width), "int8")
        yield from _rescaling(f"embeddings.{name}_embeddings", width)
    yield Param("embeddings.token_type_embeddings.weight_scaling_factor", (width,), "scale")
    yield Param("embeddings.embeddings_act1.act_scaling_factor", (1,), "scale")
    yield from under("embeddings", _integer_norm(width))
    for layer in range(config.num_hidden_layers):
        yield from under(f"encoder.layer.{layer}", _integer_layer(config, layer))


def native_tensors(config: IBertConfig) -> list[str]:
    """Names of the frozen tensors that a native encoder is packed from, in its order: all but tables and scales."""
    tables = tuple(f"{name}_embeddings.weight_integer" for name in ("word", "token_type", "position"))
    return [param.name for param in _frozen(config) if param.kind != "scale" and not param.name.endswith(tables)]


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


def check_ibert(model: Any, base: type, caller: str) -> None:
    """Refuse what is no I-BERT of the framework at hand.

    Args:
        model: what a caller of `calibrate` or `freeze` gives.
        base: class of all models of this framework.
        caller: name of that function.

    Raises:
        BertkitError: for anything else, also for an I-BERT of the other framework.
    """
    if not isinstance(model, base) or getattr(model, "variant", None) is not IBERT:
        raise BertkitError(f"{caller}: got {type(model).__name__}, expected a class of I-BERT from "
                           f"{base.__module__.partition('.')[0]}",
                           remedy="`bertkit convert` makes an I-BERT of a BERT or a RoBERTa.")
