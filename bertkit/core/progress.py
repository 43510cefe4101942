"""Progress bars for long work, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(work: Iterable | None, description: str, *, total: int | None = None, unit: str = "it", **options: Any) -> tqdm:
    """A bar over some work; silent where standard error is no terminal, and gone when the work is done.

    Args:
        work: what to iterate over, or None to call `update` by hand.
        description: a word or two in front of the bar.
        total: amount of work, where `work` has no length.
        unit: what is counted; "B" shows bytes as kB, MB, ...
    """
    return tqdm(work, desc=description, total=total, unit=unit, unit_scale=unit == "B", leave=False,
                disable=not sys.stderr.isatty(), **options)
