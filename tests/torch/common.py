"""Models, tensors and comparisons that the PyTorch tests share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

import bertkit
from bertkit.core.variants import VARIANTS
from tests import cases


def model_class(variant: str, task: str = "Model") -> Any:
    """The class of a variant and a task."""
    return getattr(bertkit, VARIANTS[variant].name + task)


def make(variant: str, task: str = "Model", *, seed: int = 0, **changes: Any) -> Any:
    """A tiny model in evaluation mode whose biases and norms are no identity; the padding row stays zero."""
    torch.manual_seed(seed)
    model = model_class(variant, task)(cases.config(variant, task, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """NumPy inputs as tensors."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def features(variant: str, task: str = "Model", **options: Any) -> dict[str, torch.Tensor]:
    """`cases.features` as tensors."""
    return tensors(cases.features(variant, task, **options))


def everything(variant: str, task: str, **options: Any) -> dict[str, torch.Tensor]:
    """Inputs and labels."""
    return tensors({**cases.features(variant, task, **options), **cases.labels(task)})


def loss_of(output: Any) -> torch.Tensor:
    """The loss, or for a bare encoder some number that depends on all of its output."""
    if output.get("loss") is not None:
        return output.loss
    return sum((value.float() * torch.linspace(-1, 1, value.shape[-1])).sin().mean() for name, value in flat(output).items())


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def flat(output: Any) -> dict[str, torch.Tensor]:
    """Every tensor of an output by name; "hidden_states.0" for those in tuples."""
    return dict(_flat("", output))


def _flat(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif value is not None:
        for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat(f"{name}.{key}" if name else str(key), child)


def assert_same(actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = 2e-6) -> None:
    """Every tensor equals its twin, relative to the twin's largest value; 0 means exactly. All differences at once."""
    actual, expected = flat(actual), flat(expected)
    assert actual.keys() == expected.keys()
    wrong = {}
    for name, twin in expected.items():
        assert actual[name].shape == twin.shape, name
        difference = (actual[name].double() - twin.double()).abs().amax().item() if twin.numel() else 0.0
        largest = twin.double().abs().amax().item() if twin.numel() else 0.0
        if not difference <= tolerance * max(largest, 1.0 if tolerance else 0.0):
            wrong[name] = (difference, largest)
    assert not wrong, wrong
