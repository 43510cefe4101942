"""Tiny configurations and inputs for every class of every variant; neutral: the tests of both frameworks read them.

The classes come from the weight spec, so a new class without tests is impossible.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bertkit.core.variants import VARIANTS

VOCABULARY, POSITIONS, LABELS = 61, 24, 3
BATCH, LENGTH, CHOICES = 3, 9, 2
FIRST_WORD = 3
"""Ids below are special tokens: padding is 0 or 1."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2, "initializer_range": 0.3, "num_labels": LABELS, "layer_norm_eps": 1e-6,
}
_OWN: dict[str, dict[str, Any]] = {
    "mobilebert": {"hidden_size": 20, "embedding_size": 8, "intra_bottleneck_size": 12, "num_feedforward_networks": 2,
                   "initializer_range": 0.2},
    "yoso": {"hash_code_len": 4, "num_hash": 6},
}

Kind = tuple[str, dict[str, Any]]
KINDS: list[Kind] = [
    *((variant, {}) for variant in VARIANTS),
    ("megatron-bert", {"position_embedding_type": "relative_key"}),
    ("megatron-bert", {"position_embedding_type": "relative_key_query"}),
    ("megatron-bert", {"is_decoder": True}),
    ("mobilebert", {"use_bottleneck_attention": True}),
    ("mobilebert", {"key_query_shared_bottleneck": False}),
    ("mobilebert", {"use_bottleneck": False, "trigram_input": False, "normalization_type": "layer_norm"}),
    ("mobilebert", {"embedding_size": 20, "trigram_input": False, "classifier_activation": False}),
    ("yoso", {"conv_window": 3}),
    ("yoso", {"use_expectation": False, "hash_seed": 7}),
    ("yoso", {"use_expectation": False, "hash_seed": 7, "use_fast_hash": False, "lsh_backward": False}),
]
"""What an encoder can be: every variant, and every switch that makes it compute otherwise."""

CLASSES: list[tuple[str, str]] = [(variant, task) for variant in VARIANTS for task in VARIANTS[variant].tasks]
LOSSES = [(variant, task) for variant, task in CLASSES if task != "Model"]
LANGUAGE_MODELS = [pair for pair in CLASSES if pair[1] in ("ForMaskedLM", "ForCausalLM", "ForPreTraining")]

PER_TOKEN = {
    "Model": ("last_hidden_state",),
    "ForPreTraining": ("prediction_logits",),
    "ForMaskedLM": ("logits",),
    "ForCausalLM": ("logits",),
    "ForTokenClassification": ("logits",),
    "ForQuestionAnswering": ("start_logits", "end_logits"),
}
"""Outputs [row, token, ...]; every other output is [row, ...]."""


def config(variant: str, task: str = "Model", **changes: Any) -> Any:
    """A tiny configuration without dropout."""
    decoder = {"is_decoder": True} if task == "ForCausalLM" else {}
    return VARIANTS[variant].config(**{**_COMMON, **_OWN.get(variant, {}), **decoder, **changes})


def name_of(value: Any) -> str | None:
    """The name of a test's parameter: "relative_key" for {"position_embedding_type": "relative_key"}."""
    if isinstance(value, dict):
        return "-".join(str(v) if isinstance(v, str) else k if v is True else f"{k}={v}" for k, v in value.items()) or "plain"
    return None


def padding(lengths: tuple[int, ...], length: int = LENGTH) -> np.ndarray:
    """The mask [rows, length] of rows that end early."""
    return (np.arange(length) < np.array(lengths)[:, None]).astype(np.int64)


def features(variant: str, task: str = "Model", *, rows: int = BATCH, length: int = LENGTH, seed: int = 0,
             lengths: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
    """Ids, mask and token types [rows, length], or [rows, choices, length]; padded where rows end early.

    Args:
        lengths: tokens of each row (of each choice); default: no padding.
    """
    random = np.random.default_rng(seed)
    shape = (rows, CHOICES, length) if task == "ForMultipleChoice" else (rows, length)
    mask = np.ones(shape, np.int64) if lengths is None else padding(lengths, length).reshape(shape)
    ids = random.integers(FIRST_WORD, VOCABULARY, shape)
    return {
        "input_ids": np.where(mask == 1, ids, config(variant).pad_token_id),
        "attention_mask": mask,
        "token_type_ids": random.integers(0, 2, shape) * mask,
    }


def labels(task: str, *, rows: int = BATCH, length: int = LENGTH, seed: int = 0) -> dict[str, np.ndarray]:
    """The labels of a task by argument; some tokens do not count. None for a bare encoder."""
    random = np.random.default_rng(seed + 1)
    counts = random.integers(0, 3, (rows, length)) > 0
    words = np.where(counts, random.integers(FIRST_WORD, VOCABULARY, (rows, length)), -100)
    tags = np.where(counts, random.integers(0, LABELS, (rows, length)), -100)
    pairs = random.integers(0, 2, rows)
    start = random.integers(0, length - 2, rows)
    return {
        "Model": {},
        "ForPreTraining": {"labels": words, "next_sentence_label": pairs},
        "ForMaskedLM": {"labels": words},
        "ForCausalLM": {"labels": words},
        "ForNextSentencePrediction": {"labels": pairs},
        "ForSequenceClassification": {"labels": random.integers(0, LABELS, rows)},
        "ForMultipleChoice": {"labels": random.integers(0, CHOICES, rows)},
        "ForTokenClassification": {"labels": tags},
        "ForQuestionAnswering": {"start_positions": start, "end_positions": start + 2},
    }[task]
