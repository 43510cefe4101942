"""Where each tensor of a model comes from, for checkpoints of every kind: base, task, wrapped, old, tied, wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bertkit.core.errors import CheckpointError
from bertkit.core.loading import LoadPlan, plan_loading, warn_about
from bertkit.core.tensors import NAME_OF
from bertkit.core.variants import VARIANTS

SIZES: dict[str, Any] = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                         "intermediate_size": 6, "max_position_embeddings": 7}
OWN = {"mobilebert": {"embedding_size": 4, "intra_bottleneck_size": 4, "num_feedforward_networks": 1}}
CLASSES = [(variant, task) for variant in VARIANTS for task in VARIANTS[variant].tasks]
WORDS = "embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"


class Fake:
    """A checkpoint in memory; reading a tensor is counted."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors
        self.reads: list[str] = []

    def names(self):
        return self.tensors.keys()

    def info(self, name):
        return SimpleNamespace(shape=self.tensors[name].shape, dtype=NAME_OF[self.tensors[name].dtype])

    def read(self, name):
        self.reads.append(name)
        return self.tensors[name]


def config_of(variant: str, **changes: Any) -> Any:
    return VARIANTS[variant].config(**{**SIZES, **OWN.get(variant, {}), **changes})


def saved(variant: str, task: str, **changes: Any) -> dict[str, np.ndarray]:
    """What saving a class writes: each tensor once."""
    params = VARIANTS[variant].params(task, config_of(variant, **changes))
    return {name: np.zeros(param.shape, np.float32) for name, param in params.items() if param.stored}


def plan(variant: str, task: str, tensors: dict[str, np.ndarray] | Fake, *, ignore: bool = False, **changes: Any) -> LoadPlan:
    config = config_of(variant, **changes)
    params = VARIANTS[variant].params(task, config)
    checkpoint = tensors if isinstance(tensors, Fake) else Fake(tensors)
    return plan_loading(checkpoint, params, VARIANTS[variant], config, ignore_mismatched_sizes=ignore)


def renamed(tensors: dict[str, np.ndarray], *replacements: tuple[str, str], prefix: str = "") -> dict[str, np.ndarray]:
    result = {}
    for name, value in tensors.items():
        for old, new in replacements:
            name = name.replace(old, new)
        result[prefix + name] = value
    return result


def summary(found: LoadPlan) -> tuple[list, list, list, list]:
    return found.missing, found.unexpected, found.mismatched, found.conflicts


NOTHING: tuple[list, list, list, list] = ([], [], [], [])

# -- what fits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "task"), CLASSES)
def test_a_class_loads_what_it_saved(variant, task):
    tensors = saved(variant, task)
    checkpoint = Fake(tensors)
    found = plan(variant, task, checkpoint)
    assert summary(found) == NOTHING
    assert found.sources == {name: name for name in tensors}
    assert checkpoint.reads == []


@pytest.mark.parametrize(("variant", "task"), [pair for pair in CLASSES if pair[1] != "Model"])
def test_a_base_checkpoint_in_a_task_class(variant, task):
    found = plan(variant, task, saved(variant, "Model"))
    prefix = VARIANTS[variant].prefix
    head = [name for name in saved(variant, task) if not name.startswith(f"{prefix}.")]
    assert found.missing == head
    assert set(found.unexpected) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(name == f"{prefix}.{source}" for name, source in found.sources.items())


@pytest.mark.parametrize(("variant", "task"), [pair for pair in CLASSES if pair[1] != "Model"])
def test_a_task_checkpoint_in_the_base_class(variant, task):
    found = plan(variant, "Model", saved(variant, task))
    prefix = VARIANTS[variant].prefix
    assert set(found.missing) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert not any(name.startswith(f"{prefix}.") for name in found.unexpected)
    assert all(source == f"{prefix}.{name}" for name, source in found.sources.items())


OLD = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]


@pytest.mark.parametrize("tensors", [
    renamed(saved("mobilebert", "ForPreTraining"), *OLD),
    renamed(saved("mobilebert", "ForPreTraining"), prefix="module."),
    renamed(saved("mobilebert", "ForPreTraining"), prefix="_orig_mod."),
    renamed(saved("mobilebert", "ForPreTraining"), *OLD, prefix="module._orig_mod."),
    renamed(saved("mobilebert", "ForPreTraining"), *OLD, prefix="_orig_mod.module."),
], ids=["gamma-beta", "module", "orig-mod", "module-orig-mod", "orig-mod-module"])
def test_old_names_and_wrappers(tensors):
    found = plan("mobilebert", "ForPreTraining", tensors)
    assert summary(found) == NOTHING
    assert sorted(found.sources.values()) == sorted(tensors)


