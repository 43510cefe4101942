"""bertkit predict: each task in both frameworks, against scores that the test makes up or computes itself."""

from __future__ import annotations

import numpy as np
import pytest

from bertkit.commands import predictions
from bertkit.core.errors import InputError
from bertkit.core.tokenization import BertTokenizerFast
from tests import cases
from tests.cli.common import TOKENIZER, checkpoint, run, run_json

CONFIG = cases.config("mobilebert", num_labels=5, id2label={0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"})
TASKS = {"fill-mask": "ForMaskedLM", "classify": "ForSequenceClassification", "tag": "ForTokenClassification",
         "answer": "ForQuestionAnswering", "embed": "Model"}


@pytest.fixture
def tokenizer():
    return BertTokenizerFast(str(TOKENIZER), model_max_length=24)


@pytest.mark.parametrize("task", TASKS)
def test_both_frameworks_say_the_same(task, tmp_path, capsys):
    for module in ("torch", "tensorflow"):
        pytest.importorskip(module)
    directory = checkpoint(tmp_path, "mobilebert", TASKS[task])
    context = ["--context", "the cat sat. " * 20] if task == "answer" else []
    words = ["predict", directory, "--task", task, "--text", "the [MASK]!", "--text", "a", *context, "--framework"]
    if task == "fill-mask":
        words[6:8] = ["--text", "[MASK] the"]
    (code, first), (also, second) = (run_json(capsys, *words, name) for name in ("torch", "tf"))
    assert code == also == 0 and len(first["results"]) == 2
    same(first["results"], second["results"])
    assert run(capsys, *words, "torch")[0] == 0


def same(first, second):
    """Equal text, and numbers that are nearly equal."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            same(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            same(one, other)
    elif isinstance(first, float):
        assert first == pytest.approx(second, abs=1e-5)
    else:
        assert first == second


def test_fill_mask_puts_words_in_their_place(tokenizer):
    def run_model(inputs):
        logits = np.zeros((*inputs["input_ids"].shape, len(tokenizer)))
        logits[..., tokenizer.convert_tokens_to_ids("a")] = 9
        return {"logits": logits}

    (result,) = predictions.fill_mask(run_model, tokenizer, CONFIG, ["the [MASK] !"], 2)
    (mask,) = result["masks"]
    best, _ = mask["candidates"]
    assert (mask["position"], best["token"]) == (2, "a") and best["score"] > 0.9 and best["text"].startswith("the a")
    with pytest.raises(InputError, match=r"\[MASK\]"):
        predictions.fill_mask(run_model, tokenizer, CONFIG, ["[MASK]", "none here"], 2)


@pytest.mark.parametrize(("problem", "scores"), [
    ("single_label_classification", [0.0900306, 0.2447285, 0.6652410]),
    ("multi_label_classification", [0.5, 0.7310586, 0.8807971]),
    ("regression", [0.0, 1.0, 2.0]),
])
def test_classify(problem, scores, tokenizer):
    config = cases.config("mobilebert", num_labels=3, problem_type=problem)
    (result,) = predictions.classify(lambda inputs: {"logits": np.array([[0.0, 1.0, 2.0]])}, tokenizer, config, ["the"], 3)
    found = {label["label"]: label.get("score", label.get("value")) for label in result["labels"]}
    assert [found[f"LABEL_{i}"] for i in range(3)] == pytest.approx(scores, abs=1e-6)


def test_tag_joins_words_of_one_kind(tokenizer):
    text = "a the a. the a"
    labels = [0, 1, 2, 3, 0, 3, 4, 0]  # [CLS] a the a . the a [SEP]

    def run_model(inputs):
        return {"logits": 9.0 * np.eye(5)[labels][None]}

    (result,) = predictions.tag(run_model, tokenizer, CONFIG, [text], 5)
    found = [(span["text"], span["label"]) for span in result["spans"]]
    assert found[0][1] == "PER" and found[1] == ("a", "LOC") and found[2] == ("the a", "LOC")


def test_answer_reads_a_long_context_in_windows(tokenizer):
    """The answer lies beyond the first window; offsets lead back into the text."""
    context = "a " * 60 + "the ! " + "a " * 10
    wanted = tokenizer.convert_tokens_to_ids("the")

    def run_model(inputs):
        hit = inputs["input_ids"] == wanted
        hit &= inputs["token_type_ids"] == 1
        return {"start_logits": 9.0 * hit, "end_logits": 9.0 * np.roll(hit, 1, axis=1)}

    config = cases.config("mobilebert")
    (result,) = predictions.answer(run_model, tokenizer, config, ["the ?"], [context], 1, 24)
    (best,) = result["answers"]
    assert result["windows"] > 3 and (best["answer"], best["start"], best["end"]) == ("the !", 120, 125)
    assert 0.9 < best["score"] <= 1
    with pytest.raises(InputError, match="leaves no room"):
        predictions.answer(run_model, tokenizer, config, ["the " * 30], [context], 1, 24)


def test_embed_is_the_mean_of_real_tokens(tokenizer):
    def run_model(inputs):
        hidden = np.where(inputs["attention_mask"][..., None] == 1, [3.0, 4.0], [1e9, -1e9])
        return {"last_hidden_state": hidden}

    for result in predictions.embed(run_model, tokenizer, CONFIG, ["the", "the a the"], 5):
        assert result["embedding"] == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(("words", "told"), [
    (["--task", "answer", "--text", "x"], "answer needs a context"),
    (["--task", "embed", "--text", "x", "--context", "y"], "takes no context"),
    (["--task", "embed", "--file", "no-such-file"], "cannot read no-such-file"),
    (["--task", "tag", "--text", "x"], "no weights for MobileBertForTokenClassification"),
])
def test_bad_use(words, told, tmp_path, capsys):
    pytest.importorskip("torch")
    code, _, err = run(capsys, "predict", checkpoint(tmp_path, "mobilebert"), *words)
    assert code == 2 and told in err


def test_texts_from_a_file_and_long_ones_are_cut_aloud(tmp_path, capsys):
    pytest.importorskip("torch")
    (tmp_path / "texts.txt").write_text("the a\n\n" + "a " * 50 + "\n")
    words = ["predict", checkpoint(tmp_path / "model", "mobilebert"), "--task", "embed", "--file", tmp_path / "texts.txt"]
    code, found = run_json(capsys, *words)
    assert code == 0 and len(found["results"]) == 2 and found["notes"] == ["text 1 has 52 tokens: cut to 24"]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "cosine similarity" in out


def test_tokenizer_missing(tmp_path, capsys):
    pytest.importorskip("torch")
    code, _, err = run(capsys, "predict", checkpoint(tmp_path, "mobilebert", tokenizer=False), "--task", "embed", "--text", "x")
    assert code == 2 and "holds no tokenizer" in err
