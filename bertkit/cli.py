"""The command line of bertkit: one subcommand for each module of `bertkit.commands`.

Exit codes: 0, all is well; 1, a check failed; 2, bad use or bad input, with a message that says what to do.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from bertkit import __version__
from bertkit.commands import bench, convert, inspect, kernels, predict, quantize, verify
from bertkit.core.errors import BertkitError

COMMANDS = {"convert": convert, "verify": verify, "inspect": inspect, "predict": predict, "quantize": quantize,
            "kernels": kernels, "bench": bench}
GENERAL = """\
exit codes: 0 all is well, 1 a check failed, 2 bad use or bad input

examples:
  bertkit convert bert/ ibert/ --to ibert
  bertkit verify ibert/ --text "Do both frameworks say the same?"
  bertkit inspect ibert/
  bertkit predict ibert/ --task embed --text "A sentence." --text "Another one."
  bertkit quantize ibert/ integers/ --calibrate texts.txt
  bertkit kernels
  bertkit bench ibert --lengths 128
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; default those of the process.

    Returns:
        The exit code.
    """
    try:
        arguments = make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or 0)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = COMMANDS[arguments.command].run(arguments)
            sys.stdout.flush()
            return code
        except (BertkitError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # `bertkit inspect ... | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 0
            if arguments.traceback or os.environ.get("BERTKIT_TRACEBACK"):
                traceback.print_exc()
            print(f"bertkit {arguments.command}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"bertkit {arguments.command}: interrupted", file=sys.stderr)
            return 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="bertkit", epilog=GENERAL, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="MobileBERT, I-BERT, MegatronBERT and YOSO for PyTorch and TensorFlow, from one checkpoint.")
    parser.add_argument("--version", action="version", version=f"bertkit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        chosen = commands.add_parser(name, help=command.SUMMARY, description=_sentence(command.SUMMARY),
                                     epilog=f"examples:\n{command.EXAMPLES}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_arguments(chosen)
        chosen.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        chosen.add_argument("--traceback", action="store_true",
                            help="on an error show where it happened (or set BERTKIT_TRACEBACK=1)")
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
