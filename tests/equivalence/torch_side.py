"""Running a golden case, or a model of the spec, in PyTorch; everything goes in and comes out as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import bertkit
from bertkit import state
from tests.equivalence.runner import config_of, golden_value
from tests.fixtures.cases import Case
from tests.fixtures.load import flatten, objective_probes


def make(class_name: str, config: Any, **init: Any) -> Any:
    """A model by the name of its class."""
    return getattr(bertkit, class_name)(config, **init)


def run_case(case: Case) -> tuple[dict, dict, dict]:
    """Outputs, gradients and statistics of a golden case, by name."""
    model = make(case.class_name, config_of(case), **case.init).train(case.training)
    for param in model.params().values():
        value = golden_value(param, case) if param.stored else None
        if value is not None:
            state.set_tensor(model, param.name, torch.from_numpy(value.copy()))
    model.tie_weights()
    outputs, gradients = run(model, case.inputs, **case.options)
    statistics = {name: buffer.numpy() for name, buffer in model.named_buffers()}
    return outputs, gradients, statistics


def run(model: Any, inputs: Mapping[str, Any], **options: Any) -> tuple[dict, dict]:
    """Outputs of a call, and the gradient of its loss (or of the objective) for every parameter."""
    output = model(**{name: tensor(value) for name, value in inputs.items()}, **options)
    objective = output.get("loss")
    if objective is None:
        objective = sum((output[name] * torch.from_numpy(probe)).sum() for name, probe in objective_probes(output).items())
    model.zero_grad()
    objective.backward()
    arrays = torch.utils._pytree.tree_map(lambda value: value.detach().numpy(), dict(output))
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return flatten(arrays), gradients


def step(model: Any, rate: float) -> dict[str, np.ndarray]:
    """Every stored parameter after one step of gradient descent."""
    torch.optim.SGD(model.parameters(), lr=rate).step()
    return {name: state.get_tensor(model, name).detach().numpy() for name, p in model.params().items() if p.stored}


def tensor(value: Any) -> Any:
    """Arrays, also in nested tuples, as tensors."""
    return tuple(map(tensor, value)) if isinstance(value, tuple) else torch.from_numpy(np.asarray(value))
