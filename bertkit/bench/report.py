"""What a benchmark found, as text and as a picture; the text may be printed part by part while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.commands.terminal import format_size, format_table
from bertkit.core.errors import BackendError, InputError

Found = Mapping[str, Any]
HEADERS = ("engine", "ms", "quartiles", "speed-up", "floor ms", "of floor", "peak", "cosine")
COLORS = {"fp32": "#8c8c8c", "bf16": "#4c78a8", "int8": "#e0903f", "ours": "#2a9d5c", "simulated": "#c9c9c9"}
PICTURES = (".svg", ".png", ".pdf")


def as_text(found: Found) -> str:
    """The whole report."""
    return "\n\n".join([heading(found), *map(shape_as_text, found["shapes"]), ending(found)])


def heading(found: Found) -> str:
    """What stands above the tables: the machine, the versions, and what the columns mean."""
    machine = found["machine"]
    baseline = found["baseline"]
    return "\n".join([
        f"{machine['cpu']} ({' '.join(machine['flags']) or 'no vector instructions known'}), {machine['cores']} cores; "
        f"{found['threads']} threads each; {machine['system']}",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"Processes take turns, {found['rounds']} rounds; medians.",
        f"speed-up: over {baseline}. cosine: of the hidden states with those of {baseline}. peak: memory while it is measured.",
        "floor: operations over the measured rate of products, or weights over that of reading, whichever takes longer.",
    ])


def ending(found: Found) -> str:
    """What stands below the tables: what the engines really ran in, and which are absent."""
    absent = [f"  {name}: {reason}" for name, reason in found["absent"].items()]
    return "\n".join([*growth_as_text(found["shapes"]), *evidence(found["shapes"]), *(["absent:", *absent] if absent else [])])


def shape_as_text(shape: Found) -> str:
    """One shape: its table and its verdict."""
    rows = [_row(row) for row in shape["subjects"] if "seconds" in row]
    lines = [f"batch {shape['batch']} x length {shape['length']}: {shape['operations'] / 1e9:.1f} GOP", *_rates(shape["rates"]),
             format_table(HEADERS, rows, right=range(1, len(HEADERS)))]
    lines += [f"{row['name']}: {row['failed']}" for row in shape["subjects"] if "failed" in row]
    return "\n".join([*lines, *verdict(shape["subjects"])])


def _rates(rates: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not rates:
        return ["The machine's rates are not known: they are measured with PyTorch."]
    return ["rates: " + ", ".join(f"{name} {rate / 1e9:,.0f} GOP/s and {rates['bytes'][name] / 1e9:.1f} GB/s"
                                  for name, rate in rates["operations"].items())]


def _row(row: Found) -> list[str]:
    least = max(row.get("floor_operations", 0.0), row.get("floor_bytes", 0.0))
    low, high = row["quartiles"]
    return [
        row["title"], _milliseconds(row["seconds"]), f"{_milliseconds(low)}-{_milliseconds(high)}",
        f"{row['speedup']:.2f}" if "speedup" in row else "-", _milliseconds(least) if least else "-",
        f"{least / row['seconds']:.0%}" if least else "-", format_size(row["peak_bytes"]),
        "-" if row["cosine"] is None else f"{row['cosine']:.4f}"]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}" if seconds < 0.01 else f"{seconds * 1000:.1f}" if seconds < 1 else f"{seconds * 1000:,.0f}"


def verdict(rows: Sequence[Found]) -> list[str]:
    """The fastest of each kind, and how far ahead of them our fastest is.

    Example:
        >>> row = {"ours": False, "simulated": False}
        >>> rows = [{**row, "title": "a", "precision": "fp32", "seconds": 3.0}, {**row, "title": "b", "precision": "int8",
        ...         "seconds": 2.0}, {**row, "title": "c", "precision": "int8", "seconds": 1.0, "ours": True}]
        >>> print(*verdict(rows), sep="\\n")
        fastest peers: fp32 a 3,000 ms, int8 b 2,000 ms
        c: 3.00x the fastest fp32 peer, 2.00x the fastest int8 peer
    """
    timed = [row for row in rows if "seconds" in row and not row["simulated"]]
    best: dict[str, Found] = {}
    for row in sorted(timed, key=lambda row: row["seconds"]):
        best.setdefault("ours" if row["ours"] else row["precision"], row)
    peers = {kind: row for kind, row in best.items() if kind != "ours"}
    lines = []
    if peers:
        ordered = sorted(peers.items(), key=lambda item: -item[1]["seconds"])
        lines.append("fastest peers: " + ", ".join(
            f"{kind} {row['title'].removesuffix(f' {kind}')} {_milliseconds(row['seconds'])} ms" for kind, row in ordered))
        if "ours" in best:
            ours = best["ours"]
            lines.append(f"{ours['title']}: " + ", ".join(
                f"{row['seconds'] / ours['seconds']:.2f}x the fastest {kind} peer" for kind, row in ordered))
    return lines


def evidence(shapes: Sequence[Found]) -> list[str]:
    """In what the engines really ran and what took their time, as far as they tell; at the first shape of each."""
    told: dict[str, list[str]] = {}
    for shape in shapes:
        for row in shape["subjects"]:
            if "evidence" in row and row["title"] not in told:
                told[row["title"]] = [f"  {row['title']}: {row['evidence']}"]
                shares = ", ".join(f"{share:.0%} {name}" for name, share in row["shares"].items() if share >= 0.005)
                told[row["title"]] += [f"    {shares}"] if shares else []
    return ["what ran, and what took the time:", *(line for lines in told.values() for line in lines)] if told else []


def check_picture(file: str) -> None:
    """Check that a picture could be drawn, before anything is measured.

    Raises:
        InputError: the name has no known ending.
        BackendError: matplotlib is not installed.
    """
    from importlib.util import find_spec

    if Path(file).suffix not in PICTURES:
        raise InputError(f"picture: got {file}, expected a name that ends in {', '.join(PICTURES)}")
    if find_spec("matplotlib") is None:
        raise BackendError("matplotlib is not installed", remedy="Install it with: pip install 'bertkit[bench]'")


def draw_bars(found: Found, file: str, title: str) -> None:
    """Draw a panel for each shape: a bar for each engine, as long as its speed-up over the baseline, with its time.

    Args:
        found: what `measure` returned.
        file: where to, .svg, .png or .pdf.
        title: what stands above it.
    """
    from matplotlib.figure import Figure

    batches = list(dict.fromkeys(shape["batch"] for shape in found["shapes"]))
    lengths = list(dict.fromkeys(shape["length"] for shape in found["shapes"]))
    names = list(dict.fromkeys(row["name"] for shape in found["shapes"] for row in shape["subjects"] if "seconds" in row))
    titles = {row["name"]: row["title"] for shape in found["shapes"] for row in shape["subjects"]}
    figure = Figure(figsize=(2.6 + 3.2 * len(lengths), 1.4 + (0.5 + 0.2 * len(names)) * len(batches)), layout="constrained")
    axes = figure.subplots(len(batches), len(lengths), sharey=True, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for shape in found["shapes"]:
        panel = axes[batches.index(shape["batch"])][lengths.index(shape["length"])]
        panel.set_axis_on()
        _draw_panel(panel, shape, names, found["baseline"])
        panel.set_yticks(range(len(names)), [titles[name] for name in names], fontsize=8)
    axes[0][0].set_ylim(len(names) - 0.4, -0.6)  # the panels share it
    handles = [_patch(color, kind) for kind, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(COLORS), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    _save(figure, file)


GROWS_FROM = 2048
"""The length from which on growth is fitted: what is shorter is overhead, too."""


def growth(shapes: Sequence[Found]) -> dict[str, dict[str, float]]:
    """How time and memory grow with the length: for each engine the exponents of the powers that fit best.

    Example:
        >>> shapes = [{"batch": 1, "length": n, "subjects": [{"title": "a", "seconds": n * n / 1e9, "peak_bytes": n * 100}]}
        ...           for n in (2048, 4096, 8192)]
        >>> {name: round(value, 3) for name, value in growth(shapes)["a"].items()}
        {'seconds': 2.0, 'peak_bytes': 1.0}
    """
    found: dict[str, dict[str, float]] = {}
    long = [shape for shape in shapes if shape["length"] >= GROWS_FROM]
    for title, points in _by_title(long).items():
        if len({length for length, _ in points}) >= 3:
            lengths = np.log([length for length, _ in points])
            found[title] = {kind: float(np.polyfit(lengths, np.log([row[kind] for _, row in points]), 1)[0])
                            for kind in ("seconds", "peak_bytes")}
    return found


def growth_as_text(shapes: Sequence[Found]) -> list[str]:
    """The exponents of `growth` as lines; none where there are too few lengths."""
    rows = [[title, *(f"{exponent:.2f}" for exponent in exponents.values())] for title, exponents in growth(shapes).items()]
    return [f"growth with the length, from {GROWS_FROM:,} on, as its power:",
            format_table(("engine", "time", "memory"), rows, right=(1, 2))] if rows else []


def _by_title(shapes: Sequence[Found]) -> dict[str, list[tuple[int, Found]]]:
    points: dict[str, list[tuple[int, Found]]] = {}
    for shape in shapes:
        for row in shape["subjects"]:
            if "seconds" in row:
                points.setdefault(row["title"], []).append((shape["length"], row))
    return points


def draw_growth(found: Found, file: str, title: str) -> None:
    """Draw time and memory over the length, a line for each engine, forward and in training apart.

    Args:
        found: what `measure` returned.
        file: where to, .svg, .png or .pdf.
        title: what stands above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for title_of_row, points in _by_title(found["shapes"]).items():
        column = int(title_of_row.endswith(", train"))
        for panel, kind, unit in ((axes[0][column], "seconds", 1e3), (axes[1][column], "peak_bytes", 1e-6)):
            panel.plot([length for length, _ in points], [row[kind] * unit for _, row in points],
                       marker="o" if points[0][1]["ours"] else "s", linestyle="-" if points[0][1]["ours"] else "--",
                       label=title_of_row.removesuffix(", train"))
    for column, name in enumerate(("forward", "forward and backward")):
        for panel, label in ((axes[0][column], "ms"), (axes[1][column], "MB")):
            panel.set_xscale("log", base=2)
            panel.set(yscale="log", ylabel=label)
            panel.grid(alpha=0.3)
        axes[0][column].set_title(name, fontsize=10)
        axes[1][column].set_xlabel("length")
        if axes[0][column].lines:
            axes[0][column].legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, file)


def _save(figure: Any, file: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text: it can be searched, and is smaller
        figure.savefig(file, dpi=150)


def _draw_panel(panel: Any, shape: Found, names: Sequence[str], baseline: str) -> None:
    rows = {row["name"]: row for row in shape["subjects"] if "seconds" in row}
    base = rows[baseline]["seconds"] if baseline in rows else max((row["seconds"] for row in rows.values()), default=1.0)
    longest = max((base / row["seconds"] for row in rows.values()), default=1.0)
    for place, name in enumerate(names):
        if name in rows:
            row = rows[name]
            length = base / row["seconds"]
            kind = "simulated" if row["simulated"] else "ours" if row["ours"] else row["precision"]
            panel.barh(place, length, color=COLORS[kind])
            panel.text(length + 0.01 * longest, place, f"{length:.1f}x  {_milliseconds(row['seconds'])} ms", va="center",
                       fontsize=7)
    panel.set_xlim(0, 1.45 * longest)
    panel.set_title(f"batch {shape['batch']} x {shape['length']}", fontsize=9)
    panel.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _patch(color: str, kind: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label={"ours": "bertkit"}.get(kind, kind))
