"""What changes the size of a model: another number of words, fewer attention heads. Framework-free arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bertkit.core.errors import ConfigError


def check_changeable(config: Any) -> None:
    """Refuse to change a frozen model, whose integers belong together.

    Raises:
        ConfigError: where `config` is a frozen model's.
    """
    if getattr(config, "integer_format", None) is not None:
        raise ConfigError("a frozen model cannot be changed",
                          remedy="Change, or convert, the one that it was made of, and freeze() that.")


def resized_vocabulary(config: Any, new_num_tokens: int | None, pad_to_multiple_of: int | None) -> int:
    """The number of words after resizing.

    Args:
        config: gives the present number and the padding token.
        new_num_tokens: the wanted number; None for the present one.
        pad_to_multiple_of: round up to a multiple of this.

    Raises:
        ConfigError: for a number that leaves no words, or not the padding token, or for a frozen model.
    """
    check_changeable(config)
    rows = config.vocab_size if new_num_tokens is None else new_num_tokens
    lowest = 1 + max(0, config.pad_token_id or 0)
    if rows < lowest:
        raise ConfigError(f"new_num_tokens: got {rows}, expected at least {lowest} (pad_token_id must stay)")
    return -(-rows // pad_to_multiple_of) * pad_to_multiple_of if pad_to_multiple_of else rows


def common_part(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[slice, ...]:
    """What a tensor keeps of its values when its shape changes."""
    return tuple(slice(min(sizes)) for sizes in zip(before, after, strict=True))


def plan_pruning(
    config: Any, heads_to_prune: Mapping[int, Iterable[int]]
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """What pruning leaves.

    Args:
        config: gives the heads that were pruned before.
        heads_to_prune: further heads by layer, in the numbering before any pruning.

    Returns:
        All pruned heads by layer, for the configuration; and for each layer that changes, the places of the heads
        that stay among those that it has now.

    Raises:
        ConfigError: for layers or heads that do not exist, or a layer that would have none left, or for a frozen model.
    """
    check_changeable(config)
    wanted = {layer: sorted({*heads, *config.pruned_heads.get(layer, ())}) for layer, heads in heads_to_prune.items()}
    pruned = {**config.pruned_heads, **wanted}
    type(config).from_dict({**config.to_dict(), "pruned_heads": pruned})
    kept = {}
    for layer, heads in wanted.items():
        before = [head for head in range(config.num_attention_heads) if head not in config.pruned_heads.get(layer, ())]
        kept[layer] = [place for place, head in enumerate(before) if head not in heads]
    return pruned, kept
