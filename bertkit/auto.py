"""PyTorch model classes chosen by a checkpoint's `model_type`."""

from __future__ import annotations

import bertkit
from bertkit.core.auto import AutoClass


class _Auto(AutoClass):
    @classmethod
    def _find(cls, name: str) -> type:
        return getattr(bertkit, name)


class AutoModel(_Auto):
    """The bare encoder of a checkpoint."""

    task = "Model"


class AutoModelForPreTraining(_Auto):
    """The class with the heads of pretraining."""

    task = "ForPreTraining"


class AutoModelForMaskedLM(_Auto):
    """The class with a head over masked words."""

    task = "ForMaskedLM"


class AutoModelForCausalLM(_Auto):
    """The class with a head over the next word."""

    task = "ForCausalLM"


class AutoModelForNextSentencePrediction(_Auto):
    """The class with a next-sentence head."""

    task = "ForNextSentencePrediction"


class AutoModelForSequenceClassification(_Auto):
    """The class with a classifier of sequences."""

    task = "ForSequenceClassification"


class AutoModelForMultipleChoice(_Auto):
    """The class with a scorer of choices."""

    task = "ForMultipleChoice"


class AutoModelForTokenClassification(_Auto):
    """The class with a classifier of tokens."""

    task = "ForTokenClassification"


class AutoModelForQuestionAnswering(_Auto):
    """The class with start and end scores."""

    task = "ForQuestionAnswering"
