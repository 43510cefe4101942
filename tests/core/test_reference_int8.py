"""The oracle of I-BERT's integers: right against Python's unbounded integers, and every number fits its width."""

from __future__ import annotations

import math
from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest

from bertkit.core import freezing
from bertkit.core import quantization as constants
from bertkit.core.reference import int8
from tests.fixtures.frozen import CASES, make_case

RANDOM = np.random.default_rng(0)


def fits(values: np.ndarray, bits: int) -> bool:
    """Whether signed integers fit a number of bits."""
    flat = [int(value) for value in np.ravel(values)]
    return all(-(2 ** (bits - 1)) <= value < 2 ** (bits - 1) for value in flat)


def unbounded(array: np.ndarray) -> np.ndarray:
    """The same integers as Python's own, which no operation can overflow."""
    return np.asarray(array).astype(object)


# -- each step against its definition ----------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [1, 5, 31, 62])
def test_rescale_rounds_to_the_nearest_ties_up(shift):
    x = np.concatenate([RANDOM.integers(-(2**31), 2**31, 200), [-(2**31), 2**31 - 1, 0, 1, -1]])
    multiplier = RANDOM.integers(-(2**31) + 1, 2**31, len(x))
    exact = [math.floor(Fraction(int(v) * int(m), 2**shift) + Fraction(1, 2)) for v, m in zip(x, multiplier, strict=True)]
    assert int8.rescale(x, multiplier, np.array(shift)).tolist() == exact


def test_integer_sqrt_is_exact():
    roots = np.concatenate([np.arange(300), RANDOM.integers(0, 2**31, 300), [2**31 - 1]])
    around = np.concatenate([roots**2, np.maximum(roots**2 - 1, 0), roots**2 + 1])
    assert int8.integer_sqrt(around).tolist() == [math.isqrt(int(value)) for value in around]


def test_gelu_is_as_close_as_the_paper_says():
    """Table 1: the L2 and L-infinity distances on [-4, 4] are 0.0082 and 0.018."""
    scale = 1e-4
    x = np.arange(-40000, 40001)
    inner = scale / constants.GELU_ROOT
    erf = inner**2 * constants.GELU_SQUARE * 2**constants.GELU_DROPPED_BITS
    integers = int8.gelu(x, np.array(-math.floor(constants.GELU_SHIFT / inner)),
                         np.array(math.floor(1 / constants.GELU_SQUARE / inner**2)), np.array(math.floor(1 / erf)), np.array(0))
    real = np.array([v * scale * (1 + math.erf(v * scale / math.sqrt(2))) / 2 for v in x])
    error = np.abs(integers * scale * erf / 2 - real)
    assert error.max() == pytest.approx(0.018, abs=5e-4)
    assert np.sqrt((error**2).mean()) == pytest.approx(0.0082, abs=2e-4)


@pytest.mark.parametrize("step", [1e-5, 1e-3, 0.01])
def test_softmax_is_close_to_softmax(step):
    scores = RANDOM.normal(0, 3, (50, 30)) / step
    frozen = softmax_tensors(step)
    keep = RANDOM.random((50, 30)) < 0.8
    found = int8.softmax(np.rint(scores).astype(np.int64), keep, *frozen) / 256
    real = np.where(keep, np.exp((scores - scores.max(-1, keepdims=True)) * step), 0)
    real /= real.sum(-1, keepdims=True)
    assert np.abs(found - real).max() < 0.012
    assert (found[~keep] == 0).all()


