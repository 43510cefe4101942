"""The forward pass: the same numbers whatever way a caller takes, and whatever stands beside a row."""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests import cases
from tests.torch.common import assert_same, everything, features, flat, make, tensors

LENGTHS = (9, 4, 6)
each_class = pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
each_kind = pytest.mark.parametrize(("variant", "changes"), cases.KINDS, ids=cases.name_of)
each_variant = pytest.mark.parametrize("variant", list(dict.fromkeys(v for v, _ in cases.CLASSES)))


def pick(output, *names):
    """Some fields of an output."""
    return {name: value for name, value in output.items() if name in names}


@each_class
def test_fused_and_explicit_attention_agree(variant, task):
    rows = cases.CHOICES if task == "ForMultipleChoice" else 1
    model, inputs = make(variant, task), everything(variant, task, lengths=LENGTHS * rows)
    plain = model(**inputs, output_hidden_states=True)
    asked = model(**inputs, output_hidden_states=True, output_attentions=True)
    attentions = asked.pop("attentions")
    assert_same(asked, plain)
    assert len(attentions) == model.config.num_hidden_layers
    rows = inputs["attention_mask"].flatten(0, -2).shape[0]
    assert all(a.shape == (rows, 4, cases.LENGTH, cases.LENGTH) for a in attentions)


@each_kind
def test_fused_and_explicit_attention_agree_for_each_kind(variant, changes):
    model, inputs = make(variant, **changes), features(variant, lengths=LENGTHS)
    asked = model(**inputs, output_hidden_states=True, output_attentions=True)
    attentions = torch.stack(asked.pop("attentions"))
    assert_same(asked, model(**inputs, output_hidden_states=True))
    masked = inputs["attention_mask"][None, :, None, None, :] == 0
    assert not attentions.masked_select(masked.expand_as(attentions)).any()
    if variant != "yoso":
        torch.testing.assert_close(attentions.sum(-1), torch.ones_like(attentions.sum(-1)))


def _alone(inputs, row, length):
    return {name: value[row : row + 1, ..., :length] for name, value in inputs.items()}


@each_class
def test_a_row_alone_padded_or_beside_others(variant, task):
    """Padding changes nothing, and neither does the rest of the batch; transformers fails this for YOSO."""
    model = make(variant, task)
    lengths = [(9, 9), (4, 4), (6, 6)] if task == "ForMultipleChoice" else LENGTHS
    inputs = features(variant, task, lengths=tuple(np.ravel(lengths)))
    together = model(**inputs, output_hidden_states=True)
    for row, length in enumerate(LENGTHS):
        alone = model(**_alone(inputs, row, length), output_hidden_states=True)
        hidden = alone.pop("hidden_states")
        per_token = cases.PER_TOKEN.get(task, ())
        expected = {name: (value[row : row + 1, :length] if name in per_token else value[row : row + 1])
                    for name, value in together.items() if isinstance(value, torch.Tensor)}
        assert_same(pick(alone, *expected), expected)
        choices = cases.CHOICES if task == "ForMultipleChoice" else 1
        assert_same({"hidden": hidden}, {"hidden": tuple(
            h[row * choices : (row + 1) * choices, :length] for h in together.hidden_states)})


@each_kind
def test_a_row_alone_padded_or_beside_others_for_each_kind(variant, changes):
    model, inputs = make(variant, **changes), features(variant, lengths=LENGTHS)
    together = model(**inputs)
    for row, length in enumerate(LENGTHS):
        alone = model(**_alone(inputs, row, length))
        assert_same(pick(alone, "last_hidden_state"), {"last_hidden_state": together.last_hidden_state[row : row + 1, :length]})


@each_class
def test_embeddings_instead_of_ids(variant, task):
    model, inputs = make(variant, task), everything(variant, task)
    words = model.get_input_embeddings()(inputs["input_ids"])
    if isinstance(words, tuple):  # I-BERT's also give a scale
        words = words[0]
    given = {**inputs, "inputs_embeds": words}
    del given["input_ids"]
    assert_same(model(**given), model(**inputs))