@pytest.mark.parametrize("name", ["yoso.embeddings.position_ids", "embeddings.position_ids", "yoso.embeddings.token_type_ids"])
@pytest.mark.parametrize("task", ["ForMaskedLM", "Model"])
def test_position_ids_are_no_weights(name, task):
    tensors = {**saved("yoso", "ForMaskedLM"), name: np.arange(7)[None]}
    assert not any("_ids" in left for left in plan("yoso", task, tensors).unexpected)


def test_statistics_may_be_missing_and_derived_tensors_are_read_past():
    tensors = saved("ibert", "ForMaskedLM")
    stats = [name for name in tensors if name.endswith((".x_min", ".x_max", ".act_scaling_factor", ".shift"))]
    assert stats
    for name in stats:
        del tensors[name]
    tensors["ibert.encoder.layer.0.attention.self.query.weight_integer"] = np.zeros((3, 3), np.float32)
    assert summary(plan("ibert", "ForMaskedLM", tensors)) == NOTHING


# -- ties ----------------------------------------------------------------------------------------------------------


def with_copies(words: float | None, decoder: float | None) -> Fake:
    """A YOSO language model with the tied tensor under its two names, or under one of them."""
    tensors = saved("yoso", "ForMaskedLM")
    shape = tensors.pop(f"yoso.{WORDS}").shape
    for name, value in ((f"yoso.{WORDS}", words), (DECODER, decoder)):
        if value is not None:
            tensors[name] = np.full(shape, value, np.float32)
    return Fake(tensors)


@pytest.mark.parametrize(("words", "decoder", "source", "conflicts"), [
    (1.0, None, f"yoso.{WORDS}", 0),
    (None, 1.0, DECODER, 0),
    (1.0, 1.0, f"yoso.{WORDS}", 0),
    (1.0, 1.5, f"yoso.{WORDS}", 1),
])
def test_ties(words, decoder, source, conflicts):
    checkpoint = with_copies(words, decoder)
    found = plan("yoso", "ForMaskedLM", checkpoint)
    assert found.sources[f"yoso.{WORDS}"] == source
    assert DECODER not in found.sources
    assert (found.missing, found.unexpected, len(found.conflicts)) == ([], [], conflicts)
    assert bool(checkpoint.reads) == (words is not None and decoder is not None)


def test_a_conflict_says_how_far_apart_the_copies_are():
    (conflict,) = plan("yoso", "ForMaskedLM", with_copies(1.0, 1.5)).conflicts
    assert conflict == f"{DECODER} differs from yoso.{WORDS}, which it is tied to, by up to 0.5; yoso.{WORDS} is used"


def test_untied_tensors_come_from_their_own_names():
    found = plan("yoso", "ForMaskedLM", with_copies(1.0, 1.5), tie_word_embeddings=False)
    assert summary(found) == NOTHING
    assert found.sources[DECODER] == DECODER


def test_both_biases_of_a_decoder_are_one():
    tensors = saved("ibert", "ForMaskedLM")
    tensors["lm_head.decoder.bias"] = tensors.pop("lm_head.bias")
    found = plan("ibert", "ForMaskedLM", tensors)
    assert summary(found) == NOTHING
    assert found.sources["lm_head.bias"] == "lm_head.decoder.bias"


def test_a_tied_tensor_in_neither_place_is_missing():
    with pytest.raises(CheckpointError, match=f"missing: yoso.{WORDS}"):
        plan("yoso", "ForMaskedLM", with_copies(None, None))


# -- what does not fit ---------------------------------------------------------------------------------------------


def refused(*parts: str) -> Any:
    """A CheckpointError that holds every part, in this order."""
    return pytest.raises(CheckpointError, match="(?s)" + ".*".join(parts))


