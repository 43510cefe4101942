"""The TensorFlow weights of transformers (tf_model.h5), seen under the names of its PyTorch state dicts, and written.

A dataset is called `mobilebert/tf_mobile_bert_model/mobilebert/encoder/layer_._0/output/dense/kernel:0`: the Keras layer,
the name of the model, then the path of the weight. `predictions___cls` stands for `cls`, and `layer_._0` for `layer.0`.
Which weights a layer has stands once more in attributes of its group, and that is what a reader goes by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertkit.core.checkpoint import LazyTensor
from bertkit.core.errors import BackendError, CheckpointError
from bertkit.core.files.byte_source import LARGEST_RATIO
from bertkit.core.spec import Param
from bertkit.core.tensors import stored

LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "embeddings": "weight", "weight": "weight", "bias": "bias"}
"""PyTorch's name of a tensor by Keras's; a kernel is transposed."""

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16"}

LAYERS = {"cls.predictions": "predictions___cls", "cls.seq_relationship": "seq_relationship___cls"}
"""The Keras layer of a head whose name is not that of its tensors."""

BROKEN = (OSError, RuntimeError, ValueError, KeyError, TypeError, NotImplementedError)
"""What h5py raises for a damaged file."""

MOST_NAMES = 2000
"""Names that fit into one attribute: HDF5 takes 64 KiB, and 16 bytes of each; Keras numbers the attributes then."""


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
        self.path = file
        self._paths: dict[str, str] = {}
        paths: list[str] = []
        try:
            self._content = h5py.File(file, "r")
            self._content.visititems(lambda path, item: paths.append(path) if isinstance(item, h5py.Dataset) else None)
            problems = [f"{path}: {problem}" for path in paths if (problem := self._add(path))]
        except BROKEN as error:
            raise CheckpointError(f"{file} is no HDF5 file, or is damaged", [str(error)]) from error
        if problems or not paths:
            raise CheckpointError(f"{file} was not written by transformers", problems or ["it holds no tensors"],
                                  "Only the tf_model.h5 of its TensorFlow models is read.")

    def _add(self, path: str) -> str:
        """Take a dataset; what is wrong with it, or nothing."""
        name, dataset = torch_name(path), self._content[path]
        if name is None:
            return "is no weight"
        if name in self._paths:
            return f"is {name}, and so is {self._paths[name]}"
        if dataset.dtype.name not in DTYPES or dataset.shape is None:
            return f"holds {dataset.dtype.name}, expected {', '.join(DTYPES)}"
        if dataset.is_virtual or dataset.external:
            return "has its numbers in other files"
        if dataset.id.get_storage_size() * LARGEST_RATIO < dataset.nbytes:
            return f"claims {dataset.nbytes:,} bytes, and has {dataset.id.get_storage_size():,}"
        self._paths[name] = path
        return ""

    def names(self) -> list[str]:
        """The state-dict names."""
        return list(self._paths)

    def datasets(self) -> dict[str, LazyTensor]:
        """Every tensor as the file has it, by the path of its dataset."""
        return {path: self._stored(path) for path in self._paths.values()}

    def info(self, name: str) -> LazyTensor:
        """Shape and dtype."""
        return self.lazy(name)

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor, in PyTorch's layout."""
        return self.lazy(name).read()  # type: ignore[return-value]

    def lazy(self, name: str) -> LazyTensor:
        """A tensor as `write_checkpoint` takes it."""
        path = self._paths[name]
        return transposed(self._stored(path)) if is_kernel(path) else self._stored(path)

    def _stored(self, path: str) -> LazyTensor:
        def read() -> np.ndarray:
            try:
                return self._content[path][()]
            except BROKEN as error:
                raise CheckpointError(f"{self.path} is damaged", [f"{path}: {error}"]) from error

        dataset = self._content[path]
        return LazyTensor(dataset.shape, DTYPES[dataset.dtype.name], read)


def is_kernel(path: str) -> bool:
    """Whether a dataset is the weight of a linear layer, of which PyTorch has the transpose."""
    return path.endswith("/kernel:0")


def transposed(tensor: LazyTensor) -> LazyTensor:
    """The transpose of a tensor of any dtype that numpy has."""
    return LazyTensor(tensor.shape[::-1], tensor.dtype, lambda: stored(tensor())[0].T, tensor.position)


