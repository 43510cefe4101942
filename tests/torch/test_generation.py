"""MegatronBERT as a decoder: the cache, cross-attention and `generate`."""

from __future__ import annotations

import pytest
import torch

from bertkit.core.errors import InputError
from tests import cases
from tests.torch.common import assert_same, features, make

KINDS = ["absolute", "relative_key", "relative_key_query"]
each_kind = pytest.mark.parametrize("kind", KINDS)
STATES = torch.linspace(-1, 1, 3 * 5 * 16).sin().view(3, 5, 16)
STATES_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])


def decoder(kind="absolute", **changes):
    """A tiny causal language model."""
    return make("megatron-bert", "ForCausalLM", position_embedding_type=kind, **changes)


def chunked(model, ids, sizes, **inputs):
    """The scores when the tokens arrive in pieces."""
    scores, cache, start = [], None, 0
    for size in sizes:
        stop = start + size
        mask = {"attention_mask": inputs["attention_mask"][:, :stop]} if "attention_mask" in inputs else {}
        output = model(ids[:, start:stop], past_key_values=cache, use_cache=True, **{**inputs, **mask})
        cache, start = output.past_key_values, stop
        assert all(layer[0].shape[2] == stop for layer in cache)
        scores.append(output.logits)
    return torch.cat(scores, 1)


@pytest.mark.parametrize("sizes", [[1] * 9, [4, 1, 4], [2, 7], [9]], ids=str)
@each_kind
def test_pieces_give_the_scores_of_the_whole(kind, sizes):
    model, ids = decoder(kind), features("megatron-bert")["input_ids"]
    assert_same({"x": chunked(model, ids, sizes)}, {"x": model(ids).logits})


@pytest.mark.parametrize("sizes", [[1] * 9, [3, 6]], ids=str)
@each_kind
def test_pieces_with_padding_and_cross_attention(kind, sizes):
    model = decoder(kind, add_cross_attention=True)
    inputs = features("megatron-bert", lengths=(9, 4, 6))
    others = {"encoder_hidden_states": STATES, "encoder_attention_mask": STATES_MASK,
              "attention_mask": inputs["attention_mask"]}
    whole = model(inputs["input_ids"], **others).logits
    assert_same({"x": chunked(model, inputs["input_ids"], sizes, **others)}, {"x": whole})
    with pytest.raises(AssertionError):
        assert_same({"x": model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits}, {"x": whole}, 1e-3)


@each_kind
def test_a_decoder_sees_no_later_token(kind):
    model, ids = decoder(kind), features("megatron-bert")["input_ids"]
    changed = ids.clone()
    changed[:, 5] = cases.FIRST_WORD
    for options in ({}, {"output_attentions": True}):
        first, second = model(ids, **options).logits, model(changed, **options).logits
        assert_same({"x": first[:, :5]}, {"x": second[:, :5]})
        assert (first - second)[:, 5:].abs().max() > 1e-3
    assert not model(ids, output_attentions=True).attentions[0].triu(1).any()


def test_cross_attention_ignores_masked_states():
    model = decoder(add_cross_attention=True)
    ids = features("megatron-bert")["input_ids"]
    changed = torch.where(STATES_MASK[..., None] == 1, STATES, 7.0)
    outputs = [model(ids, encoder_hidden_states=states, encoder_attention_mask=STATES_MASK, output_attentions=True)
               for states in (STATES, changed)]
    assert_same({"x": outputs[0].logits}, {"x": outputs[1].logits})
    assert outputs[0].cross_attentions[0].shape == (3, 4, cases.LENGTH, 5) and len(outputs[0].cross_attentions) == 2
    fused = model(ids, encoder_hidden_states=STATES, encoder_attention_mask=STATES_MASK)
    assert_same({"x": fused.logits}, {"x": outputs[0].logits})
    assert len(fused.past_key_values[0]) == 4


def test_when_there_is_a_cache():
    ids = features("megatron-bert")["input_ids"]
    assert decoder()(ids).past_key_values is not None
    assert decoder()(ids, use_cache=False).past_key_values is None
    assert decoder(use_cache=False)(ids).past_key_values is None
    assert decoder()(ids, labels=ids).past_key_values is None
    assert make("megatron-bert")(ids, use_cache=True).past_key_values is None


# -- generate ---------------------------------------------------------------------------------------------------
def by_hand(model, ids, mask, count, **inputs):
    """Greedy choice, everything computed anew for each token."""
    for _ in range(count):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        best = model(ids, attention_mask=mask, position_ids=positions, use_cache=False, **inputs).logits[:, -1].argmax(-1)
        ids, mask = torch.cat([ids, best[:, None]], 1), torch.cat([mask, torch.ones_like(best)[:, None]], 1)
    return ids


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("cross", [True, False])
@each_kind
def test_greedy_generation(kind, cross, use_cache):
    model, inputs = decoder(kind, add_cross_attention=cross), features("megatron-bert", length=5)
    ids, mask = inputs["input_ids"], torch.ones(3, 5, dtype=torch.long)
    ids[1, :2] = mask[1, :2] = 0  # padded on the left
    extra = {"encoder_hidden_states": STATES, "encoder_attention_mask": STATES_MASK} if cross else {}
    expected = by_hand(model, ids, mask, 8, **extra)
    assert torch.equal(model.generate(ids, mask, max_new_tokens=8, use_cache=use_cache, **extra), expected)
    assert len(expected[:, 5:].unique()) > 2  # else it would prove little