def test_everything_that_is_wrong_is_listed_at_once():
    tensors = saved("megatron-bert", "ForSequenceClassification")
    del tensors["bert.encoder.ln.weight"], tensors["bert.encoder.layer.0.ln.bias"]
    tensors["bert.encoder.layer.9.ln.bias"] = np.zeros(8, np.float32)
    tensors["classifier.weight"] = np.zeros((5, 8), np.float32)
    tensors["classifier.bias"] = np.zeros(5, np.float32)
    with refused(
        r"does not fit MegatronBert",
        r"missing: bert\.encoder\.layer\.0\.ln\.bias", r"missing: bert\.encoder\.ln\.weight",
        r"unexpected: bert\.encoder\.layer\.9\.ln\.bias",
        r"shape of classifier\.weight: got \[5, 8\], expected \[2, 8\]",
        r"shape of classifier\.bias: got \[5\], expected \[2\]", r"num_labels=5",
    ) as caught:
        plan("megatron-bert", "ForSequenceClassification", tensors)
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(("changes", "cause"), [
    ({"num_hidden_layers": 2}, "larger or other model.*num_hidden_layers"),
    ({"vocab_size": 12}, "vocab_size is 12 in config.json, but the file has 11 rows"),
    ({"max_position_embeddings": 9}, "the file has 7 position rows, max_position_embeddings asks for 9"),
    ({"num_labels": 4}, "trained with 2 label.* and 4 are asked for: pass num_labels=2, or ignore_mismatched_sizes=True"),
    ({"intermediate_size": 10}, "intermediate_size"),
    ({"hidden_size": 16}, "hidden_size"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
])
def test_the_likely_cause(changes, cause):
    with refused("Likely cause: ", cause):
        plan("megatron-bert", "ForSequenceClassification", saved("megatron-bert", "ForSequenceClassification"), **changes)


def test_fewer_layers_than_the_file_holds():
    found = plan("megatron-bert", "Model", saved("megatron-bert", "Model"), num_hidden_layers=0)
    assert all(name.startswith("encoder.layer.0.") for name in found.unexpected)
    assert found.unexpected


@pytest.mark.parametrize(("written", "read", "cause"), [
    ("yoso", "ibert", "the names are those of Yoso, not of IBert"),
    ("mobilebert", "megatron-bert", "the names are those of MobileBert, not of MegatronBert"),
    ("megatron-bert", "yoso", "the names are those of MegatronBert, not of Yoso"),
])
def test_the_weights_of_another_variant(written, read, cause):
    with refused("does not fit", cause):
        plan(read, "ForMaskedLM", saved(written, "ForMaskedLM"))


@pytest.mark.parametrize("tensors", [{}, {"decoder.sentence_encoder.embed_tokens.weight": np.zeros((2, 2))}])
def test_no_known_name_at_all(tensors):
    with refused("holds no Yoso weights at all", "bertkit convert"):
        plan("yoso", "Model", tensors)


def test_ignore_mismatched_sizes_gives_initial_values():
    tensors = saved("megatron-bert", "ForSequenceClassification")
    found = plan("megatron-bert", "ForSequenceClassification", tensors, ignore=True, num_labels=4)
    assert found.mismatched == [("classifier.weight", (2, 8), (4, 8)), ("classifier.bias", (2,), (4,))]
    assert not {"classifier.weight", "classifier.bias"} & found.sources.keys()
    assert found.as_info() == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": found.mismatched, "error_msgs": []}


def test_ignore_mismatched_sizes_does_not_excuse_missing_layers():
    with refused("num_hidden_layers"):
        plan("megatron-bert", "Model", saved("megatron-bert", "Model"), ignore=True, num_hidden_layers=2)


# -- the warning ---------------------------------------------------------------------------------------------------


def test_one_warning_names_everything():
    found = LoadPlan(missing=["a"], unexpected=["b"], mismatched=[("c", (1,), (2,))], conflicts=["d differs"])
    with pytest.warns(UserWarning) as caught:
        warn_about(found, "YosoModel", "here")
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("YosoModel from here:")
    assert all(part in text for part in ("newly initialised, train them before use: a, c", "left out: b", "d differs"))


def test_no_warning_where_nothing_is_to_say():
    warn_about(LoadPlan(sources={"a": "a"}), "YosoModel", "here")


# -- frozen models --------------------------------------------------------------------------------------------------
def frozen(task: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What saving a frozen class writes, and what its configuration says."""
    changes = {"quant_mode": True, "integer_format": 1}
    params = VARIANTS["ibert"].params(task, config_of("ibert", **changes))
    return {name: np.zeros(param.shape, param.frozen_dtype or np.float32)
            for name, param in params.items() if param.stored}, changes


def test_frozen_tensors_are_read_as_they_are():
    tensors, changes = frozen("ForMaskedLM")
    assert set(plan("ibert", "ForMaskedLM", tensors, **changes).sources) == set(tensors)


def test_integers_cannot_be_initialised_converted_or_cut():
    tensors, changes = frozen("ForMaskedLM")
    words, shift, decoder = (f"ibert.embeddings.{WORDS}_integer".replace("embeddings.embeddings", "embeddings"),
                             "ibert.embeddings.LayerNorm.shift", "lm_head.decoder.weight_integer")
    tensors[words] = tensors[words].astype(np.float32)
    tensors[shift] = tensors[shift].repeat(2)
    del tensors[decoder]
    with pytest.raises(CheckpointError) as caught:
        plan("ibert", "ForMaskedLM", tensors, ignore=True, **changes)
    assert set(caught.value.problems) == {f"missing: {decoder}", f"dtype of {words}: got F32, expected I8",
                                          f"shape of {shift}: got [2], expected [1]"}


def test_a_new_head_on_frozen_integers():
    tensors, changes = frozen("Model")
    found = plan("ibert", "ForTokenClassification", tensors, **changes)
    assert found.missing == ["classifier.weight", "classifier.bias"]


def test_floats_and_integers_are_told_apart():
    tensors, changes = frozen("Model")
    with pytest.raises(CheckpointError, match=r"holds a frozen model, but config\.json does not say so"):
        plan("ibert", "Model", tensors)
    with pytest.raises(CheckpointError, match="describes a frozen model"):
        plan("ibert", "Model", saved("ibert", "Model"), **changes)
