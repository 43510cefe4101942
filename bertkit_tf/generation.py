"""Text generation for causal language models, with the cache of keys and values."""

from __future__ import annotations

import tensorflow as tf

from bertkit.core.errors import InputError
from bertkit.core.generation import GenerationSettings
from bertkit.core.progress import progress
from bertkit_tf.layers import random_seed


class Generation:
    """Adds `generate` to a causal language model."""

    def generate(
        self,
        input_ids: tf.Tensor,
        attention_mask: tf.Tensor | None = None,
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
        seed: tf.Tensor | list[int] | None = None,
        **model_inputs: tf.Tensor,
    ) -> tf.Tensor:
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
            seed: two integers, the source of randomness.
            **model_inputs: further inputs, e.g. `encoder_hidden_states`.

        Returns:
            [batch, length + new tokens] ids.

        Raises:
            InputError: for settings that cannot be.

        Reference:
            Holtzman et al., "The Curious Case of Neural Text Degeneration", https://arxiv.org/abs/1904.09751
        """
        input_ids = tf.convert_to_tensor(input_ids)
        if input_ids.shape.rank != 2:
            raise InputError(f"input_ids: got shape {input_ids.shape}, expected 2 dimensions [batch, length]")
        settings = GenerationSettings.resolve(
            self.config, input_ids.shape[1], max_new_tokens=max_new_tokens, max_length=max_length,
            min_new_tokens=min_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )
        mask = tf.ones_like(input_ids) if attention_mask is None else tf.cast(attention_mask, input_ids.dtype)
        ended = tf.zeros(len(input_ids), tf.bool)
        ends = tf.constant(settings.eos_token_ids, input_ids.dtype)
        seed = random_seed() if seed is None else tf.convert_to_tensor(seed)
        cache, new_ids = None, input_ids
        for step in progress(range(settings.new_tokens), "generating", unit="token"):
            output = self(new_ids, attention_mask=mask, past_key_values=cache, use_cache=use_cache, return_dict=True,
                          position_ids=_positions(mask, new_ids.shape[1]), training=False, **model_inputs)
            scores = tf.cast(output.logits[:, -1], tf.float32)
            if step < settings.min_new_tokens:
                scores -= tf.reduce_sum(tf.one_hot(ends, scores.shape[-1], on_value=scores.dtype.max), 0)
            chosen = _draw(scores, settings, seed, step) if do_sample else tf.argmax(scores, -1)
            chosen = tf.where(ended, tf.cast(settings.pad_token_id, input_ids.dtype), tf.cast(chosen, input_ids.dtype))
            input_ids = tf.concat([input_ids, chosen[:, None]], 1)
            mask = tf.concat([mask, tf.ones_like(chosen)[:, None]], 1)
            ended = ended | tf.reduce_any(chosen[:, None] == ends[None], 1)
            if tf.reduce_all(ended):
                break
            cache = output.past_key_values if use_cache else None
            new_ids = chosen[:, None] if use_cache else input_ids
        return input_ids


def _positions(mask: tf.Tensor, new: int) -> tf.Tensor:
    return tf.maximum(tf.cumsum(mask, 1) - 1, 0)[:, -new:]


def _draw(scores: tf.Tensor, settings: GenerationSettings, seed: tf.Tensor, step: int) -> tf.Tensor:
    scores = scores / settings.temperature
    if settings.top_k:
        lowest = tf.math.top_k(scores, min(settings.top_k, scores.shape[-1])).values[:, -1:]
        scores = tf.where(scores < lowest, -float("inf"), scores)
    if settings.top_p < 1:
        order = tf.argsort(scores, -1, direction="DESCENDING", stable=True)
        likely = tf.nn.softmax(tf.gather(scores, order, batch_dims=1))
        before = tf.cumsum(likely, -1, exclusive=True)
        dropped = tf.gather(before >= settings.top_p, tf.argsort(order, -1), batch_dims=1)
        scores = tf.where(dropped, -float("inf"), scores)
    step_seed = tf.random.experimental.stateless_fold_in(seed, step)
    return tf.random.stateless_categorical(scores, 1, step_seed)[:, 0]
