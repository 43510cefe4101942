"""What is measured for YOSO: its attention beside softmax attention, alone and in a whole model, as sequences grow.

Attention alone gets random queries, keys and values of 12 heads of 64; "train" adds the gradients of all three. Memory counts
what a process holds at most while it works, its inputs among it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bertkit.bench.engines import Engine
from bertkit.bench.report import draw_growth
from bertkit.bench.subjects import PRECISIONS, Setup, Subject
from bertkit.core.hashing import hash_layout, random_signs
from bertkit.core.native import PORTABLE
from bertkit.core.yoso import YosoConfig

BASELINE = "softmax"
"""The subject that speed-ups refer to: PyTorch's scaled_dot_product_attention in float32."""
PACKAGES = ("torch", "tensorflow", "tensorflow-cpu", "keras", "transformers")
LENGTHS, BATCHES = [2**power for power in range(9, 17)], [1]
"""What is measured where nothing else is asked for."""
HASHES = (8, 16, 32, 64)
SHOWN_ROWS = 256
"""Rows of the first head that are compared with those of the baseline."""
WEIGHTS = 1 << 24
"""How many numbers are read to find out how fast that is."""


def make_setup(directory: str, threads: int, layers: int) -> Setup:
    """The model of a run."""
    config = YosoConfig(num_hidden_layers=layers, max_position_embeddings=LENGTHS[-1], vocab_size=1000, num_hash=32,
                        use_expectation=False, hash_seed=0)
    return Setup(directory, threads, config.to_dict(), WEIGHTS)


def longest(config: dict[str, Any]) -> int:
    """Tokens of the longest sequence."""
    return config["max_position_embeddings"]


def title(found: Mapping[str, Any]) -> str:
    """What stands above the picture."""
    return f"YOSO's attention beside softmax attention: {found['threads']} threads, {found['machine']['cpu']}"


draw = draw_growth