@each_class
def test_defaults_of_mask_types_and_positions(variant, task):
    model, inputs = make(variant, task), features(variant, task)
    inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
    first = {"yoso": 2, "ibert": 2}.get(variant, 0)
    positions = torch.arange(first, first + cases.LENGTH).expand_as(inputs["input_ids"])
    assert_same(model(inputs["input_ids"]), model(**inputs, position_ids=positions))
    assert flat(model(**inputs, position_ids=positions.flip(-1)))  # other positions are taken, and make a difference:
    with pytest.raises(AssertionError):
        assert_same(model(**inputs, position_ids=positions.flip(-1)), model(**inputs))


@each_class
def test_tuples_hold_the_same_in_the_same_order(variant, task):
    model, inputs = make(variant, task), everything(variant, task)
    options = {"output_hidden_states": True, "output_attentions": True}
    named, plain = model(**inputs, **options), model(**inputs, **options, return_dict=False)
    assert type(plain) is tuple
    values = list(named.values())
    if variant == "yoso" or task != "Model":
        assert list(named) == [name for name in type(named).fields if name in named]
        assert_same(dict(enumerate(plain)), dict(enumerate(values)), 0)
    else:
        assert_same(dict(enumerate(plain)), dict(enumerate(values)), 0)
        bare = type(model)(model.config, add_pooling_layer=False).eval()
        assert bare(**inputs, return_dict=False)[1] is None


@each_class
def test_output_flags_of_the_configuration(variant, task):
    model = make(variant, task, output_attentions=True, output_hidden_states=True, return_dict=False)
    inputs = features(variant, task)
    assert isinstance(model(**inputs), tuple)
    output = model(**inputs, return_dict=True)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    output = model(**inputs, return_dict=True, output_attentions=False, output_hidden_states=False)
    assert output.hidden_states is None and output.attentions is None


@each_class
def test_arguments_by_place_follow_the_documented_order(variant, task):
    names = list(inspect.signature(type(make(variant, task)).forward).parameters)[1:]
    ibert_choice = (variant, task) == ("ibert", "ForMultipleChoice")
    assert names[:3] == (["input_ids", "token_type_ids", "attention_mask"] if ibert_choice
                         else ["input_ids", "attention_mask", "token_type_ids"])
    flags = ["output_attentions", "output_hidden_states", "return_dict"]
    if (variant, task) == ("mobilebert", "Model"):
        flags[:2] = reversed(flags[:2])
    assert [n for n in names if n in flags] == flags


@each_kind
def test_a_head_mask_is_a_factor_of_each_head(variant, changes):
    model, inputs = make(variant, **changes), features(variant, lengths=LENGTHS)
    full = model(**inputs).last_hidden_state
    assert_same({"x": model(**inputs, head_mask=torch.ones(2, 4)).last_hidden_state}, {"x": full})
    assert_same({"x": model(**inputs, head_mask=torch.ones(4)).last_hidden_state}, {"x": full})
    mask = torch.tensor([1.0, 0.0, 0.5, 1.0])
    cut = model(**inputs, head_mask=mask).last_hidden_state
    assert_same({"x": model(**inputs, head_mask=torch.stack([mask, mask])).last_hidden_state}, {"x": cut})
    assert (cut - full).abs().max() > 1e-3
    # Factor 0 in every head leaves nothing of the tokens around: each token's state depends on itself alone.
    if not changes.get("conv_window") and not model.config.to_dict().get("trigram_input"):
        nothing = model(**inputs, head_mask=torch.zeros(4)).last_hidden_state
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, 0] = cases.FIRST_WORD
        again = model(**changed, head_mask=torch.zeros(4)).last_hidden_state
        assert_same({"x": again[:, 1:]}, {"x": nothing[:, 1:]})


@pytest.mark.parametrize("output_attentions", [False, True])
@pytest.mark.parametrize("variant", ["ibert", "megatron-bert", "mobilebert"])
def test_masks_of_three_and_four_dimensions(variant, output_attentions):
    model, inputs = make(variant), features(variant, lengths=LENGTHS)
    two = model(**inputs, output_attentions=output_attentions)
    mask = inputs["attention_mask"]
    three = mask[:, None, :].expand(-1, cases.LENGTH, -1)
    for given in (three, three[:, None], three.bool(), three.float()):
        assert_same(model(**{**inputs, "attention_mask": given}, output_attentions=output_attentions), two)
    if variant != "mobilebert":  # whose trigrams see the next word
        lower = torch.tril(torch.ones(cases.LENGTH, cases.LENGTH, dtype=torch.long)) * three
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, 3] = cases.FIRST_WORD
        first, second = (model(**{**x, "attention_mask": lower}).last_hidden_state for x in (inputs, changed))
        assert_same({"x": first[:, :3]}, {"x": second[:, :3]})
        assert (first - second)[:, 3:].abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output_attentions", [False, True])
