"""bertkit convert: a checkpoint directory in today's form, another dtype, other shards, or as another model."""

from __future__ import annotations

import argparse

from bertkit.commands.terminal import format_list, format_size, show, show_json

SUMMARY = "write a checkpoint as safetensors: old files, other dtype, other shards, or BERT as I-BERT"
EXAMPLES = """\
  bertkit convert old-checkpoint/ new/                         .bin or .h5 to safetensors, today's names
  bertkit convert model/ small/ --dtype bfloat16               half the size
  bertkit convert model/ parts/ --max-shard-size 200MB         several files and an index
  bertkit convert bert/ ibert/ --to ibert                      BERT or RoBERTa as I-BERT, exactly
  bertkit convert bert/ ibert/ --to ibert --task ForSequenceClassification   ... with a new classifier"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SRC", help="checkpoint directory, or hub id")
    parser.add_argument("target", metavar="DST", help="directory to write")
    parser.add_argument("--to", choices=["ibert", "mobilebert"], help="make another model of a BERT or RoBERTa")
    parser.add_argument("--from", dest="source_type", metavar="TYPE",
                        help="what the source is (bert, roberta, mobilebert, ...), instead of its config.json's model_type")
    parser.add_argument("--task", metavar="CLASS", help="class of the result, e.g. ForMaskedLM; default: the source's own")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: each tensor's own")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file, e.g. 200MB (default: 5GB)")
    parser.add_argument("--overwrite", action="store_true", help="allow a target that is not empty")


def run(arguments: argparse.Namespace) -> int:
    """Convert and report."""
    from bertkit.convert import convert

    report = convert(
        arguments.source, arguments.target, to=arguments.to, source_type=arguments.source_type, task=arguments.task,
        dtype=arguments.dtype, max_shard_size=arguments.max_shard_size, overwrite=arguments.overwrite,
        show_progress=True)
    if arguments.json:
        show_json(report.as_dict())
        return 0
    show(
        f"{report.source} -> {report.target}",
        f"{report.architecture}: {report.parameters:,} parameters in {report.tensors} tensors, {report.dtype}, "
        f"{format_size(report.bytes)}",
        f"files: {', '.join(report.files)}",
        format_list("renamed", [f"{old} -> {new}" for new, old in report.renamed.items()]),
        format_list("left out", report.left_out),
        format_list("filled in, as the source has none", report.made, limit=3),
        format_list("missing, newly initialised by whoever loads this", report.missing),
        format_list("notes", report.notes))
    return 0
