"""Configurations: documented arguments, config.json in both directions, and values that cannot be."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from bertkit.core.auto import AutoConfig
from bertkit.core.config import PretrainedConfig
from bertkit.core.errors import BertkitError, CheckpointError, ConfigError
from bertkit.core.ibert import IBertConfig
from bertkit.core.megatron_bert import MegatronBertConfig
from bertkit.core.mobilebert import MobileBertConfig
from bertkit.core.variants import VARIANTS
from bertkit.core.yoso import YosoConfig

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "configs.json").read_text("utf-8"))
CONFIGS = [variant.config for variant in VARIANTS.values()]

DEFAULTS: dict[type[PretrainedConfig], dict[str, Any]] = {
    IBertConfig: {
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 1, "bos_token_id": 0,
        "eos_token_id": 2, "position_embedding_type": "absolute", "quant_mode": False, "force_dequant": "none",
    },
    MegatronBertConfig: {
        "vocab_size": 29056, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512, "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
        "pad_token_id": 0, "position_embedding_type": "absolute", "use_cache": True,
    },
    MobileBertConfig: {
        "vocab_size": 30522, "hidden_size": 512, "num_hidden_layers": 24, "num_attention_heads": 4, "intermediate_size": 512,
        "hidden_act": "relu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0, "embedding_size": 128,
        "trigram_input": True, "use_bottleneck": True, "intra_bottleneck_size": 128, "use_bottleneck_attention": False,
        "key_query_shared_bottleneck": True, "num_feedforward_networks": 4, "normalization_type": "no_norm",
        "classifier_activation": True, "classifier_dropout": None,
    },
    YosoConfig: {
        "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 4096,
        "type_vocab_size": 1, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "position_embedding_type": "absolute",
        "use_expectation": True, "hash_code_len": 9, "num_hash": 64, "conv_window": None, "use_fast_hash": True,
        "lsh_backward": True, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    },
}
"""The documented arguments, in the documented order."""

SHARED = {
    "id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "num_labels": 2, "problem_type": None,
    "output_attentions": False, "output_hidden_states": False, "return_dict": True, "use_return_dict": True,
    "is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True, "pruned_heads": {}, "torch_dtype": None,
}


def refused(*parts: str) -> Any:
    """A ConfigError that names every part."""
    return pytest.raises(ConfigError, match="(?s)" + ".*".join(parts))


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CONFIGS)
def test_documented_order_and_defaults(cls):
    plain = cls()
    assert {name: getattr(plain, name) for name in DEFAULTS[cls]} == DEFAULTS[cls]
    assert {name: getattr(plain, name) for name in SHARED} == SHARED
    assert cls(*DEFAULTS[cls].values()) == plain
    with pytest.raises(TypeError, match="positional"):
        cls(*DEFAULTS[cls].values(), None)


@pytest.mark.parametrize("cls", CONFIGS)
def test_other_keywords_are_kept(cls):
    config = cls(num_labels=3, finetuning_task="mnli", nested={"a": [1]}, _name_or_path="somewhere")
    assert (config.finetuning_task, config.nested, config.num_labels) == ("mnli", {"a": [1]}, 3)
    assert cls.from_dict(config.to_dict()) == config
    assert json.loads(config.to_json_string())["_name_or_path"] == "somewhere"


@pytest.mark.parametrize("name", ["to_dict", "validate", "save_pretrained", "__init__"])
def test_a_keyword_cannot_replace_a_method(name):
    with refused(name, "method"):
        YosoConfig.from_dict({name: "x"})


@pytest.mark.parametrize("name", ["self", "cls", "args", "kwargs"])
def test_a_keyword_may_have_any_other_name(name):
    assert YosoConfig.from_dict({name: 1}).to_dict()[name] == 1


# -- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "id2label", "label2id"), [
    ({}, {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}),
    ({"num_labels": 1}, {0: "LABEL_0"}, {"LABEL_0": 0}),
    ({"id2label": {"1": "no", "0": "yes"}}, {0: "yes", 1: "no"}, {"yes": 0, "no": 1}),
    ({"id2label": {0: "a", 1: "b", 2: "c"}}, {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}),
    ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1, "bee": 1}}, {0: "a", 1: "b"}, {"a": 0, "b": 1, "bee": 1}),
    ({"label2id": {"no": 1, "yes": 0, "maybe": 2}}, {0: "yes", 1: "no", 2: "maybe"}, {"no": 1, "yes": 0, "maybe": 2}),
    ({"id2label": {0: "a", 1: "b"}, "num_labels": 2}, {0: "a", 1: "b"}, {"a": 0, "b": 1}),
    ({"id2label": None, "label2id": None, "num_labels": None}, {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}),
])
def test_labels(values, id2label, label2id):
    config = IBertConfig(**values)
    assert (config.id2label, config.label2id, config.num_labels) == (id2label, label2id, len(id2label))


THREE = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


@pytest.mark.parametrize(("file", "overrides", "names"), [
    (THREE, {"num_labels": 3}, ["a", "b", "c"]),
    (THREE, {"num_labels": 2}, ["LABEL_0", "LABEL_1"]),
    (THREE, {"id2label": {0: "x", 1: "y"}}, ["x", "y"]),
    (THREE, {"id2label": {0: "x", 1: "y"}, "num_labels": 2}, ["x", "y"]),
    ({**THREE, "num_labels": 2}, {}, ["a", "b", "c"]),
    ({**THREE, "_num_labels": 5}, {}, ["a", "b", "c"]),
    ({"num_labels": 3}, {"id2label": {0: "x", 1: "y"}}, ["x", "y"]),
    ({"num_labels": 3}, {"num_labels": 1}, ["LABEL_0"]),
    ({"num_labels": 3}, {}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
])
def test_overriding_labels(file, overrides, names):
    config = YosoConfig.from_dict(file, **overrides)
    assert list(config.id2label.values()) == names
    assert config.label2id == {name: index for index, name in enumerate(names)}


def test_setting_num_labels():
    config = MobileBertConfig(id2label={0: "a", 1: "b"})
    config.num_labels = 2
    assert config.id2label == {0: "a", 1: "b"}
    config.num_labels = 3
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    with refused("num_labels: got 0"):
        config.num_labels = 0


# -- bad values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "parts"), [
    ({"hidden_size": 0, "hidden_dropout_prob": 2, "hidden_act": "geluu", "use_cache": 1, "num_labels": -1},
     ["5 bad value", "num_labels: got -1", "hidden_size: got 0, expected a positive integer", "hidden_act: got 'geluu'",
      "'gelu_new'", "hidden_dropout_prob: got 2", "use_cache: got 1, expected True or False"]),
    ({"hidden_size": 30}, ["num_attention_heads: got 16, expected a divisor", "30"]),
    ({"hidden_size": "1024"}, ["hidden_size: got '1024'"]),
    ({"num_hidden_layers": 2**40}, ["num_hidden_layers: got 1099511627776, expected an integer from 0 to 1000"]),
    ({"num_labels": 2**40}, ["num_labels: got 1099511627776"]),
    ({"label2id": {"a": float("inf")}}, ["label2id: got {'a': inf}"]),
    ({"pruned_heads": {float("inf"): [0]}}, ["pruned_heads: got"]),
    ({"hidden_size": 2**50, "num_attention_heads": 2**50, "pruned_heads": {0: [2**60]}}, ["pruned_heads: got"]),
    ({"hidden_size": 1024.0}, ["hidden_size: got 1024.0"]),
    ({"hidden_size": True}, ["hidden_size: got True"]),
    ({"layer_norm_eps": float("nan")}, ["layer_norm_eps: got nan"]),
    ({"initializer_range": float("inf")}, ["initializer_range: got inf"]),
    ({"hidden_act": ["gelu"]}, ["hidden_act: got"]),
    ({"hidden_act": {}}, ["hidden_act: got"]),
    ({"position_embedding_type": "rotary"}, ["position_embedding_type: got 'rotary'", "'relative_key_query'"]),
    ({"problem_type": "ranking"}, ["problem_type: got 'ranking'", "'regression'"]),
    ({"pad_token_id": "0"}, ["pad_token_id: got '0'"]),
    ({"torch_dtype": 16}, ["torch_dtype: got 16"]),
    ({"num_labels": "three"}, ["num_labels: got 'three'"]),
    ({"num_labels": 3, "id2label": {0: "a"}}, ["num_labels: got 3, but id2label names 1"]),
    ({"id2label": ["a", "b"]}, [r"id2label: got \['a', 'b'\]"]),
    ({"id2label": {"first": "a"}}, ["id2label: got {'first': 'a'}"]),
    ({"id2label": {}}, ["id2label: got {}", "at least one"]),
    ({"id2label": 3}, ["id2label: got 3"]),
    ({"label2id": ["a"]}, [r"label2id: got \['a'\]"]),
    ({"label2id": {"a": []}}, ["label2id: got"]),
    ({"pruned_heads": [1]}, [r"pruned_heads: got \[1\]"]),
    ({"pruned_heads": {"first": [1]}}, ["pruned_heads: got"]),
    ({"pruned_heads": {"0": [1.5]}}, ["pruned_heads: got"]),
    ({"pruned_heads": {"0": 1}}, ["pruned_heads: got"]),
    ({"pruned_heads": {24: [0]}}, ["pruned_heads: got {24", "below 24"]),
    ({"pruned_heads": {0: [16]}}, ["pruned_heads: got {0", "below 16"]),
    ({"pruned_heads": {0: [-1]}}, ["pruned_heads"]),
    ({"pruned_heads": {0: [1, 1]}}, ["pruned_heads", "different heads"]),
    ({"pruned_heads": {0: list(range(16))}}, ["layer 0 would have no head left"]),
])
def test_bad_values(values, parts):
    with refused(*parts):
        MegatronBertConfig(**values)


@pytest.mark.parametrize(("cls", "values", "parts"), [
    (IBertConfig, {"hidden_act": "relu", "position_embedding_type": "relative_key"},
     ["hidden_act: got 'relu', expected one of 'gelu'", "position_embedding_type: got 'relative_key'"]),
    (IBertConfig, {"max_position_embeddings": 2}, ["max_position_embeddings: got 2"]),
    (IBertConfig, {"force_dequant": "all", "quant_mode": "yes"}, ["quant_mode: got 'yes'", "force_dequant: got 'all'"]),
    (YosoConfig, {"conv_window": 4, "hash_code_len": 60}, ["conv_window: got 4", "hash_code_len: got 60"]),
    (YosoConfig, {"hash_seed": -1, "num_hash": 0}, ["num_hash: got 0", "hash_seed: got -1"]),
    (YosoConfig, {"num_hash": 10**6, "hash_code_len": 25},
     ["num_hash: got 1000000, expected 1 to 4096", "hash_code_len: got 25, expected 1 to 24"]),
    (YosoConfig, {"hash_code_len": 23, "use_expectation": False},
     ["hash_code_len: got 23, expected at most 22 for rows of 64 numbers: a hash table would take 2 GiB"]),
    (MobileBertConfig, {"embedding_size": 600}, ["embedding_size: got 600"]),
    (MobileBertConfig, {"intra_bottleneck_size": 30}, ["num_attention_heads", "30"]),
    (MobileBertConfig, {"normalization_type": "rms"}, ["normalization_type: got 'rms'", "'no_norm'"]),
])
def test_bad_values_of_one_variant(cls, values, parts):
    with refused(*parts):
        cls(**values)


def test_an_expectation_needs_no_table():
    assert YosoConfig(hash_code_len=24).use_expectation
    assert YosoConfig(hash_code_len=24, hidden_size=96, use_expectation=False).head_size == 8


def test_values_set_by_hand_are_checked_before_they_are_written(tmp_path):
    config = YosoConfig()
    config.num_hash = 0
    with refused("num_hash: got 0"):
        config.validate()
    with refused("num_hash: got 0"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_pruned_heads_are_numbers_in_order():
    config = MegatronBertConfig(pruned_heads={"1": [5, 2]})
    assert config.pruned_heads == {1: [2, 5]}
    assert (config.kept_heads(0), config.kept_heads(1)) == (16, 14)


def test_a_callable_activation_is_written_by_name(tmp_path):
    def mish(x):
        return x

    MobileBertConfig(hidden_act=mish).save_pretrained(tmp_path)
    with refused("hidden_act: got 'mish'"):
        MobileBertConfig.from_pretrained(tmp_path)
    assert MobileBertConfig.from_pretrained(tmp_path, hidden_act=mish).hidden_act is mish


# -- as objects ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CONFIGS)
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copies_are_equal(cls, make):
    config = cls(num_labels=3, pruned_heads={0: [1]}, extra={"a": 1})
    other = make(config)
    assert type(other) is cls
    assert other == config
    other.extra_too = 1
    assert other != config


def test_equality_sees_the_variant():
    assert MegatronBertConfig() != YosoConfig()
    assert MegatronBertConfig() != 3
    assert '"num_hash": 8' in repr(YosoConfig(num_hash=8, odd=object()))


# -- config.json ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CONFIGS)
def test_round_trip_through_a_directory(cls, tmp_path):
    config = cls(id2label={0: "ja", 1: "néin", 2: "也许"}, pruned_heads={0: [1]}, is_decoder=True, unknown=[1, {"a": None}])
    config.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    text = (tmp_path / "config.json").read_text("utf-8")
    for read in (cls.from_pretrained(tmp_path), AutoConfig.from_pretrained(str(tmp_path)),
                 cls.from_pretrained(tmp_path / "config.json")):
        assert read == config
        assert read.to_json_string() == text
    assert json.loads(text)["model_type"] == cls.model_type


def test_saving_replaces_the_file_whole(tmp_path, monkeypatch):
    YosoConfig().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with refused("cannot be written as JSON"):
        YosoConfig(odd=object()).save_pretrained(tmp_path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(BertkitError, match="disk full"):
        YosoConfig(num_hash=8).save_pretrained(tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("config.json", before)]


@pytest.mark.parametrize(("keywords", "value", "unused"), [
    ({"num_hash": 8}, 8, {}), ({"num_hash": 8, "nonsense": 1}, 8, {"nonsense": 1}), ({}, 64, {}),
])
def test_overrides_and_unused_keywords(tmp_path, keywords, value, unused):
    YosoConfig().save_pretrained(tmp_path)
    config, rest = AutoConfig.from_pretrained(tmp_path, return_unused_kwargs=True, **keywords)
    assert (config.num_hash, rest) == (value, unused)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "no JSON file"),
    (b"{", "no JSON file"),
    (b"\xff\xfe\x00", "no JSON file"),
    (b"[" * 100_000, "no JSON file"),
    (b'{"vocab_size": ' + b"9" * 5000 + b"}", "no JSON file"),
    (b"[]", "holds a JSON list"),
    (b"null", "holds a JSON NoneType"),
    (b'"yoso"', "holds a JSON str"),
    (b'{"num_hash": 1e400}', "num_hash: got inf"),
    (b'{"num_hash": NaN}', "num_hash: got nan"),
    (b'{"model_type": "ibert"}', "reads model_type 'yoso', but this config.json says 'ibert'"),
    (b'{"model_type": ["yoso"]}', "says \\['yoso'\\]"),
])
def test_files_that_are_no_configuration(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with refused(message):
        YosoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("values", [{}, {"model_type": "bert"}, {"model_type": None}, {"model_type": ["yoso"]}])
def test_auto_config_names_the_variants(values):
    with refused("'ibert', 'megatron-bert', 'mobilebert', 'yoso'"):
        AutoConfig.from_dict(values)


@pytest.mark.parametrize("values", [None, [], [("num_hash", 8)], {1: 2}])
def test_from_dict_takes_values_by_name(values):
    with refused("expected values by name"):
        YosoConfig.from_dict(values)


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"num_hash": 8}')
    assert YosoConfig.from_pretrained(tmp_path).num_hash == 8


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        YosoConfig.from_pretrained(tmp_path)


# -- transformers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FIXTURE, ids=lambda case: case["name"])
def test_config_json_of_transformers(case):
    """`expected` is what transformers reads (it leaves `label2id` out where the file does); unknown keys survive."""
    config = AutoConfig.from_dict(case["written"])
    expected = {name: _keyed(value) for name, value in case["expected"].items() if (name, value) != ("label2id", None)}
    assert {name: _keyed(getattr(config, name)) for name in expected} == expected
    again = AutoConfig.from_dict(json.loads(config.to_json_string()))
    assert again == config
    kept = json.loads(config.to_json_string(use_diff=False))
    dropped = {"transformers_version", "true_hidden_size", "dtype", "_num_labels", "num_labels"}
    assert case["written"].keys() - dropped <= kept.keys()


def _keyed(value: Any) -> Any:
    """As JSON has it: keys are strings."""
    return json.loads(json.dumps(value))


def test_a_torch_dtype_is_written_by_name():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    assert json.loads(YosoConfig(torch_dtype=torch.bfloat16).to_json_string())["torch_dtype"] == "bfloat16"


def test_dtype_is_the_newer_name_of_torch_dtype():
    assert YosoConfig.from_dict({"dtype": "float16"}).torch_dtype == "float16"