# -- writing ------------------------------------------------------------------------------------------------------------
def keras_path(param: Param, *, true_norms: bool) -> str:
    """Layer and path of a weight of TFMobileBert; the inverse of `torch_name` without the model's name.

    Args:
        param: the weight, by the name that it has under a head.
        true_norms: whether norms are Keras's own layers, with gamma and beta, and not elementwise maps.

    Example:
        >>> keras_path(Param("mobilebert.encoder.layer.3.ffn.0.output.dense.weight", (2, 3), "kernel"), true_norms=False)
        'mobilebert/encoder/layer_._3/ffn.0/output/dense/kernel:0'
        >>> keras_path(Param("cls.predictions.bias", (2,), "bias"), true_norms=False)
        'predictions___cls/predictions/bias:0'
    """
    owner, _, leaf = param.name.rpartition(".")
    if param.kind in ("norm_scale", "norm_shift") and (true_norms or owner.endswith("transform.LayerNorm")):
        leaf = "gamma" if param.kind == "norm_scale" else "beta"
    elif param.kind == "kernel":
        leaf = "kernel"
    elif param.kind == "embedding" and not owner.endswith(("word_embeddings", "decoder")):
        leaf = "embeddings"
    head = next((name for name in LAYERS if owner.startswith(name)), None)
    if head is not None:
        owner = owner.replace("cls", LAYERS[head], 1)
    parts: list[str] = []
    for part in owner.split("."):
        if part.isdigit():
            parts[-1] += f"_._{part}" if parts[-1] == "layer" else f".{part}"
        else:
            parts.append(part)
    return f"{'/'.join(parts)}/{leaf}:0"


def write_keras_weights(
    file: BinaryIO, model: str, tensors: Mapping[str, LazyTensor], wrote: Callable[[int], Any] = lambda count: None
) -> None:
    """Write a tf_model.h5, one tensor at a time.

    Args:
        file: a new file, opened for binary writing.
        model: the name that the datasets bear, such as "tf_mobile_bert_model".
        tensors: by `keras_path`, in the order of the model; already as Keras lays them out.
        wrote: is told of each tensor's bytes when they are written.

    Raises:
        BackendError: when h5py is not installed.
        CheckpointError: when HDF5 lacks a tensor's dtype.
    """
    if find_spec("h5py") is None:
        raise BackendError("tf_model.h5 needs h5py to be written", remedy="Install it with: pip install h5py")
    strange = [f"{path}: {tensor.dtype}" for path, tensor in tensors.items() if tensor.dtype not in DTYPES.values()]
    if strange:
        raise CheckpointError("an HDF5 file cannot hold these numbers", strange, "Convert them first: --dtype float32.")
    layers: dict[str, list[str]] = {}
    for path in tensors:
        layers.setdefault(path.split("/")[0], []).append(path)
    try:
        _write_groups(file, model, tensors, layers, wrote)
    except SystemError as error:  # what HDF5 makes of a full disk, when it closes the file after that
        raise error.__cause__ or error from None


def _write_groups(
    file: BinaryIO, model: str, tensors: Mapping[str, LazyTensor], layers: Mapping[str, list[str]],
    wrote: Callable[[int], Any],
) -> None:
    import h5py

    with h5py.File(file, "w") as content:
        _put_names(content, "layer_names", list(layers))
        content.attrs["backend"], content.attrs["keras_version"] = "tensorflow", "2.15.0"
        for layer, paths in layers.items():
            group = content.create_group(layer)
            _put_names(group, "weight_names", [f"{model}/{path}" for path in paths])
            for path in paths:
                group.create_dataset(f"{model}/{path}", data=np.ascontiguousarray(stored(tensors[path]())[0]))
                wrote(tensors[path].size)
        _put_names(content.create_group("top_level_model_weights"), "weight_names", [])


def _put_names(group: Any, attribute: str, names: list[str]) -> None:
    import h5py

    text = h5py.string_dtype()
    if len(names) <= MOST_NAMES:
        group.attrs.create(attribute, names, (len(names),), text)
    else:
        for index, start in enumerate(range(0, len(names), MOST_NAMES)):
            part = names[start:start + MOST_NAMES]
            group.attrs.create(f"{attribute}{index}", part, (len(part),), text)
