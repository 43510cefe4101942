"""bertkit predict: fill masks, classify, tag, answer and embed from the shell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.commands.terminal import format_list, format_table, show, show_json
from bertkit.core.errors import InputError

SUMMARY = "fill masks, classify, tag, answer questions or embed texts"
EXAMPLES = """\
  bertkit predict mlm/ --task fill-mask --text "Paris is the [MASK] of France."
  bertkit predict sentiment/ --task classify --file reviews.txt
  bertkit predict ner/ --task tag --text "Ada Lovelace lived in London."
  bertkit predict squad/ --task answer --text "Who wrote it?" --context-file chapter.txt
  cat lines.txt | bertkit predict encoder/ --task embed --file - --json"""
CLASSES = {
    "fill-mask": "ForMaskedLM",
    "classify": "ForSequenceClassification",
    "tag": "ForTokenClassification",
    "answer": "ForQuestionAnswering",
    "embed": "Model",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SRC", help="checkpoint directory, or hub id")
    parser.add_argument("--task", required=True, choices=list(CLASSES), help="what to do")
    parser.add_argument("--framework", choices=["torch", "tf"], help="default: the one that is installed, torch first")
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--text", action="append", metavar="TEXT", help="a text (a question, for answer); may be repeated")
    texts.add_argument("--file", metavar="FILE", help="texts, one a line; - is standard input")
    context = parser.add_mutually_exclusive_group()
    context.add_argument("--context", metavar="TEXT", help="answer: where the answers are, for all questions; any length")
    context.add_argument("--context-file", metavar="FILE", help="answer: a file with the context")
    parser.add_argument("--top-k", type=_positive, default=5, metavar="N", help="how many candidates to show (default: 5)")


def run(arguments: argparse.Namespace) -> int:
    """Predict and print."""
    texts = arguments.text if arguments.text is not None else read_lines(arguments.file)
    if not texts:
        raise InputError("there is no text", remedy="Pass --text, or a --file with one text a line.")
    context = _context(arguments)
    found = predict(arguments.source, arguments.task, texts, context=context, framework=arguments.framework,
                    top_k=arguments.top_k)
    if arguments.json:
        show_json(found)
        return 0
    for result in found["results"]:
        show(PRINTERS[arguments.task](result), "")
    if arguments.task == "embed" and 1 < len(found["results"]) <= 12:
        show(_similarities(found["results"]), "")
    show(format_list("notes", found["notes"]), f"{found['architecture']} in {found['framework']}")
    return 0


def predict(
    name_or_path: str, task: str, texts: list[str], *, context: str | None = None, framework: str | None = None, top_k: int = 5
) -> dict[str, Any]:
    """What a checkpoint says about texts.

    Raises:
        BackendError: when the framework is not installed.
        CheckpointError: when the checkpoint has no weights for the task.
        InputError: when a text does not suit the task.
        TokenizerError: when the checkpoint has no tokenizer.
    """
    from bertkit.commands import predictions
    from bertkit.commands.frameworks import FRAMEWORKS, Runner, first_installed, need, open_model, open_tokenizer

    framework = framework or first_installed()
    need(framework)
    opened = open_model(name_or_path, CLASSES[task])
    tokenizer = open_tokenizer(opened)
    notes = list(opened.notes)
    if task != "answer":
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False).input_ids]
        notes += [f"text {i} has {n} tokens: cut to {tokenizer.model_max_length}" for i, n in enumerate(lengths)
                  if n > tokenizer.model_max_length]
    runner = Runner(opened, framework)
    if task == "answer":
        contexts = [context or ""] * len(texts)
        results = predictions.answer(runner, tokenizer, opened.config, texts, contexts, top_k, opened.max_tokens)
    else:
        function = {"fill-mask": predictions.fill_mask, "classify": predictions.classify, "tag": predictions.tag,
                    "embed": predictions.embed}[task]
        results = function(runner, tokenizer, opened.config, texts, top_k)
    return {"source": str(opened.directory), "architecture": runner.class_name, "framework": FRAMEWORKS[framework].name,
            "task": task, "results": results, "notes": notes}


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive integer")
    return int(text)


def read_lines(file: str) -> list[str]:
    """The lines of a text file that are not empty; - is standard input.

    Raises:
        InputError: when it cannot be read as UTF-8.
    """
    text = sys.stdin.read() if file == "-" else _read(file)
    return [line for line in text.splitlines() if line.strip()]


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file} as UTF-8 text: {error}") from error


def _context(arguments: argparse.Namespace) -> str | None:
    given = arguments.context if arguments.context_file is None else _read(arguments.context_file)
    if arguments.task == "answer" and not (given or "").strip():
        raise InputError("answer needs a context", remedy="Pass --context or --context-file.")
    if arguments.task != "answer" and given is not None:
        raise InputError(f"{arguments.task} takes no context", remedy="Use --task answer.")
    return given


# -- printing ---------------------------------------------------------------------------------------------------
def _print_masks(result: dict[str, Any]) -> str:
    rows = [[mask["position"], candidate["token"], f"{candidate['score']:.4f}", candidate["text"]]
            for mask in result["masks"] for candidate in mask["candidates"]]
    return f"{result['text']}\n" + format_table(["place", "token", "score", "text"], rows, right=[0, 2])


def _print_labels(result: dict[str, Any]) -> str:
    rows = [[label["label"], f"{label.get('score', label.get('value')):.4f}"] for label in result["labels"]]
    return f"{result['text']}\n" + format_table(["label", "score"], rows, right=[1])


def _print_spans(result: dict[str, Any]) -> str:
    rows = [[span["text"], span["label"], f"{span['score']:.4f}", f"{span['start']}-{span['end']}"] for span in result["spans"]]
    table = format_table(["text", "label", "score", "place"], rows, right=[2, 3]) if rows else "nothing tagged"
    return f"{result['text']}\n{table}"


def _print_answers(result: dict[str, Any]) -> str:
    rows = [[a["answer"], f"{a['score']:.4f}", f"{a['start']}-{a['end']}"] for a in result["answers"]]
    table = format_table(["answer", "score", "place"], rows, right=[1, 2])
    return f"{result['question']}  ({result['windows']} window(s))\n{table}"


def _print_embedding(result: dict[str, Any]) -> str:
    vector = result["embedding"]
    first = ", ".join(f"{value:.4f}" for value in vector[:6])
    return f"{result['text']}\n[{first}{', ...' if len(vector) > 6 else ''}] ({len(vector)} numbers)"


def _similarities(results: list[dict[str, Any]]) -> str:
    vectors = np.array([result["embedding"] for result in results])
    rows = [[place, result["text"], *(f"{score:.4f}" for score in scores)]
            for place, (result, scores) in enumerate(zip(results, vectors @ vectors.T, strict=True))]
    headers = ["", "text", *map(str, range(len(results)))]
    return "cosine similarity\n" + format_table(headers, rows, right=[0, *range(2, len(headers))])


PRINTERS = {"fill-mask": _print_masks, "classify": _print_labels, "tag": _print_spans, "answer": _print_answers,
            "embed": _print_embedding}
