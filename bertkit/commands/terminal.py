"""What the commands print: tables as wide as the terminal, sizes, one JSON document."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any


def format_table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[int] = (), width: int | None = None
) -> str:
    """A table in plain text; columns of text are shortened where the table would be wider than `width`.

    Args:
        headers: names of the columns.
        rows: the cells.
        right: columns that are aligned to the right, and never shortened.
        width: largest width; default that of the terminal, or none where the output is no terminal.

    Example:
        >>> print(format_table(["name", "rows"], [["words", 3], ["positions", 12]], right=[1]))
        name       rows
        ---------  ----
        words         3
        positions    12
    """
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    sizes = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    limit = terminal_width() if width is None else width
    texts = [column for column in range(len(headers)) if column not in right]
    while limit is not None and texts and sum(sizes) + 2 * (len(sizes) - 1) > limit:
        widest = max(texts, key=lambda column: sizes[column])
        if sizes[widest] <= 8:
            break
        sizes[widest] -= 1
    lines = ["  ".join(
        shorten(cell, size).rjust(size) if column in right else shorten(cell, size).ljust(size)
        for column, (cell, size) in enumerate(zip(row, sizes, strict=True))).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * size for size in sizes), *lines[1:]])


def shorten(text: str, size: int) -> str:
    """A text with its middle left out where it is longer than `size`.

    Example:
        >>> shorten("encoder.layer.0.output", 11)
        'encod…utput'
    """
    if len(text) <= size:
        return text
    head = size // 2
    return text[:head] + "…" + text[len(text) - (size - head - 1):]


def terminal_width() -> int | None:
    """Columns of the terminal, or None where standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def format_size(count: float) -> str:
    """A number of bytes for people.

    Example:
        >>> format_size(90_868_376)
        '90.9 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_list(title: str, names: Sequence[str], limit: int = 8) -> str | None:
    """A titled list, cut after `limit` entries; None where there are none."""
    if not names:
        return None
    rest = [f"  ... and {len(names) - limit} more (all of them with --json)"] if len(names) > limit else []
    return "\n".join([f"{title} ({len(names)}):", *(f"  {name}" for name in names[:limit]), *rest])


def show(*parts: str | None) -> None:
    """Print paragraphs; None is left out."""
    print("\n".join(part for part in parts if part is not None))


def show_json(value: Any) -> None:
    """Print one JSON document; numbers that JSON has no form for become null."""
    json.dump(_finite(value), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
