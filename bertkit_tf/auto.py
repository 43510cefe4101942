"""TensorFlow model classes chosen by a checkpoint's `model_type`."""

from __future__ import annotations

import os
from typing import Any

import keras

import bertkit_tf
from bertkit.core.auto import AutoClass


def load_model(filepath: str | os.PathLike, **options: Any) -> keras.Model:
    """Load a `.keras` file that holds models of bertkit.

    `keras.saving.load_model` does it too in a program that has imported their classes; this imports them first.

    Args:
        filepath: the file.
        **options: as for Keras.
    """
    for name in bertkit_tf.__all__:
        if name.startswith("TF"):
            getattr(bertkit_tf, name)
    return keras.saving.load_model(filepath, **options)


class _Auto(AutoClass):
    prefix = "TF"

    @classmethod
    def _find(cls, name: str) -> type:
        return getattr(bertkit_tf, name)


class TFAutoModel(_Auto):
    """The bare encoder of a checkpoint."""

    task = "Model"


class TFAutoModelForPreTraining(_Auto):
    """The class with the heads of pretraining."""

    task = "ForPreTraining"


class TFAutoModelForMaskedLM(_Auto):
    """The class with a head over masked words."""

    task = "ForMaskedLM"


class TFAutoModelForCausalLM(_Auto):
    """The class with a head over the next word."""

    task = "ForCausalLM"


class TFAutoModelForNextSentencePrediction(_Auto):
    """The class with a next-sentence head."""

    task = "ForNextSentencePrediction"


class TFAutoModelForSequenceClassification(_Auto):
    """The class with a classifier of sequences."""

    task = "ForSequenceClassification"


class TFAutoModelForMultipleChoice(_Auto):
    """The class with a scorer of choices."""

    task = "ForMultipleChoice"


class TFAutoModelForTokenClassification(_Auto):
    """The class with a classifier of tokens."""

    task = "ForTokenClassification"


class TFAutoModelForQuestionAnswering(_Auto):
    """The class with start and end scores."""

    task = "ForQuestionAnswering"
