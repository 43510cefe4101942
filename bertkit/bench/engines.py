"""The engines that run a model: PyTorch, TensorFlow, ONNX Runtime, OpenVINO, CTranslate2; each imported when it starts."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.bench.machine import cpu_flags
from bertkit.bench.subjects import Engine, largest_shares


class Torch(Engine):
    """PyTorch, eager.

    Args:
        model: from ids to hidden states, or to an output whose first entry they are.
        threads: how many.
    """

    def __init__(self, model: Any, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.model = torch, model.eval()

    def prepare(self, ids: np.ndarray) -> None:
        self.ids = self.torch.from_numpy(ids)

    def run(self) -> Any:
        with self.torch.inference_mode():
            return self.model(self.ids)

    def hidden(self, output: Any) -> np.ndarray:
        tensor = output if isinstance(output, self.torch.Tensor) else output[0]
        return tensor.float().numpy()

    def evidence(self) -> str:
        """The products that oneDNN multiplies, which are all but those of float32 outside of `torch.compile`."""
        verbose = self.torch.backends.mkldnn.verbose
        with printed() as output, verbose(verbose.VERBOSE_ON if hasattr(verbose, "VERBOSE_ON") else 1):
            self.run()
        return products_of_onednn(output()) or "float32, not by oneDNN"

    def shares(self) -> dict[str, float]:
        """By operator; what `torch.compile` generated is one."""
        with self.torch.profiler.profile(activities=[self.torch.profiler.ProfilerActivity.CPU]) as profile:
            self.run()
        return largest_shares(
            ("generated code" if "CompiledFxGraph" in event.key else event.key.split("::")[-1], event.self_cpu_time_total)
            for event in profile.key_averages())


class CompiledTorch(Torch):
    """`torch.compile` with frozen weights, for each shape anew.

    Args:
        model: as above.
        threads: how many.
        autocast: whether what is not quantised runs in bfloat16.
    """

    def __init__(self, model: Any, threads: int, autocast: bool = False) -> None:
        super().__init__(model, threads)
        import torch._inductor.config

        torch._inductor.config.freezing = True
        self.autocast = autocast

    def prepare(self, ids: np.ndarray) -> None:
        super().prepare(ids)
        self.torch.compiler.reset()
        self.compiled = self.torch.compile(self.model, dynamic=False)
        self.run()  # which compiles it

    def run(self) -> Any:
        with self.torch.no_grad(), self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.autocast):
            return self.compiled(self.ids)


class TensorFlow(Engine):
    """A Keras model as a `tf.function`.

    Args:
        load: loads the model, once the number of threads is set.
        threads: how many.
        xla: whether to compile it with XLA.
    """

    def __init__(self, load: Callable[[], Any], threads: int, xla: bool) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self.tf, self.xla = tf, xla
        model = load()
        self.function = tf.function(lambda ids: model(ids)["last_hidden_state"], jit_compile=xla)

    def prepare(self, ids: np.ndarray) -> None:
        self.ids = self.tf.constant(ids, self.tf.int32)
        self.run()  # which traces the function

    def run(self) -> Any:
        return self.function(self.ids)

    def hidden(self, output: Any) -> np.ndarray:
        return output.numpy()

    def evidence(self) -> str:
        return "tf.function with XLA" if self.xla else "tf.function"


class OnnxRuntime(Engine):
    """ONNX Runtime on a model file."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        self.session = self._session()

    def _session(self, profile: str | None = None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])

    def run(self) -> Any:
        return self.session.run(None, {"ids": self.ids})[0]

    def hidden(self, output: Any) -> np.ndarray:
        return output

    def evidence(self) -> str:
        """The operators that multiply, by the session's own profile."""
        return counted(name for name, _ in self._profile() if re.search("MatMul|Attention|Gemm", name))

    def shares(self) -> dict[str, float]:
        return largest_shares(self._profile())

    def _profile(self) -> list[tuple[str, float]]:
        """Operator and time of each step of one pass."""
        with tempfile.TemporaryDirectory() as directory:
            session = self._session(os.path.join(directory, "profile"))
            session.run(None, {"ids": self.ids})
            session.run(None, {"ids": self.ids})
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        ran = [(event["args"]["op_name"], event["dur"]) for event in events if event["name"].endswith("kernel_time")]
        return ran[len(ran) // 2:]  # the first pass arranges the weights


class OpenVino(Engine):
    """OpenVINO on a model file, compiled for each shape anew.

    Args:
        path: the .xml file.
        threads: how many.
        precision: "f32" or "bf16", for what is not quantised.
    """

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import openvino

        self.openvino, self.core, self.path = openvino, openvino.Core(), path
        self.settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "ENABLE_HYPER_THREADING": True,
                         "INFERENCE_PRECISION_HINT": precision}

    def prepare(self, ids: np.ndarray) -> None:
        super().prepare(ids)
        self.request = self.compiled = None  # the old one goes before the new one comes
        model = self.core.read_model(self.path)
        model.reshape(list(ids.shape))
        self.compiled = self.core.compile_model(model, "CPU", self.settings)
        self.request = self.compiled.create_infer_request()
        self.request.set_input_tensor(self.openvino.Tensor(ids))

    def run(self) -> Any:
        self.request.infer()
        return self.request.get_output_tensor()

    def hidden(self, output: Any) -> np.ndarray:
        return output.data.astype(np.float32)

    def evidence(self) -> str:
        """Type and kernel of each product in the graph that is executed."""
        facts = [operation.get_rt_info() for operation in self.compiled.get_runtime_model().get_ops()]
        return counted(f"{fact['layerType'].value} {fact['runtimePrecision'].value} by {fact['primitiveType'].value}"
                       for fact in facts if re.search("FullyConnected|MatMul|Attention|MHA", str(fact["layerType"].value)))

    def shares(self) -> dict[str, float]:
        model = self.core.read_model(self.path)
        model.reshape(list(self.ids.shape))
        request = self.core.compile_model(model, "CPU", {**self.settings, "PERF_COUNT": True}).create_infer_request()
        for _ in range(2):
            request.infer({0: self.ids})
        return largest_shares((step.node_type, step.real_time.total_seconds()) for step in request.get_profiling_info())


