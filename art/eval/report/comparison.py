"""Kinds of model, or values of another key, against each other, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from art.eval.report.style import INK, LINE_COLOURS, MUTED, new_figure, quiet_axes


def comparison_figure(
    runs: Sequence[Mapping[str, Any]], *, key: str = "kind", value: str = "top1", base: str = "backbone"
) -> Figure:
    """Each run a dot, in per cent; runs of one seed joined by a line, the mean of each kind a bar.

    Args:
        runs: dicts with ``key``, ``"seed"`` and ``value`` (a share, 0..1).
        key: what tells the kinds apart.
        value: what is compared.
        base: the kind that stands first; the others follow in the order of ``runs``.

    Raises:
        ValueError: there is no run, a run lacks one of its entries, or there are two of one kind and seed.
    """
    shares: dict[str, dict[Any, float]] = {}
    for number, run in enumerate(runs):
        missing = [name for name in (key, "seed", value) if name not in run]
        if missing:
            raise ValueError(f"runs[{number}] lacks {', '.join(missing)}; it has {', '.join(map(str, run))}")
        own = shares.setdefault(str(run[key]), {})
        if run["seed"] in own:
            raise ValueError(f"runs holds {key} {run[key]!r} with seed {run['seed']!r} twice, expected once")
        own[run["seed"]] = 100 * float(run[value])
    if not shares:
        raise ValueError("runs is empty, expected at least one run to draw")
    kinds = sorted(shares, key=lambda kind: kind != base)
    figure = new_figure(1.2 + 1.3 * len(kinds), 3.4)
    axes = figure.add_subplot()
    quiet_axes(axes)
    for first, second in zip(range(len(kinds)), range(1, len(kinds)), strict=False):
        for seed in shares[kinds[first]].keys() & shares[kinds[second]].keys():
            pair = [shares[kinds[first]][seed], shares[kinds[second]][seed]]
            axes.plot([first, second], pair, color=MUTED, linewidth=0.8, alpha=0.7, zorder=1)
    for x, kind in enumerate(kinds):
        values = np.array(list(shares[kind].values()))
        axes.scatter(np.full(len(values), x), values, s=22, color=LINE_COLOURS[x % len(LINE_COLOURS)], zorder=2)
        axes.hlines(values.mean(), x - 0.22, x + 0.22, color=INK, linewidth=2, zorder=3)
        axes.annotate(f"{values.mean():.1f}", (x + 0.25, values.mean()), va="center", fontsize=9, color=INK)
    axes.set_xticks(range(len(kinds)), [f"{kind}\n{len(shares[kind])} seeds" for kind in kinds])
    axes.set_xlim(-0.5, len(kinds) - 0.25)
    axes.set_xlabel(key)
    axes.set_ylabel(f"{value}, per cent")
    return figure
