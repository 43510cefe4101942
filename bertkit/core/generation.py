"""Settings of text generation, checked and filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bertkit.core.errors import InputError

DEFAULT_NEW_TOKENS = 20


@dataclass(frozen=True)
class GenerationSettings:
    """What both frameworks' `generate` follow; see there for the meaning of each."""

    new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @classmethod
    def resolve(
        cls, config: Any, length: int, *, max_new_tokens: int | None, max_length: int | None, min_new_tokens: int,
        temperature: float, top_k: int, top_p: float, eos_token_id: int | list[int] | None, pad_token_id: int | None,
    ) -> GenerationSettings:
        """Fill in what was left open from the configuration.

        Raises:
            InputError: listing every setting that cannot be.
        """
        new_tokens = max_new_tokens
        if new_tokens is None:
            new_tokens = DEFAULT_NEW_TOKENS if max_length is None else max_length - length
        eos = getattr(config, "eos_token_id", None) if eos_token_id is None else eos_token_id
        ends = tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (eos,)
        checks = {
            f"config.is_decoder: got {config.is_decoder}, expected True": config.is_decoder,
            f"new tokens: got {new_tokens}, expected at least 1": new_tokens >= 1,
            f"length: {length} + {new_tokens} new tokens, expected at most {config.max_position_embeddings}":
                length + new_tokens <= config.max_position_embeddings,
            f"temperature: got {temperature}, expected a number > 0": temperature > 0,
            f"top_k: got {top_k}, expected an integer >= 0": top_k >= 0,
            f"top_p: got {top_p}, expected a number in (0, 1]": 0 < top_p <= 1,
        }
        problems = [problem for problem, fine in checks.items() if not fine]
        if problems:
            raise InputError("cannot generate", problems)
        pad = config.pad_token_id if pad_token_id is None else pad_token_id
        return cls(new_tokens, min_new_tokens, temperature, top_k, top_p, ends, pad or 0)
