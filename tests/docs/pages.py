"""What the documentation tests share: the pages, their blocks, and the directories that the examples speak of."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertkit.core.checkpoint import LazyTensor, write_checkpoint
from bertkit.core.initial import initial_value
from bertkit.core.variants import VARIANTS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOKENIZERS = ROOT / "tests" / "fixtures" / "tokenizer_small"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

TINY = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 64}
CHECKPOINTS = {
    "google/mobilebert-uncased": ("mobilebert", "ForPreTraining", "uncased", {
        "hidden_size": 40, "embedding_size": 16, "intra_bottleneck_size": 24, "num_feedforward_networks": 2,
        "num_hidden_layers": 1}),
    "kssteven/ibert-roberta-base": ("ibert", "ForMaskedLM", "roberta", {"type_vocab_size": 1, "num_hidden_layers": 1}),
    "megatron-bert": ("megatron-bert", "ForPreTraining", "uncased", {}),
    "uw-madison/yoso-4096": ("yoso", "ForMaskedLM", "roberta", {}),
}
"""The directories that examples load from, named as the repositories of the hub: variant, class, tokenizer, configuration."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page on which the text begins."""

    language: str
    text: str
    line: int


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(match[1], match[2], text[: match.start(2)].count("\n") + 1)
            for match in FENCE.finditer(text) if match[1] in languages]


def make_checkpoints(directory: Path) -> None:
    """Tiny checkpoints with random weights under the names that the examples use."""
    for name, (model_type, task, tokenizer, values) in CHECKPOINTS.items():
        variant = VARIANTS[model_type]
        config = variant.config(**{**TINY, **values})
        random = np.random.default_rng(0)
        tensors = {}
        for param in variant.params(task, config).values():
            if param.stored:
                value = initial_value(param, config, random)
                tensors[param.name] = LazyTensor(value.shape, "F32", lambda value=value: value)
        config.architectures = [variant.name + task]
        write_checkpoint(directory / name, tensors, extra_files={"config.json": config.to_json_string()})
        for file in (TOKENIZERS / tokenizer).iterdir():
            shutil.copy(file, directory / name)
