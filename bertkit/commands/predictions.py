"""What models say about texts, from their scores: masked words, classes, tagged words, answers, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bertkit.core.errors import InputError

BATCH = 16
WINDOW, STRIDE, LONGEST_ANSWER = 384, 128, 30

Run = Callable[[dict[str, np.ndarray]], dict[str, Any]]
Result = dict[str, Any]


def fill_mask(run: Run, tokenizer: Any, config: Any, texts: Sequence[str], top_k: int) -> list[Result]:
    """The most probable tokens for each mask.

    Raises:
        InputError: naming the texts without a mask.
    """
    without = [f"text {i}: {text!r}" for i, text in enumerate(texts) if tokenizer.mask_token not in text]
    if without:
        raise InputError(f"{len(without)} text(s) have no mask", without,
                         f"Write {tokenizer.mask_token} where a token is to be filled in.")
    results = []
    for text, row, output in _rows(run, tokenizer, config, texts):
        masks = []
        for position in np.flatnonzero(row["input_ids"] == tokenizer.mask_token_id):
            candidates = []
            for token_id, score in _best(softmax(output["logits"][position]), top_k):
                filled = row["input_ids"].copy()
                filled[position] = token_id
                token = tokenizer.convert_ids_to_tokens(token_id)
                candidates.append({"token": token, "id": token_id, "score": score,
                                   "text": tokenizer.decode(filled.tolist(), skip_special_tokens=True)})
            masks.append({"position": int(position), "candidates": candidates})
        results.append({"text": text, "masks": masks})
    return results


def classify(run: Run, tokenizer: Any, config: Any, texts: Sequence[str], top_k: int) -> list[Result]:
    """The most probable labels of each text; the number itself where the model is a regression."""
    results = []
    for text, _, output in _rows(run, tokenizer, config, texts):
        logits = output["logits"]
        if config.problem_type == "regression" or config.num_labels == 1:
            labels = [{"label": config.id2label[i], "value": float(value)} for i, value in enumerate(logits)]
        else:
            several = config.problem_type == "multi_label_classification"
            scores = sigmoid(logits) if several else softmax(logits)
            labels = [{"label": config.id2label[i], "score": score} for i, score in _best(scores, top_k)]
        results.append({"text": text, "labels": labels})
    return results


def tag(run: Run, tokenizer: Any, config: Any, texts: Sequence[str], top_k: int) -> list[Result]:
    """The tagged stretches of each text: neighbouring words of one type, B-/I- prefixes joined, "O" left out.

    A word has the label of its first token.
    """
    results = []
    for text, row, output in _rows(run, tokenizer, config, texts):
        scores = softmax(output["logits"])
        spans: list[Result] = []
        last_word, end = None, 0
        for place, word in enumerate(row["word_ids"]):
            if word is None:
                continue
            start, stop = row["offsets"][place]
            if word == last_word:  # a further piece of the same word
                if spans and spans[-1]["end"] == end:
                    spans[-1]["end"] = stop
                end = stop
                continue
            label = config.id2label[int(scores[place].argmax())]
            begins, kind = label.startswith("B-"), label[2:] if label[:2] in ("B-", "I-") else label
            score = float(scores[place].max())
            follows = spans and spans[-1]["end"] == end and spans[-1]["label"] == kind and not begins
            if kind != "O" and follows:
                spans[-1]["end"], spans[-1]["score"] = stop, min(spans[-1]["score"], score)
            elif kind != "O":
                spans.append({"label": kind, "score": score, "start": start, "end": stop})
            last_word, end = word, stop
        results.append({"text": text, "spans": [{"text": text[s["start"]:s["end"]], **s} for s in spans]})
    return results


def answer(
    run: Run, tokenizer: Any, config: Any, questions: Sequence[str], contexts: Sequence[str], top_k: int, max_tokens: int
) -> list[Result]:
    """The most probable answers to each question inside its context, which may be longer than the model takes.

    A long context is read in windows that overlap. The score of an answer is its probability among all stretches of
    up to 30 tokens in all windows.

    Raises:
        InputError: when a question leaves no room for its context.
    """
    return [_answer(run, tokenizer, config, question, context, top_k, min(WINDOW, max_tokens))
            for question, context in zip(questions, contexts, strict=True)]


def _answer(run: Run, tokenizer: Any, config: Any, question: str, context: str, top_k: int, window: int) -> Result:
    used = len(tokenizer(question, add_special_tokens=False, verbose=False).input_ids)
    used += tokenizer.num_special_tokens_to_add(pair=True)
    if used >= window:
        raise InputError(f"the question takes {used} of {window} tokens and leaves no room for its context: {question!r}")
    batch = tokenizer([question], [context], truncation="only_second", max_length=window, padding=True, return_tensors="np",
                      stride=min(STRIDE, (window - used) // 2), return_overflowing_tokens=True, return_offsets_mapping=True)
    scores: dict[tuple[int, int], float] = {}
    for first in range(0, len(batch.input_ids), BATCH):
        output = run(_inputs(batch, config, slice(first, first + BATCH)))
        for place, (starts, ends) in enumerate(zip(output["start_logits"], output["end_logits"], strict=True), first):
            inside = np.array([s == 1 for s in batch.sequence_ids(place)])
            allowed = np.triu(np.outer(inside, inside))
            sums = np.where(allowed & ~np.triu(allowed, LONGEST_ANSWER), np.add.outer(starts, ends), -np.inf)
            for begin, end in zip(*np.nonzero(sums > -np.inf), strict=True):
                span = int(batch.offset_mapping[place][begin][0]), int(batch.offset_mapping[place][end][1])
                scores[span] = max(scores.get(span, -np.inf), float(sums[begin, end]))
    spans = list(scores)
    probabilities = softmax(np.array([scores[span] for span in spans])) if spans else np.zeros(0)
    answers = [{"answer": context[spans[i][0]:spans[i][1]], "score": score, "start": spans[i][0], "end": spans[i][1]}
               for i, score in _best(probabilities, top_k)]
    return {"question": question, "windows": len(batch.input_ids), "answers": answers}


def embed(run: Run, tokenizer: Any, config: Any, texts: Sequence[str], top_k: int) -> list[Result]:
    """A vector of length one for each text: the mean of its tokens' last hidden states."""
    results = []
    for text, row, output in _rows(run, tokenizer, config, texts):
        mean = output["last_hidden_state"][:len(row["input_ids"])].astype(np.float64).mean(axis=0)
        results.append({"text": text, "embedding": (mean / max(float(np.linalg.norm(mean)), 1e-12)).tolist()})
    return results


