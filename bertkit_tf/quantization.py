"""I-BERT's building blocks: integer arithmetic, simulated in floating point and trainable.

A quantised value travels as a pair: a float tensor and its scale, whose quotient is an integer. Without
`quant_mode` the blocks are the ordinary float layers and the scale is None; the activations still learn their
ranges then, in training mode. Rounding passes gradients straight through; the non-linear blocks have the gradients of
the float functions that they approximate, with `compat` those of their polynomials.

By default the non-linear blocks compute with whole numbers in float64, which holds them exactly. `compat=True`
repeats transformers instead: float32, where quotients are not rounded to the integers that they stand for.
Statistics and arithmetic are in float32 and float64 under every dtype policy.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from bertkit.core import quantization as constants
from bertkit.core.errors import InputError
from bertkit.core.initial import STATISTICS
from bertkit_tf.layers import Block, Dense, LayerNorm, PaddedEmbedding, gelu, matmul, wide

Quantised = tuple[tf.Tensor, tf.Tensor | None]


# -- arithmetic ---------------------------------------------------------------------------------------------------
def straight_through(value: tf.Tensor, differentiable: tf.Tensor) -> tf.Tensor:
    """`value`, with the gradient of `differentiable`, which has its shape and dtype."""
    return tf.stop_gradient(value) + (differentiable - tf.stop_gradient(differentiable))


def floor(x: tf.Tensor) -> tf.Tensor:
    """Round down; the gradient is 1."""
    return straight_through(tf.floor(x), x)


def symmetric_scale(peak: tf.Tensor, bits: int) -> tf.Tensor:
    """The scale at which the integers of `bits` bits reach from -peak to peak."""
    peak = tf.stop_gradient(tf.cast(peak, tf.float32))
    return tf.maximum(peak, constants.SMALLEST_PEAK) / (2 ** (bits - 1) - 1)


def quantise(x: tf.Tensor, scale: tf.Tensor, bits: int, compat: bool = False) -> tf.Tensor:
    """The integers nearest to x / scale, in [-n, n] with n = 2**(bits - 1) - 1; the gradient is that of x / scale.

    With `compat` up to n - 1 only.
    """
    lowest, highest = float(1 - 2 ** (bits - 1)), float(2 ** (bits - 1) - 1 - int(compat))
    quotient = 1.0 / scale * x
    return straight_through(tf.clip_by_value(tf.round(quotient), lowest, highest), quotient)


def to_integers(x: tf.Tensor, scale: tf.Tensor, compat: bool) -> tf.Tensor:
    """The integers behind a quantised value, in float64; in float32 and as the division leaves them with `compat`."""
    if compat:
        return x / scale
    quotient = tf.cast(x, tf.float64) / tf.cast(scale, tf.float64)
    return straight_through(tf.round(quotient), quotient)


def requantise(x: tf.Tensor, scale: tf.Tensor, target: tf.Tensor, compat: bool = False) -> tf.Tensor:
    """The integers of a quantised value at another scale, by one integer product and one shift per element.

    The quotient of the scales becomes mantissa / 2**30 * 2**exponent with an integer mantissa of 31 bits, rounded
    half away from zero; the product is rounded half to even.

    Args:
        x: the value.
        scale: its scale, one for all or one per feature, of any sign.
        target: the new scale.
        compat: whether to divide in float32.

    Returns:
        Integers in float64, without gradient.
    """
    quotient = tf.cast(scale, tf.float64) / tf.cast(target, tf.float64)
    exponent_bits = tf.constant(0x7FF << 52, tf.int64)
    power = tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(quotient, tf.int64), exponent_bits), tf.float64)
    fraction = quotient / power
    unit = 2.0 ** (constants.MANTISSA_BITS - 1)
    mantissa = tf.sign(fraction) * tf.floor(tf.abs(fraction) * unit + 0.5)
    multiplier = mantissa * (power / unit)  # a power of two, so nothing is lost by multiplying first
    integers = x / scale if compat else tf.cast(x, tf.float64) / tf.cast(scale, tf.float64)
    return tf.stop_gradient(tf.round(tf.cast(tf.round(integers), tf.float64) * multiplier))


# -- statistics ---------------------------------------------------------------------------------------------------
def blocks(block: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Block]]:
    """Every block below `block`, by canonical name."""
    children = enumerate(block) if isinstance(block, list) else vars(block).items()
    for name, child in children:
        if isinstance(child, (Block, keras.Model, list)) and not str(name).startswith("_"):
            below = (*path, str(name).rstrip("_"))
            if isinstance(child, Block):
                yield ".".join(below), child
            yield from blocks(child, below)


def learners(block: Any) -> Iterator[tuple[str, Block]]:
    """Every activation and layer norm in `block` that learns in training mode, by canonical name."""
    for name, child in (("", block), *blocks(block)):
        if isinstance(child, (QuantActivation, IntLayerNorm)):
            yield name, child


@contextlib.contextmanager
def frozen_statistics(block: Any) -> Iterator[None]:
    """No activation below `block` changes its range inside, nor a layer norm its shift, training mode or not."""
    found = [learner for _, learner in learners(block) if not learner.frozen]
    for learner in found:
        learner.frozen = True
    try:
        yield
    finally:
        for learner in found:
            learner.frozen = False


def learning_once(layer: Block) -> Callable[..., Any]:
    """`layer`, whose statistics change at the first call only: gradient checkpointing calls a layer twice."""
    calls = 0

    def call(*inputs: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        with frozen_statistics(layer) if calls > 1 else contextlib.nullcontext():
            return layer(*inputs, **options)

    return call


def check_calibrated(model: Any) -> None:
    """Refuse to evaluate a quantised model whose activation ranges cannot be used, where looking costs nothing.

    Raises:
        CalibrationError: naming the activations.
    """
    if not tf.executing_eagerly():
        return
    activations = [(n, b) for n, b in learners(model) if isinstance(b, QuantActivation) and b.quant_mode]
    constants.check_ranges({n: (float(b.x_min.numpy()[0]), float(b.x_max.numpy()[0]))
                            for n, b in activations if "CPU" in b.x_min.value.device})


def _statistic(block: Block, name: str, aggregation: str, features: int = 1) -> keras.Variable:
    return block.add_weight(name=name, shape=(features,), initializer=keras.initializers.Constant(STATISTICS[name]),
                            dtype="float32", trainable=False, autocast=False, aggregation=aggregation)


# -- blocks -------------------------------------------------------------------------------------------------------
class QuantActivation(Block):
    """Brings a value, or the sum of two, to a number of bits, by a range that it learns in training mode.

    The range is an exponential moving average of the smallest and largest element of each batch, and the first
    batch's where there was none. Batches with an infinite or undefined element do not count. `frozen` stops the
    learning. An `observer` sees each value, in any mode, and nothing is learned. Under `tf.distribute` the replicas'
    ranges are averaged.

    Features may have scales of their own: `channel_scale` times the one that the range gives. The range is then that
    of the value over `channel_scale`, which training leaves as calibration has found it.

    Args:
        bits: bits of the result.
        quant_mode: whether to quantise; else the range is learned and the value passes.
        compat: as in transformers, where a sum whose first part has no scale loses its second part.
        channels: number of features that have scales of their own; None: one scale for all.

    Example:
        >>> import tensorflow as tf
        >>> activation = QuantActivation(8, quant_mode=True)
        >>> value, scale = activation(tf.constant([[-0.98, 0.5, 2.0]]), training=True)
        >>> round(float(scale[0]), 5), tf.round(value / scale).numpy().tolist()
        (0.01575, [[-62.0, 32.0, 127.0]])
    """

    def __init__(self, bits: int, quant_mode: bool = False, compat: bool = False, channels: int | None = None) -> None:
        super().__init__()
        self.bits, self.quant_mode, self.compat, self.frozen = bits, quant_mode, compat, False
        self.observer: Callable[[tf.Tensor], None] | None = None
        self.x_min = _statistic(self, "x_min", "mean")
        self.x_max = _statistic(self, "x_max", "mean")
        self.act_scaling_factor = _statistic(self, "act_scaling_factor", "mean")
        self.channel_scale: keras.Variable | None = None
        if channels is not None:
            self.make_channels(channels)

    def make_channels(self, channels: int) -> None:
        """Give each of so many features a factor of 1 on the scale."""
        self.drop_channels()
        self.channel_scale = _statistic(self, "channel_scale", "mean", channels)

    def drop_channels(self) -> None:
        """Give all features one scale."""
        if self.channel_scale is not None:
            self._untrack_variable(self.channel_scale)
            self.channel_scale = None

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None, identity: tf.Tensor | None = None,
             identity_scale: tf.Tensor | None = None, training: bool | None = None) -> Quantised:
        """Quantise `x + identity`.

        Args:
            x: [..., features].
            scale: scale of `x`, [1] or [features]; None where it is no quantised value.
            identity: what is added, broadcastable to `x`.
            identity_scale: its scale.
            training: whether to learn the range.

        Returns:
            The value in float32 and its scale, [1] or [channels]; the plain sum and None without `quant_mode`.
        """
        total = x if identity is None else tf.cast(x, identity.dtype) + identity
        if self.observer is not None:
            self.observer(total)
        elif training and not self.frozen:
            evened = self.evened(total)
            self.observe(tf.reduce_min(evened), tf.reduce_max(evened))
        if not self.quant_mode:
            return total, None
        target = self.scale()
        total = tf.cast(total, tf.float32)
        if scale is None:
            total = tf.cast(x, tf.float32) if self.compat else total
            return quantise(total, target, self.bits, self.compat) * target, target
        integers = requantise(x, scale, target, self.compat)
        if identity is not None:
            integers = integers + requantise(identity, identity_scale, target, self.compat)
        highest = 2 ** (self.bits - 1) - 1
        integers = tf.cast(tf.clip_by_value(integers, float(-highest - 1), float(highest)), tf.float32)
        return straight_through(integers * target, total), target

    def observe(self, low: tf.Tensor, high: tf.Tensor) -> None:
        """Let a batch's smallest and largest element count for the range."""
        momentum, first = constants.MOMENTUM, self.is_empty()
        low, high = (tf.stop_gradient(tf.cast(seen, tf.float32)) for seen in (low, high))
        usable = tf.math.is_finite(low) & tf.math.is_finite(high)
        for variable, seen in ((self.x_min, low), (self.x_max, high)):
            statistic = variable.value
            updated = tf.where(first, statistic + seen, statistic * momentum + seen * (1 - momentum))
            variable.assign(tf.where(usable, updated, statistic))
        if self.quant_mode:
            self.act_scaling_factor.assign(self.common_scale())

    def evened(self, x: tf.Tensor) -> tf.Tensor:
        """What the range is that of."""
        return x if self.channel_scale is None else x / tf.cast(self.channel_scale.value, x.dtype)

    def is_empty(self) -> tf.Tensor:
        """Whether no batch was seen yet."""
        return (self.x_min.value > -constants.EMPTY_BELOW) & (self.x_max.value < constants.EMPTY_BELOW)

    def common_scale(self) -> tf.Tensor:
        """The scale that the range gives, [1]."""
        return symmetric_scale(tf.maximum(tf.abs(self.x_min.value), tf.abs(self.x_max.value)), self.bits)

    def scale(self) -> tf.Tensor:
        """The scale of the result, [1] or [channels]."""
        common = self.common_scale()
        return common if self.channel_scale is None else common * self.channel_scale.value


