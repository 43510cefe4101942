"""The weight spec names every tensor of transformers 4.37.2, for all classes and the switches that change them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkit.core.errors import ConfigError
from bertkit.core.initial import initial_value
from bertkit.core.spec import KINDS, Param
from bertkit.core.variants import VARIANTS, find_variant

STATE_DICTS = json.loads((Path(__file__).parents[1] / "fixtures" / "state_dicts.json").read_text("utf-8"))
CLASSES = [(variant, task) for variant in VARIANTS for task in VARIANTS[variant].tasks]

RANKS = {"kernel": 2, "matrix": 2, "embedding": 2, "norm_scale": 1, "norm_shift": 1, "bias": 1, "conv": 4, "stat": 1}


def case_id(case: dict[str, Any]) -> str:
    return "-".join([case["class"], *(f"{key}={value}" for key, value in case["switches"].items())])


def params_of(case: dict[str, Any]) -> dict[str, Param]:
    """Our tensors for a case, by name."""
    variant = find_variant(case["variant"])
    return variant.params(case["class"].removeprefix(variant.name), variant.config(**case["config"]))


@pytest.mark.parametrize("case", STATE_DICTS, ids=case_id)
def test_same_names_and_shapes_as_transformers(case):
    ours = {name: list(param.shape) for name, param in params_of(case).items()}
    assert ours == case["tensors"]


def test_a_bottleneck_that_nothing_reads_is_read_past():
    config = find_variant("mobilebert").config(num_hidden_layers=1, use_bottleneck_attention=True)
    params = find_variant("mobilebert").params("Model", config).values()
    unused = [param for param in params if ".bottleneck.attention." in param.name]
    assert len(unused) == 4 and not any(param.stored for param in unused)


def test_every_class_has_a_state_dict():
    plain = [case["class"] for case in STATE_DICTS if not case["switches"]]
    assert sorted(plain) == sorted(VARIANTS[variant].name + task for variant, task in CLASSES)
    assert len(plain) == 29


@pytest.mark.parametrize("case", STATE_DICTS, ids=case_id)
def test_ties_and_kinds(case):
    params = params_of(case)
    for name, param in params.items():
        assert param.name == name
        assert param.kind in KINDS
        assert all(isinstance(size, int) and size >= 0 for size in param.shape)
        if param.tied_to is not None:
            source = params[param.tied_to]
            assert (source.shape, source.kind, source.tied_to) == (param.shape, param.kind, None)
        assert len(param.shape) == RANKS.get(param.kind, len(param.shape))


@pytest.mark.parametrize(("variant", "task"), CLASSES)
def test_no_tensor_is_described_twice(variant, task):
    variant = VARIANTS[variant]
    config = variant.config(num_hidden_layers=2)
    described = [*variant.encoder(config), *variant.pooler(config)]
    head = list(variant.tasks[task].head(config))
    counts = Counter(param.name for param in [*described, *head])
    assert max(counts.values()) == 1


@pytest.mark.parametrize(("variant", "task"), CLASSES)
def test_a_task_class_holds_its_encoder_under_the_prefix(variant, task):
    variant = VARIANTS[variant]
    config = variant.config(num_hidden_layers=1)
    body = {f"{variant.prefix}." * (task != "Model") + param.name for param in variant.encoder(config)}
    pooler = {f"{variant.prefix}." * (task != "Model") + param.name for param in variant.pooler(config)}
    names = variant.params(task, config).keys()
    assert body <= names
    assert (pooler <= names) == (variant.tasks[task].pooled or not pooler)
    assert not pooler & variant.params(task, config, pooled=False).keys()
    assert pooler <= variant.params(task, config, pooled=True).keys()


@pytest.mark.parametrize(("variant", "task", "tied"), [
    ("ibert", "ForMaskedLM", "lm_head.decoder.weight"),
    ("megatron-bert", "ForCausalLM", "cls.predictions.decoder.weight"),
    ("mobilebert", "ForPreTraining", "cls.predictions.decoder.weight"),
    ("yoso", "ForMaskedLM", "cls.predictions.decoder.weight"),
])
def test_untying_the_words_leaves_the_decoders_weight_on_its_own(variant, task, tied):
    variant = VARIANTS[variant]
    params = variant.params(task, variant.config(num_hidden_layers=0))
    assert params[tied].tied_to == f"{variant.prefix}.embeddings.word_embeddings.weight"
    assert not params[tied].stored
    free = variant.params(task, variant.config(num_hidden_layers=0, tie_word_embeddings=False))
    assert free[tied].tied_to is None
    assert free[tied].stored
    assert params.keys() == free.keys()


@pytest.mark.parametrize("case", [case for case in STATE_DICTS if not case["switches"]], ids=case_id)
def test_every_stored_tensor_has_an_initial_value(case):
    config = find_variant(case["variant"]).config(**case["config"])
    for param in params_of(case).values():
        if param.stored:
            value = initial_value(param, config, np.random.default_rng(0))
            assert value.shape == param.shape
            assert np.isfinite(value).all()


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(ConfigError, match="'ibert', 'megatron-bert', 'mobilebert', 'yoso'"):
        find_variant("roberta")