# -- numbers ----------------------------------------------------------------------------------------------------
def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities from scores, over the last axis."""
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """The probability of each score alone."""
    return 0.5 * (1 + np.tanh(scores.astype(np.float64) / 2))


def _best(scores: np.ndarray, count: int) -> list[tuple[int, float]]:
    return [(int(place), float(scores[place])) for place in np.argsort(-scores, kind="stable")[:count]]


def _inputs(batch: Any, config: Any, rows: slice) -> dict[str, np.ndarray]:
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
    if config.type_vocab_size < 2:  # a tokenizer of BERT numbers segments that this model does not have
        names = [name for name in names if name != "token_type_ids"]
    return {name: np.asarray(batch[name][rows]) for name in names}


def _rows(run: Run, tokenizer: Any, config: Any, texts: Sequence[str]) -> Iterator[tuple[str, Result, dict[str, np.ndarray]]]:
    """Each text with its unpadded tokens and the model's output for it; run in batches."""
    for first in range(0, len(texts), BATCH):
        part = list(texts[first:first + BATCH])
        batch = tokenizer(part, padding=True, truncation=True, return_tensors="np", return_offsets_mapping=True)
        output = run(_inputs(batch, config, slice(None)))
        for place, text in enumerate(part):
            length = int(batch.attention_mask[place].sum())
            yield text, {
                "input_ids": np.asarray(batch.input_ids[place][:length]),
                "offsets": [(int(a), int(b)) for a, b in batch.offset_mapping[place][:length]],
                "word_ids": batch.word_ids(place)[:length],
            }, {name: array[place] for name, array in output.items() if isinstance(array, np.ndarray)}
