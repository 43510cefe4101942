"""Calibration: what activations see on real texts becomes the ranges of their integers. Without a framework.

Integers are symmetric around zero, so what counts of a range is how far from zero it reaches. There are three ways to
find that: the moving average of each batch's smallest and largest number, as in the paper; a percentile of all sizes; and
the range whose integers differ least from the numbers. Activations of more than 8 bits keep all that they have seen, for
they have bits enough. https://arxiv.org/abs/2101.01321
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertkit.core import quantization as constants
from bertkit.core.errors import ConfigError, InputError
from bertkit.core.ibert import IBERT, IBertConfig
from bertkit.core.progress import progress

Reals = NDArray[np.float32]

BINS = 2048
SMALLEST_FACTOR = 2.0**-7
"""No channel has a scale of less than this much of the largest: one that hardly moved may move in another text."""
PARTS = 100
"""So many ranges are tried for the one that differs least."""
HOW_TO_MAKE_BATCHES = ("Pass what a tokenizer returns, e.g. "
                       "[tokenizer(texts[i:i + 32], padding=True, return_tensors='np') for i in range(0, 512, 32)].")
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
"""What an encoder reads of a batch."""


# -- what one activation sees ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Range:
    """What calibration found for one activation.

    Args:
        low, high: the range of its integers; over the factors of the channels where these have scales of their own.
        seen_low, seen_high: the smallest and the largest number that it has seen, likewise.
        clipped: the share of numbers that lie beyond the range.
        channels: the factor of each channel on the scale, or None.
    """

    low: float
    high: float
    seen_low: float
    seen_high: float
    clipped: float = 0.0
    channels: Reals | None = None


class Histogram:
    """Sizes of numbers, counted in bins of one width, which doubles where a larger number comes.

    Widths are powers of two, so that the counts do not depend on the order of the numbers.

    Example:
        >>> histogram = Histogram()
        >>> histogram.add(np.array([0.0, 0.4, 1.0]))
        >>> histogram.add(np.array([3.0]))
        >>> histogram.reach, histogram.share_beyond(2.0)
        (4.0, 0.25)
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.reach = 0.0

    def add(self, sizes: np.ndarray) -> None:
        """Count finite numbers >= 0, of any shape."""
        self.widen(float(sizes.max(initial=0)))
        places = np.zeros(sizes.shape) if self.reach == 0 else sizes * (BINS / self.reach)
        self.counts += np.bincount(np.minimum(places.astype(np.int64), BINS - 1).ravel(), minlength=BINS)

    def widen(self, largest: float) -> None:
        """Make room for a number."""
        if self.reach == 0 and largest > 0:  # what was counted so far is zero, and stays in the first bin
            self.reach = 2.0 ** math.ceil(math.log2(largest))
        while self.reach < largest:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.reach *= 2

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        return (np.arange(BINS, dtype=np.float64) + 0.5) * np.float64(self.reach / BINS)

    def share_beyond(self, limit: float) -> float:
        """The share of numbers above a limit, but for those in the bin of the limit."""
        return float(self.counts[np.arange(BINS) * (self.reach / BINS) > limit].sum() / max(1, self.counts.sum()))


class Observer:
    """What one activation has seen.

    Args:
        bits: bits of its integers.
    """

    def __init__(self, bits: int) -> None:
        self.bits, self.histogram = bits, Histogram()
        self.low, self.high, self.undefined = math.inf, -math.inf, 0

    def add(self, x: np.ndarray) -> None:
        """See numbers, of any shape."""
        finite = np.isfinite(x)
        if not finite.all():
            self.undefined += int(x.size - finite.sum())
            x = x[finite]
        if x.size:
            self.see(float(x.min()), float(x.max()))
            self.histogram.add(np.abs(x))

    def see(self, low: float, high: float) -> None:
        """See the smallest and the largest number of a batch."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        """The range of the integers."""
        if self.bits > constants.STREAM_BITS:
            return self.low, self.high
        limit = self.limit()
        return max(self.low, -limit), min(self.high, limit)

    def limit(self) -> float:
        """How far from zero it reaches, for 8 bits."""
        raise NotImplementedError

    def found(self, channels: Reals | None = None) -> Range:
        """What there is to report."""
        if self.low > self.high:
            return Range(0.0, 0.0, 0.0, 0.0)
        low, high = self.range()
        return Range(low, high, self.low, self.high, self.histogram.share_beyond(max(-low, high)), channels)


class MovingAverage(Observer):
    """The paper's rule: a moving average of each batch's smallest and largest number, which starts with the first batch's."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.average: tuple[float, float] | None = None

    def see(self, low: float, high: float) -> None:
        super().see(low, high)
        kept = constants.MOMENTUM
        before = self.average or (low, high)
        self.average = before[0] * kept + low * (1 - kept), before[1] * kept + high * (1 - kept)

    def limit(self) -> float:
        return max(map(abs, self.average or (0.0, 0.0)))