def work(subject: Subject, config: dict[str, Any], batch: int, length: int) -> tuple[int, int]:
    """The least that a subject has to compute and to read, for its attention alone.

    Softmax and the expectation multiply matrices, twice forward and five times backward. Sampling hashes queries and keys; then
    each hash function adds a row to its table for each key, and another one to the result for each query. Backward it does the
    same for the values; for queries and keys it takes as many products as if each row collided with one other.

    Example:
        >>> config = YosoConfig().to_dict()
        >>> work(SUBJECTS["softmax"], config, 1, 4096)[0] // work(SUBJECTS["sample-32"], config, 1, 4096)[0]
        59
    """
    heads, width = config["num_attention_heads"], config["hidden_size"]
    rows, trains = batch * length, subject.name.endswith("-train")
    size = 4 * rows * width * PRECISIONS[subject.precision] * (3 if trains else 1)
    hashes = _hashes(subject.name, config)
    if hashes is None:
        return 2 * rows * length * width * (7 if trains else 2), size
    layout = hash_layout(width // heads, hashes, config["hash_code_len"])
    hashing = 2 * rows * heads * 3 * layout.num_part * layout.padded_dim * (1 + int(math.log2(layout.padded_dim)))
    sums = 2 * rows * hashes * width
    return hashing + sums * (2 + 6 if trains else 1), size


def _hashes(name: str, config: dict[str, Any]) -> int | None:
    """The hash functions of a subject; None where it does not sample."""
    if "sample" not in name:
        return None
    return next((hashes for hashes in HASHES if f"-{hashes}" in name), config["num_hash"])


# -- attention alone --------------------------------------------------------------------------------------------------
class Attention(Engine):
    """Attention over random vectors."""

    def __init__(self, setup: Setup, trains: bool) -> None:
        config = setup.config
        self.heads, self.trains, self.bits = config["num_attention_heads"], trains, config["hash_code_len"]
        self.head_size = config["hidden_size"] // self.heads

    def vectors(self, ids: np.ndarray) -> list[np.ndarray]:
        """Queries, keys, values and gradients of a shape; queries and keys are unit vectors in clusters, as trained ones."""
        random = np.random.default_rng(0)
        shape = ids.shape[0], self.heads, ids.shape[1], self.head_size
        centres = random.normal(size=(64, self.head_size))
        found = [random.standard_normal(shape, np.float32) for _ in range(4)]
        for x in found[:2]:
            x += 0.6 * centres[random.integers(0, len(centres), shape[:3])]
            x /= np.linalg.norm(x, axis=-1, keepdims=True)
        return found

    def signs(self, hashes: int) -> np.ndarray:
        """The hash functions."""
        return random_signs(0, self.heads, self.head_size, hashes, self.bits)

    def evidence(self) -> str:
        return ""


class TorchAttention(Attention):
    """Attention in PyTorch.

    Args:
        setup: what all subjects share.
        trains: whether gradients are part of it.
        attend: makes, of this engine, a function of queries, keys, values and a mask.
        dtype: of the vectors, by its name.
    """

    def __init__(self, setup: Setup, trains: bool, attend: Callable[[TorchAttention], Callable],
                 dtype: str = "float32") -> None:
        import torch

        super().__init__(setup, trains)
        torch.set_num_threads(setup.threads)
        self.torch, self.dtype = torch, getattr(torch, dtype)
        self.attend = attend(self)

    def prepare(self, ids: np.ndarray) -> None:
        *inputs, self.grad = (self.torch.from_numpy(x).to(self.dtype) for x in self.vectors(ids))
        self.inputs = [x.requires_grad_(self.trains) for x in inputs]
        self.mask = self.torch.ones(ids.shape)

    def run(self) -> Any:
        if not self.trains:
            with self.torch.inference_mode():
                return self.attend(*self.inputs, self.mask)
        output = self.attend(*self.inputs, self.mask)
        self.torch.autograd.grad(output, self.inputs, self.grad)
        return output.detach()

    def hidden(self, output: Any) -> np.ndarray:
        return output[:, 0, :SHOWN_ROWS].float().numpy()


class TensorFlowAttention(Attention):
    """YOSO's attention in TensorFlow, as a `tf.function`."""

    def __init__(self, setup: Setup, trains: bool, hashes: int) -> None:
        import tensorflow as tf

        from bertkit_tf.kernels.lsh import yoso_sampling

        tf.config.threading.set_intra_op_parallelism_threads(setup.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        super().__init__(setup, trains)
        signs = tf.constant(self.signs(hashes))
        self.tf = tf

        @tf.function
        def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, grad: tf.Tensor, mask: tf.Tensor) -> Any:
            def forward() -> tf.Tensor:
                return yoso_sampling(query, key, value, mask, mask, self.bits, hashes, True, True, signs)

            if not trains:
                return forward()
            with tf.GradientTape() as tape:
                tape.watch((query, key, value))
                output = forward()
            return output, *tape.gradient(output, (query, key, value), grad)

        self.attend = attend

    def prepare(self, ids: np.ndarray) -> None:
        self.inputs = [self.tf.constant(x) for x in (*self.vectors(ids), np.ones(ids.shape, np.float32))]
        self.run()  # which traces the function

    def run(self) -> Any:
        output = self.attend(*self.inputs)
        return output[0] if self.trains else output

    def hidden(self, output: Any) -> np.ndarray:
        return output[:, 0, :SHOWN_ROWS].numpy()

    def evidence(self) -> str:
        return f"tf.function, {_level()}"


def _level() -> str:
    from bertkit.core.native import kernels_status

    return f"level {kernels_status().level}"


def _softmax(engine: TorchAttention) -> Callable:
    from torch.nn.functional import scaled_dot_product_attention

    return lambda query, key, value, mask: scaled_dot_product_attention(query, key, value)


def _expectation(engine: TorchAttention) -> Callable:
    from bertkit.kernels.lsh import yoso_expectation

    return lambda query, key, value, mask: yoso_expectation(query, key, value, mask, mask, engine.bits)


def _sampling(engine: TorchAttention, hashes: int) -> Callable:
    from bertkit.kernels.lsh import yoso_sampling

    signs = engine.torch.from_numpy(engine.signs(hashes))
    return lambda query, key, value, mask: yoso_sampling(
        query, key, value, mask, mask, engine.bits, hashes, True, True, signs)


class SampledTorch(TorchAttention):
    """YOSO's sampled attention in PyTorch."""

    def evidence(self) -> str:
        return _level()


# -- whole models -----------------------------------------------------------------------------------------------------
class TorchModel(Engine):
    """YOSO's layers in PyTorch, with its attention or another one.

    Args:
        setup: what all subjects share.
        softmax: whether softmax attention stands in for the sampled one.
    """

    def __init__(self, setup: Setup, softmax: bool) -> None:
        import torch

        from bertkit import YosoModel
        from bertkit.models import yoso

        torch.set_num_threads(setup.threads)
        torch.manual_seed(0)
        self.torch, self.softmax = torch, softmax
        config = YosoConfig(**{name: value for name, value in setup.config.items() if name != "model_type"})
        if softmax:
            def attend(query: Any, key: Any, value: Any, *_: Any) -> Any:
                return torch.nn.functional.scaled_dot_product_attention(query, key, value)

            yoso.yoso_sampling = attend  # this process has no other use for it
        self.model = YosoModel(config).eval()

    def prepare(self, ids: np.ndarray) -> None:
        self.ids = self.torch.from_numpy(ids % 1000)

    def run(self) -> Any:
        with self.torch.inference_mode():
            return self.model(self.ids)[0]

    def hidden(self, output: Any) -> np.ndarray:
        return output[:, :SHOWN_ROWS].numpy()

    def evidence(self) -> str:
        return "scaled_dot_product_attention in every layer" if self.softmax else _level()


# -- transformers' ------------------------------------------------------------------------------------------------------
class TransformersExpectation(TorchAttention):
    """The attention of transformers' YOSO, between its projections, on a CPU: it can only expect."""

    def __init__(self, setup: Setup) -> None:
        from transformers import YosoConfig as Config
        from transformers.models.yoso import modeling_yoso

        super().__init__(setup, False, lambda engine: None)  # a module stands in for a function
        known = ("hidden_size", "num_attention_heads", "hash_code_len")
        config = Config(**{name: setup.config[name] for name in known}, use_expectation=True)
        self.module = modeling_yoso.YosoSelfAttention(config).eval()

    def run(self) -> Any:
        query = self.inputs[0]
        hidden = query.transpose(1, 2).flatten(2)  # it projects queries, keys and values from this
        mask = self.torch.zeros(len(hidden), 1, 1, hidden.shape[1])
        with self.torch.inference_mode():
            return self.module(hidden, mask)[0].unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)


