"""bertkit quantize: an I-BERT, BERT or RoBERTa becomes integers, by looking at texts, and what that costs is told."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.commands.predict import read_lines
from bertkit.commands.terminal import format_list, format_size, format_table, show, show_json
from bertkit.core.checkpoint import open_checkpoint, write_checkpoint
from bertkit.core.config import CONFIG_NAME
from bertkit.core.errors import ConfigError, InputError

SUMMARY = "calibrate an I-BERT, BERT or RoBERTa on texts and freeze it into integers"
EXAMPLES = """\
  bertkit quantize ibert/ integers/ --calibrate texts.txt
  bertkit quantize bert/ integers/ --calibrate texts.txt --task ForSequenceClassification
  bertkit quantize trained-with-quant-mode/ integers/ --keep-ranges      after quantisation-aware training
  bertkit quantize ibert/ integers/ --calibrate texts.txt --method mse --json"""
COMPARED_TEXTS = 32
CONVERTED = ("bert", "roberta")
"""Model types that are made an I-BERT first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SRC", help="checkpoint directory, or hub id, of an I-BERT, a BERT or a RoBERTa")
    parser.add_argument("target", metavar="DST", help="directory to write")
    ranges = parser.add_mutually_exclusive_group(required=True)
    ranges.add_argument("--calibrate", metavar="FILE",
                        help="texts like those that the model will see, one a line; - is standard input")
    ranges.add_argument("--keep-ranges", action="store_true", help="freeze the ranges that training has found")
    parser.add_argument("--method", choices=["minmax", "percentile", "mse"], default="minmax",
                        help="how ranges are chosen (default: minmax)")
    parser.add_argument("--percentile", type=float, default=99.999, metavar="P", help="for that method (default: 99.999)")
    parser.add_argument("--texts", type=int, default=512, metavar="N", help="look at so many texts (default: 512)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts at once (default: 32)")
    parser.add_argument("--task", metavar="CLASS", help="class of the result, e.g. ForMaskedLM; default: the source's own")
    parser.add_argument("--framework", choices=["torch", "tf"], help="default: the one that is installed, torch first")
    parser.add_argument("--overwrite", action="store_true", help="allow a target that is not empty")


def run(arguments: argparse.Namespace) -> int:
    """Quantise and report."""
    if arguments.texts < 1:
        raise InputError(f"--texts: got {arguments.texts}, expected a positive integer")
    texts = [] if arguments.calibrate is None else read_lines(arguments.calibrate)
    found = quantize_checkpoint(
        arguments.source, arguments.target, texts[:arguments.texts], keep_ranges=arguments.keep_ranges,
        method=arguments.method, percentile=arguments.percentile, batch_size=arguments.batch_size, task=arguments.task,
        framework=arguments.framework, overwrite=arguments.overwrite)
    if arguments.json:
        show_json(found)
        return 0
    show(f"{found['source']} -> {found['target']}: {found['architecture']} in integers",
         f"{format_size(found['bytes'])}, {found['bytes'] / found['float_bytes']:.2f} of the float model's "
         f"{format_size(found['float_bytes'])}", *_show_calibration(found["calibration"]), *_show_layers(found["layers"]))
    return 0


def _show_calibration(calibration: dict[str, Any] | None) -> list[str | None]:
    if calibration is None:
        return []
    ranges = calibration["ranges"]
    clipped = sorted((name for name in ranges if ranges[name]["clipped"] > 0), key=lambda name: -ranges[name]["clipped"])
    rows = [[name, _span(ranges[name], "low", "high"), _span(ranges[name], "seen_low", "seen_high"),
             f"{ranges[name]['clipped']:.2%}"] for name in clipped[:8]]
    return ["", f"calibrated on {calibration['tokens']:,} tokens in {calibration['batches']} batches, by "
                f"{calibration['method']}; {len(clipped)} of {len(ranges)} ranges clip something",
            format_table(["most is clipped in", "range", "seen", "clipped"], rows, right=[1, 2, 3]) if rows else None]


def _span(found: dict[str, float], low: str, high: str) -> str:
    return f"{found[low]:.4g} ... {found[high]:.4g}"


def _show_layers(layers: list[dict[str, Any]]) -> list[str | None]:
    if not layers:
        return []
    rows = [[layer["name"], f"{layer['float_to_simulated']:.4f}", f"{layer['float_to_integer']:.4f}",
             f"{layer['cosine']:.4f}", f"{layer['simulated_to_integer']:.1e}"] for layer in layers]
    worst = sorted(layers, key=lambda layer: -layer["added"])[:3]
    return ["", "difference of the hidden states, relative to their norm",
            format_table(["behind", "float - simulated", "float - integer", "cosine", "simulated - integer"], rows,
                         right=[1, 2, 3, 4]),
            format_list("most is added by", [f"{layer['name']}: {layer['added']:.4f}" for layer in worst])]


