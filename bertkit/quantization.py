"""I-BERT's building blocks: integer arithmetic, simulated in floating point and trainable.

A quantised value travels as a pair: a float tensor and its scale, whose quotient is an integer. Without
`quant_mode` the blocks are the ordinary float layers and the scale is None; the activations still learn their
ranges then, in training mode. Rounding passes gradients straight through; the non-linear blocks have the gradients of
the float functions that they approximate, with `compat` those of their polynomials.

By default the non-linear blocks compute with whole numbers in float64, which holds them exactly. `compat=True`
repeats transformers instead: float32, where quotients are not rounded to the integers that they stand for. Both hold
under autocast and with bfloat16 weights, too; float16 cannot hold the range of a softmax.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertkit.core import quantization as constants
from bertkit.core.errors import InputError
from bertkit.core.initial import STATISTICS

Quantised = tuple[Tensor, Tensor | None]


# -- arithmetic ---------------------------------------------------------------------------------------------------
def straight_through(value: Tensor, differentiable: Tensor) -> Tensor:
    """`value`, with the gradient of `differentiable`, which has its shape and dtype."""
    if not (torch.is_grad_enabled() and differentiable.requires_grad):
        return value
    return value.detach() + (differentiable - differentiable.detach())


def floor(x: Tensor) -> Tensor:
    """Round down; the gradient is 1."""
    return straight_through(torch.floor(x), x)


def symmetric_scale(peak: Tensor, bits: int) -> Tensor:
    """The scale at which the integers of `bits` bits reach from -peak to peak."""
    return peak.detach().float().clamp(min=constants.SMALLEST_PEAK) / (2 ** (bits - 1) - 1)


def quantise(x: Tensor, scale: Tensor, bits: int, compat: bool = False) -> Tensor:
    """The integers nearest to x / scale, in [-n, n] with n = 2**(bits - 1) - 1; the gradient is that of x / scale.

    With `compat` up to n - 1 only.
    """
    highest = 2 ** (bits - 1) - 1
    quotient = 1.0 / scale * x
    return straight_through(torch.round(quotient).clamp(-highest, highest - int(compat)), quotient)


def to_integers(x: Tensor, scale: Tensor, compat: bool) -> Tensor:
    """The integers behind a quantised value, in float64; in float32 and as the division leaves them with `compat`."""
    if compat:
        return x / scale
    quotient = x.double() / scale.double()
    return straight_through(torch.round(quotient), quotient)


def requantise(x: Tensor, scale: Tensor, target: Tensor, compat: bool = False) -> Tensor:
    """The integers of a quantised value at another scale, by one integer product and one shift per element.

    The quotient of the scales becomes mantissa / 2**31 * 2**exponent with an integer mantissa, rounded half away
    from zero; the product is rounded half to even.

    Args:
        x: the value.
        scale: its scale, one for all or one per feature, of any sign.
        target: the new scale.
        compat: whether to divide in float32.

    Returns:
        Integers in float64, without gradient.
    """
    quotient = scale.double() / target.double()
    fraction, _ = torch.frexp(quotient)
    unit = 2.0**constants.MANTISSA_BITS
    mantissa = torch.sign(fraction) * torch.floor(fraction.abs() * unit + 0.5)
    multiplier = mantissa * (quotient / fraction / unit)  # a power of two, so nothing is lost by multiplying first
    x, scale = x.detach(), scale.detach()
    integers = torch.round(x / scale if compat else x.double() / scale.double()).double()
    return torch.round(integers * multiplier.detach())


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """Products inside are computed in the dtype of their operands, also where autocast is on."""
    return torch.autocast(x.device.type, enabled=False)


# -- statistics ---------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """No activation below `module` changes its range inside, nor a layer norm its shift, training mode or not."""
    learners = [m for m in module.modules() if isinstance(m, (QuantActivation, IntLayerNorm)) and not m.frozen]
    for learner in learners:
        learner.frozen = True
    try:
        yield
    finally:
        for learner in learners:
            learner.frozen = False


def learning_once(layer: nn.Module) -> Callable[..., Any]:
    """`layer`, whose statistics change at the first call only: gradient checkpointing calls a layer twice."""
    calls = 0

    def call(*inputs: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        with frozen_statistics(layer) if calls > 1 else contextlib.nullcontext():
            return layer(*inputs, **options)

    return call


def check_calibrated(model: nn.Module) -> None:
    """Refuse to evaluate a quantised model whose activation ranges cannot be used, where looking costs nothing.

    Raises:
        CalibrationError: naming the activations.
    """
    if torch.compiler.is_compiling():
        return
    activations = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantActivation) and m.quant_mode]
    constants.check_ranges({n: (m.x_min.item(), m.x_max.item()) for n, m in activations if m.x_min.device.type == "cpu"})


# -- blocks -------------------------------------------------------------------------------------------------------
class QuantActivation(nn.Module):
    """Brings a value, or the sum of two, to a number of bits, by a range that it learns in training mode.

    The range is an exponential moving average of the smallest and largest element of each batch, and the first
    batch's where there was none. Batches with an infinite or undefined element do not count. `frozen` stops the
    learning. An `observer` sees each value, in any mode, and nothing is learned.

    Features may have scales of their own: `channel_scale` times the one that the range gives. The range is then that
    of the value over `channel_scale`, which training leaves as calibration has found it.

    Args:
        bits: bits of the result.
        quant_mode: whether to quantise; else the range is learned and the value passes.
        compat: as in transformers, where a sum whose first part has no scale loses its second part.
        channels: number of features that have scales of their own; None: one scale for all.

    Example:
        >>> import torch
        >>> activation = QuantActivation(8, quant_mode=True)
        >>> value, scale = activation(torch.tensor([[-0.98, 0.5, 2.0]]))
        >>> round(float(scale), 5), (value / scale).round().tolist()
        (0.01575, [[-62.0, 32.0, 127.0]])
    """

    def __init__(self, bits: int, quant_mode: bool = False, compat: bool = False, channels: int | None = None) -> None:
        super().__init__()
        self.bits, self.quant_mode, self.compat, self.frozen = bits, quant_mode, compat, False
        self.observer: Callable[[Tensor], None] | None = None
        for name in ("x_min", "x_max", "act_scaling_factor"):
            self.register_buffer(name, torch.full((1,), STATISTICS[name]))
        self.register_buffer("channel_scale", None)
        if channels is not None:
            self.make_channels(channels)

    def make_channels(self, channels: int) -> None:
        """Give each of so many features a factor of 1 on the scale."""
        one = torch.full((channels,), STATISTICS["channel_scale"], dtype=self.x_min.dtype, device=self.x_min.device)
        self.register_buffer("channel_scale", one)

    def drop_channels(self) -> None:
        """Give all features one scale."""
        self.channel_scale = None

    def forward(self, x: Tensor, scale: Tensor | None = None, identity: Tensor | None = None,
                identity_scale: Tensor | None = None) -> Quantised:
        """Quantise `x + identity`.

        Args:
            x: [..., features].
            scale: scale of `x`, [1] or [features]; None where it is no quantised value.
            identity: what is added, broadcastable to `x`.
            identity_scale: its scale.

        Returns:
            The value in float32 and its scale, [1] or [channels]; the plain sum and None without `quant_mode`.
        """
        total = x if identity is None else x + identity
        if self.observer is not None:
            self.observer(total)
        elif self.training and not self.frozen:
            self.observe(*torch.aminmax(self.evened(total.detach())))
        if not self.quant_mode:
            return total, None
        target = self.scale()
        total = total.float()
        if scale is None:
            total = x.float() if self.compat else total
            return quantise(total, target, self.bits, self.compat) * target, target
        integers = requantise(x, scale, target, self.compat)
        if identity is not None:
            integers = integers + requantise(identity, identity_scale, target, self.compat)
        highest = 2 ** (self.bits - 1) - 1
        return straight_through(integers.clamp(-highest - 1, highest).float() * target, total), target

    @torch.no_grad()
    def observe(self, low: Tensor, high: Tensor) -> None:
        """Let a batch's smallest and largest element count for the range."""
        momentum, first = constants.MOMENTUM, self.is_empty()
        usable = torch.isfinite(low) & torch.isfinite(high)
        for statistic, seen in ((self.x_min, low), (self.x_max, high)):
            updated = torch.where(first, statistic + seen, statistic * momentum + seen * (1 - momentum))
            statistic.copy_(torch.where(usable, updated, statistic))
        if self.quant_mode:
            self.act_scaling_factor.copy_(self.common_scale())

    def evened(self, x: Tensor) -> Tensor:
        """What the range is that of."""
        return x if self.channel_scale is None else x / self.channel_scale

    def is_empty(self) -> Tensor:
        """Whether no batch was seen yet."""
        return (self.x_min > -constants.EMPTY_BELOW) & (self.x_max < constants.EMPTY_BELOW)

    def common_scale(self) -> Tensor:
        """The scale that the range gives, [1]."""
        return symmetric_scale(torch.maximum(self.x_min.abs(), self.x_max.abs()), self.bits)

    def scale(self) -> Tensor:
        """The scale of the result, [1] or [channels]."""
        common = self.common_scale()
        return common if self.channel_scale is None else common * self.channel_scale.float()


