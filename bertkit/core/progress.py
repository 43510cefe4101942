"""Progress bars for long work, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm


def progress(work: Iterable | None, description: str, *, total: int | None = None, unit: str = "it") -> tqdm:
    """A bar over some work, if stderr is a terminal and the work takes more than a second; gone when it is done.

    Args:
        work: what to iterate over, or None to call `update` by hand.
        description: a word or two in front of the bar.
        total: amount of work, where `work` has no length.
        unit: what is counted; "B" shows bytes as kB, MB, ...

    Example:
        >>> sum(progress(range(4), "adding", unit="number"))
        6
    """
    return tqdm(work, desc=description, total=total, unit=unit, unit_scale=unit == "B", leave=False, delay=1.0, disable=None)
