"""The bridge between a PyTorch model and the weight spec: every tensor by its canonical name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertkit.core.checkpoint import LazyTensor, RawTensor
from bertkit.core.spec import Param

DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
               torch.int8: "I8", torch.int32: "I32", torch.int64: "I64"}


def get_tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a canonical name."""
    owner, leaf = _owner(model, name)
    return getattr(owner, leaf)


def set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of the parameter or buffer of a canonical name."""
    owner, leaf = _owner(model, name)
    if leaf in owner._buffers:
        owner._buffers[leaf] = value
    else:
        trainable = getattr(owner, leaf).requires_grad
        setattr(owner, leaf, value if isinstance(value, nn.Parameter) else nn.Parameter(value, trainable))


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def tie(model: nn.Module, params: Mapping[str, Param]) -> None:
    """Make every tied name the very tensor that it is tied to."""
    for param in params.values():
        if param.tied_to is not None:
            set_tensor(model, param.name, get_tensor(model, param.tied_to))


def from_numpy(array: np.ndarray, like: Tensor | None = None, **options: Any) -> Tensor:
    """A tensor with memory of its own, with the dtype and device of `like` unless `options` say otherwise."""
    if like is not None:
        options = {"dtype": like.dtype, "device": like.device, **options}
    return torch.from_numpy(np.array(array)).to(**options)


def lazy_tensors(model: nn.Module, params: Mapping[str, Param]) -> dict[str, LazyTensor]:
    """What a checkpoint of the model holds: each stored tensor once, read when it is written."""
    return {name: _lazy(get_tensor(model, name)) for name, param in params.items() if param.stored}


def _lazy(tensor: Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), DTYPE_NAMES[tensor.dtype], lambda: _to_raw(tensor))


def _to_raw(tensor: Tensor) -> np.ndarray | RawTensor:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return RawTensor(tensor.view(torch.int16).numpy().view(np.uint16), "BF16")
    return tensor.numpy()