class SecondActivation(QuantActivation):
    """What has become 8 bits passes. Its range is learned, for checkpoints have it; transformers quantises it again.

    Args:
        bits: bits of what comes in, and of the result.
        quant_mode: whether to quantise.
        compat: whether to quantise again.
    """

    def __init__(self, bits: int, quant_mode: bool = False, compat: bool = False) -> None:
        super().__init__(bits, quant_mode and compat, compat)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Quantised:
        """`x` with its scale, whatever that is; quantised to one scale with `compat`."""
        value, new_scale = super().forward(x, scale)
        return value, new_scale if self.quant_mode else scale


class QuantEmbedding(nn.Embedding):
    """A lookup table of 8 bits with one scale per column; with one for all of it, as in transformers, with `compat`.

    Args:
        rows, columns: size of the table.
        pad: row that looking it up does not train, or None.
        quant_mode: whether to quantise.
        compat: see the module.
    """

    def __init__(self, rows: int, columns: int, pad: int | None = None, quant_mode: bool = False,
                 compat: bool = False) -> None:
        super().__init__(rows, columns, padding_idx=pad if pad is not None and 0 <= pad < rows else None)
        self.quant_mode, self.compat = quant_mode, compat

    def forward(self, ids: Tensor) -> Quantised:
        """Look up `ids` [...]: values [..., columns] and their scale, [columns] or [1], None without `quant_mode`."""
        found = super().forward(ids)
        if not self.quant_mode:
            return found, None
        peaks = torch.stack(torch.aminmax(self.weight.detach(), dim=0)).abs().amax(0)
        scale = symmetric_scale(peaks.amax().view(1) if self.compat else peaks, constants.WEIGHT_BITS)
        return quantise(found.float(), scale, constants.WEIGHT_BITS, self.compat) * scale, scale