def softmax_tensors(step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Constants, multiplier and right shift for scores at a scale."""
    one = math.floor(1 / constants.EXP_SQUARE / step**2) * 2.0**constants.EXP_BITS
    tensors = {"softmax.act.x_min": np.zeros(1, np.float32), "softmax.act.x_max": np.array([one], np.float32)}
    freezer = freezing.Freezer(tensors, make_case().config)
    freezer.softmax("softmax", np.float32(step))
    assert not freezer.problems
    return tuple(freezer.frozen[f"softmax.{name}"] for name in ("constants", "act.multiplier", "act.right_shift"))


def test_a_single_key_gets_all_and_no_key_nothing():
    keep = np.array([[True, False, False], [False, False, False]])
    found = int8.softmax(RANDOM.integers(-(2**20), 2**20, (2, 3)), keep, *softmax_tensors(1e-3))
    assert found.tolist() == [[255, 0, 0], [0, 0, 0]]


def test_layer_norm_is_close_to_layer_norm():
    x = RANDOM.integers(-(2**16), 2**16, (20, 64))
    gain, bias, scale = RANDOM.normal(1, 0.3, 64), RANDOM.normal(0, 0.5, 64), 0.06
    multiplier, right_shift = freezing.dyadic(math.sqrt(64) / 2**30 * gain / scale, np.full(64, 50))
    offset = np.rint(bias / scale * 2.0**right_shift).astype(np.int64) + (np.int64(1) << (right_shift.astype(np.int64) - 1))
    found = int8.layer_norm(x, np.array([0]), multiplier, right_shift, offset)
    real = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * gain + bias
    assert np.abs(found * scale - real).max() < 0.51 * scale


def test_layer_norm_of_a_constant_row_is_the_bias():
    offset = np.array([12 << 20, -(300 << 20)])
    found = int8.layer_norm(np.full((1, 2), 777), np.array([3]), np.array([5, -5]), np.array([20, 20]), offset)
    assert found.tolist() == [[12, -128]]


# -- every intermediate fits ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
def test_every_intermediate_fits_its_width(name):
    """Python's unbounded integers give the same, and stay within the widths that the text of the oracle promises."""
    originals = {function: getattr(int8, function) for function in ("rescale", "linear", "gelu", "exponentials", "layer_norm")}
    calls = dict.fromkeys(originals, 0)

    def rescale(x, multiplier, right_shift):
        calls["rescale"] += 1
        product = unbounded(x) * unbounded(multiplier) + (1 << unbounded(right_shift) - 1)
        assert fits(x, 32) and fits(product, 64) and fits(product >> unbounded(right_shift), 32)
        return same("rescale", product >> unbounded(right_shift), x, multiplier, right_shift)

    def linear(x, weight, bias):
        calls["linear"] += 1
        largest = np.abs(weight.astype(np.int64)).sum(1) * 128 + np.abs(bias.astype(np.int64))
        assert fits(x, 8) and largest.max(initial=0) < 2**31
        return originals["linear"](x, weight, bias)

    def gelu(x, clip, one, unit, drop):
        calls["gelu"] += 1
        wide = unbounded(x)
        square = (np.minimum(abs(wide), unbounded(clip)) - unbounded(clip)) ** 2 + unbounded(one)
        erf = (np.sign(wide) * square >> 14) + unbounded(unit)
        assert fits(square, 64) and fits(erf, 32) and fits(wide * erf, 64) and fits(wide * erf >> unbounded(drop), 32)
        return same("gelu", wide * erf >> unbounded(drop), x, clip, one, unit, drop)

    def exponentials(x, given, multiplier, right_shift):
        calls["exponentials"] += 1
        drop, step, linear_, one = (int(value) for value in given)
        below = np.minimum(-(unbounded(x) >> drop), 30 * step)
        rest = below % step
        polynomial = one - rest * (linear_ - rest)
        assert fits(x, 32) and fits(below, 32) and fits(polynomial, 32) and (polynomial >= 0).all()
        assert fits(polynomial * int(multiplier[0]) + 2**62, 64)
        return originals["exponentials"](x, given, multiplier, right_shift)

    def layer_norm(x, shift, multiplier, right_shift, offset):
        calls["layer_norm"] += 1
        wide, width = unbounded(x), x.shape[-1]
        centred = wide - (2 * wide.sum(-1, keepdims=True) + width) // (2 * width)
        deviation = [[max(math.isqrt(int(total)), 1) << int(shift[0])] for total in
                     np.ravel(((centred >> int(shift[0])) ** 2).sum(-1))]
        factor = np.minimum(2**31 // np.array(deviation, object).reshape(*x.shape[:-1], 1), 2**31 - 1)
        normed = np.clip(centred * factor >> 1, -(2**31), 2**31 - 1)
        total = normed * unbounded(multiplier) + unbounded(offset)
        assert fits(x, 22) and fits(centred, 24) and fits(centred * factor, 64) and fits(total, 64)
        exact = np.clip(total >> unbounded(right_shift), -128, 127)
        return same("layer_norm", exact, x, shift, multiplier, right_shift, offset)

    def same(function, exact, *arguments):
        found = originals[function](*arguments)
        assert (found == exact).all()
        return found

    with patch.multiple(int8, rescale=rescale, linear=linear, gelu=gelu, exponentials=exponentials, layer_norm=layer_norm):
        case = CASES[name]()
    assert calls["layer_norm"] == 1 + 2 * case.config.num_hidden_layers
    assert all(calls[function] for function in calls) or case.config.num_hidden_layers == 0


@pytest.mark.parametrize("name", CASES)
def test_states_are_8_bits_and_padding_is_zero(name):
    case = CASES[name]()
    assert all(fits(state, 8) for state in case.states)
    assert all(p.min(initial=0) >= 0 and p.max(initial=0) <= 255 for p in case.probabilities)
    if case.inputs.mask is not None:
        assert all((state[case.inputs.mask == 0] == 0).all() for state in case.states)
