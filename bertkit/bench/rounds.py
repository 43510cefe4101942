"""Processes that take turns: in each round every subject works for a moment, alone, while the others wait.

So whatever else the machine does hits all alike, and the median over the rounds forgets it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.bench.machine import RATES, describe
from bertkit.bench.subjects import Setup, Subject
from bertkit.core.native import cores
from bertkit.core.progress import progress

TURN = 0.25
"""Seconds of a turn."""
PAUSE = 0.05
"""Seconds between turns: threads that still wait for work in a loop give up."""
PATIENCE = 20.0
"""Seconds that a subject's turns may take together at one shape; a slow one takes part in fewer rounds, at least one."""
AT_ONCE = 4
"""Subjects that are prepared at the same time, at most: compiling needs memory."""
LIMIT = 1800.0
"""Seconds after which a subject that gives no answer counts as failed."""


class WorkerError(Exception):
    """A subject's process could not do what it was asked to do; the message is for the report."""


class Worker:
    """A subject's process.

    Args:
        module: the suite, a module with `SUBJECTS` and `ARTEFACTS`.
        task: "serve" a subject, or "make" what subjects need.
        name: which one.
        setup: what all share.
        environment: variables of the process.

    Raises:
        WorkerError: it could not start.
    """

    def __init__(self, module: str, task: str, name: str, setup: Setup, environment: Mapping[str, str] | None = None) -> None:
        self.log = setup.file(f"{task}-{name}.log")
        threads = str(setup.threads)
        environment = {
            **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TF_CPP_MIN_LOG_LEVEL": "3",
            "USE_TF": "0", "TOKENIZERS_PARALLELISM": "false", **(environment or {})}
        package = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bertkit.bench.worker", module, task, name, setup.to_json()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0, env=environment)
        self._received = b""
        try:
            self._answer()
        except WorkerError:
            self.close()
            raise

    def ask(self, command: str, **values: Any) -> dict[str, Any]:
        """What the process answers.

        Raises:
            WorkerError: it failed, ended, or gave no answer in time.
        """
        try:
            self.process.stdin.write(json.dumps({"command": command, **values}).encode() + b"\n")
        except BrokenPipeError:
            raise WorkerError(self._end()) from None
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        end = time.monotonic() + LIMIT
        while b"\n" not in self._received:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not readable:
                self.process.kill()
                raise WorkerError(f"no answer within {LIMIT:.0f} seconds")
            received = os.read(self.process.stdout.fileno(), 1 << 16)
            if not received:
                raise WorkerError(self._end())
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        answer = json.loads(line)
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer

    def _end(self) -> str:
        code = self.process.wait()
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return f"its process ended with code {code}" + (f": {lines[-1][:200]}" if lines else "")



def measure(module: str, subjects: Sequence[Subject], setup: Setup, shapes: Sequence[tuple[int, int]], rounds: int,
            seen: Callable[[dict[str, Any]], None] = lambda found: None) -> dict[str, Any]:
    """Measure subjects side by side.

    Args:
        module: their suite, a module with `SUBJECTS`, `ARTEFACTS`, `BASELINE`, `PACKAGES` and `work`.
        subjects: which of them.
        setup: what they share.
        shapes: batch and length of each comparison.
        rounds: turns of each subject at each shape.
        seen: called with what is found so far whenever there is more.

    Returns:
        `machine`, `absent` (reasons by subject), and for each of the `shapes` the rates of the machine and a row for
        each subject: either `failed`, a reason, or its figures.
    """
    suite = import_module(module)
    absent = {subject.name: f"not installed: {', '.join(subject.lacking())}" for subject in subjects if subject.lacking()}
    there = [subject for subject in subjects if subject.name not in absent]
    unmade = make_all(module, there, setup)
    absent |= {subject.name: f"{name}: {unmade[name]}" for subject in there for name in subject.made_of if name in unmade}
    complete = [subject for subject in (*there, RATES) if subject.name not in absent and not subject.lacking()]
    with contextlib.ExitStack() as closing:
        workers = start_all(module, complete, setup, closing, absent)
        found = {"machine": describe(suite.PACKAGES), "threads": setup.threads, "rounds": rounds, "config": setup.config,
                 "baseline": suite.BASELINE, "absent": absent, "shapes": []}
        for shape in shapes:
            seen(found)
            found["shapes"].append(measure_shape(workers, suite, setup, shape, rounds))
    seen(found)
    return found