class QuantLinear(nn.Linear):
    """A linear layer with 8 bit weights, one scale per output, and 32 bit biases.

    Integers that are added up have one scale. Where the features of the input have scales of their own, the weights
    take in what these are over the largest one.

    Args:
        inputs: width of the input.
        outputs: width of the output.
        quant_mode: whether to quantise.
        compat: see the module.
        finest: the smallest scale that an output may have, without `compat`.
    """

    def __init__(self, inputs: int, outputs: int, quant_mode: bool = False, compat: bool = False,
                 finest: float = 0.0) -> None:
        super().__init__(inputs, outputs)
        self.quant_mode, self.compat, self.finest = quant_mode, compat, 0.0 if compat else finest

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor | Quantised:
        """Multiply by the weights.

        Args:
            x: [..., inputs].
            scale: its scale, [1] or, without `compat`, [inputs]; None only without `quant_mode`.

        Returns:
            [..., outputs] and its scale [outputs]; without `quant_mode` the value alone, as of any linear layer, so
            that what wraps linear layers can wrap this one. `apply_linear` gives a pair either way.

        Raises:
            InputError: when a quantised layer gets an input without a scale or with scales for other features.
        """
        if not self.quant_mode:
            return super().forward(x)
        inputs = self.weight.shape[1]
        if scale is None or scale.numel() not in ({1} if self.compat else {1, inputs}):
            got = "none" if scale is None else f"shape {list(scale.shape)}"
            expected = "one number" if self.compat else f"one number or {inputs}"
            raise InputError(f"QuantLinear: got {got} for the input's scale, expected {expected}",
                             remedy="Put a QuantActivation in front of it.")
        weight, bias, common = self.weight.float(), self.bias.float(), scale.amax(0, keepdim=True)
        if scale.numel() > 1:
            weight = weight * (scale / common)
        weight_scale = symmetric_scale(weight.abs().amax(1), constants.WEIGHT_BITS).maximum(self.finest / common)
        output_scale = weight_scale * common
        with full_precision(x):
            accumulated = F.linear(
                to_integers(x, scale, self.compat).float(),
                quantise(weight, weight_scale[:, None], constants.WEIGHT_BITS, self.compat),
                quantise(bias, output_scale, constants.BIAS_BITS, self.compat),
            )
        return accumulated * output_scale, output_scale


