"""Text generation for causal language models, with the cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from bertkit.core.errors import InputError
from bertkit.core.generation import GenerationSettings
from bertkit.core.progress import progress


class Generation:
    """Adds `generate` to a causal language model."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        min_new_tokens: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 1.0,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
        **model_inputs: Tensor,
    ) -> Tensor:
        """Continue each sequence, one token at a time.

        Args:
            input_ids: [batch, length] the beginnings; shorter ones are padded on the left.
            attention_mask: [batch, length], 0 for padding.
            max_new_tokens: number of tokens to add, at most; default 20, or what `max_length` leaves.
            max_length: length with the beginning, at most.
            min_new_tokens: no end before so many tokens.
            do_sample: draw each token from the model's distribution instead of taking the likeliest.
            temperature: divides the scores before drawing; above 0.
            top_k: draw from so many likeliest tokens; 0 for all.
            top_p: draw from the likeliest tokens that together have this probability.
            eos_token_id: token, or tokens, that end a sequence; default `config.eos_token_id`, else none.
            pad_token_id: token behind an ended sequence; default `config.pad_token_id`.
            use_cache: keep keys and values of earlier tokens.
            generator: source of randomness.
            **model_inputs: further inputs, e.g. `encoder_hidden_states`.

        Returns:
            [batch, length + new tokens] ids.

        Raises:
            InputError: for settings that cannot be.

        Reference:
            Holtzman et al., "The Curious Case of Neural Text Degeneration", https://arxiv.org/abs/1904.09751
        """
        if input_ids.dim() != 2:
            raise InputError(f"input_ids: got shape {list(input_ids.shape)}, expected 2 dimensions [batch, length]")
        settings = GenerationSettings.resolve(
            self.config, input_ids.shape[1], max_new_tokens=max_new_tokens, max_length=max_length,
            min_new_tokens=min_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        ends = torch.tensor(settings.eos_token_ids, dtype=torch.long, device=input_ids.device)
        cache, new_ids = None, input_ids
        for step in progress(range(settings.new_tokens), "generating", unit="token"):
            output = self(new_ids, attention_mask=mask, past_key_values=cache, use_cache=use_cache, return_dict=True,
                          position_ids=_positions(mask, new_ids.shape[1]), **model_inputs)
            scores = output.logits[:, -1].float()
            if step < settings.min_new_tokens:
                scores[:, ends] = float("-inf")
            chosen = _draw(scores, settings, generator) if do_sample else scores.argmax(-1)
            chosen = torch.where(ended, settings.pad_token_id, chosen)
            input_ids = torch.cat([input_ids, chosen[:, None]], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            ended = ended | torch.isin(chosen, ends)
            if ended.all():
                break
            cache = output.past_key_values if use_cache else None
            new_ids = chosen[:, None] if use_cache else input_ids
        return input_ids


def _positions(mask: Tensor, new: int) -> Tensor:
    return (mask.long().cumsum(1) - 1).clamp(min=0)[:, -new:]


def _draw(scores: Tensor, settings: GenerationSettings, generator: torch.Generator | None) -> Tensor:
    scores = scores / settings.temperature
    if settings.top_k:
        lowest = scores.topk(min(settings.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < lowest, float("-inf"))
    if settings.top_p < 1:
        ordered, index = scores.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        scores = scores.masked_fill((before >= settings.top_p).gather(1, index.argsort(-1)), float("-inf"))
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