def make_all(module: str, subjects: Sequence[Subject], setup: Setup) -> dict[str, str]:
    """Make what subjects are made of, each thing once, in a process of its own.

    Returns:
        What could not be made, and why.
    """
    failed: dict[str, str] = {}
    names = list(dict.fromkeys(name for subject in subjects for name in subject.made_of))
    for name in progress(names, "making models", unit="model"):
        if setup.file(name).exists():
            continue
        try:
            Worker(module, "make", name, setup).close()
        except WorkerError as error:
            failed[name] = str(error)
    return failed


def start_all(module: str, subjects: Sequence[Subject], setup: Setup, closing: contextlib.ExitStack, absent: dict[str, str]
              ) -> dict[str, Worker]:
    """Start the processes, a few at a time.

    Args:
        module: the suite of the subjects.
        subjects: whose processes.
        setup: what they share.
        closing: gets their ends.
        absent: gets the reasons of those that do not start.
    """
    started: dict[str, Worker] = {}

    def start(subject: Subject) -> None:
        try:
            worker = Worker(module, "serve", subject.name, setup, subject.environment)
            closing.callback(worker.close)
            started[subject.name] = worker
        except WorkerError as error:
            absent[subject.name] = str(error)

    with ThreadPoolExecutor(min(cores(), AT_ONCE)) as pool:
        list(progress(pool.map(start, subjects), "starting", total=len(subjects), unit="engine"))
    return {subject.name: started[subject.name] for subject in subjects if subject.name in started}


def measure_shape(workers: Mapping[str, Worker], suite: Any, setup: Setup, shape: tuple[int, int], rounds: int
                  ) -> dict[str, Any]:
    """The comparison at one shape."""
    batch, length = shape
    failed = {name: f"left out: too slow for more than {subject.most_tokens} tokens"
              for name, subject in suite.SUBJECTS.items() if name in workers and subject.is_too_slow(batch, length)}
    ready = {name: worker for name, worker in workers.items() if name not in failed}
    expected = prepare_all(ready, setup, shape, failed)
    turns = take_turns({name: workers[name] for name in expected}, expected, rounds, f"measuring {batch} x {length}", failed)
    rates = combine_rates([turn["found"] for turn in turns.pop(RATES.name, [])])
    rows = []
    for subject in (suite.SUBJECTS[name] for name in workers if name != RATES.name):
        row = {"name": subject.name, "title": subject.title, "precision": subject.precision, "ours": subject.ours,
               "simulated": subject.simulated}
        if subject.name not in failed:
            try:
                row |= workers[subject.name].ask("explain") | figures([turn["found"] for turn in turns[subject.name]])
                row |= floors(*suite.work(subject, setup.config, batch, length), subject.precision, rates)
                row |= {"peak_bytes": max(turn["peak_bytes"] for turn in turns[subject.name]),
                        "cosine": similarity(setup, subject.name, suite.BASELINE)}
            except WorkerError as error:
                failed[subject.name] = str(error)
        rows.append(row | ({"failed": failed[subject.name]} if subject.name in failed else {}))
    base = next((row["seconds"] for row in rows if row["name"] == suite.BASELINE and "seconds" in row), None)
    for row in rows:
        if base and "seconds" in row:
            row["speedup"] = base / row["seconds"]
    operations, _ = suite.work(suite.SUBJECTS[suite.BASELINE], setup.config, batch, length)
    return {"batch": batch, "length": length, "operations": operations, "rates": rates, "subjects": rows}