# -- the work ---------------------------------------------------------------------------------------------------------
def quantize_checkpoint(
    source: str, target: str, texts: Sequence[str], *, keep_ranges: bool = False, method: str = "minmax",
    percentile: float = 99.999, batch_size: int = 32, task: str | None = None, framework: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the frozen form of a checkpoint, and say what it costs.

    Args:
        source: an I-BERT, or a BERT or RoBERTa, which becomes one first.
        target: directory to write; the tokenizer goes with the weights.
        texts: what to calibrate on, and to compare the layers on.
        keep_ranges: freeze the ranges that the checkpoint has, instead of calibrating.
        method, percentile: see `bertkit.calibrate`.
        batch_size: texts at once.
        task: class of the result; default the source's own.
        framework: "torch" or "tf".
        overwrite: allow a target that is not empty.

    Returns:
        Sizes, ranges, and for each layer the differences between float, simulated and integer hidden states.

    Raises:
        BackendError: when the framework is not installed.
        CalibrationError, FreezeError: when the model cannot be quantised, naming the layers.
        CheckpointError: when the source cannot be read or the target not be written; the target is then as it was.
        InputError: when there are no texts.
    """
    from bertkit.commands.frameworks import FRAMEWORKS, Runner, first_installed, need, open_model, open_tokenizer

    framework = framework or first_installed()
    need(framework)
    _check(target, texts, keep_ranges, overwrite, batch_size)
    package = import_module(FRAMEWORKS[framework].package)
    with contextlib.ExitStack() as stack:
        opened = open_model(stack.enter_context(as_ibert(source, task)), task)
        if opened.config.model_type != "ibert":
            raise ConfigError(f"{source} is a {opened.class_name}, which has no integer form",
                              remedy="I-BERT has one, and BERT and RoBERTa become I-BERT.")
        tokenizer = open_tokenizer(opened) if texts else None
        model = Runner(opened, framework).model
        batches = make_batches(tokenizer, texts, batch_size)
        report = None if keep_ranges else package.calibrate(model, batches, method, percentile=percentile)
        frozen = package.freeze(model)
        calibrated = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bertkit-")))
        model.save_pretrained(calibrated)
        again = open_model(str(calibrated), opened.task)
        models = {"float": Runner(again, framework, quant_mode=False), "simulated": Runner(again, framework, quant_mode=True),
                  "integer": Runner.of(frozen, framework)} if texts else {}
        layers = compare(models, make_batches(tokenizer, texts[:COMPARED_TEXTS], COMPARED_TEXTS))
        save(frozen, target, opened.source.tokenizer_files)
        return {
            "source": source, "target": str(target), "architecture": opened.class_name,
            "framework": FRAMEWORKS[framework].name, "bytes": _weight_bytes(Path(target)),
            "float_bytes": _weight_bytes(calibrated), "calibration": None if report is None else report.to_dict(),
            "layers": layers,
        }


def save(model: Any, target: str, tokenizer_files: Iterable[Path]) -> None:
    """Write a frozen model and its tokenizer in one step: a failure leaves what was there."""
    with tempfile.TemporaryDirectory(prefix="bertkit-") as directory:
        model.save_pretrained(directory)
        files = {file.name: file.read_bytes() for file in (*tokenizer_files, Path(directory, CONFIG_NAME))}
        with open_checkpoint(directory) as saved:
            write_checkpoint(target, {name: saved.lazy(name) for name in saved}, checksum=True, extra_files=files)


def _check(target: str, texts: Sequence[str], keep_ranges: bool, overwrite: bool, batch_size: int) -> None:
    from bertkit.convert.api import check_target

    if not texts and not keep_ranges:
        raise InputError("there are no texts to calibrate on", remedy="Pass a file with one text a line; some hundred do.")
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, expected a positive integer")
    check_target(Path(target), None, overwrite)


@contextlib.contextmanager
def as_ibert(source: str, task: str | None) -> Iterator[str]:
    """The source itself, or, inside the block, the I-BERT that was made of a BERT or RoBERTa."""
    from bertkit.convert import convert
    from bertkit.convert.source import open_source

    if open_source(source).settings.get("model_type") not in CONVERTED:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="bertkit-") as directory, warnings.catch_warnings():
        convert(source, directory, to="ibert", **({} if task is None else {"task": task}))
        yield directory


def make_batches(tokenizer: Any, texts: Sequence[str], size: int) -> list[dict[str, np.ndarray]]:
    """Tokenized texts, those of like length together."""
    ordered = sorted(texts, key=len)
    return [dict(tokenizer(ordered[i:i + size], padding=True, truncation=True, return_tensors="np"))
            for i in range(0, len(ordered), size)]


@dataclass
class _Sums:
    """Squares and products of two hidden states, added up over batches."""

    left: float = 0.0
    right: float = 0.0
    both: float = 0.0
    apart: float = 0.0

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        left, right = left.astype(np.float64), right.astype(np.float64)
        self.left += float((left * left).sum())
        self.right += float((right * right).sum())
        self.both += float((left * right).sum())
        self.apart += float(((left - right) ** 2).sum())

    @property
    def distance(self) -> float:
        """Norm of the difference over the norm of the first."""
        return float(np.sqrt(self.apart / max(self.left, 1e-30)))

    @property
    def cosine(self) -> float:
        return self.both / max(float(np.sqrt(self.left * self.right)), 1e-30)


def compare(models: dict[str, Any], batches: Sequence[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Hidden states of the "float", the "simulated" and the "integer" model, layer by layer, where there is no padding."""
    pairs = (("float", "simulated"), ("float", "integer"), ("simulated", "integer"))
    sums: dict[tuple[str, str], list[_Sums]] = {pair: [] for pair in pairs}
    for batch in batches:
        real = batch["attention_mask"].astype(bool)
        states = {name: [state[real] for state in model(batch, output_hidden_states=True)["hidden_states"]]
                  for name, model in models.items()}
        for (left, right), layers in sums.items():
            layers += [_Sums() for _ in states[left][len(layers):]]
            for found, one, other in zip(layers, states[left], states[right], strict=True):
                found.add(one, other)
    rows: list[dict[str, Any]] = []
    for layer in range(len(sums["float", "integer"])):
        distances = {f"{left}_to_{right}": layers[layer].distance for (left, right), layers in sums.items()}
        before = rows[-1]["float_to_integer"] if rows else 0.0
        rows.append({"name": f"encoder.layer.{layer - 1}" if layer else "embeddings", **distances,
                     "cosine": sums["float", "integer"][layer].cosine, "added": distances["float_to_integer"] - before})
    return rows


def _weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
