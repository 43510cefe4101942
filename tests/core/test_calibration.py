"""Calibration: histograms, the three ways to choose a range, and the rounds over a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bertkit.core.calibration import (
    BINS,
    METHODS,
    SMALLEST_FACTOR,
    Calibrator,
    Histogram,
    LeastSquares,
    MovingAverage,
    Percentile,
    encoder_inputs,
)
from bertkit.core.errors import ConfigError, InputError
from bertkit.core.quantization import CalibrationError
from tests.fixtures.frozen import make_config

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal((400, 50)).astype(np.float32)


@pytest.mark.parametrize("order", [1, -1])
def test_histograms_do_not_depend_on_the_order(order: int) -> None:
    histogram, parts = Histogram(), [np.zeros(7), np.full(3, 0.3), np.array([5.0]), RANDOM.random(100) * 0.01, np.array([80.0])]
    for part in parts[::order]:
        histogram.add(part)
    everything = np.concatenate(parts)
    assert histogram.reach == 128 and histogram.counts.sum() == everything.size
    expected, _ = np.histogram(everything, BINS, (0, 128))
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.share_beyond(4.0) == 2 / everything.size


def test_moving_average_is_the_papers() -> None:
    observer, low, high = MovingAverage(8), 0.0, 0.0
    for number, batch in enumerate((NORMAL, 2 * NORMAL, NORMAL - 1)):
        observer.add(batch)
        kept = 0.95 if number else 0.0
        low, high = kept * low + (1 - kept) * batch.min(), kept * high + (1 - kept) * batch.max()
    assert observer.limit() == pytest.approx(max(-low, high))
    assert observer.range() == pytest.approx((max(-max(-low, high), 2 * NORMAL.min(), -max(-low, high)),
                                              min(max(-low, high), 2 * NORMAL.max())))


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9])
def test_percentile(percentile: float) -> None:
    observer = Percentile(8, percentile)
    for part in np.split(NORMAL, 4):
        observer.add(part)
    expected = np.percentile(np.abs(NORMAL), percentile)
    assert observer.limit() == pytest.approx(expected, rel=0.02)
    assert observer.found().clipped == pytest.approx(1 - percentile / 100, abs=0.006)


def test_everything_is_the_largest() -> None:
    observer = Percentile(8, 100.0)
    observer.add(NORMAL)
    assert observer.range() == (NORMAL.min(), NORMAL.max())


@pytest.mark.parametrize("outlier", [0.0, 30.0])
def test_least_squares_is_as_good_as_any(outlier: float) -> None:
    """Held to the true error of every range."""
    x = np.append(NORMAL.ravel(), np.float32(outlier))
    observer = LeastSquares(8)
    observer.add(x)

    def error(limit: float) -> float:
        step = limit / 127
        return float(((np.clip(np.rint(x / step), -127, 127) * step - x) ** 2).sum())

    best = min(error(limit) for limit in np.linspace(0.5, np.abs(x).max(), 200))
    assert error(observer.limit()) <= 1.02 * best


@pytest.mark.parametrize("method", METHODS)
def test_more_bits_keep_everything(method: str) -> None:
    options = {"percentile": 50.0} if method == "percentile" else {}
    observer = METHODS[method](16, **options)
    observer.add(np.array([-9.0, 0.5]))
    observer.add(np.array([0.25, 1.0]))
    assert observer.range() == (-9.0, 1.0) and observer.found().clipped == 0


def test_what_is_not_finite_is_counted() -> None:
    observer = MovingAverage(8)
    observer.add(np.array([np.nan, 1.0, -np.inf]))
    observer.add(np.array([np.nan]))
    assert observer.undefined == 3 and observer.range() == (1.0, 1.0)


# -- a whole model --------------------------------------------------------------------------------------------------
CONFIG = make_config(hidden_size=4, num_attention_heads=2, intermediate_size=3, num_hidden_layers=1)
BITS = {"embeddings.embeddings_act1": 16, "embeddings.embeddings_act2": 16, "embeddings.LayerNorm.activation": 32,
        "embeddings.output_activation": 8, "encoder.layer.0.attention.output.output_activation": 8,
        "encoder.layer.0.intermediate.output_activation": 8, "encoder.layer.0.output.output_activation": 8,
        "encoder.layer.0.attention.self.query_activation": 8, "encoder.layer.0.attention.self.key_activation": 8,
        "encoder.layer.0.attention.self.softmax.act": 16}
SILENT = ("embeddings_act2", "LayerNorm.activation", "softmax.act")
BATCH = {"input_ids": np.array([[5, 6, 7], [8, 9, 1]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}


def calibrated(x: np.ndarray, channel_scales: bool = True, only: str = ""):
    calibrator = Calibrator(CONFIG, BITS, "minmax", 99.0, channel_scales)
    for _ in calibrator.rounds([BATCH, BATCH], False):
        for name in BITS:
            if name.endswith(only) and not name.endswith(SILENT):
                calibrator.see(name, x[..., :3] if "intermediate" in name else x)
    return calibrator.report()


X = np.array([[[1, -10, 0.01, 0], [-2, 5, 0.02, 0], [0.5, 1, 0.01, 0]],
              [[1, 8, -0.03, 0], [3, 2, 0.01, 0], [99, 99, 99, 99]]], np.float32)


def test_channels_and_padding() -> None:
    report = calibrated(X)
    assert (report.method, report.batches, report.tokens) == ("minmax", 2, 10)
    found = report.ranges["embeddings.output_activation"]
    np.testing.assert_allclose(found.channels, [0.3, 1, SMALLEST_FACTOR, SMALLEST_FACTOR])
    assert (found.low, found.high) == (-10, 10) and (found.seen_low, found.seen_high) == (-10, 10)
    query = report.ranges["encoder.layer.0.attention.self.query_activation"]
    assert query.channels is None and (query.low, query.high) == (-10, 8)
    assert report.ranges["embeddings.embeddings_act2"] == report.ranges["embeddings.embeddings_act1"]
    assert report.ranges["embeddings.LayerNorm.activation"] == replace(found, channels=None)
    scale = (10 / 127) ** 2 / np.sqrt(2)
    exp_of_zero = np.floor(1 / 0.35815147 / scale**2) * 2.0**30
    assert report.ranges["encoder.layer.0.attention.self.softmax.act"].high == pytest.approx(exp_of_zero)
    plain = calibrated(X, channel_scales=False)
    assert all(found.channels is None for found in plain.ranges.values()) and set(plain.ranges) == set(BITS)
    assert report.to_dict()["ranges"]["embeddings.output_activation"]["smallest_channel"] == SMALLEST_FACTOR


def test_every_activation_without_a_range_is_named() -> None:
    with pytest.raises(CalibrationError) as caught:
        calibrated(np.zeros_like(X), channel_scales=False)
    assert len(caught.value.problems) == len(BITS) - 1  # all but that of the softmax, whose range follows from the scale
    with pytest.raises(CalibrationError, match=r"embeddings\.output_activation: saw numbers that are not finite, or zeros"):
        calibrated(np.full_like(X, np.nan))
    with pytest.raises(CalibrationError, match=r"query_activation: saw 40 numbers that are not finite"):
        calibrated(np.full_like(X, np.inf), channel_scales=False)


@pytest.mark.parametrize(("values", "options", "message"), [
    ({}, ("median", 99.0, True), "method: got 'median', expected one of 'minmax', 'percentile', 'mse'"),
    ({}, ("percentile", 0.0, True), "percentile: got 0.0"),
    ({"hf_compat_scales": True}, ("mse", 99.0, True), "channel_scales: got True"),
    ({"quant_mode": True, "integer_format": 1}, ("mse", 99.0, True), "the model is frozen"),
])
def test_what_cannot_be_calibrated(values, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Calibrator(make_config(**values), BITS, *options)


@pytest.mark.parametrize("batches", [[], [[1, 2]], ["a text"], [{"attention_mask": [[1]]}], [np.ones((2, 3))]])
def test_batches_that_are_none(batches) -> None:
    with pytest.raises(InputError, match="Pass what a tokenizer returns"):
        list(Calibrator(CONFIG, BITS, "minmax", 99.0, True).rounds(batches, False))


def test_choices_are_laid_side_by_side() -> None:
    batch = {"input_ids": np.arange(12).reshape(2, 3, 2), "inputs_embeds": np.zeros((2, 3, 2, 4)), "labels": np.zeros(2)}
    assert {name: array.shape for name, array in encoder_inputs(batch, True).items()} == {
        "input_ids": (6, 2), "inputs_embeds": (6, 2, 4)}