@each_variant
def test_a_fully_masked_row_is_uniform_and_finite(variant, output_attentions, dtype):
    model, inputs = make(variant).to(dtype), features(variant)
    inputs["attention_mask"][1] = 0
    output = model(**inputs, output_attentions=output_attentions)
    assert all(torch.isfinite(value).all() for value in flat(output).values())
    if output_attentions and variant != "yoso" and dtype == torch.float32:
        uniform = torch.full((4, cases.LENGTH, cases.LENGTH), 1 / cases.LENGTH)
        assert_same({"p": output.attentions[0][1]}, {"p": uniform})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output_attentions", [False, True])
@each_variant
def test_a_fully_masked_row_is_finite_under_autocast(variant, output_attentions, dtype):
    model, inputs = make(variant), features(variant)
    inputs["attention_mask"][1] = 0
    with torch.autocast("cpu", dtype):
        low = model(**inputs, output_attentions=output_attentions)
    assert all(torch.isfinite(value).all() for value in flat(low).values())
    kept = torch.tensor([0, 2])  # float16 has no number that swallows the scores of the masked row
    low, full = low.last_hidden_state[kept].float(), model(**inputs).last_hidden_state[kept]
    assert (low - full).abs().max() < 0.1 * full.abs().max()


@each_class
def test_half_precision(variant, task):
    model, inputs = make(variant, task), everything(variant, task)
    full = flat(model(**inputs))
    for dtype in (torch.bfloat16, torch.float16):
        low = flat(model.to(dtype)(**inputs))
        assert low.keys() == full.keys()
        for name, value in low.items():
            assert value.dtype == (torch.float32 if name == "loss" else dtype)
            assert (value.float() - full[name]).abs().max() < 0.15 * full[name].abs().max().clamp(min=1)


@each_class
def test_evaluation_is_deterministic_and_dropout_is_not(variant, task):
    changes = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    model, inputs = make(variant, task, **changes), features(variant, task)
    assert_same(model(**inputs), model(**inputs), 0)
    assert_same(model(**inputs), make(variant, task)(**inputs), 0)
    model.train()
    torch.manual_seed(0)
    first, second = model(**inputs), model(**inputs)
    torch.manual_seed(0)
    assert_same(model(**inputs), first, 0)
    with pytest.raises(AssertionError):
        assert_same(first, second, 1e-3)