class SecondActivation(QuantActivation):
    """What has become 8 bits passes. Its range is learned, for checkpoints have it; transformers quantises it again.

    Args:
        bits: bits of what comes in, and of the result.
        quant_mode: whether to quantise.
        compat: whether to quantise again.
    """

    def __init__(self, bits: int, quant_mode: bool = False, compat: bool = False) -> None:
        super().__init__(bits, quant_mode and compat, compat)

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None, training: bool | None = None) -> Quantised:
        """`x` with its scale, whatever that is; quantised to one scale with `compat`."""
        value, new_scale = super().call(x, scale, training=training)
        return value, new_scale if self.quant_mode else scale


class QuantEmbedding(PaddedEmbedding):
    """A lookup table of 8 bits with one scale per column; with one for all of it, as in transformers, with `compat`.

    Args:
        rows, columns: size of the table.
        pad: row that looking it up does not train, or None.
        quant_mode: whether to quantise.
        compat: see the module.
    """

    def __init__(self, rows: int, columns: int, pad: int | None = None, quant_mode: bool = False,
                 compat: bool = False) -> None:
        super().__init__(rows, columns, pad)
        self.quant_mode, self.compat = quant_mode, compat

    def call(self, ids: tf.Tensor) -> Quantised:
        """Look up `ids` [...]: values [..., columns] and their scale, [columns] or [1], None without `quant_mode`."""
        found = super().call(ids)
        if not self.quant_mode:
            return found, None
        peaks = tf.reduce_max(tf.abs(self.embeddings.value), 0)
        scale = symmetric_scale(tf.reduce_max(peaks, keepdims=True) if self.compat else peaks, constants.WEIGHT_BITS)
        return quantise(tf.cast(found, tf.float32), scale, constants.WEIGHT_BITS, self.compat) * scale, scale


