"""Forward latency of each variant, beside transformers' in the same run; import time and memory of the packages.

    python docs/examples/benchmark.py --transformers /path/to/an/environment/bin/python

The other interpreter has transformers 4.37.2 and torch. Each library works in a process of its own, and the two take
turns, so that what else the machine does falls on both. Ratios travel, milliseconds do not.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

SHAPES = {
    "MobileBert": {},
    "IBert": {},
    "MegatronBert": {"num_hidden_layers": 6},
    "Yoso": {"num_hidden_layers": 6},
}
"""The documented sizes; fewer layers where the model is large."""

BATCH, LENGTH, THREADS = 1, 128, 2


def torch_model(library: str, name: str) -> Callable[[], object]:
    import torch

    module = __import__(library)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = getattr(module, f"{name}Model")(getattr(module, f"{name}Config")(**SHAPES[name])).eval()
    ids = torch.randint(5, 1000, (BATCH, LENGTH))

    def run() -> object:
        with torch.inference_mode():
            return model(ids)

    return run


def tensorflow_model(name: str, mode: str) -> Callable[[], object]:
    import tensorflow as tf

    import bertkit_tf

    model = getattr(bertkit_tf, f"TF{name}Model")(getattr(bertkit_tf, f"{name}Config")(**SHAPES[name]))
    ids = tf.random.uniform((BATCH, LENGTH), 5, 1000, tf.int32)
    call = model if mode == "eager" else tf.function(model, jit_compile=mode == "xla")
    return lambda: call(ids)


def work(library: str, mode: str) -> None:
    """Answer each name on standard input with the seconds that one forward pass takes."""
    models: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in models:
            models.clear()
            models[name] = torch_model(library, name) if mode == "torch" else tensorflow_model(name, mode)
            models[name]()
            models[name]()
        start = time.perf_counter()
        models[name]()
        print(time.perf_counter() - start, flush=True)


class Worker:
    """A process that measures one library."""

    def __init__(self, python: str, library: str, mode: str) -> None:
        self.process = subprocess.Popen([python, __file__, "--work", library, mode], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def measure(self, name: str) -> float:
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline() or "nan")


def import_cost(package: str) -> str:
    code = (f"import time, resource; s = time.perf_counter(); import {package}; "
            "print(time.perf_counter() - s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(5)]
    return f"{min(float(run[0]) for run in runs) * 1000:.0f} ms, {min(int(run[1]) for run in runs) / 1024:.0f} MB at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", metavar="PYTHON", help="interpreter of an environment with transformers 4.37.2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    for package in ("bertkit", "bertkit_tf"):
        print(f"import {package}: {import_cost(package)}")
    workers = {"torch": Worker(sys.executable, "bertkit", "torch")}
    if options.transformers:
        workers = {"transformers": Worker(options.transformers, "transformers", "torch"), **workers}
    workers |= {f"tf {mode}": Worker(sys.executable, "bertkit_tf", mode) for mode in ("graph", "xla", "eager")}
    first = next(iter(workers))
    print(f"\nbatch {BATCH} x {LENGTH}, {THREADS} threads, median of {options.rounds} rounds; times of {first} in brackets")
    for name in SHAPES:
        times: dict[str, list[float]] = {worker: [] for worker in workers}
        for _ in range(options.rounds):
            for worker in workers:
                times[worker].append(workers[worker].measure(name))
        medians = {worker: statistics.median(seconds) for worker, seconds in times.items()}
        row = [f"{worker} {seconds * 1000:.0f} ms ({medians[first] / seconds:.2f})" for worker, seconds in medians.items()]
        print(f"{name:13s} {'  '.join(row)}", flush=True)


if __name__ == "__main__":
    main()
