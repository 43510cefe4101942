"""What all readers of MobileBERT share: settings that cannot be true, fewer words, a padding token that says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.convert.original import Options
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.mobilebert import MobileBertConfig
from bertkit.core.tensors import LazyTensor, RawTensor, from_bits, stored

VOCABULARY_AXES = {
    "mobilebert.embeddings.word_embeddings.weight": 0,
    "cls.predictions.bias": 0,
    "cls.predictions.decoder.weight": 0,
    "cls.predictions.dense.weight": 1,
}
"""The tensors with a row or column for each word."""


def check_depth(path: Path, config: Any, tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse settings of more layers than there are tensors, before anything is done for each layer of any variant.

    Raises:
        CheckpointError: naming both numbers.
    """
    networks = getattr(config, "num_feedforward_networks", 1)
    if config.num_hidden_layers * networks > len(tensors):
        depth = f"num_hidden_layers: {config.num_hidden_layers}"
        depth += f", num_feedforward_networks: {networks}" if networks > 1 else ""
        raise CheckpointError(f"{path} and its settings are of different models",
                              [f"{depth}, but there are only {len(tensors)} tensors"])


def shaped_vocabulary(
    tensors: Mapping[str, LazyTensor], config: MobileBertConfig, options: Options, notes: list[str]
) -> dict[str, LazyTensor]:
    """The tensors with the vocabulary that was asked for: fewer rows, a padding row of zeros.

    Args:
        tensors: by our names.
        config: gets the new number of words.
        options: `vocab_size` and `zero_padding_row`.
        notes: gets a sentence for each.

    Raises:
        ConfigError: when there are fewer words than were asked for.
    """
    shaped, rows = dict(tensors), options.vocab_size
    words = "mobilebert.embeddings.word_embeddings.weight"
    if rows is not None and not 0 < rows <= config.vocab_size:
        raise ConfigError(f"vocab_size: got {rows}, expected at most {config.vocab_size}, the words that there are")
    if rows is not None and rows < config.vocab_size:
        for name, axis in VOCABULARY_AXES.items():
            # A tensor of another shape is left to those who check shapes.
            if name in shaped and shaped[name].shape[axis:axis + 1] == (config.vocab_size,):
                shaped[name] = _cut(shaped[name], axis, rows)
        notes.append(f"words {rows} to {config.vocab_size - 1} were cut off")
        config.vocab_size = rows
    row = config.pad_token_id
    if options.zero_padding_row and row is not None and words in shaped and 0 <= row < (*shaped[words].shape, 0)[0]:
        shaped[words] = _zeroed(shaped[words], row)
        notes.append("the embedding of the padding token was set to zero: a token no longer sees the padding beside it")
    return shaped


def _cut(tensor: LazyTensor, axis: int, rows: int) -> LazyTensor:
    def read() -> np.ndarray | RawTensor:
        bits, dtype = stored(tensor())
        kept = bits[(slice(None),) * axis + (slice(rows),)]
        return from_bits(kept, dtype)

    return LazyTensor((*tensor.shape[:axis], rows, *tensor.shape[axis + 1:]), tensor.dtype, read, tensor.position)


def _zeroed(tensor: LazyTensor, row: int) -> LazyTensor:
    def read() -> np.ndarray | RawTensor:
        bits, dtype = stored(tensor())
        bits = bits.copy()
        bits[row] = 0
        return from_bits(bits, dtype)

    return LazyTensor(tensor.shape, tensor.dtype, read, tensor.position)