def prepare_all(workers: Mapping[str, Worker], setup: Setup, shape: tuple[int, int], failed: dict[str, str]
                ) -> dict[str, float]:
    """Prepare workers for a shape, a few at a time.

    Args:
        workers: the processes by name.
        setup: what they share.
        shape: batch and length.
        failed: gets the reasons of those that cannot be prepared.

    Returns:
        Of the others, about how many seconds a pass takes.
    """
    batch, length = shape
    expected: dict[str, float] = {}

    def prepare(name: str) -> None:
        try:
            output = setup.file(f"hidden-{name}.npy")
            expected[name] = workers[name].ask("prepare", batch=batch, length=length, output=str(output))["seconds"]
        except WorkerError as error:
            failed[name] = str(error)

    with ThreadPoolExecutor(min(cores(), AT_ONCE)) as pool:
        description = f"preparing {batch} x {length}"
        list(progress(pool.map(prepare, workers), description, total=len(workers), unit="engine"))
    return {name: expected[name] for name in workers if name in expected}


def take_turns(workers: Mapping[str, Worker], expected: Mapping[str, float], rounds: int, description: str,
               failed: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Let workers take turns; each round begins with another one.

    Args:
        workers: the processes by name, prepared for the same shape.
        expected: seconds that one pass of each takes.
        rounds: how many rounds.
        description: what the progress bar says.
        failed: gets the reasons of those that fail.

    Returns:
        The answers to each worker's turns.
    """
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    shares = {name: max(1, min(rounds, int(PATIENCE / max(expected[name], TURN)))) for name in workers}
    names = list(workers)
    for number in progress(range(rounds), description, unit="round"):
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            if name in failed or len(turns[name]) >= shares[name]:
                continue
            time.sleep(PAUSE)
            try:
                turns[name].append(workers[name].ask("turn", seconds=TURN))
            except WorkerError as error:
                failed[name] = str(error)
    return turns


def figures(turns: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The median over the rounds of each round's median, and the quartiles of these medians.

    Example:
        >>> figures([[2.0, 4.0, 3.0], [5.0], [1.0]])
        {'seconds': 3.0, 'rounds': 3, 'quartiles': [2.0, 4.0]}
    """
    medians = [statistics.median(turn) for turn in turns]
    return {"seconds": statistics.median(medians), "rounds": len(medians),
            "quartiles": [float(value) for value in np.quantile(medians, [0.25, 0.75])]}


def combine_rates(turns: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The median over the rounds of each rate; empty where the machine's rates were not measured."""
    return {kind: {name: statistics.median(turn[kind][name] for turn in turns) for name in turns[0][kind]}
            for kind in (turns[0] if turns else ())}


def floors(operations: int, size: int, precision: str, rates: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The least time that a machine with these rates needs for so many operations, and to read so many bytes.

    Example:
        >>> floors(2000, 20, "bf16", {"operations": {"bf16": 1000.0}, "bytes": {"bf16": 5.0}})
        {'floor_operations': 2.0, 'floor_bytes': 4.0}
    """
    if not rates:
        return {}
    return {"floor_operations": operations / rates["operations"][precision],
            "floor_bytes": size / rates["bytes"][precision]}


def similarity(setup: Setup, name: str, baseline: str) -> float | None:
    """The cosine between a subject's hidden states and the baseline's; None where one of them is not there."""
    files = [setup.file(f"hidden-{which}.npy") for which in (name, baseline)]
    if not all(file.exists() for file in files):
        return None
    mine, theirs = (np.load(file).astype(np.float64).ravel() for file in files)
    if mine.shape != theirs.shape:
        return None
    return float(mine @ theirs / max(1e-300, np.sqrt((mine @ mine) * (theirs @ theirs))))
