"""bertkit inspect: what a checkpoint is, every tensor of it, and whether it fits its configuration or can be converted."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bertkit.commands.terminal import format_list, format_size, format_table, show, show_json
from bertkit.core.checkpoint import Checkpoint
from bertkit.core.errors import BertkitError, CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from bertkit.convert.original import Format

SUMMARY = "show format, variant, task, parameters and every tensor of a checkpoint, and whether it fits its config.json"
EXAMPLES = """\
  bertkit inspect checkpoint/
  bertkit inspect megatron_bert_345m_v0_1_uncased.zip
  bertkit inspect checkpoint/ --task ForMaskedLM     would it load into this class?
  bertkit inspect checkpoint/ --json | jq .parameters"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SRC", help="file, directory or hub id")
    parser.add_argument("--from", dest="source_type", metavar="FORMAT", help="what SRC is, where that cannot be seen")
    parser.add_argument("--task", metavar="CLASS", help="compare with this class, e.g. ForMaskedLM; default: its own")


def run(arguments: argparse.Namespace) -> int:
    """Inspect; 1 where the checkpoint does not fit."""
    from bertkit.convert.formats import find_format
    from bertkit.convert.source import has_weights, locate

    path = locate(arguments.source)
    format = find_format(path, arguments.source_type)
    if format is not None and not has_weights(path):
        return _show_foreign(look_at_foreign(path, format, arguments.task), arguments.json)
    found = look_at(arguments.source, arguments.task)
    if arguments.json:
        show_json(found)
        return 0 if found["fits"] else 1
    rows = [[tensor["name"], "x".join(map(str, tensor["shape"])) or "scalar", tensor["dtype"], tensor["kind"], tensor["status"]]
            for tensor in found["tensors"]]
    files = found["files"]
    show(
        format_table(["tensor", "shape", "dtype", "kind", "status"], rows, right=[1]), "",
        f"{found['architecture']} ({found['model_type']}), {found['source']}",
        f"{found['parameters']:,} parameters, {', '.join(f'{d} x {n}' for d, n in found['dtypes'].items())}, "
        f"{len(files)} file(s) of {found['format']}, {format_size(found['bytes'])}",
        f"tokenizer: {', '.join(found['tokenizer_files']) or 'none'}",
        format_list("missing", found["missing"]),
        format_list("not of this class", found["unexpected"]),
        format_list("of another shape", [f"{name}: got {got}, expected {wanted}" for name, got, wanted in found["mismatched"]]),
        format_list("tied copies that differ", found["conflicts"]),
        format_list("damaged", found["damaged"]),
        "It fits its configuration." if found["fits"] else "It does NOT fit its configuration.")
    return 0 if found["fits"] else 1


def _show_foreign(found: dict[str, Any], as_json: bool) -> int:
    if as_json:
        show_json(found)
        return 0 if found["convertible"] else 1
    rows = [[tensor["name"], "x".join(map(str, tensor["shape"])) or "scalar", tensor["dtype"], tensor["here"]]
            for tensor in found["tensors"]]
    groups: dict[str, list[str]] = {}
    for name, reason in found["left_out"].items():
        groups.setdefault(reason, []).append(name)
    show(
        format_table(["tensor", "shape", "dtype", "in bertkit"], rows, right=[1]), "",
        f"{found['source']}: {found['format']}",
        f"{found['parameters']:,} numbers in {len(rows)} tensors, {format_size(found['bytes'])}",
        format_list("files", found["files"]),
        *(format_list(f"left out, {reason}", names) for reason, names in groups.items()),
        format_list("notes", found["notes"]),
        f"It can be converted: `bertkit convert SRC DST` makes a {found['architecture'] or found['model_type']} of it."
        if found["convertible"] else f"It can NOT be converted as it is:\n{found['problem']}")
    return 0 if found["convertible"] else 1


