"""Fills the table of `equality.md` from `equality.json`, which the measurement writes.

The file holds, for each class, the largest differences relative to the largest number of each output or gradient:
`{class: {"torch_outputs": x, "torch_gradients": x, "tf_outputs": x, "tf_gradients": x, "torch_vs_tf": x}}`. The first four
compare a framework with transformers, the last one both frameworks. A number that was not measured is null or absent.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = {
    "torch_outputs": "PyTorch: outputs",
    "torch_gradients": "PyTorch: gradients",
    "tf_outputs": "TensorFlow: outputs",
    "tf_gradients": "TensorFlow: gradients",
    "torch_vs_tf": "PyTorch against TensorFlow",
}
TABLE = re.compile(r"(<!-- equality -->\n).*?(<!-- end -->)", re.DOTALL)


def equality_table(numbers: dict[str, dict[str, float | None]]) -> str:
    """The table in Markdown: a row for each class, and the largest number of each column below."""
    largest = {column: max((row[column] for row in numbers.values() if row.get(column) is not None), default=None)
               for column in COLUMNS}
    rows = [(f"`{name}`", row) for name, row in sorted(numbers.items())] + ([("largest", largest)] if numbers else [])
    lines = [["class", *COLUMNS.values()], ["---", *["---:"] * len(COLUMNS)],
             *([name, *(_show(row.get(column)) for column in COLUMNS)] for name, row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def refreshed(text: str) -> str:
    """The page with its table made anew."""
    numbers = json.loads((HERE / "equality.json").read_text(encoding="utf-8"))
    return TABLE.sub(lambda match: f"{match[1]}\n{equality_table(numbers)}\n{match[2]}", text)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    page = HERE / "equality.md"
    page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
