"""The TensorFlow weights of transformers (tf_model.h5), seen under the names of its PyTorch state dicts.

A dataset is called `mobilebert/tf_mobile_bert_model/mobilebert/encoder/layer_._0/output/dense/kernel:0`: the Keras layer,
the name of the model, then the path of the weight. `predictions___cls` stands for `cls`, and `layer_._0` for `layer.0`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bertkit.core.checkpoint import LazyTensor
from bertkit.core.errors import BackendError, CheckpointError

LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "embeddings": "weight", "weight": "weight", "bias": "bias"}
"""PyTorch's name of a tensor by Keras's; a kernel is transposed."""

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16"}


def torch_name(path: str) -> str | None:
    """The state-dict name of a dataset, or None where the path is not that of a weight.

    Example:
        >>> torch_name("mobilebert/tf_model/mobilebert/encoder/layer_._3/ffn.0/output/dense/kernel:0")
        'mobilebert.encoder.layer.3.ffn.0.output.dense.weight'
        >>> torch_name("predictions___cls/tf_model/predictions___cls/predictions/bias:0")
        'cls.predictions.bias'
    """
    _, _, path = path.removesuffix(":0").partition("/")
    _, _, path = path.partition("/")
    *owners, leaf = path.split("/")
    if not owners or leaf not in LEAVES:
        return None
    return ".".join([*(owner.rpartition("___")[2].replace("_._", ".") for owner in owners), LEAVES[leaf]])


class KerasWeights:
    """An opened tf_model.h5; a tensor is read when it is asked for.

    Args:
        file: the file.

    Raises:
        BackendError: when h5py is not installed.
        CheckpointError: when it is no HDF5 file of transformers, or is damaged.
    """

    format = "Keras HDF5"

    def __init__(self, file: Path) -> None:
        try:
            import h5py
        except ImportError as error:
            raise BackendError(f"{file.name} needs h5py to be read", remedy="Install it with: pip install h5py") from error
        self.files = [file]
        paths: list[str] = []
        try:
            self._content = h5py.File(file, "r")
            self._content.visititems(lambda path, item: paths.append(path) if isinstance(item, h5py.Dataset) else None)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{file} is no HDF5 file, or is damaged", [str(error)]) from error
        names = {path: torch_name(path) for path in paths}
        self._paths = {name: path for path, name in names.items() if name is not None}
        strange = [path for path, name in names.items() if name is None or self._content[path].dtype.name not in DTYPES]
        if strange or not paths:
            raise CheckpointError(f"{file} was not written by transformers", strange or ["it holds no tensors"],
                                  "Only the tf_model.h5 of its TensorFlow models is read.")

    def names(self) -> list[str]:
        """The state-dict names."""
        return list(self._paths)

    def info(self, name: str) -> LazyTensor:
        """Shape and dtype."""
        return self.lazy(name)

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor, in PyTorch's layout."""
        value = self._dataset(name)[()]
        return value.T if self._is_kernel(name) else value

    def lazy(self, name: str) -> LazyTensor:
        """A tensor as `write_checkpoint` takes it."""
        dataset = self._dataset(name)
        shape = dataset.shape[::-1] if self._is_kernel(name) else dataset.shape
        return LazyTensor(shape, DTYPES[dataset.dtype.name], lambda: self.read(name))

    def _is_kernel(self, name: str) -> bool:
        return self._paths[name].endswith("/kernel:0")

    def _dataset(self, name: str) -> Any:
        return self._content[self._paths[name]]