def apply_linear(layer: nn.Linear, x: Tensor, scale: Tensor | None) -> Quantised:
    """A linear layer's value and its scale, None where the input has none."""
    return (layer(x), None) if scale is None else layer(x, scale)


class IntGELU(nn.Module):
    """GELU by a polynomial of second degree.

    Args:
        quant_mode: whether to use it; else this is GELU itself.
        compat: see the module.
    """

    def __init__(self, quant_mode: bool = False, compat: bool = False) -> None:
        super().__init__()
        self.quant_mode, self.compat = quant_mode, compat

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Quantised:
        """GELU of `x` [..., features] with its scale, [1] or [features]."""
        if not self.quant_mode:
            return F.gelu(x), None
        if self.compat:
            return self._in_integers(x, scale)
        with torch.no_grad():
            value, output_scale = self._in_integers(x, scale)
        return straight_through(value, F.gelu(x)), output_scale

    def _in_integers(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        integers = to_integers(x, scale, self.compat)
        scale = scale.to(integers.dtype)
        erf, erf_scale = self._erf(integers, scale / constants.GELU_ROOT)
        one = torch.floor(1.0 / erf_scale.double()).to(integers.dtype)
        output_scale = (scale * erf_scale / 2).float()
        return (integers * (erf + one) * output_scale).float(), output_scale

    @staticmethod
    def _erf(integers: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        shift = torch.floor(constants.GELU_SHIFT / scale)
        one = torch.floor(1 / constants.GELU_SQUARE / scale**2)
        clipped = torch.minimum(integers.abs(), -shift)
        value = torch.sign(integers) * ((clipped + shift).square() + one)
        dropped = 2**constants.GELU_DROPPED_BITS
        return floor(value / dropped), scale**2 * constants.GELU_SQUARE * dropped


class IntSoftmax(nn.Module):
    """Softmax over the last dimension by a polynomial of second degree and shifts; 8 bits without a sign.

    Rounded to the nearest 1/256. A row in which every score is masked becomes uniform. The inner activation's range is
    in units of the polynomial's integers.

    Args:
        quant_mode: whether to use it; else this is softmax itself.
        compat: see the module; probabilities are then rounded down, and 1 is 256/256 rather than 255/256, the
            largest of 8 bits.
    """

    def __init__(self, quant_mode: bool = False, compat: bool = False) -> None:
        super().__init__()
        self.quant_mode, self.compat = quant_mode, compat
        self.act = QuantActivation(16, quant_mode, compat)

    def forward(self, scores: Tensor, scale: Tensor | None = None) -> Quantised:
        """Probabilities of `scores` [..., keys] with their scale [1]."""
        if not self.quant_mode:
            return scores.softmax(-1), None
        if self.compat:
            return self._in_integers(scores, scale)
        with torch.no_grad():
            value, output_scale = self._in_integers(scores, scale)
        return straight_through(value, scores.softmax(-1)), output_scale

    def _in_integers(self, scores: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        integers = to_integers(scores.clamp(min=constants.LOWEST_SCORE), scale, self.compat)
        integers = integers - integers.max(-1, keepdim=True).values
        exponentials, exp_scale = self._exp(integers, scale.to(integers.dtype))
        exponentials = to_integers(*self.act(exponentials, exp_scale), self.compat)
        total = exponentials.sum(-1, keepdim=True).clamp(min=1)
        half = 0.0 if self.compat else 0.5
        probabilities = floor(exponentials * floor(2.0**32 / total) / 2.0 ** (32 - constants.SOFTMAX_BITS) + half)
        levels = 2**constants.SOFTMAX_BITS
        if not self.compat:
            probabilities = probabilities.clamp(max=levels - 1)
        return (probabilities / levels).float(), torch.full_like(scale, 1 / levels)

    @staticmethod
    def _exp(integers: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        step = torch.floor(-constants.LN_2 / scale)
        shift = torch.floor(constants.EXP_LINEAR / constants.EXP_SQUARE / scale)
        integers = torch.maximum(integers, constants.EXP_BITS * step)
        halvings = floor(integers / step)
        rest = integers - step * halvings
        value = (rest + shift) * rest + IntSoftmax._one(scale)
        value = floor(value * torch.pow(2.0, constants.EXP_BITS - halvings)).clamp(min=0)
        return value, constants.EXP_SQUARE * scale**2 / 2.0**constants.EXP_BITS

    @staticmethod
    def _one(scale: Tensor) -> Tensor:
        return torch.floor(1 / constants.EXP_SQUARE / scale**2)

    def observe(self, scale: Tensor) -> None:
        """Learn the inner range while the model still works in float: a row's largest score becomes exp(0).

        Args:
            scale: the scale that the scores would have.
        """
        if self.training and not self.act.frozen:
            largest = self._one(scale) * 2.0**constants.EXP_BITS
            self.act.observe(torch.zeros_like(largest), largest)


class IntLayerNorm(nn.LayerNorm):
    """Layer normalisation whose standard deviation is an integer square root.

    Its integers are shifted right where their squares would not fit 32 bits; training mode finds the `shift`.
    A constant input gives the bias, as does a gain of zero.

    Args:
        size: number of features, the last dimension of the input.
        eps: what keeps the variance from being zero in float mode.
        quant_mode: whether to quantise.
        compat: see the module; the bias then gets no gradient, and the gain its share.
    """

    def __init__(self, size: int, eps: float, quant_mode: bool = False, compat: bool = False) -> None:
        super().__init__(size, eps=eps)
        self.quant_mode, self.compat, self.frozen = quant_mode, compat, False
        self.register_buffer("shift", torch.full((1,), STATISTICS["shift"]))
        self.activation = QuantActivation(32)  # never used, but every checkpoint has its statistics

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Quantised:
        """Normalise `x` [..., size] with its scale [1]; the result's scale is [size]."""
        if not self.quant_mode:
            return self._in_float(x), None
        if self.compat:
            return self._in_integers(x, scale)
        with torch.no_grad():
            value, output_scale = self._in_integers(x, scale)
        weight, bias = self.weight.float(), self.bias.float()
        return straight_through(value, F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)), output_scale

    def _in_integers(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        integers = to_integers(x, scale, self.compat)
        mean = integers.mean(-1, keepdim=True)
        nearest = torch.round(mean) if self.compat else torch.floor(mean + 0.5)  # ties up, as in integers
        centred = integers - straight_through(nearest, mean)
        if self.training and not self.frozen:
            self._widen(centred.detach())
        step = torch.pow(2.0, self.shift).to(integers.dtype)
        squares = floor(centred / step).square().sum(-1, keepdim=True)
        deviation = floor(torch.sqrt(squares.clamp(min=1))) * step
        normed = floor(centred * floor(2.0**31 / deviation) / 2)
        weight, bias = self.weight.float(), self.bias.float()
        tiny = weight.detach().abs() < constants.SMALLEST_GAIN
        weight = straight_through(torch.where(tiny, constants.SMALLEST_GAIN, weight), weight)
        unit = math.sqrt(x.shape[-1]) / 2**30
        output_scale = unit * weight
        value = (normed + torch.floor(bias / weight / unit).detach()) * output_scale
        return value.float(), output_scale.detach()

    def _in_float(self, x: Tensor) -> Tensor:
        """The fused kernel; transformers' order of roundings with `compat`, since a requantisation shows each of them."""
        if not self.compat:
            return super().forward(x)
        centred = x - x.mean(-1, keepdim=True)
        deviation = torch.sqrt(self.eps + centred.square().mean(-1, keepdim=True))
        return centred / deviation * self.weight + self.bias

    @torch.no_grad()
    def _widen(self, centred: Tensor) -> None:
        largest = centred.square().sum(-1).amax()
        self.shift.copy_(torch.maximum(self.shift, torch.ceil(torch.log2(torch.sqrt(largest / 2.0**32)))))
