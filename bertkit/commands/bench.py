"""bertkit bench: our models beside the other engines, side by side in one run."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bertkit.commands.terminal import show, show_json

SUMMARY = "measure latency and memory beside other engines, in processes that take turns"
EXAMPLES = """\
  bertkit bench ibert
  bertkit bench ibert --lengths 128 --batches 1,8 --rounds 30 --picture ibert.svg
  bertkit bench yoso --lengths 1024,4096 --picture yoso.svg
  bertkit bench ibert --only torch-eager,'openvino-*','bertkit-torch-*' --keep models/ --json
  pip install 'bertkit[bench]'                       the other engines; one that is not installed is named as absent"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", choices=["ibert", "yoso"],
                        help="I-BERT's integers in the size of RoBERTa-base, or YOSO's attention beside softmax attention")
    parser.add_argument("--lengths", type=_numbers, metavar="N,...",
                        help="tokens of a sequence (default: 32,128,384,512 for ibert, 512 to 65536 for yoso)")
    parser.add_argument("--batches", type=_numbers, metavar="N,...",
                        help="sequences at once (default: 1,8,32 for ibert, 1 for yoso)")
    parser.add_argument("--threads", type=_positive, default=2, metavar="N", help="threads of each engine (default: 2)")
    parser.add_argument("--rounds", type=_positive, default=15, metavar="N", help="turns of each engine (default: 15)")
    parser.add_argument("--layers", type=_positive, default=12, metavar="N", help="layers of the model (default: 12)")
    parser.add_argument("--only", type=_words, default=[], metavar="NAME,...",
                        help="these engines only; * stands for anything (default: all; a wrong name shows all)")
    parser.add_argument("--keep", metavar="DIR",
                        help="keep here what is found (found.json), and the models that are made, for further runs")
    parser.add_argument("--picture", metavar="FILE", help="draw the comparison: .svg, .png or .pdf")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from importlib import import_module

    from bertkit.bench.report import check_picture, ending, heading, shape_as_text
    from bertkit.bench.rounds import measure
    from bertkit.bench.subjects import choose
    from bertkit.core.errors import InputError

    suite = import_module(f"bertkit.bench.{arguments.model}")
    subjects = choose(list(suite.SUBJECTS.values()), arguments.only)
    if arguments.picture:
        check_picture(arguments.picture)
    lengths, batches = arguments.lengths or suite.LENGTHS, arguments.batches or suite.BATCHES
    shapes = [(batch, length) for batch in batches for length in lengths]
    with tempfile.TemporaryDirectory(prefix="bertkit-bench-") as temporary:
        directory = Path(arguments.keep, f"{arguments.model}-{arguments.layers}") if arguments.keep else Path(temporary)
        setup = suite.make_setup(str(directory.resolve()), arguments.threads, arguments.layers)
        most = suite.longest(setup.config)
        if max(lengths) > most:
            raise InputError(f"lengths: got {max(lengths)}, expected at most {most}, the positions of the model")
        directory.mkdir(parents=True, exist_ok=True)

        def seen(found: dict[str, Any]) -> None:
            setup.file("found.json").write_text(json.dumps(found, indent=1), "utf-8")
            if not arguments.json:
                show(*map(shape_as_text, found["shapes"][-1:]) if found["shapes"] else [heading(found)], "")
                sys.stdout.flush()

        found = measure(suite.__name__, subjects, setup, shapes, arguments.rounds, seen)
    if arguments.picture:
        suite.draw(found, arguments.picture, suite.title(found))
    if arguments.json:
        show_json(found)
    else:
        show(ending(found))
    if not any("seconds" in row for shape in found["shapes"] for row in shape["subjects"]):
        print("bertkit bench: nothing could be measured", file=sys.stderr)
        return 1
    return 0


def _numbers(text: str) -> list[int]:
    return [_positive(word) for word in _words(text)]


def _words(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]


def _positive(text: str) -> int:
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above zero")
    return number
