"""Model outputs, known to Keras as trees of tensors: `fit`, `predict` and functional models keep them whole."""

from __future__ import annotations

import optree

from bertkit.core import outputs as core
from bertkit.core.outputs import ModelOutput

__all__ = ["ModelOutput"]


class TFBaseModelOutputWithCrossAttentions(core.BaseModelOutputWithCrossAttentions):
    __doc__ = core.BaseModelOutputWithCrossAttentions.__doc__


class TFBaseModelOutputWithPooling(core.BaseModelOutputWithPooling):
    __doc__ = core.BaseModelOutputWithPooling.__doc__


class TFBaseModelOutputWithPoolingAndCrossAttentions(core.BaseModelOutputWithPoolingAndCrossAttentions):
    __doc__ = core.BaseModelOutputWithPoolingAndCrossAttentions.__doc__


class TFMaskedLMOutput(core.MaskedLMOutput):
    __doc__ = core.MaskedLMOutput.__doc__


class TFCausalLMOutputWithCrossAttentions(core.CausalLMOutputWithCrossAttentions):
    __doc__ = core.CausalLMOutputWithCrossAttentions.__doc__


class TFNextSentencePredictorOutput(core.NextSentencePredictorOutput):
    __doc__ = core.NextSentencePredictorOutput.__doc__


class TFSequenceClassifierOutput(core.SequenceClassifierOutput):
    __doc__ = core.SequenceClassifierOutput.__doc__


class TFMultipleChoiceModelOutput(core.MultipleChoiceModelOutput):
    __doc__ = core.MultipleChoiceModelOutput.__doc__


class TFTokenClassifierOutput(core.TokenClassifierOutput):
    __doc__ = core.TokenClassifierOutput.__doc__


class TFQuestionAnsweringModelOutput(core.QuestionAnsweringModelOutput):
    __doc__ = core.QuestionAnsweringModelOutput.__doc__


class TFPreTrainingOutput(core.PreTrainingOutput):
    __doc__ = core.PreTrainingOutput.__doc__


class TFMobileBertForPreTrainingOutput(TFPreTrainingOutput):
    """Output of `TFMobileBertForPreTraining`; see `TFPreTrainingOutput`."""


class TFMegatronBertForPreTrainingOutput(TFPreTrainingOutput):
    """Output of `TFMegatronBertForPreTraining`; see `TFPreTrainingOutput`."""


def _register(cls: type[ModelOutput]) -> None:
    optree.register_pytree_node(
        cls,
        lambda output: (list(output.values()), tuple(output), tuple(output)),
        lambda names, values: cls(**dict(zip(names, values, strict=True))),
        namespace="keras",
    )


for _cls in [value for value in globals().values() if isinstance(value, type) and issubclass(value, ModelOutput)]:
    _register(_cls)
