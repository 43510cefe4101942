"""The bridge between a TensorFlow model and the weight spec: every tensor by its canonical name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bertkit.core.checkpoint import LazyTensor, RawTensor
from bertkit.core.spec import Param

LEAVES = {
    "kernel": "kernel",
    "matrix": "weight",
    "conv": "kernel",
    "embedding": "embeddings",
    "norm_scale": "gamma",
    "norm_shift": "beta",
    "bias": "bias",
}
"""Keras's name of a tensor by its kind; statistics keep their own."""

RESERVED = {"input": "input_", "output": "output_"}
"""Attributes that Keras keeps for itself."""

AXES = {"kernel": (1, 0), "conv": (2, 3, 0, 1)}
"""Order of the axes on disk that gives Keras's, by kind; others are the same."""

DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64",
               "int8": "I8", "int32": "I32", "int64": "I64"}


def get_variable(model: Any, param: Param) -> keras.Variable:
    """The variable of a tensor of the spec."""
    owner, leaf = _owner(model, param)
    return getattr(owner, leaf)


def share_variable(model: Any, param: Param, variable: keras.Variable) -> None:
    """Let a tensor of the spec be a variable that belongs to another layer."""
    owner, leaf = _owner(model, param)
    if getattr(owner, leaf) is not variable:
        owner.replace(leaf, variable)


def _owner(model: Any, param: Param) -> tuple[Any, str]:
    *path, leaf = param.name.split(".")
    node = model
    for segment in path:
        node = node[int(segment)] if segment.isdigit() else getattr(node, RESERVED.get(segment, segment))
    return node, LEAVES.get(param.kind, leaf)


def set_value(model: Any, param: Param, array: np.ndarray) -> None:
    """Give a tensor of the spec its value, in the layout of the disk.

    Where the shape changed (a vocabulary was resized), a new variable takes the place of the old one.
    """
    from bertkit_tf.layers import replace_weight

    value = to_keras(param, array)
    variable = get_variable(model, param)
    if tuple(variable.shape) == value.shape:
        variable.assign(value)
    else:
        replace_weight(*_owner(model, param), value)


def to_keras(param: Param, array: np.ndarray) -> np.ndarray:
    """From the layout on disk to Keras's."""
    return np.transpose(array, AXES.get(param.kind, range(array.ndim)))


def to_disk(param: Param, array: np.ndarray) -> np.ndarray:
    """From Keras's layout to that on disk."""
    return np.ascontiguousarray(np.transpose(array, np.argsort(AXES.get(param.kind, range(array.ndim)))))


def tie(model: Any, params: Mapping[str, Param]) -> None:
    """Make every tied name the very variable that it is tied to."""
    for param in params.values():
        if param.tied_to is not None:
            share_variable(model, param, get_variable(model, params[param.tied_to]))


def held_names(model: Any, params: Mapping[str, Param]) -> list[str]:
    """Names of all that the model holds: canonical where the spec has one, else Keras's path."""
    names = {id(get_variable(model, param)): name for name, param in params.items() if param.stored}
    return [names.get(id(variable), variable.path) for variable in model.weights]


def lazy_tensors(model: Any, params: Mapping[str, Param]) -> dict[str, LazyTensor]:
    """What a checkpoint of the model holds: each stored tensor once, read when it is written."""
    return {name: _lazy(param, get_variable(model, param)) for name, param in params.items() if param.stored}


def _lazy(param: Param, variable: keras.Variable) -> LazyTensor:
    return LazyTensor(param.shape, DTYPE_NAMES[variable.dtype], lambda: _to_raw(param, variable))


def _to_raw(param: Param, variable: keras.Variable) -> np.ndarray | RawTensor:
    if variable.dtype == "bfloat16":
        return RawTensor(to_disk(param, tf.bitcast(variable.value, tf.uint16).numpy()), "BF16")
    return to_disk(param, np.asarray(variable.value))
