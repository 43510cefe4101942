"""Tiny checkpoint directories, made without a framework."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkit.cli import main
from bertkit.core.checkpoint import LazyTensor, write_checkpoint
from bertkit.core.variants import VARIANTS
from tests import cases
from tests.fixtures.fill import fill

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tokenizer_small" / "uncased" / "vocab.txt"
WORDS = len(TOKENIZER.read_text("utf-8").splitlines())


def write(directory: Path, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], tokenizer: bool = True) -> Path:
    """A checkpoint directory of arrays."""
    kinds = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
    lazy = {name: LazyTensor(array.shape, kinds[array.dtype], lambda array=array: array) for name, array in tensors.items()}
    write_checkpoint(directory, lazy, extra_files={"config.json": json.dumps(settings)})
    if tokenizer:
        shutil.copy(TOKENIZER, directory / "vocab.txt")
    return directory


def weights(variant: str, task: str, config: Any) -> dict[str, np.ndarray]:
    """Every stored tensor of a class."""
    params = VARIANTS[variant].params(task, config).values()
    return {p.name: np.ones(p.shape, np.float32) if p.kind == "stat" else fill(p.name, p.shape) for p in params if p.stored}


def checkpoint(directory: Path, variant: str, task: str = "Model", *, tokenizer: bool = True, **changes: Any) -> Path:
    """A tiny checkpoint of a class, with a tokenizer of real words."""
    config = cases.config(variant, task, **{"vocab_size": WORDS, "pad_token_id": 0, **changes})
    settings = {**config.to_dict(), "architectures": [VARIANTS[variant].name + task]}
    return write(directory, settings, weights(variant, task, config), tokenizer)


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def run_json(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, Any]:
    """Exit code and the one JSON document of a command."""
    code, out, _ = run(capsys, *words, "--json")
    return code, json.loads(out)
