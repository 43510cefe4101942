"""What users do to a model: embeddings, heads, gradient checkpointing, copies, dtypes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bertkit.core.errors import BertkitError, ConfigError
from bertkit.core.variants import VARIANTS
from tests import cases
from tests.torch.common import assert_same, everything, features, flat, gradients, loss_of, make, model_class

each_class = pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
each_kind = pytest.mark.parametrize(("variant", "changes"), cases.KINDS, ids=cases.name_of)
each_language_model = pytest.mark.parametrize(("variant", "task"), cases.LANGUAGE_MODELS)
each_variant = pytest.mark.parametrize("variant", list(VARIANTS))


# -- initial values ---------------------------------------------------------------------------------------------
@each_class
def test_initial_values(variant, task):
    torch.manual_seed(0)
    model = model_class(variant, task)(cases.config(variant, task, hidden_size=32, intermediate_size=96, vocab_size=500,
                                                    initializer_range=0.5, intra_bottleneck_size=24))
    assert model.training
    state, pad = model.state_dict(), model.config.pad_token_id
    for name, param in model.params().items():
        if param.kind in ("kernel", "matrix", "embedding"):
            values = state[name]
            if name.endswith("word_embeddings.weight"):
                assert not values[pad].any()
                values = torch.cat([values[:pad], values[pad + 1 :]])
            if values.numel() >= 500:
                assert abs(values.std() / 0.5 - 1) < 0.15 and abs(values.mean()) < 0.1, name
            assert values.any(), name
        elif param.kind in ("bias", "norm_shift", "norm_scale"):
            assert (state[name] == float(param.kind == "norm_scale")).all(), name
    torch.manual_seed(0)
    again = type(model)(model.config)
    assert_same(again.state_dict(), state, 0)
    again.init_weights()
    with pytest.raises(AssertionError):
        assert_same(again.state_dict(), state, 0.1)


def test_initial_values_of_the_convolution():
    weight = make("yoso", conv_window=3).encoder.layer[0].attention.self.conv.weight
    assert 0.3 < weight.abs().max() <= 3**-0.5


# -- embeddings -------------------------------------------------------------------------------------------------
@each_class
def test_get_and_set_embeddings(variant, task):
    model = make(variant, task)
    words, decoder = model.get_input_embeddings(), model.get_output_embeddings()
    assert words.weight is dict(model.named_parameters())[
        ("" if task == "Model" else VARIANTS[variant].prefix + ".") + "embeddings.word_embeddings.weight"]
    assert (decoder is not None) == ((variant, task) in cases.LANGUAGE_MODELS)
    twin = copy.deepcopy(words)
    with torch.no_grad():
        twin.weight.mul_(-1)
    before = model(**features(variant, task))
    model.set_input_embeddings(twin)
    assert model.get_input_embeddings() is twin
    with pytest.raises(AssertionError):
        assert_same(model(**features(variant, task)), before, 1e-3)
    if decoder is None:
        with pytest.raises(BertkitError, match="no output embeddings"):
            model.set_output_embeddings(twin)
    else:
        assert decoder.weight is twin.weight


@each_language_model
def test_set_output_embeddings(variant, task):
    model = make(variant, task, tie_word_embeddings=False)
    decoder = model.get_output_embeddings()
    assert decoder.weight is not model.get_input_embeddings().weight
    fresh = nn.Linear(decoder.in_features, decoder.out_features)
    model.set_output_embeddings(fresh)
    assert model.get_output_embeddings() is fresh
    name = "lm_head.bias" if variant == "ibert" else "cls.predictions.bias"
    assert model.state_dict()[name].data_ptr() == fresh.bias.data_ptr()
    with pytest.raises(BertkitError, match="need a bias"):
        model.set_output_embeddings(nn.Linear(decoder.in_features, decoder.out_features, bias=False))


def _word_scores(output):
    return output[next(name for name in ("prediction_logits", "logits", "last_hidden_state") if name in output)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [70, 40])
@pytest.mark.parametrize(("variant", "task"), [*((v, "Model") for v in VARIANTS), *cases.LANGUAGE_MODELS])
def test_resize_token_embeddings(variant, task, rows, tied, tmp_path):
    model = make(variant, task, tie_word_embeddings=tied)
    inputs = features(variant, task)
    inputs["input_ids"] = inputs["input_ids"].clamp(max=39)
    before = model(**inputs)
    assert model.resize_token_embeddings(rows) is model.get_input_embeddings()
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == rows
    after = model(**inputs)
    decoder = model.get_output_embeddings()
    if decoder is None:
        assert_same(after, before, 0)
    else:
        assert decoder.out_features == rows and _word_scores(after).shape[-1] == rows
        assert (decoder.weight is model.get_input_embeddings().weight) == tied
        kept = min(rows, cases.VOCABULARY)
        assert_same({"x": _word_scores(after)[..., :kept]}, {"x": _word_scores(before)[..., :kept]})
    inputs["input_ids"].view(-1)[0] = rows - 1
    loss_of(model(**inputs)).backward()
    assert model.get_input_embeddings().weight.grad[rows - 1].any()
    model.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path)(**inputs), model(**inputs), 0)


def test_resizing_rounds_up_and_refuses_nonsense():
    model = make("yoso", "ForMaskedLM")
    assert model.resize_token_embeddings(pad_to_multiple_of=8).num_embeddings == 64
    assert model.resize_token_embeddings(65, pad_to_multiple_of=8).num_embeddings == 72
    assert model.resize_token_embeddings() is model.get_input_embeddings() and model.config.vocab_size == 72
    for rows in (0, -3, 1):
        with pytest.raises(ConfigError, match=f"new_num_tokens: got {rows}, expected at least 2"):
            model.resize_token_embeddings(rows)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.resize_token_embeddings(80)
    assert not model.get_input_embeddings().weight.requires_grad


@each_language_model
def test_tie_weights_after_a_parameter_was_replaced(variant, task):
    model = make(variant, task)
    words = model.get_input_embeddings()
    words.weight = nn.Parameter(torch.zeros_like(words.weight))
    assert model.get_output_embeddings().weight is not words.weight
    model.tie_weights()
    assert model.get_output_embeddings().weight is words.weight
    names = [name for name, _ in model.named_parameters()]
    assert not any("decoder" in name for name in names)


# -- heads ------------------------------------------------------------------------------------------------------
@each_kind
def test_pruned_heads_are_masked_heads(variant, changes, tmp_path):
    model, inputs = make(variant, **changes), features(variant, lengths=(9, 4, 6))
    mask = torch.ones(2, 4)
    mask[0, 1] = mask[0, 3] = mask[1, 0] = 0
    expected = model(**inputs, head_mask=mask).last_hidden_state
    before = model.num_parameters()
    model.prune_heads({0: [3]})
    model.prune_heads({0: {1, 3}, 1: [0]})
    assert model.config.pruned_heads == {0: [1, 3], 1: [0]} and model.num_parameters() < before
    assert_same({"x": model(**inputs).last_hidden_state}, {"x": expected})
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert shapes == {name: p.shape for name, p in model.params().items() if name in shapes}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert_same(again(**inputs), model(**inputs), 0)
    loss_of(again(**inputs)).backward()


@each_class
def test_heads_are_pruned_below_every_task(variant, task):
    model, inputs = make(variant, task), everything(variant, task)
    mask = torch.ones(2, 4)
    mask[1, 2] = 0
    expected = model(**inputs, head_mask=mask)
    model.prune_heads({1: [2]})
    assert_same(model(**inputs), expected)


@each_variant
def test_impossible_pruning_changes_nothing(variant):
    model = make(variant)
    before = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for heads in ({2: [0]}, {0: [4]}, {0: [0, 1, 2, 3]}, {-1: [0]}):
        with pytest.raises(ConfigError, match="pruned_heads"):
            model.prune_heads(heads)
        assert model.config.pruned_heads == {}
        assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == before


def test_cross_attention_is_pruned_too():
    model = make("megatron-bert", is_decoder=True, add_cross_attention=True)
    states = torch.randn(3, 5, 16)
    mask = torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    inputs = {**features("megatron-bert"), "encoder_hidden_states": states}
    expected = model(**inputs, head_mask=mask).last_hidden_state
    model.prune_heads({0: [1]})
    assert_same({"x": model(**inputs).last_hidden_state}, {"x": expected})


# -- memory -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [None, {"use_reentrant": True}], ids=["default", "reentrant"])
@pytest.mark.parametrize(("variant", "changes"), [*cases.KINDS, ("yoso", {"use_expectation": False})], ids=cases.name_of)
def test_gradient_checkpointing_changes_nothing(variant, changes, options):
    task = "ForCausalLM" if changes.get("is_decoder") else "ForMaskedLM"
    model = make(variant, task, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, **changes).train()
    inputs = everything(variant, task)
    start = copy.deepcopy(model.state_dict())

    def step():
        model.load_state_dict(start)
        model.zero_grad()
        torch.manual_seed(3)
        output = model(**inputs)
        output.loss.backward()
        return {"loss": output.loss.detach(), **gradients(model), **{n: b.clone() for n, b in model.named_buffers()}}

    expected = step()
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable(options)
    assert model.is_gradient_checkpointing
    calls = []
    for layer in model.base_model.encoder.layer:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_same(step(), expected)
    assert len(calls) == 4  # each layer ran twice
    model.gradient_checkpointing_disable()
    step()
    assert len(calls) == 6


@pytest.mark.parametrize("options", [None, {"use_reentrant": True}], ids=["default", "reentrant"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "gaussian"])
def test_checkpointing_in_mixed_precision_draws_the_same_hash_functions(fast, options):
    model = make("yoso", "ForMaskedLM", use_expectation=False, use_fast_hash=fast, hidden_dropout_prob=0.2).train()
    inputs, found = everything("yoso", "ForMaskedLM"), []
    for switch in (model.gradient_checkpointing_disable, lambda: model.gradient_checkpointing_enable(options)):
        switch()
        model.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        found.append({"loss": loss.detach(), **gradients(model)})
    assert_same(found[1], found[0], 5e-3)


@each_class
def test_number_of_parameters(variant, task):
    model = make(variant, task)
    stored = {name: param for name, param in model.params().items() if param.stored and param.kind != "stat"}
    count = sum(torch.Size(param.shape).numel() for param in stored.values())
    assert model.num_parameters() == count
    tables = sum(torch.Size(param.shape).numel() for name, param in stored.items() if "_embeddings." in name)
    assert model.num_parameters(exclude_embeddings=True) == count - tables
    model.base_model.requires_grad_(False)
    inside = sum(p.numel() for p in model.base_model.parameters())
    assert model.num_parameters(only_trainable=True) == count - inside


# -- copies -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
@each_class
def test_copies(variant, task, act, change):
    if variant == "ibert" and act != "gelu":
        return
    model = make(variant, task, hidden_act=act)
    twin, inputs = change(model), everything(variant, task)
    assert_same(twin(**inputs), model(**inputs), 0)
    assert twin.config == model.config and twin.config is not model.config
    decoder = twin.get_output_embeddings()
    assert decoder is None or decoder.weight is twin.get_input_embeddings().weight is not model.get_input_embeddings().weight


@each_class
def test_outputs_are_pickled(variant, task):
    with torch.no_grad():
        output = make(variant, task)(**everything(variant, task), output_hidden_states=True)
    again = pickle.loads(pickle.dumps(output))
    assert type(again) is type(output) and list(again) == list(output)
    assert_same(again, output, 0)


@each_variant
def test_dtype_and_device(variant):
    model = make(variant, "ForMaskedLM")
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    model.to(torch.float64)
    assert model.dtype == torch.float64
    output = model(**features(variant))
    assert {value.dtype for value in flat(output).values()} == {torch.float64}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@each_variant
def test_a_state_dict_of_another_model_is_refused(variant):
    with pytest.raises(RuntimeError, match="Missing key"):
        make(variant).load_state_dict({})