class QuantLinear(Dense):
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

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None) -> tf.Tensor | Quantised:
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
            return super().call(x)
        inputs = self.kernel.shape[0]
        if scale is None or scale.shape.num_elements() not in ({1} if self.compat else {1, inputs}):
            got = "none" if scale is None else f"shape {list(scale.shape)}"
            expected = "one number" if self.compat else f"one number or {inputs}"
            raise InputError(f"QuantLinear: got {got} for the input's scale, expected {expected}",
                             remedy="Put a QuantActivation in front of it.")
        weight, bias = tf.cast(self.kernel.value, tf.float32), tf.cast(self.bias.value, tf.float32)
        common = tf.reduce_max(scale, 0, keepdims=True)
        if scale.shape.num_elements() > 1:
            weight = weight * (scale / common)[:, None]
        weight_scale = symmetric_scale(tf.reduce_max(tf.abs(weight), 0), constants.WEIGHT_BITS)
        weight_scale = tf.maximum(weight_scale, self.finest / common)
        output_scale = weight_scale * common
        accumulated = matmul(
            tf.cast(to_integers(x, scale, self.compat), tf.float32),
            quantise(weight, weight_scale, constants.WEIGHT_BITS, self.compat),
        ) + quantise(bias, output_scale, constants.BIAS_BITS, self.compat)
        return accumulated * output_scale, output_scale


