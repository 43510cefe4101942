"""Initial weights, the same distribution in both frameworks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bertkit.core.errors import ConfigError
from bertkit.core.spec import Param

PADDED = ("word_embeddings.weight",)
STATISTICS = {"x_min": -1e-5, "x_max": 1e-5, "act_scaling_factor": 0.0, "shift": 0.0, "channel_scale": 1.0}
"""Where I-BERT's statistics start: a range that is as good as empty."""


def initial_value(param: Param, config: Any, random: np.random.Generator) -> np.ndarray:
    """Draw the initial value of a tensor, float32.

    Weights are normal with standard deviation `config.initializer_range`, biases zero, norms the identity; the
    row of the padding token is zero. Convolutions are uniform in +-1/sqrt(window).

    Args:
        param: which tensor.
        config: the model's configuration.
        random: source of randomness.

    Raises:
        ConfigError: for a tensor of a frozen model.
    """
    if param.frozen_dtype is not None:
        raise ConfigError("a frozen model has no initial values", [f"{param.name} holds {param.frozen_dtype}"],
                          "freeze() makes one of a calibrated model; from_pretrained() loads it.")
    if param.kind == "stat":
        return np.full(param.shape, STATISTICS[param.name.rsplit(".", 1)[1]], np.float32)
    if param.kind == "norm_scale":
        return np.ones(param.shape, np.float32)
    if param.kind in ("norm_shift", "bias"):
        return np.zeros(param.shape, np.float32)
    if param.kind == "conv":
        bound = 1 / math.sqrt(math.prod(param.shape[1:]))
        return random.uniform(-bound, bound, param.shape).astype(np.float32)
    value = random.standard_normal(param.shape, np.float32) * np.float32(config.initializer_range)
    pad = config.pad_token_id
    if param.name.endswith(PADDED) and pad is not None and 0 <= pad < len(value):
        value[pad] = 0
    return value
