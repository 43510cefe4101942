"""Numbers of I-BERT's integer arithmetic that both frameworks share. https://arxiv.org/abs/2101.01321"""

from __future__ import annotations

import math
from collections.abc import Mapping

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


def problem_of_range(low: float, high: float) -> str:
    """What is wrong with the range of an activation; nothing where it can be used.

    Example:
        >>> problem_of_range(0.0, 0.0), problem_of_range(-1.0, 2.0)
        ('the range is empty', '')
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"the range is [{low}, {high}], expected finite numbers"
    if max(abs(low), abs(high)) < EMPTY_BELOW:
        return "the range is empty"
    return f"the range is [{low}, {high}], which has no width" if low > high else ""


def check_ranges(ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse to simulate integers with ranges that cannot be used.

    Args:
        ranges: smallest and largest number by the name of the activation.

    Raises:
        CalibrationError: naming the activations.
    """
    wrong = [f"{name}: {problem}" for name, (low, high) in ranges.items() if (problem := problem_of_range(low, high))]
    if wrong:
        rest = [f"and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        raise CalibrationError(
            f"{len(wrong)} activation(s) have no usable range, every result would be wrong", [*wrong[:10], *rest],
            remedy="Call calibrate() with a few hundred texts, or load a checkpoint that was calibrated, or train the model.",
        )
