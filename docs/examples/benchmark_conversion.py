"""What converting NVIDIA's MegatronBERT costs, beside copying and hashing the file, and beside transformers' script.

    python docs/examples/benchmark_conversion.py megatron_bert_345m_v0_1_uncased.zip
    python -m tests.conversion.originals.megatron --ngc made.zip     makes such a file, of random numbers

With `--transformers /path/to/an/environment/bin/python` (transformers 4.37.2 and torch) its script joins in. All take turns in
one run, each in a process of its own. Memory is the largest resident set, less that of an interpreter with the imports.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

COPY = """
import hashlib, os, shutil, sys
shutil.copyfile(sys.argv[1], sys.argv[2])
with open(sys.argv[2], "rb") as file:
    os.fsync(file.fileno())
    hashlib.file_digest(file, "sha256").hexdigest()
"""
CONVERT = "import sys; from bertkit.cli import main; sys.exit(main(['convert', *sys.argv[1:], '--overwrite', '--json']))"
IMPORTS = "import bertkit.cli, bertkit.convert"
TRANSFORMERS = "transformers.models.megatron_bert.convert_megatron_bert_checkpoint"


def measured(command: Sequence[str], **environment: str) -> tuple[float, float]:
    """Seconds of a command, and its largest resident set in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **environment})
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command[:4])} failed:\n{said.decode()}")
    return seconds, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--transformers", metavar="PYTHON", help="interpreter that has transformers 4.37.2")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.source.resolve().parent) as place:
        # transformers writes beside its source: it gets a name of its own for the same file.
        beside = Path(place, "theirs", arguments.source.name)
        beside.parent.mkdir()
        os.link(arguments.source, beside)
        source = str(arguments.source)
        work = {"copy and hash": ([sys.executable, "-c", COPY, source, f"{place}/copy"], {}),
                "bertkit convert": ([sys.executable, "-c", CONVERT, source, f"{place}/ours"], {})}
        idle = {"copy and hash": measured([sys.executable, "-c", "pass"])[1],
                "bertkit convert": measured([sys.executable, "-c", IMPORTS])[1]}
        if arguments.transformers:
            python = arguments.transformers
            work["transformers"] = ([python, "-m", TRANSFORMERS, str(beside)], {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"})
            idle["transformers"] = measured([python, "-c", f"import torch, {TRANSFORMERS}"])[1]
        times: dict[str, list[float]] = {name: [] for name in work}
        memory: dict[str, float] = dict.fromkeys(work, 0)
        for _ in range(arguments.rounds):
            for name, (command, environment) in work.items():
                seconds, size = measured(command, **environment)
                times[name].append(seconds)
                memory[name] = max(memory[name], size - idle[name])
                for written in ("copy", "ours"):
                    shutil.rmtree(f"{place}/{written}", ignore_errors=True)
                Path(place, "copy").unlink(missing_ok=True)
                os.sync()  # or the next one pays for what this one left to the disk
    base = statistics.median(times["copy and hash"])
    print(f"{source}, {arguments.source.stat().st_size / 1e6:.0f} MB, median of {arguments.rounds}")
    print(f"{'':18}{'seconds':>9}{'ratio':>8}{'memory above imports':>23}")
    for name, values in times.items():
        seconds = statistics.median(values)
        print(f"{name:18}{seconds:9.2f}{seconds / base:8.2f}{memory[name]:20.0f} MB")


if __name__ == "__main__":
    main()