def look_at_foreign(path: Path, format: Format, task: str | None = None) -> dict[str, Any]:
    """Everything that can be said of a foreign checkpoint.

    Raises:
        CheckpointError: when its files cannot be read.
    """
    from bertkit.convert.original import Options, Sample

    opened = format.open(Sample(path))
    found: dict[str, Any] = {
        "source": str(opened.path), "format": opened.format, "files": opened.files, "settings": opened.settings,
        "parameters": sum(math.prod(tensor.shape) for tensor in opened.tensors.values()),
        "bytes": sum(tensor.size for tensor in opened.tensors.values()), "left_out": opened.left_out, "notes": [],
        "model_type": None, "architecture": None, "config": None, "convertible": False, "problem": None,
    }
    places: dict[str, tuple[str, ...]] = {}
    try:
        original = format.read(opened, Options(task=task))
        # A tensor that kept its name is not among the changes.
        places = {name: (name,) for name in original.translation.tensors}
        places |= {old: change.new for change in original.translation.changes for old in change.old}
        found |= {"convertible": True, "model_type": original.config.model_type, "config": original.config.to_dict(),
                  "architecture": original.task and original.variant.name + original.task, "notes": original.notes,
                  "left_out": {**opened.left_out, **original.translation.left_out}}
    except BertkitError as error:
        found["problem"] = str(error)
    found["tensors"] = [{"name": name, "shape": list(tensor.shape), "dtype": tensor.dtype,
                         "here": ", ".join(places.get(name, ("-",)))} for name, tensor in opened.tensors.items()]
    return found


def look_at(name_or_path: str, task: str | None = None) -> dict[str, Any]:
    """Everything that can be said of a checkpoint without loading a framework.

    Raises:
        CheckpointError: when there are no weights that can be read.
        ConfigError: when config.json cannot be read, or is of none of the four variants.
    """
    from bertkit.commands.frameworks import own_variant
    from bertkit.convert.source import open_source, params_of, plan_leniently, task_of

    source = open_source(name_or_path)
    variant, config = own_variant(source)
    checkpoint = source.checkpoint
    suffix = task_of(variant, config, checkpoint, task)
    params = params_of(variant, suffix, config, checkpoint)
    plan = plan_leniently(checkpoint, params, variant, config)
    damaged = list(plan.unusable)
    if isinstance(checkpoint, Checkpoint) and any(param.frozen_dtype for param in params.values()):
        damaged += _wrong_checksums(checkpoint)
    places = {source_name: name for name, source_name in plan.sources.items()}
    misshapen = {name for name, _, _ in plan.mismatched}
    tensors, parameters = [], 0
    dtypes: dict[str, int] = {}
    for name in checkpoint.names():
        info = checkpoint.info(name)
        place = places.get(name)
        param = params.get(place or name)
        if place is not None:
            status = "ok" if place == name else f"ok, as {place}"
        elif name in plan.unexpected:
            status = "unexpected"
        elif name in misshapen:
            status = "wrong shape"
        else:
            status = f"copy of {param.tied_to}" if param is not None and param.tied_to else "not used"
        kind = param.kind if param is not None else "-"
        tensors.append({"name": name, "shape": list(info.shape), "dtype": info.dtype, "kind": kind, "status": status})
        dtypes[info.dtype] = dtypes.get(info.dtype, 0) + 1
        parameters += int(np.prod(info.shape, dtype=np.int64)) if place is not None and kind != "stat" else 0
    return {
        "source": str(source.directory), "model_type": config.model_type, "architecture": variant.name + suffix,
        "task": suffix, "parameters": parameters, "dtypes": dtypes, "format": checkpoint.format,
        "files": [file.name for file in checkpoint.files], "bytes": sum(f.stat().st_size for f in checkpoint.files),
        "tokenizer_files": [file.name for file in source.tokenizer_files], "missing": plan.missing,
        "unexpected": plan.unexpected, "mismatched": [[n, list(g), list(w)] for n, g, w in plan.mismatched],
        "conflicts": plan.conflicts, "damaged": damaged, "fits": not (plan.missing or plan.mismatched or damaged),
        "tensors": tensors, "config": config.to_dict(),
    }


def _wrong_checksums(checkpoint: Checkpoint) -> list[str]:
    """Why a frozen model would not be loaded, though its tensors fit."""
    try:
        checkpoint.verify()
    except CheckpointError as error:
        return list(error.problems)
    return []
