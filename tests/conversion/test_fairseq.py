"""fairseq's RoBERTa and I-BERT: every generation read, written again, and compared with what fairseq computes."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest

from bertkit.convert import convert
from bertkit.convert.fairseq import FAIRSEQ
from bertkit.convert.formats import find_format
from bertkit.convert.original import Sample
from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.tokenization import CHARACTER_TO_BYTE, AutoTokenizer
from tests.cli.common import checkpoint

torch = pytest.importorskip("torch")

from tests.conversion.originals import fairseq as theirs  # noqa: E402

ROBERTA = Path(__file__).parents[3] / "shared" / "data" / "vocab"
HEAD = "sentence_classification_head"

OLD = {"prefix": "decoder"}
GENERATIONS = {
    "0.6": ({**OLD, "fused": True, "norms": ("layer_norms.0", "layer_norms.1")}, {"args": theirs.arguments()}),
    "0.9": (OLD, {"args": theirs.arguments(), "legacy": True}),
    "0.10": ({}, {"args": theirs.arguments()}),
    "1.0": ({"norm": "layernorm_embedding", "version": True}, {"cfg": theirs.hydra()}),
    "1.0, omegaconf": ({"norm": "layernorm_embedding", "version": True}, {"cfg": theirs.DictConfig(theirs.hydra())}),
    "1.0, namespace": ({"norm": "layernorm_embedding", "version": True}, {"cfg": {"model": theirs.arguments(), "task": None}}),
    "untied": ({"untied": True}, {"args": theirs.arguments(untie_weights_roberta=True)}),
    "I-BERT": ({"quantised": True}, {"args": theirs.arguments(quant_mode="symmetric", force_dequant="gelu")}),
    "classifier": ({"heads": (HEAD,)}, {"args": theirs.arguments(task="sentence_prediction", num_classes=theirs.LABELS)}),
    "I-BERT classifier": ({"quantised": True, "heads": (HEAD,)}, {"args": theirs.arguments(quant_mode="none")}),
}
DERIVED = ("weight_integer", "bias_integer", "fc_scaling_factor", "weight_scaling_factor")
UNUSED = ("version", "input_scaling_factor", *(f"attn_probs_act.{leaf}" for leaf in ("x_min", "x_max", "act_scaling_factor")))


def make(directory, recipe=None, **settings):
    """A file and its dictionary."""
    settings = settings or {"args": theirs.arguments()}
    model = theirs.weights(**(recipe or {}))
    theirs.dictionary(directory)
    return theirs.save(directory / "checkpoint_best.pt", model, **settings), model


def arrays(directory):
    with open_checkpoint(directory) as opened:
        return {name: np.array(opened.read(name)) for name in opened.names()}


def settings(directory):
    return json.loads((directory / "config.json").read_text("utf-8"))


def scores(directory, ids):
    import bertkit

    model = getattr(bertkit, settings(directory)["architectures"][0]).from_pretrained(directory)
    with torch.no_grad():
        return model(ids, attention_mask=ids.ne(1).long()).logits


def load(directory):
    return torch.load(directory / "model.pt", weights_only=False)


# -- reading ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GENERATIONS)
def test_computes_what_fairseq_computes(name, tmp_path):
    recipe, saved = GENERATIONS[name]
    file, model = make(tmp_path / "source", recipe, **saved)
    assert find_format(file) is FAIRSEQ and find_format(file.parent) is FAIRSEQ
    report = convert(file, tmp_path / "ours")
    ids = torch.tensor([[0, 5, 9, 4, 10, 2, 1, 1], [0, 3, 8, 7, 6, 5, 4, 2]])
    head = HEAD if recipe.get("heads") else None
    got, expected = scores(tmp_path / "ours", ids), theirs.forward(model, ids, head)
    real = slice(None) if head else ids.ne(1)
    torch.testing.assert_close(got[real].double(), expected[real], rtol=1e-5, atol=1e-5)
    assert report.format == f"fairseq {'I-BERT' if recipe.get('quantised') else 'RoBERTa'}" and not report.missing
    config = settings(tmp_path / "ours")
    assert config["attention_probs_dropout_prob"] == 0.2 and config["type_vocab_size"] == 1 and not config["quant_mode"]


def test_every_range_arrives(tmp_path):
    file, model = make(tmp_path, {"quantised": True}, args=theirs.arguments(quant_mode="symmetric", force_dequant="softmax"))
    report = convert(file, tmp_path / "ours")
    ours, top = arrays(tmp_path / "ours"), "encoder.sentence_encoder"
    places = {
        "embed_positions_act": ["embeddings.embeddings_act1"],
        "emb_layer_norm.activation": ["embeddings.LayerNorm.activation"],
        "layers.0.input_act": ["embeddings.output_activation"],
        "layers.2.input_act": ["encoder.layer.1.output.output_activation"],
        "layers.1.self_attn.q_proj_act": ["encoder.layer.1.attention.self.query_activation"],
        "layers.1.self_attn.softmax.act": ["encoder.layer.1.attention.self.softmax.act"],
        "layers.1.self_attn.attn_act": ["encoder.layer.1.attention.self.output_activation"],
        "layers.1.pre_self_attn_layer_norm_act": ["encoder.layer.1.attention.output.ln_input_act"],
        "layers.1.fc1_act": ["encoder.layer.1.attention.output.output_activation", "encoder.layer.1.pre_intermediate_act"],
        "layers.1.fc2_act": ["encoder.layer.1.intermediate.output_activation", "encoder.layer.1.pre_output_act"],
        "layers.1.pre_final_layer_norm_act": ["encoder.layer.1.output.ln_input_act"],
    }
    for place, names in places.items():
        for name in names:
            for leaf in ("x_min", "x_max", "act_scaling_factor"):
                np.testing.assert_array_equal(ours[f"ibert.{name}.{leaf}"], model[f"{top}.{place}.{leaf}"].numpy())
    assert ours["ibert.encoder.layer.0.output.LayerNorm.shift"] == 2
    assert settings(tmp_path / "ours")["force_dequant"] == "softmax"
    # Only what fairseq does not have is made: the range of the last output and one that nobody uses.
    assert {name.rpartition(".")[0] for name in report.made if "type" not in name} == {
        "ibert.embeddings.embeddings_act2", "ibert.encoder.layer.2.output.output_activation"}
    assert any("training mode" in note for note in report.notes)


def test_the_quantised_model_runs_once_it_is_calibrated(tmp_path):
    from bertkit import IBertForMaskedLM
    from bertkit.core.quantization import CalibrationError

    file, _ = make(tmp_path, {"quantised": True}, args=theirs.arguments(quant_mode="symmetric"))
    convert(file, tmp_path / "ours", config={"quant_mode": True})
    model, ids = IBertForMaskedLM.from_pretrained(tmp_path / "ours"), torch.tensor([[0, 5, 9, 4, 2]])
    assert model.config.quant_mode
    with pytest.raises(CalibrationError, match=r"1 activation.*\n.*layer\.2\.output\.output_activation"):
        model.eval()(ids)
    model.train()(ids)
    assert torch.isfinite(model.eval()(ids).logits).all()


def test_halves_stay_halves(tmp_path):
    model = theirs.weights()
    half = type(model)((name, value.half()) for name, value in model.items())
    convert(theirs.save(tmp_path / "model.pt", half, args=theirs.arguments()), tmp_path / "ours")
    ours = arrays(tmp_path / "ours")
    words = ours["ibert.embeddings.word_embeddings.weight"]
    assert words.dtype == np.float16 and np.array_equal(words, half["encoder.sentence_encoder.embed_tokens.weight"].numpy())
    assert ours["ibert.embeddings.token_type_embeddings.weight"].dtype == np.float16


@pytest.mark.parametrize(("heads", "named", "asked", "expected"), [
    (("mnli",), None, {}, "mnli"),
    (("mnli", HEAD), None, {}, HEAD),
    (("mnli", "rte"), "rte", {}, "rte"),
    (("mnli", "rte"), None, {}, None),
    (("mnli", "rte"), None, {"config": {"classification_head_name": "mnli"}}, "mnli"),
    (("mnli",), None, {"task": "ForMaskedLM"}, None),
    (("mnli",), None, {"task": "Model"}, None),
])
def test_classification_heads(heads, named, asked, expected, tmp_path):
    file, model = make(tmp_path, {"heads": heads}, args=theirs.arguments(classification_head_name=named))
    report = convert(file, tmp_path / "ours", **asked)
    task = "ForSequenceClassification" if expected else asked.get("task", "ForMaskedLM")
    assert report.architecture == f"IBert{task}"
    others = {head for head in heads if head != expected}
    assert {name.split(".")[1] for name in report.left_out if name.startswith("classification_heads.")} == others
    assert any("are left out" in note for note in report.notes) == (len(heads) == 2 and not expected)
    if expected:
        got = arrays(tmp_path / "ours")["classifier.out_proj.weight"]
        assert np.array_equal(got, model[f"classification_heads.{expected}.out_proj.weight"].numpy())


def test_labels_and_regression(tmp_path):
    file, _ = make(tmp_path, {"heads": (HEAD,)}, args=theirs.arguments(regression_target=True))
    theirs.dictionary(tmp_path / "label", ["no", "maybe", "yes", "madeupword0000"])
    convert(file, tmp_path / "ours")
    config = settings(tmp_path / "ours")
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"} and config["problem_type"] == "regression"


def test_a_decoder_that_is_not_the_embeddings(tmp_path):
    file, model = make(tmp_path, {"untied": True})
    report = convert(file, tmp_path / "tied")
    assert any("differs from ibert.embeddings.word_embeddings.weight" in note for note in report.notes)
    convert(file, tmp_path / "own", decoder="own")
    assert not settings(tmp_path / "own")["tie_word_embeddings"]
    assert np.array_equal(arrays(tmp_path / "own")["lm_head.decoder.weight"], model["encoder.lm_head.weight"].numpy())
    assert "lm_head.decoder.weight" not in arrays(tmp_path / "tied")


def test_bare_weights_and_settings(tmp_path):
    torch.save(theirs.weights(**OLD), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="encoder_attention_heads: got None, expected a divisor of 8"):
        convert(tmp_path / "weights.pt", tmp_path / "ours")
    convert(tmp_path / "weights.pt", tmp_path / "ours", config={"encoder_attention_heads": 2}, hf_compat=True)
    assert settings(tmp_path / "ours")["hf_compat_scales"]
    with pytest.raises(ConfigError, match="encoder_heads: unknown"):
        convert(tmp_path / "weights.pt", tmp_path / "new", config={"encoder_heads": 2})


def test_token_types_come_along(tmp_path):
    model = theirs.weights()
    model["encoder.sentence_encoder.segment_embeddings.weight"] = torch.ones(2, theirs.WIDTH)
    report = convert(theirs.save(tmp_path / "model.pt", model, args=theirs.arguments()), tmp_path / "ours")
    assert settings(tmp_path / "ours")["type_vocab_size"] == 2 and any("it has token types" in note for note in report.notes)
    assert arrays(tmp_path / "ours")["ibert.embeddings.token_type_embeddings.weight"].all()


def test_rows_after_the_vocabulary_are_cut(tmp_path):
    model = theirs.weights()
    for name, value in model.items():
        if value.shape[0] == theirs.ROWS:
            model[name] = torch.cat([value, torch.zeros(5, *value.shape[1:])])
    theirs.dictionary(tmp_path)
    file = theirs.save(tmp_path / "model.pt", model, args=theirs.arguments())
    with pytest.raises(CheckpointError, match=r"got 10 with the special ones, expected 16"):
        convert(file, tmp_path / "ours")
    convert(file, tmp_path / "ours", vocab_size=theirs.ROWS)
    ours = arrays(tmp_path / "ours")
    assert len(ours["lm_head.bias"]) == len(ours["ibert.embeddings.word_embeddings.weight"]) == theirs.ROWS


# -- both ways ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GENERATIONS)
def test_there_and_back(name, tmp_path):
    """write(read(y)) has the weights of y, and read(write(x)) is x."""
    recipe, saved = GENERATIONS[name]
    file, model = make(tmp_path / "source", recipe, **saved)
    convert(file, tmp_path / "first")
    report = convert(tmp_path / "first", tmp_path / "theirs", to="fairseq")
    written = load(tmp_path / "theirs")["model"]
    # A classifier of ours has no language-model head.
    lost = (*DERIVED, *UNUSED, *(name for name in written if "heads" in recipe and "lm_head" in name))
    expected = {name: value for name, value in theirs.newest(model).items() if not name.endswith(lost)}
    assert {name for name in written if not name.endswith(lost)} == {*expected}
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    tied = written["encoder.lm_head.weight"].data_ptr() == written["encoder.sentence_encoder.embed_tokens.weight"].data_ptr()
    assert tied != recipe.get("untied", False)
    assert "dict.txt" in report.files
    again = convert(tmp_path / "theirs", tmp_path / "second")
    first, second = arrays(tmp_path / "first"), arrays(tmp_path / "second")
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    assert settings(tmp_path / "first") == settings(tmp_path / "second")
    lost = {"encoder.lm_head.weight": "the word embeddings once more"} if "untied" not in recipe else {}
    if "heads" in recipe:
        lost = {name: "an empty language-model head" for name in written if "lm_head" in name}
    assert again.left_out == {"optimizer_history": ANY, "extra_state": ANY, "task_state": ANY, **lost}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_what_is_written_says_how_to_make_the_model(tmp_path):
    file, _ = make(tmp_path / "source", {"heads": (HEAD,)})
    theirs.dictionary(tmp_path / "source" / "label", ["a", "b", "c"])
    convert(file, tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "theirs", to="fairseq")
    tree = load(tmp_path / "theirs")
    args = tree["args"]
    assert type(args).__name__ == "Namespace" and args.task == "sentence_prediction" and args.num_classes == theirs.LABELS
    assert (args.encoder_layers, args.encoder_embed_dim, args.encoder_attention_heads) == (theirs.LAYERS, theirs.WIDTH, 2)
    assert args.max_positions == theirs.LENGTH and args.activation_fn == "gelu"
    assert {"optimizer_history", "extra_state", "last_optimizer_state"} <= {*tree}
    # Where fairseq's task of classifying sentences looks for its dictionaries.
    assert (tmp_path / "theirs" / "label" / "dict.txt").read_text() == "a 1\nb 1\nc 1\n"
    assert (tmp_path / "theirs" / "input0" / "dict.txt").read_text() == (tmp_path / "theirs" / "dict.txt").read_text()
    # fairseq cannot be without a language-model head, and we do not take an empty one for a trained one.
    assert not tree["model"]["encoder.lm_head.dense.weight"].any()
    assert any("empty language-model head" in note for note in report.notes)


@pytest.mark.parametrize("task", ["Model", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"])
def test_an_encoder_is_written_without_the_head_that_fairseq_lacks(task, tmp_path):
    source = ibert(tmp_path / "source", task)
    report = convert(source, tmp_path / "theirs", to="fairseq")
    (note,) = [note for note in report.notes if "no place for these" in note]
    assert {"Model": "pooler.dense.weight", "ForQuestionAnswering": "qa_outputs.bias"}.get(task, "classifier.bias") in note
    assert convert(tmp_path / "theirs", tmp_path / "back").architecture == "IBertModel"
    before, after = arrays(source), arrays(tmp_path / "back")
    for name, value in after.items():
        if "embeddings_act2" not in name and "layer.1.output.output_activation" not in name:
            assert np.array_equal(before.get(f"ibert.{name}", before.get(name)), value), name


def ibert(directory, task, change=lambda tensors: None, **changes):
    """A checkpoint of ours that fairseq can hold, but for what is changed."""
    from tests.cli.common import weights, write

    changes = {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5, **changes}
    made = settings(checkpoint(directory, "ibert", task, **changes))
    from bertkit.core.ibert import IBertConfig

    tensors = weights("ibert", task, IBertConfig.from_dict(made))
    tensors[next(name for name in tensors if "token_type" in name)][:] = 0
    change(tensors)
    return write(directory, made, tensors)


def test_what_fairseq_lacks_is_said(tmp_path):
    def change(tensors):
        tensors["ibert.encoder.layer.0.pre_output_act.x_max"] += 3

    source = ibert(tmp_path / "source", "ForMaskedLM", change, layer_norm_eps=1e-12, type_vocab_size=2, hf_compat_scales=True)
    notes = "\n".join(convert(source, tmp_path / "theirs", to="fairseq").notes)
    for words in ("have the epsilon 1e-05, those of this model 1e-12", "hf_compat_scales is lost", "the 2 token types",
                  "the range of the last layer's output is lost", "1 number(s) of ranges are one in fairseq",
                  "load the file with strict=False", "no dict.txt was written: there is no tokenizer"):
        assert words in notes
    written = load(tmp_path / "theirs")["model"]
    assert written["encoder.sentence_encoder.layers.0.fc2_act.x_max"] == 4


def test_labels_that_a_dictionary_cannot_hold(tmp_path):
    source = ibert(tmp_path / "source", "ForSequenceClassification", id2label={0: "yes", 1: "no\nnever", 2: "?"})
    report = convert(source, tmp_path / "theirs", to="fairseq")
    assert "no label/dict.txt was written: it cannot hold 'no\\nnever'" in report.notes and report.files == ["model.pt"]


def test_without_ranges_a_plain_roberta_is_written(tmp_path):
    file, _ = make(tmp_path / "source")
    convert(file, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="fairseq")
    assert not any("act" in name or "shift" in name for name in load(tmp_path / "theirs")["model"])


@pytest.mark.parametrize(("changes", "change", "message"), [
    ({"pad_token_id": 0}, None, "pad_token_id: got 0, expected 1"),
    ({"pruned_heads": {0: [1]}}, None, "pruned_heads: fairseq has the same number"),
    ({}, lambda tensors: tensors["ibert.embeddings.token_type_embeddings.weight"].fill(1), "RoBERTa has no token types"),
])
def test_what_fairseq_would_compute_otherwise_is_refused(changes, change, message, tmp_path):
    source = ibert(tmp_path / "source", "ForMaskedLM", change or (lambda tensors: None), **changes)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "theirs", to="fairseq")
    assert not (tmp_path / "theirs").exists()


# -- the dictionary ---------------------------------------------------------------------------------------------------------
def test_words(tmp_path):
    file, _ = make(tmp_path)
    convert(file, tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer("the  naïve <mask>\tof other").input_ids == [0, 4, 7, 10, 5, 3, 2]
    assert tokenizer("the", "of").input_ids == [0, 4, 2, 2, 5, 2]
    assert tokenizer.decode([0, 4, 7, 2], skip_special_tokens=True) == "the naïve"
    assert tokenizer.model_max_length == theirs.LENGTH and [*tokenizer("x")] == ["input_ids", "attention_mask"]
    padded = tokenizer(["the", "the of"], padding=True)
    assert padded.input_ids == [[0, 4, 2, 1], [0, 4, 5, 2]] and padded.attention_mask[0] == [1, 1, 1, 0]


def test_letters(tmp_path):
    theirs.dictionary(tmp_path, list("ACDEFG"))
    convert(theirs.save(tmp_path / "model.pt", theirs.weights(), args=theirs.arguments()), tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer("CAX<mask>G").input_ids == tokenizer("C A X <mask> G").input_ids == [0, 5, 4, 3, 10, 9, 2]


def test_symbols_that_are_listed_again(tmp_path):
    """As in CamemBERT's dictionary, where SentencePiece's special symbols take later rows."""
    (tmp_path / "dict.txt").write_text("<s> 999 #fairseq:overwrite\n</s> 999 #fairseq:overwrite\na 1\nb 1\nc 1\n"
                                       "madeupword0000 0\n")
    convert(theirs.save(tmp_path / "model.pt", theirs.weights(), args=theirs.arguments()), tmp_path / "ours")
    config, tokenizer = settings(tmp_path / "ours"), AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (4, 5, 1)
    assert tokenizer("b a").input_ids == [4, 7, 6, 5]


def bpe(directory, rows):
    """A dictionary of GPT-2's ids in an order of its own, with the files of GPT-2 beside it."""
    merges = [("h", "i"), ("Ġ", "hi")]
    tokens = [*sorted(CHARACTER_TO_BYTE), "hi", "Ġhi", "<|endoftext|>"]
    ids = [*reversed(range(len(tokens)))]
    directory.mkdir(exist_ok=True)
    (directory / "dict.txt").write_text("".join(f"{number} 7\n" for number in ids) + "".join(
        f"madeupword{i:04d} 0\n" for i in range(rows - 5 - len(ids))))
    (directory / "vocab.bpe").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in merges), "utf-8")
    (directory / "encoder.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    return {token: 4 + ids.index(number) for number, token in enumerate(tokens)}


@pytest.mark.parametrize("with_encoder", [True, False])
def test_byte_level_bpe(with_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(theirs, "ROWS", 266)
    rows = bpe(tmp_path, 266)
    if not with_encoder:  # GPT-2's numbers follow from its merges
        (tmp_path / "encoder.json").unlink()
    convert(theirs.save(tmp_path / "model.pt", theirs.weights(), args=theirs.arguments()), tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert type(tokenizer).__name__ == "RobertaTokenizerFast"
    expected = [0, rows["hi"], rows["Ġhi"], rows["!"], 265, 2]
    assert tokenizer("hi hi!<mask>").input_ids == expected and tokenizer.mask_token_id == 265
    convert(tmp_path / "ours", tmp_path / "theirs", to="fairseq")
    convert(tmp_path / "theirs", tmp_path / "back")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    before, after = ((place / "dict.txt").read_text().split()[::2] for place in (tmp_path, tmp_path / "theirs"))
    assert before == after
    encoder = json.loads((tmp_path / "theirs" / "encoder.json").read_text("utf-8"))
    assert (encoder["!"], encoder["a"], encoder["Ġ"], encoder["hi"], encoder["<|endoftext|>"]) == (0, 64, 220, 256, 258)


@pytest.mark.skipif(not ROBERTA.is_dir(), reason="needs ../shared/data/vocab: RoBERTa's vocabulary")
def test_robertas_own_vocabulary(tmp_path):
    from bertkit.convert.fairseq_dictionary import read_vocabulary, write_vocabulary

    files = {name: (ROBERTA / f"roberta-base.{name}").read_bytes() for name in ("vocab.json", "merges.txt")}
    written, problem = write_vocabulary(files, 50265)
    assert problem is None
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    lines = written["dict.txt"].decode().splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["13", "262", "11"]  # "." " the" "," as in the released dict.txt
    assert [line.split()[0] for line in lines[-4:]] == ["50256", "madeupword0000", "madeupword0001", "madeupword0002"]
    result = read_vocabulary(tmp_path / "dict.txt", 50265, 512)
    assert json.loads(result.files["vocab.json"]) == json.loads(files["vocab.json"])
    assert not result.notes


@pytest.mark.parametrize(("words", "note"), [
    (["464", "262", "11", "13", "1", "2"], "ids of GPT-2's BPE: for a tokenizer put its vocab.bpe beside it"),
    (["\u2581the", "\u2581a", "b", "c", "d", "e"], "pieces of SentencePiece"),
    (["th@@", "e", "of", "a", "b", "c"], "splits at blanks"),
])
def test_what_is_said_about_tokenizers(words, note, tmp_path):
    theirs.dictionary(tmp_path, words)
    report = convert(theirs.save(tmp_path / "model.pt", theirs.weights(), args=theirs.arguments()), tmp_path / "ours")
    assert any(note in line for line in report.notes)


@pytest.mark.parametrize(("text", "problem"), [
    ("a 1\nb 1\n", "symbols: got 6 with the special ones, expected 11, or one less"),
    ("a 1\na 2\nb\n\n", r"line 2: 'a' is there twice\n.*line 3: got 'b', expected a symbol and its count\n.*line 4: got ''"),
    (b"\xff\xfe 1\n", "cannot read .*dict.txt"),
])
def test_bad_dictionaries(text, problem, tmp_path):
    file, _ = make(tmp_path)
    (tmp_path / "dict.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=problem):
        convert(file, tmp_path / "ours")


def test_a_dictionary_elsewhere(tmp_path):
    file = theirs.save(tmp_path / "model.pt", theirs.weights(), args=theirs.arguments())
    assert any("there is no dict.txt" in note for note in convert(file, tmp_path / "without").notes)
    theirs.dictionary(tmp_path / "data")
    convert(file, tmp_path / "ours", vocab=tmp_path / "data" / "dict.txt")
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("the").input_ids == [0, 4, 2]
    with pytest.raises(CheckpointError, match=r"cannot read .*none\.txt"):
        convert(file, tmp_path / "new", vocab=tmp_path / "none.txt")


# -- bad input ------------------------------------------------------------------------------------------------------------
def test_settings_that_contradict_the_tensors_are_listed_at_once(tmp_path):
    args = theirs.arguments(
        encoder_layers=4, encoder_embed_dim=16, encoder_ffn_embed_dim=8, max_positions=512, encoder_attention_heads=3,
        activation_fn="gelu_accurate", quant_noise_pq=0.1, no_scale_embedding=False)
    file, _ = make(tmp_path, args=args)
    with pytest.raises(CheckpointError) as caught:
        convert(file, tmp_path / "ours")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "max_positions", "activation_fn", "no_scale_embedding",
        "quant_noise_pq", "encoder_attention_heads"]
    assert "the arguments say 4, the tensors 3" in caught.value.problems[0]


@pytest.mark.parametrize("name", ["encoder.sentence_encoder.layer_norm.weight", "encoder.sentence_encoder.quant_noise.weight",
                                  f"classification_heads.{HEAD}.out_proj.weight_orig", "encoder.masked_lm_pooler.weight"])
def test_unknown_tensors_are_named(name, tmp_path):
    model = theirs.weights(heads=(HEAD,))
    model[name] = torch.zeros(theirs.WIDTH)
    with pytest.raises(CheckpointError, match=f"unknown: {name}"):
        convert(theirs.save(tmp_path / "model.pt", model, args=theirs.arguments()), tmp_path / "ours")


def test_layers_that_are_missing(tmp_path):
    model = theirs.weights()
    for name in [name for name in model if ".layers.1." in name]:
        del model[name]
    with pytest.raises(CheckpointError, match=r"layers: got the numbers 0, 2, expected 0 to 1"):
        convert(theirs.save(tmp_path / "model.pt", model, args=theirs.arguments()), tmp_path / "ours")
    del model["encoder.sentence_encoder.embed_positions.weight"]
    with pytest.raises(CheckpointError, match=r"missing: what becomes ibert\.embeddings\.position_embeddings\.weight"):
        convert(theirs.save(tmp_path / "model.pt", model, args=theirs.arguments()), tmp_path / "ours")


def test_another_model_of_fairseq(tmp_path):
    model = {"encoder.embed_tokens.weight": torch.zeros(3, 4), "decoder.layers.0.fc1.weight": torch.zeros(3, 4)}
    args = theirs.arguments(arch="transformer_iwslt_de_en", task="translation")
    with pytest.raises(CheckpointError, match=r"another model of fairseq\n.*'transformer_iwslt_de_en'"):
        convert(theirs.save(tmp_path / "checkpoint_best.pt", model, args=args), tmp_path / "ours")


def test_a_head_of_another_width_or_activation(tmp_path):
    model = theirs.weights(heads=(HEAD,))
    model[f"classification_heads.{HEAD}.dense.weight"] = torch.zeros(5, theirs.WIDTH)
    model[f"classification_heads.{HEAD}.out_proj.weight"] = torch.zeros(2**40, 0)
    file = theirs.save(tmp_path / "model.pt", model, args=theirs.arguments(pooler_activation_fn="relu"))
    with pytest.raises(CheckpointError) as caught:
        convert(file, tmp_path / "ours")
    wrong = ["pooler_activation_fn: got 'relu'", "dense.weight: got [5, 8]", f"out_proj.weight: got [{2**40}, 0]"]
    assert all(words in problem for words, problem in zip(wrong, caught.value.problems, strict=True))
    assert convert(file, tmp_path / "ours", task="ForMaskedLM").architecture == "IBertForMaskedLM"
    with pytest.raises(ConfigError, match="classification_head_name: got 'other', the file has sentence_classification_head"):
        convert(file, tmp_path / "new", config={"classification_head_name": "other"})


def test_directories(tmp_path):
    make(tmp_path)
    theirs.save(tmp_path / "checkpoint1.pt", theirs.weights(seed=1), args=theirs.arguments())
    assert FAIRSEQ.open(Sample(tmp_path)).files == ["checkpoint_best.pt"]
    (tmp_path / "checkpoint_best.pt").rename(tmp_path / "checkpoint2.pt")
    with pytest.raises(CheckpointError, match=r"holds 2 files that could be meant\n.*checkpoint1.pt\n.*checkpoint2.pt"):
        FAIRSEQ.open(Sample(tmp_path))


@pytest.mark.parametrize("content", [{"model": {"language_model": {}}, "args": None}, {"weight": None}, [1, 2], {3: 4}])
def test_other_files_are_not_taken(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    assert not FAIRSEQ.recognise(Sample(tmp_path / "model.pt")) and not FAIRSEQ.recognise(Sample(tmp_path))
    with pytest.raises(CheckpointError, match="was not written by fairseq"):
        FAIRSEQ.open(Sample(tmp_path / "model.pt"))
    (tmp_path / "model.pt").write_bytes(b"no checkpoint")
    assert not FAIRSEQ.recognise(Sample(tmp_path))