def test_padding_on_the_left_changes_nothing():
    model, ids = decoder(), features("megatron-bert", length=5)["input_ids"]
    alone = model.generate(ids[:1, 2:], max_new_tokens=6)
    padded = ids.clone()
    padded[0, :2] = 0
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    assert torch.equal(model.generate(padded, mask, max_new_tokens=6)[0, 2:], alone[0])


def test_sampling_is_reproducible():
    model, ids = decoder(), features("megatron-bert", length=4)["input_ids"]

    def sample(seed, **options):
        return model.generate(ids, do_sample=True, max_new_tokens=12, generator=torch.Generator().manual_seed(seed), **options)

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
    greedy = model.generate(ids, max_new_tokens=12)
    assert torch.equal(sample(1, top_k=1), greedy)
    assert torch.equal(sample(1, top_p=1e-6), greedy)
    assert torch.equal(sample(1, temperature=1e-5), greedy)


def test_top_k_and_top_p_draw_from_the_likeliest():
    model, ids = decoder(), features("megatron-bert", length=4)["input_ids"][:1].expand(400, -1)
    probabilities = model(ids[:1]).logits[0, -1].softmax(-1)
    order = probabilities.argsort(descending=True).tolist()
    draw = lambda **o: set(model.generate(ids, do_sample=True, max_new_tokens=1, **o)[:, -1].tolist())  # noqa: E731
    torch.manual_seed(0)
    assert draw(top_k=3) == set(order[:3])
    needed = int((probabilities[order].cumsum(0) < 0.3).sum()) + 1
    assert draw(top_k=0, top_p=0.3) <= set(order[:needed]) and len(draw(top_k=0, top_p=0.3)) > 1
    assert len(draw(top_k=0)) > 10


def test_ends():
    model, ids = decoder(), features("megatron-bert", length=4)["input_ids"]
    free = model.generate(ids, max_new_tokens=10)
    end = free[0, 6].item()
    first = [row[4:].index(end) if end in row[4:] else 99 for row in free.tolist()]
    stopped = model.generate(ids, max_new_tokens=10, eos_token_id=end, pad_token_id=2)
    for row, where in enumerate(first):
        kept = 4 + where + 1
        assert stopped[row, :kept].tolist() == free[row, :kept].tolist()[: stopped.shape[1]]
        assert (stopped[row, kept:] == 2).all()
    alone = model.generate(ids[:1], max_new_tokens=10, eos_token_id=[end, 60])
    assert alone[0, -1] == end and alone.shape[1] == 4 + first[0] + 1
    longer = model.generate(ids[:1], max_new_tokens=10, min_new_tokens=5, eos_token_id=end)
    assert end not in longer[0, 4:9]
    assert torch.equal(model.generate(ids, max_new_tokens=10, min_new_tokens=5), free)  # no end at all
    assert decoder(eos_token_id=end).generate(ids[:1], max_new_tokens=10).shape == alone.shape
    assert model.generate(ids, max_length=7).shape == (3, 7)
    assert model.generate(ids).shape == (3, 24)


def test_a_decoder_that_sees_everything_is_told_of():
    with pytest.warns(UserWarning, match="without is_decoder=True"):
        decoder(is_decoder=False)


@pytest.mark.filterwarnings("ignore:.*without is_decoder")
@pytest.mark.parametrize("changes", [{}, {"is_decoder": False}], ids=["decoder", "encoder"])
def test_one_error_for_all_bad_settings(changes):
    ids = features("megatron-bert", length=4)["input_ids"]
    with pytest.raises(InputError) as caught:
        decoder(**changes).generate(ids, max_new_tokens=50, temperature=0, top_k=-1, top_p=1.5)
    text = str(caught.value)
    expected = ["4 + 50 new tokens, expected at most 24", "temperature: got 0", "top_k: got -1", "top_p: got 1.5"]
    expected += ["config.is_decoder: got False"] if changes else []
    assert all(part in text for part in expected) and len(text.splitlines()) == 1 + len(expected)
    for bad in ({"max_new_tokens": 0}, {"max_length": 3}):
        with pytest.raises(InputError, match="new tokens: got"):
            decoder().generate(ids, **bad)
    with pytest.raises(InputError, match=r"input_ids: got shape \[4\]"):
        decoder().generate(ids[0])


def test_cross_attention_that_is_not_there():
    with pytest.raises(InputError, match="add_cross_attention=True"):
        decoder()(features("megatron-bert")["input_ids"], encoder_hidden_states=STATES)