def apply_linear(layer: Dense, x: tf.Tensor, scale: tf.Tensor | None) -> Quantised:
    """A linear layer's value and its scale, None where the input has none."""
    return (layer(x), None) if scale is None else layer(x, scale)


class IntGELU(Block):
    """GELU by a polynomial of second degree.

    Args:
        quant_mode: whether to use it; else this is GELU itself.
        compat: see the module.
    """

    def __init__(self, quant_mode: bool = False, compat: bool = False) -> None:
        super().__init__()
        self.quant_mode, self.compat = quant_mode, compat

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None) -> Quantised:
        """GELU of `x` [..., features] with its scale, [1] or [features]."""
        if not self.quant_mode:
            return gelu(x), None
        value, output_scale = self._in_integers(x, scale)
        return value if self.compat else straight_through(value, gelu(x)), output_scale

    def _in_integers(self, x: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        integers = to_integers(x, scale, self.compat)
        scale = tf.cast(scale, integers.dtype)
        erf, erf_scale = self._erf(integers, scale / constants.GELU_ROOT)
        one = tf.cast(tf.floor(1.0 / tf.cast(erf_scale, tf.float64)), integers.dtype)
        output_scale = tf.cast(scale * erf_scale / 2, tf.float32)
        value = integers * (erf + one) * tf.cast(output_scale, integers.dtype)
        return tf.cast(value, tf.float32), output_scale

    @staticmethod
    def _erf(integers: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        shift = tf.floor(constants.GELU_SHIFT / scale)
        one = tf.floor(1 / constants.GELU_SQUARE / tf.square(scale))
        clipped = tf.minimum(tf.abs(integers), -shift)
        value = tf.sign(integers) * (tf.square(clipped + shift) + one)
        dropped = 2**constants.GELU_DROPPED_BITS
        return floor(value / dropped), tf.square(scale) * constants.GELU_SQUARE * dropped


class IntSoftmax(Block):
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

    def call(self, scores: tf.Tensor, scale: tf.Tensor | None = None, training: bool | None = None) -> Quantised:
        """Probabilities of `scores` [..., keys] with their scale [1]."""
        if not self.quant_mode:
            return tf.nn.softmax(scores), None
        value, output_scale = self._in_integers(scores, scale, training)
        return value if self.compat else straight_through(value, tf.nn.softmax(scores)), output_scale

    def _in_integers(self, scores: tf.Tensor, scale: tf.Tensor, training: bool | None) -> tuple[tf.Tensor, tf.Tensor]:
        integers = to_integers(tf.maximum(scores, constants.LOWEST_SCORE), scale, self.compat)
        integers = integers - tf.math.top_k(integers, 1).values
        exponentials, exp_scale = self._exp(integers, tf.cast(scale, integers.dtype))
        exponentials = to_integers(*self.act(exponentials, exp_scale, training=training), self.compat)
        total = tf.maximum(tf.reduce_sum(exponentials, -1, keepdims=True), 1)
        half = 0.0 if self.compat else 0.5
        probabilities = floor(exponentials * floor(2.0**32 / total) / 2.0 ** (32 - constants.SOFTMAX_BITS) + half)
        levels = 2**constants.SOFTMAX_BITS
        if not self.compat:
            probabilities = tf.minimum(probabilities, levels - 1)
        return tf.cast(probabilities / levels, tf.float32), tf.fill([1], 1 / levels)

    @staticmethod
    def _exp(integers: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        step = tf.floor(-constants.LN_2 / scale)
        shift = tf.floor(constants.EXP_LINEAR / constants.EXP_SQUARE / scale)
        integers = tf.maximum(integers, constants.EXP_BITS * step)
        halvings = floor(integers / step)
        rest = integers - step * halvings
        value = (rest + shift) * rest + IntSoftmax._one(scale)
        powers = tf.pow(tf.constant(2.0, value.dtype), constants.EXP_BITS - halvings)
        value = tf.maximum(floor(value * powers), 0)
        return value, constants.EXP_SQUARE * tf.square(scale) / 2.0**constants.EXP_BITS

    @staticmethod
    def _one(scale: tf.Tensor) -> tf.Tensor:
        return tf.floor(1 / constants.EXP_SQUARE / tf.square(scale))

    def observe(self, scale: tf.Tensor) -> None:
        """Learn the inner range while the model still works in float: a row's largest score becomes exp(0).

        Args:
            scale: the scale that the scores would have.
        """
        if not self.act.frozen:
            largest = self._one(scale) * 2.0**constants.EXP_BITS
            self.act.observe(tf.zeros_like(largest), largest)


class IntLayerNorm(LayerNorm):
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
        super().__init__(size, eps)
        self.quant_mode, self.compat, self.frozen = quant_mode, compat, False
        self.shift = _statistic(self, "shift", "only_first_replica")
        self.activation = QuantActivation(32)  # never used, but every checkpoint has its statistics

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None, training: bool | None = None) -> Quantised:
        """Normalise `x` [..., size] with its scale [1]; the result's scale is [size]."""
        if not self.quant_mode:
            return self._in_float(x), None
        value, output_scale = self._in_integers(x, scale, training)
        return value if self.compat else straight_through(value, tf.cast(self._in_float(x), tf.float32)), output_scale

    def _in_integers(self, x: tf.Tensor, scale: tf.Tensor, training: bool | None) -> tuple[tf.Tensor, tf.Tensor]:
        integers = to_integers(x, scale, self.compat)
        mean = tf.reduce_mean(integers, -1, keepdims=True)
        nearest = tf.round(mean) if self.compat else tf.floor(mean + 0.5)  # ties up, as in integers
        centred = integers - straight_through(nearest, mean)
        if training and not self.frozen:
            self._widen(tf.stop_gradient(centred))
        step = tf.cast(tf.pow(2.0, self.shift.value), integers.dtype)
        squares = tf.reduce_sum(tf.square(floor(centred / step)), -1, keepdims=True)
        deviation = floor(tf.sqrt(tf.maximum(squares, 1))) * step
        normed = floor(centred * floor(2.0**31 / deviation) / 2)
        weight, bias = tf.cast(self.gamma.value, tf.float32), tf.cast(self.beta.value, tf.float32)
        weight = straight_through(tf.where(tf.abs(weight) < constants.SMALLEST_GAIN, constants.SMALLEST_GAIN, weight), weight)
        unit = math.sqrt(x.shape[-1]) / 2**30
        output_scale = tf.cast(unit * weight, integers.dtype)
        value = (normed + tf.cast(tf.stop_gradient(tf.floor(bias / weight / unit)), integers.dtype)) * output_scale
        return tf.cast(value, tf.float32), tf.stop_gradient(tf.cast(output_scale, tf.float32))

    def _in_float(self, x: tf.Tensor) -> tf.Tensor:
        """The plain norm; transformers' order of roundings with `compat`, since a requantisation shows each of them."""
        if not self.compat:
            return super().call(x)
        centred = wide(x) - tf.reduce_mean(wide(x), -1, keepdims=True)
        deviation = tf.sqrt(self.eps + tf.reduce_mean(tf.square(centred), -1, keepdims=True))
        gamma, beta = (tf.cast(variable.value, centred.dtype) for variable in (self.gamma, self.beta))
        return tf.cast(centred / deviation * gamma + beta, self.variable_dtype)

    def _widen(self, centred: tf.Tensor) -> None:
        largest = tf.cast(tf.reduce_max(tf.reduce_sum(tf.square(centred), -1)), tf.float64)
        needed = tf.math.ceil(tf.math.log(tf.sqrt(largest / 2.0**32)) / math.log(2.0))
        self.shift.assign(tf.maximum(self.shift.value, tf.cast(needed, tf.float32)))
