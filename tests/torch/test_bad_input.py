"""Bad input: an error of our own that lists everything that is wrong and says what was expected."""

from __future__ import annotations

import pytest
import torch

from bertkit.core.errors import ConfigError, InputError
from bertkit.core.variants import VARIANTS
from tests import cases
from tests.torch.common import features, make, model_class

each_class = pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
each_variant = pytest.mark.parametrize("variant", list(VARIANTS))
IDS = torch.full((3, 9), 5)

BAD = {
    "rank": ({"input_ids": IDS[0]}, [r"input_ids: got shape \[9\], expected 2 dimensions"]),
    "lists": ({"input_ids": IDS.tolist(), "attention_mask": IDS.numpy()},
              ["input_ids: got list, expected a torch.Tensor", "attention_mask: got ndarray, expected a torch.Tensor"]),
    "float ids": ({"input_ids": IDS.float()}, ["input_ids: got torch.float32, expected an integer dtype"]),
    "bool ids": ({"input_ids": IDS.bool()}, ["input_ids: got torch.bool, expected an integer dtype"]),
    "too large": ({"input_ids": IDS + 56}, ["input_ids: got values from 61 to 61, expected 0 to 60"]),
    "negative": ({"input_ids": IDS - 6}, ["input_ids: got values from -1 to -1, expected 0 to 60"]),
    "types": ({"input_ids": IDS, "token_type_ids": IDS}, ["token_type_ids: got values from 5 to 5, expected 0 to 1"]),
    "positions": ({"input_ids": IDS, "position_ids": IDS + 60},
                  ["position_ids: got values from 65 to 65, expected 0 to 2[35]"]),
    "both": ({"input_ids": IDS, "inputs_embeds": torch.ones(3, 9, 8)}, ["got both, expected exactly one"]),
    "neither": ({}, ["got neither, expected exactly one"]),
    "mask": ({"input_ids": IDS, "attention_mask": IDS[:, :8]}, [r"attention_mask: got shape \[3, 8\], expected \[3, 9\] or "]),
    "mask rank": ({"input_ids": IDS, "attention_mask": IDS[0]}, [r"attention_mask: got shape \[9\]"]),
    "embeddings": ({"inputs_embeds": torch.ones(3, 9, 7)}, ["inputs_embeds: got width 7, expected (8|16)"]),
    "integer embeddings": ({"inputs_embeds": torch.ones(3, 9, 16, dtype=torch.long)}, ["expected a floating-point dtype"]),
    "heads": ({"input_ids": IDS, "head_mask": torch.ones(5)}, [r"head_mask: got shape \[5\], expected \[4\] or \[2, 4\]"]),
    "layers": ({"input_ids": IDS, "head_mask": torch.ones(3, 4)}, [r"head_mask: got shape \[3, 4\]"]),
    "all at once": ({"input_ids": IDS, "attention_mask": IDS[:2], "token_type_ids": IDS[:, 1:], "position_ids": IDS[:, :2]},
                    [r"attention_mask: got shape \[2, 9\]", r"token_type_ids: got shape \[3, 8\]",
                     r"position_ids: got shape \[3, 2\]"]),
    "dtype and shape": ({"input_ids": IDS.float(), "token_type_ids": IDS.float(), "head_mask": torch.ones(5)},
                        ["input_ids: got torch.float32", "token_type_ids: got torch.float32", "head_mask: got shape"]),
}


@pytest.mark.parametrize("what", BAD)
@each_variant
def test_inputs_that_do_not_fit(variant, what):
    inputs, messages = BAD[what]
    with pytest.raises(InputError) as caught:
        make(variant)(**inputs)
    for message in messages:
        assert caught.match(message)


@each_class
def test_every_class_checks_its_inputs(variant, task):
    model, inputs = make(variant, task), features(variant, task)
    for wrong in (inputs["input_ids"].float(), inputs["input_ids"] + 60, inputs["input_ids"].flatten()):
        with pytest.raises(InputError):
            model(wrong)
    with pytest.raises(InputError, match="exactly one"):
        model()
    with pytest.raises((InputError, TypeError), match="inputs_ids"):
        model(**inputs, inputs_ids=inputs["input_ids"])


@each_variant
def test_the_longest_sequence(variant):
    longest = cases.POSITIONS - (2 if variant == "ibert" else 0)  # I-BERT's positions start behind the padding id
    model = make(variant)
    assert torch.isfinite(model(torch.full((1, longest), 5)).last_hidden_state).all()
    with pytest.raises(InputError, match=f"got {longest + 1} tokens.* takes at most {longest} .*truncate"):
        model(torch.full((1, longest + 1), 5))
    with pytest.raises(InputError, match=f"takes at most {longest}"):
        model(inputs_embeds=torch.ones(1, longest + 1, model.embedding_width))


def test_the_cache_counts_as_length():
    model = make("megatron-bert", is_decoder=True)
    cache = model(torch.full((1, 20), 5)).past_key_values
    assert model(torch.full((1, 4), 5), past_key_values=cache).last_hidden_state.shape == (1, 4, 16)
    with pytest.raises(InputError, match="got 25 tokens"):
        model(torch.full((1, 5), 5), past_key_values=cache)
    with pytest.raises(InputError, match=r"attention_mask: got shape \[1, 4\], expected \[1, 24\]"):
        model(torch.full((1, 4), 5), past_key_values=cache, attention_mask=torch.ones(1, 4))


def test_cross_attention_states_that_do_not_fit():
    model = make("megatron-bert", is_decoder=True, add_cross_attention=True)
    with pytest.raises(InputError, match=r"encoder_hidden_states: got shape \[3, 5, 8\], expected \[3, \?, 16\]"):
        model(IDS, encoder_hidden_states=torch.ones(3, 5, 8))
    with pytest.raises(InputError, match=r"encoder_attention_mask: got shape \[3, 9\], expected \[3, 5\]"):
        model(IDS, encoder_hidden_states=torch.ones(3, 5, 16), encoder_attention_mask=torch.ones(3, 9))


def test_yoso_masks_tokens_only():
    with pytest.raises(InputError, match="YOSO masks tokens"):
        make("yoso")(IDS, attention_mask=torch.ones(3, 9, 9))


@pytest.mark.parametrize(("variant", "task"), [pair for pair in cases.CLASSES if pair[1] == "ForMultipleChoice"])
def test_multiple_choice_takes_choices(variant, task):
    with pytest.raises(InputError, match=r"got shape \[3, 9\], expected 3 dimensions \[batch, choices, length\]"):
        make(variant, task)(IDS)
    with pytest.raises(InputError, match="attention_mask"):
        make(variant, task)(input_ids=IDS[:, None], attention_mask=torch.ones(3, 9, dtype=torch.long))


@each_class
def test_a_configuration_of_another_variant(variant, task):
    other = "yoso" if variant != "yoso" else "ibert"
    cls, wanted, given = model_class(variant, task), VARIANTS[variant].name, VARIANTS[other].name
    with pytest.raises(ConfigError, match=f"{cls.__name__} takes a {wanted}Config, got {given}Config"):
        cls(cases.config(other))
    config = cases.config(variant)
    config.num_attention_heads, config.hidden_act = 5, "gulp"
    with pytest.raises(ConfigError, match="hidden_act: got 'gulp'"):
        cls(config)
    config.hidden_act = "gelu"
    with pytest.raises(ConfigError, match="num_attention_heads: got 5, expected a divisor of the attention width"):
        cls(config)
