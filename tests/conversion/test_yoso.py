"""mlpen/YOSO: what its programs write is read as a model that computes the same, and written back the same."""

from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.convert.original import Options, Sample
from bertkit.convert.yoso import HEADS, MLPEN_YOSO
from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.errors import BertkitError, CheckpointError, ConfigError
from bertkit.core.yoso import YosoConfig
from tests import cases
from tests.cli.common import checkpoint

torch = pytest.importorskip("torch")
from tests.conversion.originals import yoso  # noqa: E402

CONV = {**yoso.SETTINGS, "conv_window": 3}
SHARED = {**yoso.SETTINGS, "shared_weight": True}
ORIGINALS = {
    "second": (yoso.SETTINGS, {}),
    "first": (yoso.SETTINGS, {"generation": 1}),
    "convolution": (CONV, {}),
    "shared": (SHARED, {}),
    "BERT": (yoso.SETTINGS, {"program": "BERT"}),
}


def arrays(directory):
    with open_checkpoint(directory) as opened:
        return {name: np.array(opened.read(name)) for name in opened.names()}


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def loaded(file):
    return torch.load(file, weights_only=True)["model_state_dict"]


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def original(directory, settings=yoso.SETTINGS, **what):
    """A directory as the programs keep it below `models/`."""
    yoso.save_model(directory / "model" / "cp-0099.model", yoso.state(settings, **what))
    (directory / "config.json").write_text(json.dumps({"model": settings, "pretraining_setting": {"epoch": 500}}))
    return directory


def read(directory, settings=yoso.SETTINGS, weights=None, options=None, **what):
    """A lone file, seen as ours; what is known of it is what the user says."""
    file = yoso.save_model(directory / "weights.bin", yoso.state(settings, **what) if weights is None else weights)
    return MLPEN_YOSO.read(MLPEN_YOSO.open(Sample(file)), options or Options(config=settings))


