"""The frozen I-BERT in PyTorch: the checks that both frameworks pass, and what only PyTorch has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import bertkit
from bertkit.kernels import int8
from tests.fixtures.integer import CHECKS, FILE_CHECKS
from tests.torch.common import flat, model_class, tensors


class Torch:
    """PyTorch as the shared checks see it."""

    def kernel(self, name: str, *arrays: Any, **options: Any) -> list[np.ndarray]:
        given = [torch.from_numpy(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in arrays]
        result = getattr(int8, name)(*given, **options)
        return [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]

    def make(self, task: str, config: Any, given: dict[str, np.ndarray]) -> Any:
        with torch.device("meta"):
            model = model_class("ibert", task)(config)
        state = {name: torch.from_numpy(array) for name, array in given.items()}
        state |= {name: state[param.tied_to] for name, param in model.params().items() if param.tied_to}
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        return model.eval()

    @torch.no_grad()
    def call(self, model: Any, **inputs: Any) -> dict[str, np.ndarray]:
        options = {name: value for name, value in inputs.items() if not isinstance(value, np.ndarray)}
        arrays = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
        return {name: tensor.numpy() for name, tensor in flat(model(**tensors(arrays), **options)).items()}

    def freeze(self, model: Any) -> Any:
        return bertkit.freeze(model)

    def load(self, task: str, directory: Any, **options: Any) -> Any:
        return model_class("ibert", task).from_pretrained(directory, **options)


@pytest.mark.parametrize("check", CHECKS)
def test_shared(check):
    function, options = CHECKS[check]
    function(Torch(), **options)


@pytest.mark.parametrize("check", FILE_CHECKS)
def test_shared_files(check, tmp_path):
    function, options = FILE_CHECKS[check]
    function(Torch(), directory=tmp_path, **options)
