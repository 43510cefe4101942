"""Post-training calibration: an I-BERT sees real texts, and every activation gets the range of its integers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bertkit.core.calibration import CalibrationReport, Calibrator, Range
from bertkit.core.ibert import check_ibert
from bertkit.modeling import PreTrainedModel
from bertkit.quantization import QuantActivation


@torch.no_grad()
def calibrate(model: PreTrainedModel, batches: Iterable[Any], method: str = "minmax", *, percentile: float = 99.999,
              channel_scales: bool | None = None) -> CalibrationReport:
    """Give every activation of an I-BERT its range, from what a few hundred texts show; no labels, no training.

    The model computes in float meanwhile, without dropout, also where it is quantised. Padding does not count. Afterwards
    it can be frozen, or trained on with `quant_mode=True`. On an error it is as it was.

    Args:
        model: any class of I-BERT, in float or quantised; its ranges are replaced.
        batches: what a tokenizer returns, several times.
        method: how 8 bit ranges are chosen: "minmax", a moving average of each batch's extremes, as in the paper;
            "percentile"; or "mse", the range whose integers differ least.
        percentile: how many percent of all numbers are in the range, for the method of that name.
        channel_scales: whether each channel of the residual stream and behind GELU gets a scale of its own, which costs
            nothing and saves most of the error; default: unless `config.hf_compat_scales`. Sets `config.channel_scales`.

    Returns:
        The ranges by name, and what was clipped.

    Raises:
        BertkitError: for a model that is no I-BERT.
        ConfigError: for a method that does not exist, or a frozen model.
        InputError: for batches that are none.
        CalibrationError: naming all activations that saw numbers that are not finite, or zeros alone.

    Reference:
        Kim et al., "I-BERT: Integer-only BERT Quantization", https://arxiv.org/abs/2101.01321

    Example:
        >>> import torch
        >>> from bertkit import IBertConfig, IBertModel, calibrate
        >>> config = IBertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> report = calibrate(IBertModel(config), [{"input_ids": torch.tensor([[0, 5, 6, 2]])}])
        >>> report.tokens, "encoder.layer.1.output.output_activation" in report.ranges
        (4, True)
    """
    check_ibert(model, PreTrainedModel, "calibrate")
    encoder, config = model.base_model, model.config
    channel_scales = not config.hf_compat_scales if channel_scales is None else channel_scales
    activations = {name: module for name, module in encoder.named_modules() if isinstance(module, QuantActivation)}
    calibrator = Calibrator(config, {name: activation.bits for name, activation in activations.items()}, method, percentile,
                            channel_scales)
    with in_float(encoder), observed(activations, calibrator):
        for inputs in calibrator.rounds(list(batches), model.task == "ForMultipleChoice"):
            encoder(**{name: torch.from_numpy(array).to(encoder.device) for name, array in inputs.items()})
    report = calibrator.report()
    config.channel_scales = channel_scales
    for name, found in report.ranges.items():
        set_range(activations[name], found)
    return report


@contextlib.contextmanager
def in_float(encoder: PreTrainedModel) -> Iterator[None]:
    """Inside, the encoder evaluates in float."""
    quantised = [part for part in (encoder.config, *encoder.modules()) if getattr(part, "quant_mode", False)]
    training = [module for module in encoder.modules() if module.training]
    for part in quantised:
        part.quant_mode = False
    try:
        encoder.eval()
        yield
    finally:
        for part in quantised:
            part.quant_mode = True
        for module in training:
            module.training = True


@contextlib.contextmanager
def observed(activations: dict[str, QuantActivation], calibrator: Calibrator) -> Iterator[None]:
    """Inside, the calibrator sees what the activations see."""

    def see(name: str, x: Tensor) -> None:
        calibrator.see(name, x.float().cpu().numpy())

    for name, activation in activations.items():
        activation.observer = partial(see, name)
    try:
        yield
    finally:
        for activation in activations.values():
            activation.observer = None


def set_range(activation: QuantActivation, found: Range) -> None:
    """Give an activation what calibration has found."""
    if found.channels is None:
        activation.drop_channels()
    else:
        activation.make_channels(len(found.channels))
        activation.channel_scale.copy_(torch.from_numpy(found.channels))
    activation.x_min.fill_(found.low)
    activation.x_max.fill_(found.high)
    activation.act_scaling_factor.copy_(activation.common_scale())
