"""What a machine can do at most, measured in the same run: products a second in each precision, and bytes a second.

From these come the floors beside the figures: operations over the rate of products, weights over the rate of reading.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.bench.subjects import PRECISIONS, Engine, Setup, Subject

ROWS, INPUTS, OUTPUTS = 1024, 768, 3072
"""A product that is large enough for the highest rate, and of the kind that encoders have."""
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


class Rates(Engine):
    """The highest rates: PyTorch's products, and sums over as many bytes as the weights have, since caches keep some."""

    def __init__(self, setup: Setup) -> None:
        import torch

        torch.set_num_threads(setup.threads)
        self.operations = {name: operation for precision in PRECISIONS for name, operation in _products(precision).items()}
        self.buffers = {precision: torch.zeros(setup.weights * size // 8 + 1, dtype=torch.int64)
                        for precision, size in PRECISIONS.items()}

    def turn(self, seconds: float) -> dict[str, Any]:
        """Operations a second and bytes a second in each precision, the best of its ways; `seconds` for each way."""
        work = 2 * ROWS * INPUTS * OUTPUTS
        rates: dict[str, float] = {}
        for name, operation in self.operations.items():
            precision = name.split()[0]
            rates[precision] = max(work / _median_time(operation, seconds / 4), rates.get(precision, 0.0))
        reading = {precision: buffer.nbytes / _median_time(buffer.sum, seconds / 4)
                   for precision, buffer in self.buffers.items()}
        return {"operations": rates, "bytes": reading}

    def run(self) -> Any:
        return None

    def hidden(self, output: Any) -> np.ndarray:
        return np.zeros(0, np.float32)

    def evidence(self) -> str:
        return ""


RATES = Subject("machine", "highest rates", "int8", Rates, needs=("torch",), made_of=())


def _products(precision: str) -> dict[str, Callable[[], Any]]:
    """Ways to multiply; which one is fastest depends on the CPU, so all are tried."""
    import torch

    if precision != "int8":
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        left, right = torch.rand(ROWS, INPUTS).to(dtype), torch.rand(INPUTS, OUTPUTS).to(dtype)
        return {f"{precision} product": lambda: left @ right}
    left = torch.randint(0, 127, (ROWS, INPUTS), dtype=torch.int8)
    right = torch.randint(-127, 127, (INPUTS, OUTPUTS), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(right.t().contiguous(), [ROWS, INPUTS])
    scales, zeros = torch.ones(OUTPUTS), torch.zeros(OUTPUTS, dtype=torch.int64)
    unsigned = left.to(torch.uint8)

    def prepacked() -> Any:
        return torch.ops.onednn.qlinear_pointwise(unsigned, 1.0, 0, packed, scales, zeros, None, 64.0, 0, torch.uint8,
                                                  "none", [], "")

    return {"int8 product": lambda: torch._int_mm(left, right), "int8 prepacked": prepacked}


def _median_time(operation: Callable[[], Any], seconds: float) -> float:
    operation()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        operation()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def describe(packages: tuple[str, ...]) -> dict[str, Any]:
    """The CPU, its instruction sets, the system, and the versions of some packages."""
    from bertkit.core.native import cores

    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"cpu": _cpu_facts().get("model name") or platform.processor() or platform.machine(),
            "flags": [flag for flag in FLAGS if flag in cpu_flags()], "cores": cores(),
            "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}", "versions": versions}


def cpu_flags() -> set[str]:
    """The instruction sets of this CPU, as Linux calls them; none where it cannot be asked."""
    return set(_cpu_facts().get("flags", "").split())


def _cpu_facts() -> dict[str, str]:
    facts: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    return facts


def peak_memory() -> int:
    """The most memory that this process held since `forget_peak_memory`, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak_memory() -> None:
    """Let `peak_memory` begin anew, where the system can."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
