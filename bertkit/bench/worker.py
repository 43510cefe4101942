"""The process of a subject: it answers commands on standard input, one JSON object a line, until that ends.

`python -m bertkit.bench.worker MODULE serve|make NAME SETUP`. What the libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from bertkit.bench.machine import RATES, forget_peak_memory, peak_memory
from bertkit.bench.subjects import Engine, Setup, token_ids


def main(module: str, task: str, name: str, setup_json: str) -> None:
    """Serve a subject, or make what others need."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    setup = Setup(**json.loads(setup_json))
    suite = import_module(module)
    try:
        if task == "make":
            make(suite.ARTEFACTS[name], setup, name)
            engine = None
        else:
            engine = (RATES if name == RATES.name else suite.SUBJECTS[name]).start(setup)
        _answer(answers, {})
    except Exception as error:
        _answer(answers, _failure(error))
        raise
    if engine is not None:
        serve(engine, setup, answers)


def make(maker: Any, setup: Setup, name: str) -> None:
    """Make a file or directory; it gets its name when it is complete, and what was needed on the way goes."""
    with tempfile.TemporaryDirectory(dir=setup.directory) as directory:
        unfinished = Path(directory, name)
        maker(setup, unfinished)
        unfinished.rename(setup.file(name))


def serve(engine: Engine, setup: Setup, answers: IO[str]) -> None:
    """Answer commands."""
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        try:
            _answer(answers, COMMANDS[command](engine, setup, **request))
        except Exception as error:  # whatever another library raises becomes the reason why it has no figure
            _answer(answers, _failure(error))


LONG = 1.0
"""Seconds of a first pass that need no second one to know how long a pass takes."""


def _prepare(engine: Engine, setup: Setup, batch: int, length: int, output: str) -> dict[str, Any]:
    """Get ready for a shape; leaves the hidden states in a file, and tells how long a pass takes."""
    import numpy as np

    engine.prepare(token_ids(batch, length, setup.config["vocab_size"]))
    start = time.perf_counter()
    hidden = engine.run()
    seconds = time.perf_counter() - start
    np.save(output, engine.hidden(hidden))
    if seconds < LONG:
        seconds = engine.seconds()
    gc.collect()
    _return_free_memory()
    forget_peak_memory()
    return {"seconds": seconds}


def _turn(engine: Engine, setup: Setup, seconds: float) -> dict[str, Any]:
    return {"found": engine.turn(seconds), "peak_bytes": peak_memory()}


def _explain(engine: Engine, setup: Setup) -> dict[str, Any]:
    return {"evidence": engine.evidence(), "shares": engine.shares()}


COMMANDS = {"prepare": _prepare, "turn": _turn, "explain": _explain}


def _answer(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")


def _failure(error: Exception) -> dict[str, str]:
    import traceback

    traceback.print_exc()
    return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}


def _return_free_memory() -> None:
    """Give freed memory back to the system where the C library can, so that making a model does not count as using it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
