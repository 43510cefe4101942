"""Freezing: a calibrated I-BERT becomes integers, once and for all, and what could overflow is refused.

The weights become 8 bit integers, and every quotient of two scales a multiplier and a right shift. No scale is left
inside the encoder; `bertkit.core.reference.int8` says what the integers do. Everything is computed as the simulated
model does, so that both give the same numbers. https://arxiv.org/abs/2101.01321
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bertkit.core import quantization as constants
from bertkit.core.errors import BertkitError, ConfigError
from bertkit.core.ibert import IBERT, INTEGER_FORMAT, IBertConfig
from bertkit.core.reference.int8 import LARGEST_INT32

Reals = NDArray[np.float64]
Frozen = dict[str, np.ndarray]

MOST_SHIFT = 62
LARGEST_RATIO = 2.0**30
"""Quotients of scales are smaller, so that a multiplier of 31 bits is shifted by at least one bit."""
FINEST_SCORES = 2.0**-14
"""Scores at a finer scale than this one are shifted until they are not: their polynomial then fits 32 bits."""
COARSEST_SCORES = 0.25
"""Scores at a coarser scale know exp() only in steps of more than a fifth."""


class FreezeError(BertkitError):
    """A model cannot become integers: some product or sum might not fit."""


def freeze_tensors(
    tensors: Mapping[str, np.ndarray], config: IBertConfig, task: str, pooled: bool
) -> tuple[IBertConfig, Frozen]:
    """The integer tensors of a model.

    Args:
        tensors: its tensors by canonical name, float32: weights and the statistics of calibration.
        config: its configuration.
        task: its class, e.g. "ForMaskedLM".
        pooled: whether its encoder has a pooler.

    Returns:
        The configuration of the frozen model, and its tensors by canonical name.

    Raises:
        ConfigError: for a model whose arithmetic is not all in integers.
        CalibrationError: naming every activation whose range is empty, not finite, or has no width.
        FreezeError: naming every layer in which a number may not fit its width, or is not finite.
    """
    _check_config(config)
    frozen_config = copy.deepcopy(config)
    frozen_config.quant_mode, frozen_config.integer_format = True, INTEGER_FORMAT
    prefix = "" if task == "Model" else f"{IBERT.prefix}."
    freezer = Freezer({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, config)
    freezer.check_ranges()
    with np.errstate(all="ignore"):  # what is not finite is found by the checks of the widths
        freezer.embeddings()
        for index in range(config.num_hidden_layers):
            freezer.layer(f"encoder.layer.{index}.")
    if freezer.problems:
        raise FreezeError("the model cannot be frozen", freezer.problems,
                          "Ranges that are too wide: calibrate on texts like those that the model will see. Sums of too many "
                          "products: integers need narrower layers.")
    frozen = {prefix + name: tensor for name, tensor in freezer.frozen.items()}
    for name, param in IBERT.params(task, frozen_config, pooled=pooled).items():
        if name not in frozen and param.stored:
            frozen[name] = freezer.decoder(name, tensors) if name.startswith("lm_head.decoder.") else tensors[name]
    return frozen_config, {name: frozen[name] for name, param in IBERT.params(task, frozen_config, pooled=pooled).items()
                           if param.stored}


def _check_config(config: IBertConfig) -> None:
    if config.integer_format is not None:
        raise ConfigError("the model is frozen already", remedy="To freeze it otherwise, freeze() the one that it was made of.")
    problems = []
    if config.force_dequant != "none":
        problems.append(f"force_dequant: got {config.force_dequant!r}, expected 'none': that part would stay in floating point")
    if config.hf_compat_scales:
        problems.append("hf_compat_scales: got True; these scales are not those of the numbers, which integers cannot repeat")
    if problems:
        raise ConfigError("a model with this configuration cannot be frozen", problems,
                          "Load the checkpoint with force_dequant='none', hf_compat_scales=False and calibrate it again.")


@dataclass(frozen=True)
class Channels:
    """The scales of an activation: one, times a factor for each channel, which the weights that read it take in."""

    scale: np.float32
    factors: NDArray[np.float32] | float = 1.0

    @property
    def each(self) -> np.ndarray:
        """The scale of each channel, or one for all."""
        return np.asarray(self.scale * self.factors)


class Freezer:
    """Turns tensors into integers, part by part; gathers them in `frozen` and what is wrong in `problems`.

    Args:
        tensors: the encoder's tensors by canonical name, without a prefix.
        config: its configuration.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], config: IBertConfig) -> None:
        self.tensors, self.config = tensors, config
        self.frozen: Frozen = {}
        self.problems: list[str] = []
        self.stream = Channels(np.float32(0))
        """The scales of the residual stream so far."""

    # -- ranges -----------------------------------------------------------------------------------------------------
    def check_ranges(self) -> None:
        """Refuse ranges that calibration has not filled.

        Raises:
            CalibrationError: naming all of them.
        """
        names = [name.removesuffix(".x_min") for name in self.tensors if name.endswith(".x_min")]
        wrong = []
        for name in filter(self._is_used, names):
            low, high = (float(self.tensors[f"{name}.{end}"].reshape(-1)[0]) for end in ("x_min", "x_max"))
            if problem := constants.problem_of_range(low, high):
                wrong.append(f"{name}: {problem}")
            factors = self.tensors.get(f"{name}.channel_scale")
            if factors is not None and not (np.isfinite(factors) & (factors > 0)).all():
                wrong.append(f"{name}.channel_scale: expected finite numbers above 0")
        if wrong:
            raise constants.CalibrationError(f"{len(wrong)} activation(s) have no usable range", wrong,
                                             "Run calibrate() on the model, or train it with quant_mode=True.")

    @staticmethod
    def _is_used(name: str) -> bool:
        unused = ("embeddings_act2", "LayerNorm.activation", "pre_intermediate_act", "pre_output_act")
        return not name.endswith(unused)

    def scale(self, name: str, bits: int) -> np.float32:
        """The scale that an activation's range gives."""
        peak = max(abs(np.float32(self.tensors[f"{name}.{end}"].reshape(-1)[0])) for end in ("x_min", "x_max"))
        return np.float32(max(peak, np.float32(constants.SMALLEST_PEAK)) / np.float32(2 ** (bits - 1) - 1))

    def channels(self, name: str) -> Channels:
        """The scales of an activation of 8 bits that may have one for each channel."""
        scale, factors = self.scale(name, 8), self.tensors.get(f"{name}.channel_scale")
        if factors is None:
            return Channels(scale)
        largest = (scale * factors).max()
        return Channels(largest, scale * factors / largest)

    # -- parts ------------------------------------------------------------------------------------------------------
    def embeddings(self) -> None:
        """The three tables, their sum and its norm."""
        total = self.scale("embeddings.embeddings_act1", 16)
        for kind in ("word", "token_type", "position"):
            name = f"embeddings.{kind}_embeddings"
            table = self.tensors[f"{name}.weight"]
            scale = np.maximum(np.abs(table).max(0), np.float32(constants.SMALLEST_PEAK)) / np.float32(127)
            self.put(name, weight_integer=quantised(table, scale).astype(np.int8))
            self.rescale(name, scale / np.float64(total), 128)
            if kind == "token_type":
                self.put(name, weight_scaling_factor=scale)
        self.put("embeddings.embeddings_act1", act_scaling_factor=np.array([total]))
        self.norm("embeddings")

    def layer(self, prefix: str) -> None:
        """One encoder layer."""
        attention = f"{prefix}attention.self"
        scales = {}
        for name in ("query", "key", "value"):
            scales[name] = self.scale(f"{attention}.{name}_activation", 8)
            outputs, bound = self.linear(f"{attention}.{name}", self.stream)
            self.rescale(f"{attention}.{name}_activation", outputs / np.float64(scales[name]), bound)
        self.softmax(f"{attention}.softmax", scales["query"] * scales["key"] / np.float32(math.sqrt(self.config.head_size)))
        context = Channels(self.scale(f"{attention}.output_activation", 8))
        self.rescale(f"{attention}.output_activation",
                     np.float64(np.float32(1 / 256) * scales["value"]) / np.float64(context.scale), 256 * 128 * 2)
        self.residual(f"{prefix}attention.output", context)
        wide = self.channels(f"{prefix}intermediate.output_activation")
        self.gelu(f"{prefix}intermediate", wide)
        self.residual(f"{prefix}output", wide)

    def residual(self, name: str, inputs: Channels) -> None:
        """A linear layer, its sum with the stream, and the norm of that."""
        target = np.float64(self.scale(f"{name}.ln_input_act", 22))
        outputs, bound = self.linear(f"{name}.dense", inputs)
        self.rescale(f"{name}.ln_input_act", outputs / target, bound)
        stream = np.broadcast_to(self.stream.each.astype(np.float64), self.config.hidden_size)
        self.rescale(f"{name}.ln_input_act", stream / target, 128, "identity_")
        self.norm(name)

    def linear(self, name: str, inputs: Channels, finest: float = 0.0) -> tuple[Reals, Reals]:
        """A linear layer's integers; gives the scale of each output, and how large it can become."""
        weight, bias = self.tensors[f"{name}.weight"] * inputs.factors, self.tensors[f"{name}.bias"]
        scale = inputs.scale
        peak = np.maximum(np.abs(weight).max(1), np.float32(constants.SMALLEST_PEAK))
        weight_scale = np.maximum(peak / np.float32(127), np.float32(finest) / scale)
        outputs = weight_scale * scale
        integers = quantised(weight, weight_scale[:, None])
        bias_integers = np.clip(np.rint(np.float32(1) / outputs * bias).astype(np.float64), -LARGEST_INT32, LARGEST_INT32)
        bound = 128 * np.abs(integers).astype(np.float64).sum(1) + np.abs(bias_integers)
        if not np.isfinite(weight).all() or not np.isfinite(bias).all():
            self.problems.append(f"{name}: the weights are not all finite")
            bias_integers = np.nan_to_num(bias_integers)
        elif bound.max(initial=0) > LARGEST_INT32:
            rows = int((bound > LARGEST_INT32).sum())
            self.problems.append(f"{name}: {rows} of {len(bound)} sums over {weight.shape[1]} inputs may reach "
                                 f"{bound.max():.3g}, beyond 32 bits")
        self.put(name, weight_integer=np.nan_to_num(integers).astype(np.int8), bias_integer=bias_integers.astype(np.int32))
        return outputs.astype(np.float64), bound

    def softmax(self, name: str, scale: np.float32) -> None:
        """The constants of softmax for scores at a scale."""
        if not scale <= COARSEST_SCORES:
            self.problems.append(f"{name}: one step of the scores is {scale:.3g}, expected at most {COARSEST_SCORES}: "
                                 "the ranges of query and key are too wide")
            return
        drop = max(0, math.ceil(math.log2(FINEST_SCORES / scale)))
        at = float(scale) * 2.0**drop
        if drop > 31:
            self.problems.append(f"{name}: one step of the scores is {scale:.3g}: the ranges of query and key are too narrow")
            return
        step = -math.floor(-constants.LN_2 / at)
        linear = math.floor(constants.EXP_LINEAR / constants.EXP_SQUARE / at)
        one = math.floor(1 / constants.EXP_SQUARE / at**2)
        self.put(name, constants=np.array([drop, step, linear, one], np.int32))
        ratio = 2.0**constants.EXP_BITS * 4.0**drop / np.float64(self.scale(f"{name}.act", 16))
        self.rescale(f"{name}.act", ratio, one, saturates=True)

    def gelu(self, name: str, target: Channels) -> None:
        """The first half of the feed-forward network: a linear layer, GELU, and the way to 8 bits."""
        scale, bound = self.linear(f"{name}.dense", self.stream, constants.FINEST_GELU)
        inner = scale / constants.GELU_ROOT
        clip = -np.floor(constants.GELU_SHIFT / inner)
        one = np.floor(1 / constants.GELU_SQUARE / inner**2)
        erf = inner**2 * constants.GELU_SQUARE * 2**constants.GELU_DROPPED_BITS
        unit = np.floor(1 / erf)
        largest = bound * (np.abs(unit) + np.abs(one) / 2**constants.GELU_DROPPED_BITS + 2)
        drop = np.maximum(0, np.ceil(np.log2(largest)) - 31)
        if not (np.abs(one) < 2.0**62).all() or not (largest < 2.0**62).all():
            self.problems.append(f"{name}.dense: GELU of sums up to {bound.max():.3g} does not fit 63 bits")
            return
        self.put(f"{name}.gelu", clip=clip.astype(np.int32), one=one.astype(np.int64), unit=unit.astype(np.int32),
                 drop=drop.astype(np.int32))
        ratio = (scale * erf / 2).astype(np.float32) / target.each.astype(np.float64)
        self.rescale(f"{name}.output_activation", ratio * 2.0**drop, largest / 2.0**drop)

    def norm(self, name: str) -> None:
        """A layer norm and its way to 8 bits, which becomes the scale of the stream."""
        gain, bias = (self.tensors[f"{name}.LayerNorm.{leaf}"].astype(np.float64) for leaf in ("weight", "bias"))
        self.put(f"{name}.LayerNorm", shift=self.tensors[f"{name}.LayerNorm.shift"].astype(np.int32).reshape(1))
        self.stream = self.channels(f"{name}.output_activation")
        target = np.broadcast_to(self.stream.each.astype(np.float64), self.config.hidden_size)
        unit = math.sqrt(self.config.hidden_size) / 2.0**30
        shifted = bias / target
        if not (np.isfinite(gain).all() and np.isfinite(shifted).all() and np.abs(shifted).max() < 2.0**30):
            self.problems.append(f"{name}.LayerNorm: gain and bias reach {np.abs(gain).max():.3g} and "
                                 f"{np.abs(bias).max():.3g}, which is too far for scales down to {target.min():.3g}")
            return
        most_shift = np.minimum(MOST_SHIFT, 61 - np.frexp(shifted)[1])
        multiplier, right_shift = dyadic((unit * gain).astype(np.float32) / target, most_shift)
        offset = np.rint(shifted * 2.0**right_shift).astype(np.int64) + (np.int64(1) << (right_shift.astype(np.int64) - 1))
        self.put(f"{name}.output_activation", multiplier=multiplier, right_shift=right_shift, offset=offset,
                 act_scaling_factor=target.astype(np.float32))

    def decoder(self, name: str, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The decoder onto the vocabulary: 8 bit integers and a scale for each word; the head computes in floating point."""
        weight = tensors.get("lm_head.decoder.weight", tensors.get(f"{IBERT.prefix}.embeddings.word_embeddings.weight"))
        if weight is None:
            raise FreezeError("the model has no decoder", ["lm_head.decoder.weight: missing"])
        scale = np.maximum(np.abs(weight).max(1), np.float32(constants.SMALLEST_PEAK)) / np.float32(127)
        return scale if name.endswith("weight_scaling_factor") else quantised(weight, scale[:, None]).astype(np.int8)

    # -- numbers ----------------------------------------------------------------------------------------------------
    def put(self, name: str, **tensors: np.ndarray) -> None:
        """Keep tensors under a name."""
        self.frozen.update({f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()})

    def rescale(self, name: str, ratio: Reals | float, bound: Reals | float, kind: str = "", *,
                saturates: bool = False) -> None:
        """Keep a quotient of scales as multiplier and right shift, for integers up to `bound`."""
        ratio = np.atleast_1d(np.asarray(ratio, np.float64))
        if not (np.abs(ratio) < LARGEST_RATIO).all():
            self.problems.append(f"{name}: one step before is {np.abs(ratio).max():.3g} steps behind, expected fewer than "
                                 f"{LARGEST_RATIO:.3g}: its range is too narrow")
            return
        largest = float(np.max(np.abs(ratio) * bound, initial=0))
        if not saturates and largest > LARGEST_INT32:
            self.problems.append(f"{name}: integers up to {np.max(bound):.3g} may become {largest:.3g}, beyond 32 bits")
            return
        multiplier, right_shift = dyadic(ratio, np.full(ratio.shape, MOST_SHIFT))
        self.put(name, **{f"{kind}multiplier": multiplier, f"{kind}right_shift": right_shift})


def quantised(x: np.ndarray, scale: np.ndarray | np.float32) -> np.ndarray:
    """The 8 bit integers nearest to x / scale, ties to even, in [-127, 127], as float32."""
    return np.clip(np.rint(np.float32(1) / scale * x), -127, 127)


def dyadic(ratio: Reals, most_shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The multipliers of 31 bits and right shifts nearest to some numbers, ties away from zero.

    Args:
        ratio: numbers below 2**30.
        most_shift: the largest right shift that each may have; small numbers get shorter multipliers.

    Returns:
        Multipliers and right shifts (1 ... 62), int32.

    Example:
        >>> multiplier, right_shift = dyadic(np.array([0.75, -3e-20]), np.array([62, 62]))
        >>> multiplier.tolist(), right_shift.tolist()
        ([1610612736, 0], [31, 62])
    """
    right_shift = np.clip(31 - np.frexp(ratio)[1], 1, most_shift).astype(np.int32)
    scaled = np.abs(ratio) * 2.0**right_shift
    multiplier = np.floor(scaled + 0.5)
    too_long = multiplier > LARGEST_INT32
    right_shift = np.where(too_long, right_shift - 1, right_shift).astype(np.int32)
    multiplier = np.where(too_long, np.floor(scaled / 2 + 0.5), multiplier)
    return (np.sign(ratio) * multiplier).astype(np.int32), right_shift

