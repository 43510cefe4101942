"""Measures how well YOSO's sampled attention estimates its expectation, draws `yoso_estimator.svg` and prints tables.

`python docs/make_estimator.py` takes about two minutes with compiled kernels; it needs PyTorch and matplotlib. Every head has
hash functions of its own, so that the heads of one call, all given the same vectors, are as many draws.

Shape suffixes: N draws, L tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from bertkit.core.hashing import random_projections, random_signs
from bertkit.kernels.lsh import fast_hash, gaussian_hash, yoso_expectation, yoso_sampling

HERE = Path(__file__).parent
LENGTH, HEAD_SIZE, CLUSTERS, SPREAD = 512, 64, 32, 0.5
CODE_LENGTHS = (9, 5)
COUNTS = (8, 16, 32, 64, 128)
ANGLES = tuple(range(0, 101, 10))
AT_ONCE, CALLS = 32, 8
KINDS = {"fast": "#2a9d5c", "Gaussian": "#4c78a8"}
GRADIENTS = ("query", "key", "value")


@dataclass(frozen=True)
class Quality:
    """Of an estimator, relative to the length of what it estimates."""

    bias: float
    deviation: float
    cosine: float
    """Between rows of the estimate and of the truth, which is what attention keeps: it norms its rows."""


def quality(draws: Iterable[Tensor], truth: Tensor) -> Quality:
    """Bias, standard deviation and direction of an estimator.

    Args:
        draws: estimates [N, L, D], some at a time.
        truth: [L, D].

    Example:
        >>> found = quality([torch.tensor([[[3.0]], [[5.0]]])], torch.tensor([[2.0]]))  # variance 2, of the mean 1
        >>> round(found.bias**2, 3), round(found.deviation**2, 3), found.cosine  # (2**2 - 1) / 2**2 and 2 / 2**2
        (0.75, 0.5, 1.0)
    """
    count, total, squares, cosine = 0, torch.zeros_like(truth), torch.zeros_like(truth), 0.0
    for draw_NLD in draws:
        count += len(draw_NLD)
        total += draw_NLD.sum(0)
        squares += draw_NLD.square().sum(0)
        cosine += F.cosine_similarity(draw_NLD, truth, dim=-1).mean(-1).sum().item()
    mean = total / count
    variance = ((squares - count * mean.square()) / (count - 1)).sum()
    bias = (mean - truth).square().sum() - variance / count  # of which the mean of so many draws has some by chance
    size = truth.square().sum()
    return Quality((bias / size).clamp(min=0).sqrt().item(), (variance / size).sqrt().item(), cosine / count)


def hashes(kind: str, seed: int, num_hash: int, hash_code_len: int) -> Tensor:
    """The hash functions of `AT_ONCE` draws."""
    draw = random_signs if kind == "fast" else random_projections
    return torch.from_numpy(draw(seed, AT_ONCE, HEAD_SIZE, num_hash, hash_code_len))


def tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit queries and keys around common centres, values that have something of theirs, and a gradient, each [L, D]."""
    random = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(CLUSTERS, HEAD_SIZE, generator=random), dim=-1)
    cluster = torch.randint(CLUSTERS, (LENGTH,), generator=random)
    noise = torch.randn(4, LENGTH, HEAD_SIZE, generator=random)
    query, key = F.normalize(centres[cluster] + SPREAD * noise[:2] / HEAD_SIZE**0.5, dim=-1)
    return query, key, centres[cluster] * HEAD_SIZE**0.5 + noise[2], noise[3]


def measured_attention(kind: str, num_hash: int, hash_code_len: int) -> dict[str, Quality]:
    """The quality of the sampled context, and of the sampled gradients of query, key and value."""
    *inputs, grad = tokens()
    mask = torch.ones(1, LENGTH)

    def results(heads: int, hashes: Tensor | None) -> list[Tensor]:
        leaves = [x.expand(1, heads, -1, -1).clone().requires_grad_() for x in inputs]
        context = (yoso_expectation(*leaves, mask, mask, hash_code_len) if hashes is None else
                   yoso_sampling(*leaves, mask, mask, hash_code_len, num_hash, kind == "fast", True, hashes))
        context.backward(grad.expand_as(context))
        return [x[0].detach() for x in (context, *(leaf.grad for leaf in leaves))]

    truths = [x[0] for x in results(1, None)]
    calls = [results(AT_ONCE, hashes(kind, seed, num_hash, hash_code_len)) for seed in range(CALLS)]
    names = ("context", *GRADIENTS)
    return {name: quality(draws, truth) for name, draws, truth in zip(names, zip(*calls, strict=True), truths, strict=True)}


def theory(angle: np.ndarray | int, hash_code_len: int) -> np.ndarray:
    """The probability that two vectors at an angle, in degrees, collide under Gaussian hyperplanes."""
    return (1 - np.asarray(angle) / 180) ** hash_code_len


