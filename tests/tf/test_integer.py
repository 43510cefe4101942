"""The frozen I-BERT in TensorFlow: the checks that both frameworks pass, and what only Keras could break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bertkit_tf
from bertkit.core.ibert import IBertConfig
from bertkit_tf import state
from bertkit_tf.kernels import int8
from tests.fixtures import integer
from tests.fixtures.frozen import Tensors
from tests.fixtures.load import flatten


class TensorFlow:
    """The shared checks' way to TensorFlow."""

    @staticmethod
    def kernel(name: str, *arrays: np.ndarray | None, **options: Any) -> list[np.ndarray]:
        found = getattr(int8, name)(*(None if array is None else tf.constant(array) for array in arrays), **options)
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple) else (found,))]

    @staticmethod
    def make(task: str, config: IBertConfig, tensors: Tensors) -> Any:
        model = getattr(bertkit_tf, f"TFIBert{task}")(config, initialise=False)
        for name, param in model.params().items():
            if param.stored:
                state.set_value(model, param, tensors[name])
        return model

    @staticmethod
    def call(model: Any, **inputs: Any) -> integer.Arrays:
        return flatten(tf.nest.map_structure(lambda value: value.numpy(), dict(model(**inputs))))

    @staticmethod
    def freeze(model: Any) -> Any:
        return bertkit_tf.freeze(model)

    @staticmethod
    def load(task: str, directory: Path, **options: Any) -> Any:
        return getattr(bertkit_tf, f"TFIBert{task}").from_pretrained(directory, **options)


@pytest.mark.parametrize("name", integer.CHECKS)
def test_shared_check(name):
    check, options = integer.CHECKS[name]
    check(TensorFlow(), **options)


@pytest.mark.parametrize("name", integer.FILE_CHECKS)
def test_shared_check_of_files(name, tmp_path):
    check, options = integer.FILE_CHECKS[name]
    check(TensorFlow(), **options, directory=tmp_path)
