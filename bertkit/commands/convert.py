"""bertkit convert: a checkpoint of any known format into one that bertkit loads, or into a foreign format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bertkit.commands.terminal import format_list, format_size, show, show_json

SUMMARY = "write a checkpoint of any known format as bertkit's, or bertkit's in a foreign format"
EXAMPLES = """\
  bertkit convert megatron_bert_345m_v0_1_uncased.zip megatron-bert/     NVIDIA's zip as it is
  bertkit convert run/ model/ --from megatron-lm                         shards of any parallel run
  bertkit convert model/ shards/ --to megatron-lm --tensor-parallel 8 --pipeline-parallel 4
  bertkit convert old-checkpoint/ new/                         .bin or .h5 to safetensors, today's names
  bertkit convert model/ small/ --dtype bfloat16               half the size
  bertkit convert model/ parts/ --max-shard-size 200MB         several files and an index
  bertkit convert bert/ ibert/ --to ibert                      BERT or RoBERTa as I-BERT, exactly
  bertkit convert bert/ ibert/ --to ibert --task ForSequenceClassification   ... with a new classifier"""

OPTIONS: dict[str, dict[str, Any]] = {
    "task": {"metavar": "CLASS", "help": "class of the result, e.g. ForMaskedLM; default: the source's own"},
    "config": {"metavar": "JSON", "help": "settings that the source does not hold: a file, or '{\"num_head\": 12}'"},
    "vocab": {"metavar": "FILE", "type": Path, "help": "vocabulary for the tokenizer, where the source has none"},
    "vocab_size": {"metavar": "ROWS", "type": int, "help": "rows of the vocabulary to keep; padding rows after them are cut"},
    "hf_compat": {"action": "store_true",
                  "help": "write the configuration that transformers' script writes, also where the training had another"},
    "decoder": {"choices": ["tied", "own"], "help": "where the decoder differs from the word embeddings: which one to keep"},
    "zero_padding_row": {"action": "store_true", "help": "set the embedding of the padding token to zero"},
    "tensor_parallel": {"metavar": "N", "type": int, "help": "tensor-parallel ranks to write"},
    "pipeline_parallel": {"metavar": "N", "type": int, "help": "pipeline stages to write"},
    "checkpoint_version": {"metavar": "V", "type": int, "help": "version of the layout to write"},
}
"""The options that single formats know; see `bertkit.convert.original.Options`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from bertkit.convert.formats import FORMATS
    from bertkit.convert.warm_start import TARGETS

    written = [name for name, format in FORMATS.items() if format.write]
    parser.add_argument("source", metavar="SRC", help="file, directory or hub id")
    parser.add_argument("target", metavar="DST", help="directory to write")
    parser.add_argument("--from", dest="source_type", metavar="FORMAT",
                        help=f"what SRC is, where that cannot be seen: {', '.join(FORMATS)}; or the model type of a "
                             "directory whose config.json lacks it")
    parser.add_argument("--to", metavar="FORMAT", choices=[*written, *TARGETS],
                        help=f"what to make of it: {', '.join(written)}; or of a BERT or RoBERTa: {', '.join(TARGETS)}")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: each tensor's own")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file, e.g. 200MB (default: 5GB)")
    parser.add_argument("--overwrite", action="store_true", help="allow a target that is not empty")
    parser.add_argument("--allow-nonfinite", action="store_true", help="allow weights that are infinite or NaN")
    for name, settings in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)


def run(arguments: argparse.Namespace) -> int:
    """Convert and report."""
    from bertkit.convert import convert

    options = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None and value is not False}
    if "config" in options:
        options["config"] = _settings(options["config"])
    report = convert(
        arguments.source, arguments.target, to=arguments.to, source_type=arguments.source_type,
        dtype=arguments.dtype, max_shard_size=arguments.max_shard_size, overwrite=arguments.overwrite,
        allow_nonfinite=arguments.allow_nonfinite, show_progress=True, **options)
    if arguments.json:
        show_json(report.as_dict())
        return 0
    show(
        f"{report.source} ({report.format}) -> {report.target}",
        f"{report.architecture}: {report.parameters:,} parameters in {report.tensors} tensors, {report.dtype}, "
        f"{format_size(report.bytes)}",
        format_list("files", report.files, limit=16),
        *(format_list(operation, lines) for operation, lines in report.changes.items()),
        *_by_reason("left out", report.left_out),
        *_by_reason("made", report.made, limit=3),
        format_list("missing, newly initialised by whoever loads this", report.missing),
        format_list("notes", report.notes))
    return 0


def _by_reason(title: str, reasons: dict[str, str], limit: int = 8) -> list[str | None]:
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return [format_list(f"{title}, {reason}", names, limit) for reason, names in groups.items()]


def _settings(text: str) -> dict[str, Any]:
    """A JSON object, or the file that holds it.

    Raises:
        ConfigError: when it is neither.
    """
    from bertkit.core.errors import ConfigError

    try:
        settings = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config: {error}", remedy="Give a JSON object, or a file with one.") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"--config: got a JSON {type(settings).__name__}, expected an object")
    return settings
