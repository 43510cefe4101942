"""Model outputs: dictionaries whose fields are attributes too, the same for both frameworks."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, ClassVar

from bertkit.core.spec import Variant, no_head


class ModelOutput(dict):
    """What a model call gives: fields by name (`output.logits`), by key (`output["logits"]`) or by place (`output[0]`).

    A field that was not asked for is absent from the dictionary; as an attribute it is None.

    Args:
        *values: fields in declared order; or one mapping or generator of pairs, as for a dictionary.
        **fields: fields by name; None means absent.

    Example:
        >>> output = MaskedLMOutput(logits=[1.0, 2.0])
        >>> output.logits is output["logits"] is output[0], output.loss
        (True, None)
    """

    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *values: Any, **fields: Any) -> None:
        if len(values) == 1 and isinstance(values[0], (Mapping, Generator)):
            fields = {**dict(values[0]), **fields}
        else:
            fields = {**dict(zip(self.fields, values, strict=False)), **fields}
        ordered = [*(name for name in self.fields if name in fields), *(k for k in fields if k not in self.fields)]
        super().__init__({name: fields[name] for name in ordered if fields[name] is not None})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in type(self).fields:
            return None
        raise AttributeError(f"{type(self).__name__} has no field {name!r}, expected one of {', '.join(self.fields)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple:
        """The fields that are there, in declared order."""
        return tuple(self.values())

    def __reduce__(self):
        return _rebuild, (type(self), dict(self))


def _rebuild(cls: type[ModelOutput], fields: dict[str, Any]) -> ModelOutput:
    return cls(**fields)


class OutputChoices:
    """What an encoder decides about its outputs: which ones a call wants, and in which form. A part of both trees."""

    config: Any
    variant: Variant

    def flags(self, output_attentions: bool | None, output_hidden_states: bool | None) -> dict[str, bool]:
        """What a call wants beside its result, the configuration filling in what the call leaves open."""
        config = self.config
        return {
            "output_attentions": config.output_attentions if output_attentions is None else output_attentions,
            "output_hidden_states": config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        }

    def finish(self, output: ModelOutput, return_dict: bool | None) -> ModelOutput | tuple:
        """The output as the caller wants it: by name, or as a tuple that keeps the pooler's place."""
        if self.config.return_dict if return_dict is None else return_dict:
            return output
        if self.variant.pooler is no_head:
            return output.to_tuple()
        rest = [value for name, value in output.items() if name not in ("last_hidden_state", "pooler_output")]
        return (output.last_hidden_state, output.pooler_output, *rest)


class BaseModelOutputWithCrossAttentions(ModelOutput):
    """Output of an encoder without a pooler.

    Args:
        last_hidden_state: [batch, length, hidden_size], the last layer's output.
        hidden_states: per layer, and the embeddings first, [batch, length, hidden_size].
        attentions: per layer, [batch, heads, length, length].
        cross_attentions: per layer, [batch, heads, length, encoder length].
    """

    fields = ("last_hidden_state", "hidden_states", "attentions", "cross_attentions")


class BaseModelOutputWithPooling(ModelOutput):
    """Output of an encoder with a pooler.

    Args:
        last_hidden_state: [batch, length, hidden_size], the last layer's output.
        pooler_output: [batch, hidden_size], made from the first token.
        hidden_states: per layer, and the embeddings first, [batch, length, hidden_size].
        attentions: per layer, [batch, heads, length, length].
    """

    fields = ("last_hidden_state", "pooler_output", "hidden_states", "attentions")


class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """Output of an encoder that may also be a decoder.

    Args:
        last_hidden_state: [batch, length, hidden_size], the last layer's output.
        pooler_output: [batch, hidden_size], made from the first token.
        past_key_values: per layer, keys and values [batch, heads, length, head size], for the next call.
        hidden_states: per layer, and the embeddings first, [batch, length, hidden_size].
        attentions: per layer, [batch, heads, length, length].
        cross_attentions: per layer, [batch, heads, length, encoder length].
    """

    fields = ("last_hidden_state", "pooler_output", "past_key_values", "hidden_states", "attentions", "cross_attentions")


class MaskedLMOutput(ModelOutput):
    """Output of masked language modelling.

    Args:
        loss: scalar, mean over the tokens whose label is not -100.
        logits: [batch, length, vocab_size].
        hidden_states, attentions: per layer, when asked for.
    """

    fields = ("loss", "logits", "hidden_states", "attentions")


class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Output of causal language modelling.

    Args:
        loss: scalar, mean over the predicted tokens.
        logits: [batch, length, vocab_size].
        past_key_values: per layer, keys and values [batch, heads, length, head size], for the next call.
        hidden_states, attentions, cross_attentions: per layer, when asked for.
    """

    fields = ("loss", "logits", "past_key_values", "hidden_states", "attentions", "cross_attentions")


class NextSentencePredictorOutput(ModelOutput):
    """Output of next-sentence prediction.

    Args:
        loss: scalar.
        logits: [batch, 2]: the second segment follows the first, or is random.
        hidden_states, attentions: per layer, when asked for.
    """

    fields = ("loss", "logits", "hidden_states", "attentions")


class SequenceClassifierOutput(ModelOutput):
    """Output of sequence classification or regression.

    Args:
        loss: scalar.
        logits: [batch, num_labels].
        hidden_states, attentions: per layer, when asked for.
    """

    fields = ("loss", "logits", "hidden_states", "attentions")


class MultipleChoiceModelOutput(ModelOutput):
    """Output of multiple choice.

    Args:
        loss: scalar.
        logits: [batch, choices].
        hidden_states, attentions: per layer, when asked for, with batch * choices rows.
    """

    fields = ("loss", "logits", "hidden_states", "attentions")


class TokenClassifierOutput(ModelOutput):
    """Output of token classification.

    Args:
        loss: scalar, mean over the tokens whose label is not -100.
        logits: [batch, length, num_labels].
        hidden_states, attentions: per layer, when asked for.
    """

    fields = ("loss", "logits", "hidden_states", "attentions")


class QuestionAnsweringModelOutput(ModelOutput):
    """Output of extractive question answering.

    Args:
        loss: scalar, mean of the losses of start and end.
        start_logits, end_logits: [batch, length].
        hidden_states, attentions: per layer, when asked for.
    """

    fields = ("loss", "start_logits", "end_logits", "hidden_states", "attentions")


class PreTrainingOutput(ModelOutput):
    """Output of pretraining.

    Args:
        loss: scalar, the sum of both losses; there only when both kinds of labels were given.
        prediction_logits: [batch, length, vocab_size].
        seq_relationship_logits: [batch, 2].
        hidden_states, attentions: per layer, when asked for.
    """

    fields = ("loss", "prediction_logits", "seq_relationship_logits", "hidden_states", "attentions")


class MobileBertForPreTrainingOutput(PreTrainingOutput):
    """Output of `MobileBertForPreTraining`; see `PreTrainingOutput`."""


class MegatronBertForPreTrainingOutput(PreTrainingOutput):
    """Output of `MegatronBertForPreTraining`; see `PreTrainingOutput`."""


def outputs() -> tuple[type[ModelOutput], ...]:
    """Every class of output."""
    return tuple(value for value in globals().values() if isinstance(value, type) and issubclass(value, ModelOutput))