class CTranslate2(Engine):
    """CTranslate2's encoder.

    Args:
        directory: the converted model.
        threads: how many.
        compute_type: e.g. "int8".
    """

    def __init__(self, directory: Path, threads: int, compute_type: str) -> None:
        import logging

        if "avx512f" in cpu_flags():
            os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")  # which it does not choose by itself
        import ctranslate2

        ctranslate2.set_log_level(logging.INFO)
        with printed(2) as output:
            self.encoder = ctranslate2.Encoder(str(directory), "cpu", compute_type=compute_type, inter_threads=1,
                                               intra_threads=threads)
        backends = re.findall(r"(GEMM_S8 backend: \w+|Selected ISA: \w+)", output())
        self.settings = ", ".join([f"compute type {self.encoder.compute_type}", *backends])

    def prepare(self, ids: np.ndarray) -> None:
        self.ids = ids.tolist()

    def run(self) -> Any:
        return self.encoder.forward_batch(self.ids)

    def hidden(self, output: Any) -> np.ndarray:
        return np.array(output.last_hidden_state)

    def evidence(self) -> str:
        return self.settings


def counted(names: Any) -> str:
    """How often each name occurs, e.g. "12 Attention, 36 MatMul".

    Example:
        >>> counted(["b", "a", "b"])
        '2 b, 1 a'
    """
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())


def products_of_onednn(log: str) -> str:
    """The matrix products in what oneDNN prints with `ONEDNN_VERBOSE=1`: their types and their kernels.

    Example:
        >>> products_of_onednn("onednn_verbose,v1,primitive,exec,cpu,matmul,brg:avx512,undef,src:u8::x wei:s8::y dst:f32::z")
        '1 u8 x s8 by brg:avx512'
    """
    found = []
    for line in log.splitlines():
        fields = line.split(",")
        if line.startswith("onednn_verbose") and "exec" in fields:
            primitive, kernel, _, types = fields[fields.index("exec") + 2:][:4]
            operands = dict(re.findall(r"(src|wei)[:_](\w+?):", types))
            if primitive in ("matmul", "inner_product", "gemm_api") and len(operands) == 2:
                found.append(f"{operands['src']} x {operands['wei']} by {kernel or primitive}")
    return counted(found)


@contextlib.contextmanager
def printed(descriptor: int = 1) -> Iterator[Callable[[], str]]:
    """What libraries of C and C++ write to standard output (1) or error (2) inside the block; ask for it after it."""
    library = ctypes.CDLL(None)
    text = ""
    kept = os.dup(descriptor)
    sys.stdout.flush()
    library.fflush(None)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield lambda: text
        finally:
            library.fflush(None)
            os.dup2(kept, descriptor)
            os.close(kept)
            file.seek(0)
            text = file.read().decode("utf-8", "replace")