ARTEFACTS: dict[str, Callable] = {}
"""Nothing is made before."""


def _subject(name: str, title: str, start: Callable[[Setup, bool], Engine], needs: tuple[str, ...] = ("torch",),
             **options: Any) -> list[Subject]:
    """Attention alone, forward and in training."""
    options = {"precision": "fp32", "made_of": (), **options}
    longest_train = options.pop("longest_train", None)
    return [Subject(name, title, start=lambda setup: start(setup, False), needs=needs, **options),
            Subject(f"{name}-train", f"{title}, train", start=lambda setup: start(setup, True), needs=needs,
                    **{**options, "most_tokens": longest_train or options.get("most_tokens")})]


def _samples(hashes: int, environment: Mapping[str, str] | None = None, suffix: str = "", **options: Any) -> list[Subject]:
    return _subject(
        f"sample-{hashes}{suffix}", f"bertkit, {hashes} hashes{suffix.replace('-', ', ')}",
        lambda setup, trains: SampledTorch(setup, trains, functools.partial(_sampling, hashes=hashes)), ours=True,
        environment=environment or {}, **options)


_SUBJECTS = [
    *_subject(BASELINE, "softmax, PyTorch fp32", lambda setup, trains: TorchAttention(setup, trains, _softmax),
              most_tokens=32768, longest_train=16384),
    *_subject("softmax-bf16", "softmax, PyTorch bf16",
              lambda setup, trains: TorchAttention(setup, trains, _softmax, "bfloat16"), precision="bf16",
              most_tokens=32768, longest_train=16384),
    Subject("transformers-expectation", "transformers' YOSO, expectation", "fp32", TransformersExpectation,
            ("torch", "transformers"), (), most_tokens=8192),
    *_subject("expectation", "bertkit, expectation", lambda setup, trains: TorchAttention(setup, trains, _expectation),
              ours=True, most_tokens=8192),
    *(subject for hashes in HASHES for subject in _samples(hashes)),
    *_samples(32, {"BERTKIT_KERNELS": "avx2"}, "-avx2"),
    *_samples(32, {"BERTKIT_KERNELS": PORTABLE}, "-portable", most_tokens=8192),
    *_subject("sample-32-tf", "bertkit, 32 hashes, TensorFlow", lambda setup, trains: TensorFlowAttention(setup, trains, 32),
              ("tensorflow",), ours=True),
    Subject("model-softmax", "whole model with softmax", "fp32", lambda setup: TorchModel(setup, True), ("torch",), (),
            most_tokens=16384),
    Subject("model-sample", "whole YosoModel, 32 hashes", "fp32", lambda setup: TorchModel(setup, False), ("torch",), (),
            ours=True, most_tokens=16384),
]
SUBJECTS = {subject.name: subject for subject in _SUBJECTS}
"""Every subject by its name, in the order of the table."""
