"""What users do with a model: embeddings, ties, pruning, initial values, generation, ..."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf

from bertkit.core.errors import BertkitError, ConfigError, InputError
from bertkit.core.variants import VARIANTS
from tests import cases
from tests.tf.common import ENCODERS, assert_same, everything, gradients, make


@pytest.mark.parametrize("rows", [70, 50])
@pytest.mark.parametrize(("variant", "task"), [*cases.LANGUAGE_MODELS, *ENCODERS])
def test_resizing_keeps_what_was_there(variant, task, rows):
    model, ids = make(variant, task, num_hidden_layers=1), np.array([[5, 6, 7, 8]])
    before = model(ids)
    table = model.resize_token_embeddings(rows)
    assert table is model.get_input_embeddings() and table.embeddings.shape[0] == model.config.vocab_size == rows
    after = model(ids)
    common = min(rows, cases.VOCABULARY)
    for name in ({"logits", "prediction_logits"} & before.keys()) or {"last_hidden_state"}:
        if name == "last_hidden_state":
            assert_same(after[name], before[name])
        else:
            assert after[name].shape[-1] == rows
            assert_same(after[name][..., :common], before[name][..., :common], 1e-6)
    stored = [param for param in model.params().values() if param.stored]
    assert len(model.variables) == len({id(v) for v in model.variables}) == len(stored)
    if task != "Model":
        words = {"input_ids": ids.repeat(3, 0), "labels": ids.repeat(3, 0)}
        found = gradients(model, everything(variant, task, length=4) | words)
        assert all(np.all(np.isfinite(gradient)) for gradient in found)


def test_resizing_rounds_up():
    model = make("yoso")
    assert model.resize_token_embeddings(65, pad_to_multiple_of=8).embeddings.shape[0] == 72
    assert model.resize_token_embeddings().embeddings.shape[0] == 72


@pytest.mark.parametrize(("variant", "task"), cases.LANGUAGE_MODELS)
def test_the_decoder_is_the_words(variant, task):
    model = make(variant, task, num_hidden_layers=1)
    words, decoder = model.get_input_embeddings(), model.get_output_embeddings()
    assert decoder.embeddings is words.embeddings
    loose = make(variant, task, num_hidden_layers=1, tie_word_embeddings=False)
    assert loose.get_output_embeddings().embeddings is not loose.get_input_embeddings().embeddings
    assert loose.num_parameters() == model.num_parameters() + words.embeddings.value.shape.num_elements()
    fresh = type(words)(cases.VOCABULARY, words.embeddings.shape[1], None)
    fresh.embeddings.assign(2 * words.embeddings)
    model.set_input_embeddings(fresh)
    assert model.get_input_embeddings() is fresh and model.get_output_embeddings().embeddings is fresh.embeddings
    assert len(model.variables) == len([p for p in model.params().values() if p.stored])


def test_a_decoder_can_be_replaced():
    model, other = (make("megatron-bert", "ForMaskedLM", seed=seed, tie_word_embeddings=False) for seed in (0, 1))
    count = len(model.variables)
    model.set_output_embeddings(other.get_output_embeddings())
    assert model.get_output_embeddings() is other.get_output_embeddings() and len(model.variables) == count
    assert model.cls.predictions.bias is other.cls.predictions.bias


def test_classes_without_a_decoder_have_none():
    model = make("yoso", "ForSequenceClassification")
    assert model.get_output_embeddings() is None
    with pytest.raises(BertkitError, match="no output embeddings"):
        model.set_output_embeddings(model.classifier)


@pytest.mark.parametrize(("variant", "changes"), [
    *((variant, {}) for variant in VARIANTS),
    ("yoso", {"conv_window": 3}), ("yoso", {"use_expectation": False, "hash_seed": 3}),
    ("megatron-bert", {"is_decoder": True}), ("megatron-bert", {"position_embedding_type": "relative_key_query"}),
], ids=cases.name_of)
def test_pruned_heads_equal_masked_heads(variant, changes, tmp_path):
    model, x = make(variant, **changes), cases.features(variant)
    mask = np.array([[1, 0, 1, 0], [0, 1, 1, 1]], np.float32)
    expected = model(x, head_mask=mask).last_hidden_state
    parameters = model.num_parameters()
    model.prune_heads({0: [1]})
    model.prune_heads({0: [3], 1: [0]})
    assert_same(model(x).last_hidden_state, expected, 1e-5)
    assert model.num_parameters() < parameters and model.config.pruned_heads == {0: [1, 3], 1: [0]}
    assert len(model.variables) == len([p for p in model.params().values() if p.stored])
    model.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path)(x).last_hidden_state, expected, 1e-5)
    model.save(tmp_path / "model.keras")
    assert_same(keras.saving.load_model(tmp_path / "model.keras")(x).last_hidden_state, expected, 1e-5)


@pytest.mark.parametrize("heads", [{0: [9]}, {7: [0]}, {0: [0, 1, 2, 3]}])
def test_heads_that_are_not_there(heads):
    model = make("megatron-bert")
    before = model.get_weights()
    with pytest.raises(ConfigError):
        model.prune_heads(heads)
    assert_same(model.get_weights(), before)
    assert model.config.pruned_heads == {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_values(variant):
    keras.utils.set_random_seed(0)
    model = type(make(variant))(cases.config(variant, vocab_size=2000, initializer_range=0.02))
    words = np.asarray(model.get_input_embeddings().embeddings)
    pad = model.config.pad_token_id
    assert not np.any(words[pad]) and np.all(np.any(np.delete(words, pad, 0), 1))
    assert np.std(words) == pytest.approx(0.02, rel=0.02) and np.mean(words) == pytest.approx(0, abs=1e-3)
    names = {v.path.rsplit("/", 1)[-1] for v in model.trainable_variables}
    for variable in model.trainable_variables:
        leaf = variable.path.rsplit("/", 1)[-1]
        assert leaf not in ("bias", "beta") or not np.any(variable)
        assert leaf != "gamma" or np.all(variable == 1)
        assert leaf != "kernel" or np.std(variable) == pytest.approx(0.02, rel=0.35)
    assert {"bias", "gamma", "kernel"} <= names
    before = model.get_weights()
    model.init_weights()
    assert any(np.any(a != b) for a, b in zip(model.get_weights(), before, strict=True))


def test_a_model_says_what_it_is():
    model, lines = make("mobilebert", "ForMaskedLM"), io.StringIO()
    model.summary(print_fn=lambda line, **_: lines.write(line))
    assert f"{model.num_parameters():,}" in lines.getvalue()
    assert "CPU" in model.device and model.dtype == "float32"
    assert model.num_parameters(only_trainable=True) == model.num_parameters()
    model.base_model.trainable = False
    assert model.num_parameters(only_trainable=True) < model.num_parameters()


@pytest.mark.parametrize("act", ["gelu", "relu", "silu", "gelu_new", "selu", tf.nn.softplus])
def test_activations(act):
    model = make("megatron-bert", "ForMaskedLM", hidden_act=act, num_hidden_layers=1)
    assert np.all(np.isfinite(model(np.array([[5, 6]])).logits))


# -- decoders ----------------------------------------------------------------------------------------------------
KINDS = [{}, {"position_embedding_type": "relative_key"}, {"position_embedding_type": "relative_key_query"}]


@pytest.mark.parametrize("changes", KINDS, ids=cases.name_of)
def test_a_cache_changes_no_number(changes):
    model = make("megatron-bert", "ForCausalLM", **changes)
    ids = cases.features("megatron-bert")["input_ids"]
    whole = model(ids).logits
    first = model(ids[:, :5], use_cache=True)
    second = model(ids[:, 5:7], past_key_values=first.past_key_values, use_cache=True)
    third = model(ids[:, 7:], past_key_values=second.past_key_values)
    assert_same(tf.concat([first.logits, second.logits, third.logits], 1), whole, 1e-5)
    assert model(ids, use_cache=False).past_key_values is None
    changed = ids.copy()
    changed[:, 6] = 9
    assert_same(model(changed).logits[:, :6], whole[:, :6], 1e-6)


@pytest.mark.parametrize("changes", KINDS, ids=cases.name_of)
def test_cross_attention_reads_the_other_states(changes):
    model = make("megatron-bert", "ForCausalLM", add_cross_attention=True, **changes)
    ids, states = np.array([[5, 6, 7, 8]]), np.random.default_rng(0).standard_normal((1, 6, 16)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 0, 0]])
    given = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    whole = model(ids, output_attentions=True, **given)
    assert [tuple(weights.shape) for weights in whole.cross_attentions] == [(1, 4, 4, 6)] * 2
    assert_same(model(ids, encoder_hidden_states=states[:, :4]).logits, whole.logits, 1e-5)
    assert np.abs(model(ids).logits - whole.logits).max() > 1e-3
    first = model(ids[:, :2], use_cache=True, **given)
    rest = model(ids[:, 2:], past_key_values=first.past_key_values, **given)
    assert_same(tf.concat([first.logits, rest.logits], 1), whole.logits, 1e-5)


@pytest.mark.parametrize("changes", KINDS, ids=cases.name_of)
def test_greedy_generation(changes):
    model = make("megatron-bert", "ForCausalLM", **changes)
    ids = np.array([[5, 6, 7], [0, 8, 9]])
    mask = np.array([[1, 1, 1], [0, 1, 1]])
    found = model.generate(ids, mask, max_new_tokens=4)
    assert_same(model.generate(ids, mask, max_new_tokens=4, use_cache=False), found)
    assert_same(model.generate(ids[1:, 1:], max_new_tokens=4)[:, 2:], found[1:, 3:])
    step = ids[:1]
    for _ in range(4):
        step = np.concatenate([step, np.argmax(model(step).logits[:, -1:], -1)], 1)
    assert_same(found[:1], step)


def test_sampled_generation():
    model, ids = make("megatron-bert", "ForCausalLM"), np.array([[5, 6, 7]] * 3)
    options = {"do_sample": True, "max_new_tokens": 5, "temperature": 2.0}
    one = model.generate(ids, seed=[1, 2], **options)
    assert_same(model.generate(ids, seed=[1, 2], **options), one)
    assert np.any(model.generate(ids, seed=[3, 4], **options) != one)
    assert_same(model.generate(ids, do_sample=True, top_k=1, max_new_tokens=5), model.generate(ids, max_new_tokens=5))
    assert_same(model.generate(ids, do_sample=True, top_p=1e-6, max_new_tokens=5), model.generate(ids, max_new_tokens=5))


def test_generation_ends():
    model, ids = make("megatron-bert", "ForCausalLM"), np.array([[5, 6, 7]])
    free = model.generate(ids, max_new_tokens=5).numpy()[0, 3:]
    ended = model.generate(ids, max_new_tokens=5, eos_token_id=int(free[1])).numpy()[0, 3:]
    assert ended.tolist() == free[: free.tolist().index(free[1]) + 1].tolist()
    late = model.generate(ids, max_new_tokens=5, min_new_tokens=5, eos_token_id=int(free[0]))
    assert late.shape == (1, 8) and int(free[0]) not in late.numpy()[0, 3:7]


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"max_new_tokens": 99}, {"temperature": 0.0}, {"top_p": 2.0}])
def test_generation_that_cannot_be(options):
    with pytest.raises(InputError, match="cannot generate"):
        make("megatron-bert", "ForCausalLM").generate(np.array([[5, 6]]), **options)