class Percentile(Observer):
    """So many percent of all numbers are in the range."""

    def __init__(self, bits: int, percentile: float) -> None:
        super().__init__(bits)
        self.percentile = percentile

    def limit(self) -> float:
        counts = np.cumsum(self.histogram.counts)
        place = int(np.searchsorted(counts, counts[-1] * (self.percentile / 100)))
        return (place + 1) * self.histogram.reach / BINS


class LeastSquares(Observer):
    """The range whose integers differ least from the numbers, in the square."""

    def limit(self) -> float:
        largest = 2 ** (self.bits - 1) - 1
        sizes, counts = self.histogram.centres, self.histogram.counts
        used = counts > 0
        sizes, counts = sizes[used], counts[used]
        limits = max(abs(self.low), abs(self.high)) * np.arange(1, PARTS + 1) / PARTS
        steps = np.maximum(limits, constants.SMALLEST_PEAK)[:, None] / largest
        errors = (np.minimum(np.rint(sizes / steps), largest) * steps - sizes) ** 2 @ counts
        return float(limits[np.argmin(errors)])


METHODS = {"minmax": MovingAverage, "percentile": Percentile, "mse": LeastSquares}


# -- a whole model --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CalibrationReport:
    """What calibration found: the range of every activation by name.

    Args:
        method: how ranges were chosen.
        batches: number of batches seen.
        tokens: number of tokens seen; padding does not count.
        ranges: by name, without the name of the encoder.
    """

    method: str
    batches: int
    tokens: int
    ranges: dict[str, Range]

    def most_clipped(self, count: int = 5) -> list[str]:
        """Names of the activations that lose most, the first most of all; those that lose nothing are left out."""
        names = sorted(self.ranges, key=lambda name: -self.ranges[name].clipped)
        return [name for name in names[:count] if self.ranges[name].clipped > 0]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON knows it; of the channels only the smallest factor."""
        ranges = {name: asdict(found) for name, found in self.ranges.items()}
        for name, found in self.ranges.items():
            del ranges[name]["channels"]
            if found.channels is not None:
                ranges[name]["smallest_channel"] = float(found.channels.min())
        return {"method": self.method, "batches": self.batches, "tokens": self.tokens, "ranges": ranges}


class Calibrator:
    """Sees what the activations of an encoder see, in rounds over the same batches, and finds their ranges.

    Where channels get scales of their own, the first round finds how far each of them reaches. The last finds the ranges.

    Args:
        config: the model's configuration.
        bits: bits of each activation, by name without a prefix.
        method: "minmax", "percentile" or "mse".
        percentile: for the method of that name.
        channel_scales: whether the channels of the residual stream and those behind GELU get scales of their own.

    Raises:
        ConfigError: for a method or percentile that does not exist, or a model that cannot be calibrated so.
    """

    def __init__(self, config: IBertConfig, bits: Mapping[str, int], method: str, percentile: float,
                 channel_scales: bool) -> None:
        problems = []
        if method not in METHODS:
            problems.append(f"method: got {method!r}, expected one of {', '.join(map(repr, METHODS))}")
        if not 0 < percentile <= 100:
            problems.append(f"percentile: got {percentile}, expected a number in (0, 100]")
        if config.integer_format is not None:
            problems.append("integer_format: the model is frozen; calibrate the model that it was made of")
        if channel_scales and config.hf_compat_scales:
            problems.append("channel_scales: got True; with hf_compat_scales there is one scale for all channels")
        if problems:
            raise ConfigError("the model cannot be calibrated", problems)
        self.config, self.method = config, method
        options = {"percentile": percentile} if method == "percentile" else {}
        self.observers: dict[str, Observer] = {name: METHODS[method](number, **options) for name, number in bits.items()}
        self.channelled = _with_channels(config) if channel_scales else []
        self.peaks: dict[str, Reals] = {}
        self.factors: dict[str, Reals] = {}
        self.mask: NDArray[np.bool_] | None = None
        self.batches = self.tokens = 0

    def rounds(self, batches: Sequence[Any], choices: bool) -> Iterator[dict[str, np.ndarray]]:
        """The inputs of each call that the encoder needs, with `see` for what its activations see in it.

        Args:
            batches: what a tokenizer returned, several times.
            choices: whether its arrays are [batch, choices, length].

        Raises:
            InputError: for batches that are none, or no batches at all.
            CalibrationError: naming all activations whose channels saw nothing that is finite.
        """
        if not batches:
            raise InputError("calibrate: got no batches", remedy=HOW_TO_MAKE_BATCHES)
        if self.channelled:
            for batch in progress(batches, "channels", unit="batch"):
                yield self._start(encoder_inputs(batch, choices))
            self._find_factors()
        self.batches = self.tokens = 0
        for batch in progress(batches, "ranges", unit="batch"):
            yield self._start(encoder_inputs(batch, choices))

    def _start(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        mask = inputs.get("attention_mask")
        shape = inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"].shape[:2]
        self.mask = mask.reshape(-1) != 0 if mask is not None and mask.shape == shape else np.ones(math.prod(shape), bool)
        self.batches += 1
        self.tokens += int(self.mask.sum())
        return inputs

    def _find_factors(self) -> None:
        wrong = [f"{name}: saw numbers that are not finite, or zeros alone" for name, peaks in self.peaks.items()
                 if not 0 < peaks.max() < np.inf]
        if wrong:
            raise _unusable(wrong)
        self.factors = {name: np.maximum(peaks / peaks.max(), np.float32(SMALLEST_FACTOR))
                        for name, peaks in self.peaks.items()}

    def see(self, name: str, x: np.ndarray) -> None:
        """An activation sees [..., features]; padding does not count."""
        x = x.reshape(-1, x.shape[-1])
        x = x if self.mask is None or len(x) != len(self.mask) else x[self.mask]
        if len(self.factors) == len(self.channelled):
            self.observers[name].add(x / self.factors[name] if name in self.factors else x)
        elif name in self.channelled:
            peaks = np.abs(x).max(0, initial=0).astype(np.float32)
            self.peaks[name] = np.maximum(self.peaks[name], peaks) if name in self.peaks else peaks

    def report(self) -> CalibrationReport:
        """The ranges of all activations, also of those that no computation uses.

        Raises:
            CalibrationError: naming all activations without a range that can be used.
        """
        ranges = {name: observer.found(self.factors.get(name)) for name, observer in self.observers.items()}
        for name in [name for name in ranges if name.endswith("softmax.act")]:
            ranges[name] = self._softmax(name.removesuffix("softmax.act"), ranges)
        for name, twin in _unused(ranges):
            ranges[name] = replace(ranges[twin], channels=None)
        wrong = [f"{name}: saw {observer.undefined} numbers that are not finite"
                 for name, observer in self.observers.items() if observer.undefined]
        wrong += [f"{name}: saw nothing but zeros" for name, found in ranges.items()
                  if not self.observers[name].undefined and max(-found.low, found.high) < constants.EMPTY_BELOW]
        if wrong:
            raise _unusable(wrong)
        return CalibrationReport(self.method, self.batches, self.tokens, ranges)

    def _softmax(self, attention: str, ranges: Mapping[str, Range]) -> Range:
        """The polynomial of exp(0), the largest number that the inner activation can see."""
        peaks = [max(abs(ranges[f"{attention}{part}_activation"].low), abs(ranges[f"{attention}{part}_activation"].high))
                 for part in ("query", "key")]
        query, key = (max(peak, constants.SMALLEST_PEAK) / (2 ** (constants.STREAM_BITS - 1) - 1) for peak in peaks)
        scale = query * key / math.sqrt(self.config.head_size)
        largest = math.floor(1 / constants.EXP_SQUARE / scale**2) * 2.0**constants.EXP_BITS
        return Range(0.0, largest, 0.0, largest)


def _with_channels(config: IBertConfig) -> list[str]:
    """Names of the activations whose channels may have scales of their own."""
    values = {**config.to_dict(), "channel_scales": True}
    params = IBERT.params("Model", IBertConfig.from_dict(values), pooled=False)
    return [name.removesuffix(".channel_scale") for name in params if name.endswith(".channel_scale")]


def _unused(names: Iterable[str]) -> list[tuple[str, str]]:
    """Activations that checkpoints have and nothing uses, each with the one whose range it gets."""
    pairs = []
    for name in names:
        if name.endswith("embeddings_act2"):
            pairs.append((name, f"{name[:-1]}1"))
        elif name.endswith("LayerNorm.activation"):
            pairs.append((name, f"{name.removesuffix('LayerNorm.activation')}output_activation"))
    return pairs


def _unusable(wrong: list[str]) -> constants.CalibrationError:
    return constants.CalibrationError(f"{len(wrong)} activation(s) have no usable range", wrong,
                                      "Calibrate on texts like those that the model will see; look at its weights.")


def encoder_inputs(batch: Any, choices: bool) -> dict[str, np.ndarray]:
    """What an encoder reads of a batch: [batch, length] each, also of several choices.

    Args:
        batch: what a tokenizer returns, of any framework.
        choices: whether its arrays are [batch, choices, length].

    Raises:
        InputError: for what is no such mapping.

    Example:
        >>> encoder_inputs({"input_ids": [[[0, 5, 2], [0, 6, 2]]], "labels": [1]}, choices=True)
        {'input_ids': array([[0, 5, 2],
               [0, 6, 2]])}
    """
    found = {name: _to_numpy(batch[name]) for name in INPUTS if name in batch} if hasattr(batch, "keys") else {}
    if not {"input_ids", "inputs_embeds"} & {*found}:
        raise InputError(f"calibrate: got a batch of type {type(batch).__name__}, expected a mapping with input_ids",
                         remedy=HOW_TO_MAKE_BATCHES)
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in found.items()} if choices else found


def _to_numpy(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