def measured_rates(kind: str, hash_code_len: int, pairs: int = 32, num_hash: int = 112) -> np.ndarray:
    """How often pairs of random vectors collide, for each of `ANGLES`."""
    hash_both, rates = fast_hash if kind == "fast" else gaussian_hash, []
    random = torch.Generator().manual_seed(0)
    mask = torch.ones(1, len(ANGLES) * pairs)
    turn = torch.deg2rad(torch.tensor(ANGLES)).view(-1, 1, 1)
    for seed in range(2 * CALLS):
        first, other = torch.randn(2, AT_ONCE, 1, pairs, HEAD_SIZE, dtype=torch.float64, generator=random)
        first = F.normalize(first, dim=-1)
        other = F.normalize(other - (other * first).sum(-1, keepdim=True) * first, dim=-1)
        query, key = (x.float().expand(-1, len(ANGLES), -1, -1).flatten(1, 2)[None]
                      for x in (first, turn.cos() * first + turn.sin() * other))
        codes = hash_both(query, mask, key, mask, num_hash, hash_code_len, hashes(kind, seed, num_hash, hash_code_len))
        collide = (codes[0] == codes[1]).float().unflatten(2, (len(ANGLES), pairs))
        rates.append(collide.mean((0, 1, 3, 4)).numpy())
    return np.mean(rates, axis=0)


def table(header: list[str], rows: list[list[str]]) -> str:
    """In Markdown, with numbers on the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(rates: dict, attention: dict) -> str:
    """Everything that the picture shows, in numbers."""
    angles = [(index, angle) for index, angle in enumerate(ANGLES) if angle % 30 == 0 or angle == ANGLES[-1]]
    parts = [table(["collisions, tau 9", *(f"{angle} degrees" for _, angle in angles)], [
        ["theory", *(f"{theory(angle, 9):.4f}" for _, angle in angles)],
        *([f"{kind} hash", *(f"{rates[kind, 9][index]:.4f}" for index, _ in angles)] for kind in KINDS)])]
    for bits in CODE_LENGTHS:
        found = {count: {kind: attention[kind, count, bits] for kind in KINDS} for count in COUNTS}
        parts.append(table([f"tau {bits}", *(f"{count} hashes" for count in COUNTS)], [
            [f"{kind} hash: {what} of {name}", *(f"{getattr(found[count][kind][name], what):.3f}" for count in COUNTS)]
            for name in ("context", *GRADIENTS) for what in ("bias", "deviation", "cosine") for kind in KINDS]))
    return "\n".join(parts)


def draw(rates: dict, attention: dict, file: Path) -> None:
    """Collisions over the angle above, bias and deviation over the number of hashes below."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    (over_angle, over_theory, directions), errors = figure.subplots(2, 3)
    fine = np.linspace(0, ANGLES[-1], 201)
    for bits, style in zip(CODE_LENGTHS, ("-", "--"), strict=True):
        over_angle.plot(fine, theory(fine, bits), color="#8c8c8c", linestyle=style, label=f"theory, tau {bits}")
        for kind, color in KINDS.items():
            label = f"{kind}, tau {bits}"
            over_angle.plot(ANGLES, rates[kind, bits], color=color, marker="o" if bits == 9 else "s", linestyle="", label=label)
            over_theory.plot(ANGLES, rates[kind, bits] / theory(ANGLES, bits), color=color, linestyle=style, marker="o",
                             label=label)
            directions.plot(COUNTS, [attention[kind, count, bits]["context"].cosine for count in COUNTS], color=color,
                            linestyle=style, marker="o", label=label)
    over_angle.set(title="collisions", xlabel="angle, degrees", ylabel="probability")
    over_theory.set(title="collisions over theory", xlabel="angle, degrees", ylim=(0.7, 1.1))
    directions.set(title="direction of the context", xlabel="hashes", ylabel="cosine with the expectation", ylim=(0.8, 1))
    shown = [*((f"context, tau {bits}", bits, ("context",)) for bits in CODE_LENGTHS), ("gradients, tau 9", 9, GRADIENTS)]
    for panel, (title, bits, names) in zip(errors, shown, strict=True):
        for name, marker in zip(names, "osv", strict=False):
            for kind, color in KINDS.items():
                of, label = [attention[kind, count, bits][name] for count in COUNTS], f"{kind}, {name}"
                panel.plot(COUNTS, [x.deviation for x in of], color=color, marker=marker, label=f"{label}: deviation")
                if kind == "fast":  # that of Gaussian hyperplanes is none
                    panel.plot(COUNTS, [x.bias for x in of], color=color, marker=marker, linestyle=":", label=f"{label}: bias")
        first = attention["Gaussian", COUNTS[0], bits][names[0]].deviation
        panel.plot(COUNTS, first * np.sqrt(COUNTS[0] / np.array(COUNTS)), color="#8c8c8c", linestyle="--",
                   label="1 / sqrt(hashes)")
        panel.set(title=title, xlabel="hashes", ylabel="of the length of the expectation", yscale="log", ylim=(0.01, 8))
    for panel in (directions, *errors):
        panel.set_xscale("log", base=2)
        panel.set_xticks(COUNTS, COUNTS)
    for panel in figure.axes:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, frameon=False, ncols=1 if len(panel.lines) < 8 else 2)
    figure.suptitle(f"YOSO's estimate of its expectation: {LENGTH} tokens in {CLUSTERS} clusters, head size {HEAD_SIZE}, "
                    f"{AT_ONCE * CALLS:,} draws", fontsize=11)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "yoso"}):
        figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    rates = {(kind, bits): measured_rates(kind, bits) for kind in KINDS for bits in CODE_LENGTHS}
    attention = {(kind, count, bits): measured_attention(kind, count, bits)
                 for kind in KINDS for count in COUNTS for bits in CODE_LENGTHS}
    draw(rates, attention, HERE / "yoso_estimator.svg")
    print(tables(rates, attention))
