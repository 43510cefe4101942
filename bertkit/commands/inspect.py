"""bertkit inspect: what a checkpoint is, every tensor of it, and whether it fits its configuration."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from bertkit.commands.terminal import format_list, format_size, format_table, show, show_json

SUMMARY = "show variant, task, parameters and every tensor of a checkpoint, and whether it fits its config.json"
EXAMPLES = """\
  bertkit inspect checkpoint/
  bertkit inspect checkpoint/ --task ForMaskedLM     would it load into this class?
  bertkit inspect checkpoint/ --json | jq .parameters"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SRC", help="checkpoint directory, or hub id")
    parser.add_argument("--task", metavar="CLASS", help="compare with this class, e.g. ForMaskedLM; default: its own")


def run(arguments: argparse.Namespace) -> int:
    """Inspect; 1 where the checkpoint does not fit."""
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
        "It fits its configuration." if found["fits"] else "It does NOT fit its configuration.")
    return 0 if found["fits"] else 1


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
        "conflicts": plan.conflicts, "fits": not (plan.missing or plan.mismatched), "tensors": tensors,
        "config": config.to_dict(),
    }
