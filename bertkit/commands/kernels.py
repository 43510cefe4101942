"""bertkit kernels: which compiled kernels serve here, why, and what this CPU lacks for better ones."""

from __future__ import annotations

import argparse
import dataclasses

from bertkit.commands.terminal import format_table, show, show_json
from bertkit.core.native import CHOICES, PORTABLE, KernelsStatus, kernels_status

SUMMARY = "show which compiled kernels serve here, and why"
EXAMPLES = """\
  bertkit kernels
  BERTKIT_KERNELS=avx2 bertkit kernels     could this level serve?
  bertkit kernels --json | jq -r .level"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: none but those of every command."""


def run(arguments: argparse.Namespace) -> int:
    """Show the kernels; 1 where those that are asked for cannot be had."""
    status = kernels_status()
    if arguments.json:
        show_json(dataclasses.asdict(status))
    else:
        show(*_describe(status))
    return 0 if status.level else 1


def _describe(status: KernelsStatus) -> list[str]:
    rows = [[PORTABLE, "in use" if status.level == PORTABLE else "yes"]]
    for level, lacking in status.levels.items():
        rows.append([level, "in use" if level == status.level else f"no: {lacking}" if lacking else "yes"])
    return [
        format_table(["kernels", "here"], rows), "",
        f"in use: {status.level or 'nothing'}. {status.reason}",
        f"library: {status.library or 'none'}",
        f"asked for: {status.choice}, by {status.asked_by}. BERTKIT_KERNELS and bertkit.use_kernels take one of "
        f"{', '.join(CHOICES)}.",
        f"on a GPU: {_of_gpu(status)}.",
        f"threads: as many as PyTorch or TensorFlow use; this process has {status.cores} cores.",
    ]


def _of_gpu(status: KernelsStatus) -> str:
    if status.triton and status.choice != PORTABLE:
        return "YOSO in PyTorch runs in Triton, all else portably"
    return "portable; " + ("Triton would serve YOSO in PyTorch" if status.triton else "no Triton to serve YOSO in PyTorch")
