"""bertkit verify: the same checkpoint in PyTorch and TensorFlow, every output and layer compared on real text."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from bertkit.commands.terminal import format_list, format_table, show, show_json

SUMMARY = "load a checkpoint in PyTorch and in TensorFlow and compare every output and layer"
EXAMPLES = """\
  bertkit verify checkpoint/
  bertkit verify checkpoint/ --text "First sentence." --text "Second one." --tolerance 1e-5
  bertkit verify checkpoint/ --task Model --json"""
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Naïve café owners in Zürich paid 1,234.56 francs – twice!",
    "Integer arithmetic is enough for a language model, if somebody is careful with the scales of its layers.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SRC", help="checkpoint directory, or hub id")
    parser.add_argument("--text", action="append", metavar="TEXT",
                        help="what to run; may be repeated (default: three sentences)")
    parser.add_argument("--task", metavar="CLASS", help="class to load, e.g. ForMaskedLM; default: the checkpoint's own")
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="X",
                        help="largest difference, relative to the largest number of each output (default: 1e-4)")


def run(arguments: argparse.Namespace) -> int:
    """Compare; 1 over the tolerance."""
    found = compare(arguments.source, arguments.text, arguments.task, arguments.tolerance)
    if arguments.json:
        show_json(found)
        return 0 if found["ok"] else 1
    rows = [[row["output"], "x".join(map(str, row["shape"])), f"{row['largest']:.3g}", f"{row['absolute']:.2e}",
             f"{row['relative']:.2e}", "ok" if row["ok"] else "OVER"] for row in found["outputs"]]
    headers = ["output", "shape", "largest value", "abs. difference", "rel. difference", ""]
    verdict = "is within" if found["ok"] else "is OVER"
    show(
        f"{found['architecture']} from {found['source']}, PyTorch against TensorFlow on {found['input']}", "",
        format_table(headers, rows, right=[1, 2, 3, 4]), "",
        format_list("notes", found["notes"]),
        f"largest relative difference {found['largest_relative']:.2e} {verdict} the tolerance {found['tolerance']:g}")
    return 0 if found["ok"] else 1


def compare(name_or_path: str, texts: list[str] | None, task: str | None, tolerance: float) -> dict[str, Any]:
    """Run a checkpoint in both frameworks.

    Raises:
        BackendError: when a framework is not installed.
        CheckpointError: when the checkpoint cannot be loaded, or lacks tensors that would start at random.
    """
    from bertkit.commands.frameworks import Runner, need, open_model

    need("torch", "tf")
    opened = open_model(name_or_path, task)
    inputs, described = _inputs(opened, texts)
    settings, notes = {}, list(opened.notes)
    if getattr(opened.config, "use_expectation", True) is False:
        settings["use_expectation"] = True
        notes.append("compared with use_expectation=True, as sampled hashes are random")
    first, second = (Runner(opened, name, **settings)(inputs, output_hidden_states=True) for name in ("torch", "tf"))
    rows = [_row(name, a, b, tolerance) for name, a, b in _pairs(first, second)]
    relative = [row["relative"] for row in rows]
    return {
        "source": str(opened.directory), "architecture": opened.class_name, "input": described, "tolerance": tolerance,
        "outputs": rows, "largest_absolute": float(np.max([row["absolute"] for row in rows])),
        "largest_relative": float(np.max(relative)), "notes": notes, "ok": all(row["ok"] for row in rows),
    }


def _inputs(opened: Any, texts: list[str] | None) -> tuple[dict[str, np.ndarray], str]:
    from bertkit.commands.frameworks import open_tokenizer

    if opened.source.tokenizer_files or texts:
        tokenizer = open_tokenizer(opened)
        texts = texts or list(TEXTS)
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        inputs = {name: np.asarray(array) for name, array in batch.items()}
        described = f"{len(texts)} text(s), {inputs['input_ids'].shape[1]} tokens"
    else:
        random, length = np.random.default_rng(0), min(16, opened.max_tokens)
        lowest = min((opened.config.pad_token_id or 0) + 1, opened.config.vocab_size - 1)
        ids = random.integers(lowest, opened.config.vocab_size, (2, length))
        mask = np.ones_like(ids)
        mask[1, length // 2:] = 0
        ids[1, length // 2:] = opened.config.pad_token_id or 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        described = f"2 rows of {length} random ids, as it has no tokenizer"
    if opened.task == "ForMultipleChoice":
        inputs = {name: array[None] for name, array in inputs.items()}
    return inputs, described


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, np.ndarray | None, np.ndarray | None]]:
    """Outputs of both by name; of a tuple, each part."""
    pairs: list[tuple[str, Any, Any]] = []
    for name in [*first, *(name for name in second if name not in first)]:
        a, b = first.get(name), second.get(name)
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            for place, (x, y) in enumerate(zip(a, b, strict=True)):
                pairs += _pairs({f"{name}[{place}]": x}, {f"{name}[{place}]": y})
        else:
            pairs.append((name, a, b))
    return pairs


def _row(name: str, a: Any, b: Any, tolerance: float) -> dict[str, Any]:
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.shape != b.shape:
        return {"output": name, "shape": [], "largest": np.nan, "absolute": np.inf, "relative": np.inf, "ok": False}
    a, b = a.astype(np.float64), b.astype(np.float64)
    largest = float(max(np.abs(a).max(initial=0), np.abs(b).max(initial=0)))
    absolute = float(np.abs(a - b).max(initial=0))
    relative = absolute / largest if largest > 0 else absolute
    return {"output": name, "shape": list(a.shape), "largest": largest, "absolute": absolute, "relative": relative,
            "ok": bool(relative <= tolerance)}
