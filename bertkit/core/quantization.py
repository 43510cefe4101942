"""Numbers of I-BERT's integer arithmetic that both frameworks share. https://arxiv.org/abs/2101.01321"""

from __future__ import annotations

from collections.abc import Sequence

from bertkit.core.errors import BertkitError

WEIGHT_BITS, BIAS_BITS = 8, 32
STREAM_BITS, EMBEDDING_BITS, NORM_BITS = 8, 16, 22
"""Bits of what linear layers read, of the sum of the embeddings, and of what layer norms read."""
SMALLEST_PEAK = 1e-8
"""A range is at least this wide, so that no scale is zero."""

MOMENTUM = 0.95
EMPTY_BELOW = 1.1e-5
"""A range that reaches less far than this to either side has seen no batch yet."""

MANTISSA_BITS = 31
"""Bits of the integer that a quotient of two scales becomes."""

GELU_SQUARE, GELU_SHIFT = -0.2888, -1.769
"""erf(x) is about sign(x) * (GELU_SQUARE * (min(|x|, -GELU_SHIFT) + GELU_SHIFT)**2 + 1)."""
GELU_ROOT = 1.4142
GELU_DROPPED_BITS = 14
FINEST_GELU = 1e-6
"""Inputs of GELU are at no finer scale, so that its polynomial fits 63 bits."""

LN_2 = 0.6931
EXP_SQUARE, EXP_LINEAR = 0.35815147, 0.96963238
"""exp(x) is about EXP_SQUARE * x**2 + EXP_LINEAR * x + 1 for x in (-LN_2, 0]."""
EXP_BITS = 30
SOFTMAX_BITS = 8
LOWEST_SCORE = -1e20
"""Masked scores are lifted to this number, so that a row in which all are masked stays finite, and uniform."""

SMALLEST_GAIN = 2.0**-24
"""Gains of a layer norm that are closer to zero count as this one: the shift is divided by the gain."""


class CalibrationError(BertkitError):
    """A quantised model lacks the activation ranges that it would have learned in training mode."""


def uncalibrated(names: Sequence[str]) -> CalibrationError:
    """The error about activations whose range is still empty."""
    shown = [f"{name}: the range is empty" for name in names[:10]]
    rest = [f"and {len(names) - 10} more"] if len(names) > 10 else []
    return CalibrationError(
        f"{len(names)} activation(s) have no range yet, every result would be clipped to nothing", [*shown, *rest],
        remedy="Call calibrate() with a few hundred texts, or load a checkpoint that was calibrated, or train the model.",
    )
