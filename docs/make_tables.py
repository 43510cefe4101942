"""Fills the tables of the pages that follow from the code: parameters, classes, outputs.

A table stands between `<!-- table: KIND NAME -->` and `<!-- end -->`. Run `python docs/make_tables.py` after a change of a
configuration; a test compares the pages with what this script would write.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path

from bertkit.core import outputs
from bertkit.core.config import PretrainedConfig
from bertkit.core.variants import VARIANTS

TABLE = re.compile(r"(<!-- table: (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
CONFIGS = {cls.__name__: cls for cls in (PretrainedConfig, *(variant.config for variant in VARIANTS.values()))}

LABELS = {
    "Model": ("-", ""),
    "ForPreTraining": ("`labels` [batch, length], `next_sentence_label` [batch]",
                       "`prediction_logits`, `seq_relationship_logits`"),
    "ForMaskedLM": ("`labels` [batch, length]", "`logits` [batch, length, vocab_size]"),
    "ForCausalLM": ("`labels` [batch, length], shifted inside", "`logits` [batch, length, vocab_size], `past_key_values`"),
    "ForNextSentencePrediction": ("`labels` [batch]", "`logits` [batch, 2]"),
    "ForSequenceClassification": ("`labels` [batch], or [batch, num_labels] floats", "`logits` [batch, num_labels]"),
    "ForMultipleChoice": ("`labels` [batch]", "`logits` [batch, choices]"),
    "ForTokenClassification": ("`labels` [batch, length]", "`logits` [batch, length, num_labels]"),
    "ForQuestionAnswering": ("`start_positions`, `end_positions` [batch]", "`start_logits`, `end_logits` [batch, length]"),
}
"""What a task class takes as labels and gives, by the suffix of its name."""


def refreshed(text: str) -> str:
    """A page with its tables made anew."""
    return TABLE.sub(lambda match: f"{match[1]}\n{MAKERS[match[2]](match[3])}\n{match[4]}", text)


def arguments(cls: type) -> dict[str, str]:
    """Meaning of each argument, from the docstring's `Args:`."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", inspect.getdoc(cls) + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        entry = re.fullmatch(r"    ([\w*][\w*, ]*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2]))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found


def parameter_table(name: str) -> str:
    """Name, default, allowed values and meaning of each field of a configuration."""
    cls = CONFIGS[name]
    meaning = arguments(cls)
    allowed = {item.name: check.allowed for item, check in cls._checks()}
    shared = {item.name for item in fields(PretrainedConfig)} if cls is not PretrainedConfig else set()
    rows = []
    for item in fields(cls):
        if item.name not in shared:
            default = item.default if item.default is not MISSING else item.default_factory()
            kind = allowed.get(item.name, str(item.type).replace(" | ", " or "))
            rows.append([f"`{item.name}`", f"`{default!r}`", kind, meaning[item.name]])
    return table(["name", "default", "allowed", "meaning"], rows)


def class_table(model_type: str) -> str:
    """The classes of a variant in both frameworks, what they take as labels and what they give."""
    variant = VARIANTS[model_type]
    rows = []
    for task in variant.tasks:
        labels, gives = LABELS[task]
        if task == "Model":
            pooled = ", `pooler_output` [batch, hidden_size]" if variant.tasks[task].pooled else ""
            gives = f"`last_hidden_state` [batch, length, hidden_size]{pooled}"
        rows.append([f"`{variant.name}{task}`", f"`TF{variant.name}{task}`", labels, gives])
    return table(["PyTorch", "TensorFlow", "labels", "gives"], rows)


def output_table(_: str) -> str:
    """Every class of output and its fields."""
    rows = [[f"`{cls.__name__}`", f"`TF{cls.__name__}`", ", ".join(f"`{name}`" for name in cls.fields)]
            for cls in outputs.outputs() if cls.fields and cls.__name__ != "PreTrainingOutput"]
    return table(["PyTorch", "TensorFlow", "fields"], rows)


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    headers = list(headers)
    lines = [headers, ["---"] * len(headers), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


MAKERS = {"parameters": parameter_table, "classes": class_table, "outputs": output_table}


def pages() -> list[Path]:
    """The pages beside this script."""
    return sorted(Path(__file__).parent.glob("*.md"))


if __name__ == "__main__":
    for page in pages():
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