@pytest.mark.parametrize("act", ["relu", "gelu_new", "silu", "selu", torch.nn.functional.softplus], ids=str)
@pytest.mark.parametrize("variant", ["megatron-bert", "mobilebert", "yoso"])
def test_activations(variant, act):
    names = {"relu": torch.relu, "silu": torch.nn.functional.silu, "selu": torch.selu,
             "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))}
    inputs = features(variant)
    task = "ForMaskedLM"
    assert_same(make(variant, task, hidden_act=act)(**inputs), make(variant, task, hidden_act=names.get(act, torch.relu) if
                isinstance(act, str) else act)(**inputs))
    with pytest.raises(AssertionError):
        assert_same(make(variant, task, hidden_act=act)(**inputs), make(variant, task, hidden_act="tanh")(**inputs), 1e-2)


# -- YOSO's hash functions --------------------------------------------------------------------------------------
ATTENTIONS = [{}, {"use_expectation": False, "hash_seed": 0}, {"use_expectation": False, "hash_seed": 0, "conv_window": 3}]


def test_a_seed_makes_sampling_repeatable():
    inputs = features("yoso")
    seeded = make("yoso", use_expectation=False, hash_seed=1)
    assert_same(seeded(**inputs), seeded(**inputs), 0)
    assert_same(make("yoso", use_expectation=False, hash_seed=1)(**inputs), seeded(**inputs), 0)
    free = make("yoso", use_expectation=False)
    for other in (free, make("yoso", use_expectation=False, hash_seed=2)):
        with pytest.raises(AssertionError):
            assert_same(other(**inputs), seeded(**inputs), 1e-3)
    with pytest.raises(AssertionError):
        assert_same(free(**inputs), free(**inputs), 1e-3)
    torch.manual_seed(5)
    first = free(**inputs)
    torch.manual_seed(5)
    assert_same(free(**inputs), first, 0)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("fast", [True, False])
def test_a_compiled_model_draws_its_hash_functions_as_an_eager_one(fast, seed):
    torch.compiler.reset()
    inputs = features("yoso")
    model = make("yoso", num_hidden_layers=1, use_expectation=False, use_fast_hash=fast, hash_seed=seed)
    found = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(5)
        found += [call(**inputs), call(**inputs)]
    assert_same(found[2], found[0], 1e-6)
    assert_same(found[3], found[1], 1e-6)
    with pytest.raises(AssertionError) if seed is None else nullcontext():
        assert_same(found[1], found[0], 0)


@pytest.mark.parametrize("fast", [True, False])
def test_hash_functions_can_be_given(fast):
    inputs, options = features("yoso"), {"use_expectation": False, "use_fast_hash": fast}
    seeded, free = make("yoso", hash_seed=3, **options), make("yoso", **options)
    for giver, taker in zip(seeded.encoder.layer, free.encoder.layer, strict=True):
        taker.attention.self.hashes = giver.attention.self.hashes
    assert_same(free(**inputs), seeded(**inputs), 0)


@pytest.mark.parametrize("fast", [True, False])
def test_sampling_nears_the_expectation(fast):
    inputs = features("yoso")
    expected = make("yoso", hash_code_len=3)(**inputs).last_hidden_state
    errors = [(make("yoso", hash_code_len=3, use_expectation=False, use_fast_hash=fast, hash_seed=0, num_hash=count)
               (**inputs).last_hidden_state - expected).square().mean().sqrt() for count in (4, 64, 1024)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("changes", ATTENTIONS, ids=cases.name_of)
def test_yoso_takes_any_length_and_nothing(changes):
    model = make("yoso", **changes)
    for length in (1, 2, 17, 24):
        assert torch.isfinite(model(**features("yoso", length=length)).last_hidden_state).all()
    for shape in ((2, 0), (0, 5), (0, 0)):
        hidden = model(torch.full(shape, 5)).last_hidden_state
        assert hidden.shape == (*shape, 16)
        hidden.sum().backward()


@pytest.mark.parametrize("changes", ATTENTIONS, ids=cases.name_of)
def test_yoso_never_reads_what_padding_holds(changes):
    """Not even NaN, beside which a convolution lies, too; and a sequence of padding alone has finite gradients."""
    model, mask = make("yoso", **changes), torch.ones(3, 9)
    mask[0, 2], mask[1] = 0, 0
    clean = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
    dirty = clean.clone()
    dirty[0, 2] = torch.nan
    found = [model(inputs_embeds=x, attention_mask=mask).last_hidden_state[mask != 0] for x in (clean, dirty)]
    assert torch.equal(*found)
    model(inputs_embeds=clean, attention_mask=mask).last_hidden_state.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("scale", [1e6, 1e8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mobilebert_keeps_its_large_stream_under_autocast(dtype, scale):
    """The published weights reach 2.5e7, beyond float16."""
    model = make("mobilebert", "ForMaskedLM")
    norm = model.mobilebert.embeddings.LayerNorm
    with torch.no_grad():
        norm.weight.mul_(scale)
    inputs = tensors({**cases.features("mobilebert"), **cases.labels("ForMaskedLM")})
    full = model(**inputs, output_hidden_states=True)
    assert full.hidden_states[-1].abs().max() > scale / 100
    with torch.autocast("cpu", dtype):
        low = model(**inputs, output_hidden_states=True)
    low.loss.backward()
    assert all(h.dtype == torch.float32 for h in low.hidden_states)
    infinite = [name for name, value in flat(low).items() if not torch.isfinite(value).all()]
    assert not infinite
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