# -- the same function ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("framework", ["torch", "tf"])
@pytest.mark.parametrize("name", ORIGINALS)
def test_it_computes_the_same(name, framework, tmp_path):
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[framework])
    from bertkit.commands.frameworks import Runner, open_model

    settings, what = ORIGINALS[name]
    report = convert(original(tmp_path / "source", settings, **what), tmp_path / "target")
    random = np.random.default_rng(0)
    ids, types = random.integers(0, settings["vocab_size"], (2, 9)), random.integers(0, 2, (2, 9))
    mask = np.array([[1] * 9, [1] * 5 + [0] * 4])
    expected = yoso.run(yoso.state(settings, **what), settings, ids, types, mask, **what)["mlm"]
    found = Runner(open_model(tmp_path / "target"), framework)(
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": types})["logits"]
    kept = mask.astype(bool)
    assert report.architecture == "YosoForMaskedLM" and not report.missing
    np.testing.assert_allclose(found[kept], expected[kept], atol=3e-6 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(("head", "task", "output"), [
    ("qa", "ForQuestionAnswering", ("start_logits", "end_logits")), ("wikihop", "ForTokenClassification", ("logits",)),
])
def test_scores_of_tokens(head, task, output, tmp_path):
    from bertkit.commands.frameworks import Runner, open_model

    report = convert(original(tmp_path / "source", head=head), tmp_path / "target")
    ids = np.arange(18).reshape(2, 9)
    expected = yoso.run(yoso.state(head=head), yoso.SETTINGS, ids, ids * 0, ids * 0 + 1)["qahead"]
    found = Runner(open_model(tmp_path / "target"), "torch")({"input_ids": ids})
    assert report.architecture == f"Yoso{task}" and "mlm.dense.weight" in report.left_out
    np.testing.assert_allclose(np.stack([found[name].reshape(2, 9) for name in output], -1), expected, atol=1e-5)


# -- every form is the same model -------------------------------------------------------------------------------------------
def wrapped(weights):
    return OrderedDict((f"module.{name}", value) for name, value in weights.items())


@pytest.mark.parametrize("change", [
    lambda file: yoso.save_model(file, yoso.state(generation=1)),
    lambda file: yoso.save_model(file, wrapped(yoso.state())),
    lambda file: yoso.save_model(file, wrapped(yoso.state(generation=1))),
    lambda file: yoso.save_model(file, yoso.state() | {"model.embeddings.position_ids": torch.arange(22)[None]}),
    lambda file: yoso.save_training(file.with_suffix(".cp"), yoso.state()),
    lambda file: yoso.save_training(file.with_suffix(".cp"), yoso.state(generation=1)),
], ids=["first generation", "DataParallel", "both", "buffer", "training", "training, first generation"])
def test_every_form_gives_the_same_model(change, tmp_path):
    convert(original(tmp_path / "plain"), tmp_path / "expected")
    file = change(tmp_path / "other" / "model" / "cp-0099.model")
    (tmp_path / "other" / "config.json").write_text((tmp_path / "plain" / "config.json").read_text())
    for number, source in enumerate((file, tmp_path / "other")):
        report = convert(source, tmp_path / str(number))
        assert equal(arrays(tmp_path / str(number)), arrays(tmp_path / "expected"))
        assert config_of(tmp_path / str(number)) == config_of(tmp_path / "expected")
    assert ({"optimizer_state_dict", "lr_scheduler_state_dict", "epoch", "inst_pass"} <= {*report.left_out}) == (
        file.suffix == ".cp")


def test_the_state_of_training_as_the_torch_of_its_time_wrote_it(tmp_path):
    file = yoso.save_training(tmp_path / "cp-0099.cp", yoso.state(), bound=True)
    assert MLPEN_YOSO.open(Sample(file)).left_out["lr_scheduler_state_dict"] == "state of the learning rate's schedule"


def test_the_last_checkpoint_of_a_directory_is_taken(tmp_path):
    directory = original(tmp_path / "source")
    yoso.save_training(directory / "model" / "cp-0099.cp", yoso.state(generation=1))
    yoso.save_model(directory / "model" / "cp-0100.model", {"model.nothing": torch.zeros(1)})
    (directory / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>")
    assert not MLPEN_YOSO.recognise(Sample(directory))
    (directory / "model" / "cp-0100.model").unlink()
    assert MLPEN_YOSO.recognise(Sample(directory)) and MLPEN_YOSO.open(Sample(directory)).files == ["cp-0099.model"]


def test_half_precision_keeps_its_bits(tmp_path):
    weights = OrderedDict((name, value.to(torch.bfloat16)) for name, value in yoso.state().items())
    yoso.save_model(tmp_path / "cp-0001.model", weights)
    convert(tmp_path / "cp-0001.model", tmp_path / "ours", config=yoso.SETTINGS)
    convert(tmp_path / "ours", tmp_path / "theirs", to="mlpen-yoso")
    again = loaded(tmp_path / "theirs" / "model" / "cp-0000.model")
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)


# -- there and back -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["second", "first", "convolution"])
def test_theirs_there_and_back(name, tmp_path):
    settings, what = ORIGINALS[name]
    convert(original(tmp_path / "source", settings, **what), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="mlpen-yoso")
    written, expected = loaded(tmp_path / "theirs" / "model" / "cp-0000.model"), yoso.state(settings)
    assert isinstance(written, OrderedDict) and written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    words = "model.embeddings.word_embeddings.weight"
    assert written[words].data_ptr() == written["mlm.mlm_class.weight"].data_ptr()
    assert config_of(tmp_path / "theirs")["model"] == settings


@pytest.mark.parametrize("changes", [
    {}, {"use_expectation": False, "num_hash": 3, "lsh_backward": False, "use_fast_hash": False}, {"hash_seed": 5},
    {"conv_window": 5, "pad_token_id": 0, "type_vocab_size": 1, "layer_norm_eps": 1e-12}, {"another": "key"},
])
@pytest.mark.parametrize("task", HEADS)
def test_ours_there_and_back(task, changes, tmp_path):
    labels = {"num_labels": 3} if "Classification" in task else {}
    source = checkpoint(tmp_path / "source", "yoso", task, **changes, **labels)
    report = convert(source, tmp_path / "theirs", to="mlpen-yoso")
    convert(tmp_path / "theirs", tmp_path / "again", task=task)
    assert equal(arrays(source), arrays(tmp_path / "again")) and not report.missing
    before, after = (YosoConfig.from_pretrained(directory) for directory in (source, tmp_path / "again"))
    before.torch_dtype = after.torch_dtype
    assert before == after
    assert (tmp_path / "again" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    epsilon = [note for note in report.notes if "epsilon 1e-05" in note]
    assert len(epsilon) == 1


def test_shared_layers_there_and_back(tmp_path):
    convert(original(tmp_path / "source", SHARED), tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "theirs", to="mlpen-yoso", config={"shared_weight": True})
    written, expected = loaded(tmp_path / "theirs" / "model" / "cp-0000.model"), yoso.state(SHARED)
    assert written.keys() == expected.keys() and all(torch.equal(written[name], expected[name]) for name in expected)
    assert config_of(tmp_path / "theirs")["model"] == SHARED and report.tensors == len(arrays(tmp_path / "ours"))
    convert(original(tmp_path / "other"), tmp_path / "different")
    with pytest.raises(CheckpointError, match=r"differs: model\.backbone\.backbone\.encoders\.1\.mha\.W_q\.weight"):
        convert(tmp_path / "different", tmp_path / "no", to="mlpen-yoso", config={"shared_weight": True})
    assert not (tmp_path / "no").exists()


def test_a_shared_layer_is_counted_for_each(tmp_path):
    made = read(tmp_path, SHARED)
    query = "yoso.encoder.layer.{}.attention.self.query.weight"
    assert made.config.num_hidden_layers == 3 and any("all 3" in note for note in made.notes)
    assert len({id(made.translation.tensors[query.format(layer)]) for layer in range(3)}) == 1
    assert sum("mha.W_q.weight" in change.old[0] for change in made.translation.changes) == 3
    for layers in (None, 0, 10**9, "3", True):
        with pytest.raises(ConfigError, match="num_layers"):
            read(tmp_path, SHARED, options=Options(config={"num_head": 4, "num_layers": layers}))


# -- settings -----------------------------------------------------------------------------------------------------------------
V2 = {"num_head": 4, "attn_type": "yoso-v2", "hashcode_len": 7}


@pytest.mark.parametrize(("settings", "expected"), [
    ({"num_head": 4}, {"use_expectation": True, "lsh_backward": True, "hash_code_len": 9, "num_attention_heads": 4}),
    ({"head_dim": 8}, {"num_attention_heads": 2}),
    ({"num_attention_heads": 8, "max_position_embeddings": 20}, {"num_attention_heads": 8}),
    ({**V2, "num_hash_f": 16}, {"use_expectation": False, "num_hash": 16, "hash_code_len": 7}),
    ({**V2, "num_hash_f": -1}, {"use_expectation": True, "num_hash": 64}),
    ({"num_head": 4, "attn_type": "yoso-v1"}, {"use_expectation": False}),
    ({"num_head": 4, "attn_type": "yoso-E"}, {"use_expectation": True}),
    ({"num_head": 4, "attn_type": "yoso-v1", "n2_backward": True, "use_fast_hash": False},
     {"lsh_backward": False, "use_fast_hash": False, "use_expectation": False}),
    ({"num_head": 4, "dropout_prob": 0.2, "attention_dropout": 0.3},
     {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}),
    ({"model": yoso.SETTINGS, "dataset": {}},
     {"max_position_embeddings": 20, "vocab_size": 47, "type_vocab_size": 2, "intermediate_size": 24, "num_hidden_layers": 3}),
])
def test_settings(settings, expected, tmp_path):
    config = read(tmp_path, options=Options(config=settings)).config
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.layer_norm_eps, config.conv_window, config.pad_token_id) == (1e-5, None, 1)


def test_heads_are_seen_or_assumed(tmp_path):
    assert read(tmp_path, CONV, options=Options()).config.num_attention_heads == 4
    wide = {**yoso.SETTINGS, "dim": 128, "embedding_dim": 128}
    made = read(tmp_path, wide, options=Options())
    assert made.config.num_attention_heads == 2 and any("size 64" in note for note in made.notes)
    assert any("softmax" in note for note in made.notes)
    with pytest.raises(ConfigError, match="num_head"):
        read(tmp_path, options=Options())


def test_the_epsilon_is_that_of_the_training_or_of_transformers(tmp_path):
    made = read(tmp_path, options=Options(config=yoso.SETTINGS, hf_compat=True))
    assert made.config.layer_norm_eps == 1e-12 and any("1e-05" in note for note in made.notes)


@pytest.mark.parametrize(("what", "longest", "zeros"), [
    ({"program": "BERT"}, None, 2), ({"program": "BERT"}, 20, 2), ({"program": "BERT"}, 18, 0), ({}, None, 0), ({}, 22, 2),
    ({"generation": 1}, None, 0), ({"generation": 1}, 22, 2),
])
def test_where_positions_begin(what, longest, zeros, tmp_path):
    config = {"num_head": 4} | ({} if longest is None else {"max_seq_len": longest})
    made = read(tmp_path, options=Options(config=config), **what)
    table = made.translation.tensors["yoso.embeddings.position_embeddings.weight"]()
    theirs = yoso.state(**what)["model.embeddings.position_embeddings.weight"].numpy()
    assert not table[:zeros].any() and np.array_equal(table[zeros:], theirs)
    assert made.config.max_position_embeddings == len(table) - 2
    assert made.config.pad_token_id == (0 if zeros else 1)


def test_all_contradictions_are_listed_at_once(tmp_path):
    config = {"dim": 32, "hidden_dim": 8, "num_layers": 12, "vocab_size": 50265, "num_sen_type": 1, "conv_window": 33,
              "embedding_dim": 8, "num_head": 3}
    with pytest.raises(ConfigError) as error:
        read(tmp_path, options=Options(config=config))
    named = {problem.split(":")[0] for problem in error.value.problems}
    assert named == {"hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "type_vocab_size", "conv_window",
                     "embedding_dim", "num_head, head_dim"}
    config = {"max_seq_len": 7, "shared_weight": True, "attn_type": "softmax", "n2_backward": "no", "hash_code_length": 9}
    with pytest.raises(ConfigError) as error:
        read(tmp_path, options=Options(config=config))
    assert {problem.split(":")[0] for problem in error.value.problems} == {*config}


@pytest.mark.parametrize(("text", "told"), [
    ('{"model": 3}', "model: got 3"), ('{"bertkit": [], "model": {}}', r"bertkit: got \[\]"), ("[", "no JSON"),
    ('{"model": {"num_head": "four"}}', "num_head: got 'four'"), ('{"model": {"model_type": "vanila_transformer"}}', "model_t"),
    ('{"model": {"num_head": 4, "dropout_prob": 7}}', "hidden_dropout_prob"), ('{"model": {"head_dim": -4}}', "head_dim"),
    ('{"model_type": "yoso", "hidden_size": 8, "num_attention_heads": 4}', "hidden_size: got 8"),
])
def test_a_config_of_nonsense(text, told, tmp_path):
    directory = original(tmp_path / "source")
    (directory / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=told):
        convert(directory, tmp_path / "target", source_type="mlpen-yoso")
    assert not (tmp_path / "target").exists()


# -- what has no place ----------------------------------------------------------------------------------------------------
def test_what_is_left_out_is_told_of(tmp_path):
    made = read(tmp_path, program="BERT")
    heads = {"model.pooler.weight", "model.pooler.bias", "sen_class.weight", "sen_class.bias"}
    assert made.task == "ForMaskedLM" and made.translation.left_out.keys() == heads
    made = read(tmp_path, head="classifier")
    assert "tanh" in made.translation.left_out["sen_classifer.dense.weight"]


@pytest.mark.parametrize(("what", "dense", "labels"), [
    ({"program": "BERT"}, "model.pooler.weight", 4), ({"head": "classifier"}, "sen_classifer.dense.weight", 3),
])
def test_a_classifier_is_a_start_only(what, dense, labels, tmp_path):
    made = read(tmp_path, options=Options(config={"num_head": 4}, task="ForSequenceClassification"), **what)
    assert np.array_equal(made.translation.tensors["classifier.dense.weight"](), yoso.state(**what)[dense].numpy())
    assert made.config.num_labels == labels and any("tanh" in note for note in made.notes)


@pytest.mark.parametrize(("more", "told"), [
    ({"model.embeddings.dense.weight": (16, 8), "model.embeddings.dense.bias": (16,)}, r"embedding_dim[\s\S]*dense\.weight"),
    ({"model.encoders.0.mlpblock.0.weight": (24, 16)}, "Long Range Arena"),
    ({"model.backbone.backbone.encoders.0.mha.W_o.weight": (16, 16)}, r"unknown: model\.backbone.*W_o"),
    ({"model.backbone.backbone.encoders.7.norm2.weight": (16,)}, "layers: got 0, 1, 2, 7"),
    ({"model.transformer_0.norm1.weight": (16,)}, "twice: yoso.encoder.layer.0.attention.output.LayerNorm.weight"),
    ({"model.embeddings.word_embeddings.weight": (47,)}, r"word_embeddings\.weight: got shape \[47\]"),
    ({"model.embeddings.position_embeddings.weight": ()}, r"position"),
])
def test_what_cannot_be_read(more, told, tmp_path):
    weights = yoso.state() | {name: torch.zeros(shape) for name, shape in more.items()}
    with pytest.raises(BertkitError, match=told):
        yoso.save_model(tmp_path / "cp-0001.model", weights)
        convert(tmp_path / "cp-0001.model", tmp_path / "target", config={"num_head": 4})
    assert not (tmp_path / "target").exists()


def test_missing_tensors(tmp_path):
    for lost, told in (("model.backbone.backbone.encoders.1.mha.ff.bias", r"layer\.1\.attention\.output\.dense\.bias"),
                       ("model.embeddings.token_type_embeddings.weight", "token_type"),
                       ("mlm.norm.bias", r"transform\.LayerNorm\.bias"),
                       ("model.embeddings.position_embeddings.weight", "position_embeddings")):
        weights = yoso.state()
        del weights[lost]
        yoso.save_model(tmp_path / "cp-0001.model", weights)
        with pytest.raises(BertkitError, match=told):
            convert(tmp_path / "cp-0001.model", tmp_path / "target", config={"num_head": 4})


@pytest.mark.parametrize("content", [
    {"model_state_dict": 3}, {"model_state_dict": {}}, {"state_dict": {"a": 1}}, [1, 2], {1: 2}, None,
    {"model_state_dict": {"a": 1, 2: None}},
])
def test_another_file_is_not_taken_for_one(content, tmp_path):
    torch.save(content, tmp_path / "cp-0001.model")
    assert not MLPEN_YOSO.recognise(Sample(tmp_path)) and not MLPEN_YOSO.recognise(Sample(tmp_path / "cp-0001.model"))
    for path in (tmp_path, tmp_path / "cp-0001.model"):
        with pytest.raises(CheckpointError):
            MLPEN_YOSO.open(Sample(path))


def test_more_than_tensors_is_refused(tmp_path):
    torch.save({"model_state_dict": yoso.state() | {"model.step": 3}}, tmp_path / "cp-0001.model")
    with pytest.raises(CheckpointError, match=r"model\.step.*got a int"):
        convert(tmp_path / "cp-0001.model", tmp_path / "target", config={"num_head": 4})


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"position_embedding_type": "relative_key"}])
def test_what_cannot_be_written(changes, tmp_path):
    source = checkpoint(tmp_path / "source", "yoso", **changes)
    with pytest.raises(ConfigError, match=next(iter(changes))):
        convert(source, tmp_path / "target", to="mlpen-yoso")
    with pytest.raises(ConfigError, match=r"num_hash: got 5"):
        convert(checkpoint(tmp_path / "other", "yoso"), tmp_path / "target", to="mlpen-yoso", config={"num_hash": 5})
    with pytest.raises(ConfigError, match="ForMultipleChoice"):
        convert(checkpoint(tmp_path / "third", "yoso", "ForMultipleChoice"), tmp_path / "target", to="mlpen-yoso")
    assert not (tmp_path / "target").exists()


def test_a_vocabulary_can_be_given(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"merges\.txt"):
        read(tmp_path, options=Options(config=yoso.SETTINGS, vocab=tmp_path / "vocab.json"))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    made = read(tmp_path, options=Options(config=yoso.SETTINGS, vocab=tmp_path / "vocab.json"))
    assert made.tokenizer_files == {"vocab.json": b"{}", "merges.txt": b"#version: 0.2\n"}


def test_the_cases_are_those_of_the_spec():
    assert {f"Yoso{task}" for task in HEADS} == {name for name in cases.VARIANTS["yoso"].class_names() if "Choice" not in name}
