"""Plots of a benchmark: operators under the machine's ceilings, and where 2:4 pays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from ..bench import OURS, Crossover
from ..bench.onednn import ONEDNN
from ..bench.ops_cases import DENSE, SDPA
from .figure import GREY, LINES, figure, svg

__all__ = ["crossover_plot", "roofline"]

# Inches: as wide as a phone's screen, where text then keeps its size.
_WIDTH, _HEIGHT = 4.3, 3.5

_ROOF = "#1c2127"
# Behind words that stand on lines or points.
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
_MARKS = {"linear24": ("#0072B2", "o"), "head_attention": ("#009E73", "^")}


def roofline(record: Mapping[str, Any], dtype: str) -> str | None:
    """Operations a second over operations a byte, with what the machine was measured to reach.

    Operations are those of the dense form, so a 2:4 product may stand above the dense ceiling, which is the
    best of the dense forms, up to twice of it. None if nothing of this dtype has a place.
    """
    found = record["ceilings"]
    rows = [
        row for row in record["rows"] if row["dtype"] == dtype and row["op"] in _MARKS and "error" not in row
    ]
    if not found or dtype not in found["rate"] or not rows:
        return None
    made, axes = figure(_WIDTH, _HEIGHT)
    dense = [_point(row, name) for row in rows for name in row["times"] if name in (DENSE, ONEDNN, SDPA)]
    axes.scatter(*zip(*dense, strict=True), s=16, color=GREY, marker="D", label="dense", zorder=3)
    for op, (color, marker) in _MARKS.items():
        if points := [_point(row, OURS) for row in rows if row["op"] == op]:
            axes.scatter(*zip(*points, strict=True), s=22, color=color, marker=marker, label=op, zorder=4)
    drawn = [x for x, _ in dense] + [_point(row, OURS)[0] for row in rows]
    _ceilings(axes, found, dtype, drawn)
    axes.set_xscale("log")
    axes.set_yscale("log")
    # whole decades, so that each axis has a number at either end
    low, high = (math.log10(end) for end in axes.get_ylim())
    axes.set_ylim(10.0 ** math.floor(low), 10.0 ** math.ceil(high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter("")
    axes.set_xlabel("operations a byte that has to move")
    axes.set_ylabel("GFLOP/s, of the dense form")
    return _finished(made, axes)


def _point(row: Mapping[str, Any], name: str) -> tuple[float, float]:
    return row["operations"] / row["moved"][name], row["operations"] / row["times"][name]["median"] / 1e9


def _ceilings(axes: Any, found: Mapping[str, Any], dtype: str, across: list[float]) -> None:
    rate, bandwidth = found["rate"][dtype], found["bandwidth"]
    # to the right of all points there is room for the names of the lines above them
    low, high = min(across) / 3, max(across) * 20
    slopes = [(bandwidth["memory"], "-", "memory")]
    if bandwidth["cache"] > 1.2 * bandwidth["memory"]:
        slopes.append((bandwidth["cache"], ":", "caches"))
    for speed, dashes, name in slopes:
        end = min(high, 2 * rate / speed)
        if end <= low:
            continue
        axes.plot(
            [low, end], [low * speed / 1e9, end * speed / 1e9], color=_ROOF, linewidth=1, linestyle=dashes
        )
        axes.annotate(
            f"{name} {speed / 1e9:.0f} GB/s",
            (low, low * speed / 1e9),
            xytext=(3, 1),
            textcoords="offset points",
            fontsize=7,
            va="bottom" if dashes == ":" else "top",
            bbox=_PAPER,
        )
    for times, dashes, name in ((1, "-", "dense product"), (2, "--", "twice: all of 2:4")):
        start = times * rate / max(bandwidth.values())
        axes.plot(
            [max(low, start), high], [times * rate / 1e9] * 2, color=_ROOF, linewidth=1, linestyle=dashes
        )
        axes.annotate(
            f"{name} {times * rate / 1e9:.0f}",
            (high, times * rate / 1e9),
            xytext=(-2, 2),
            textcoords="offset points",
            fontsize=7,
            ha="right",
            bbox=_PAPER,
        )


def crossover_plot(one: Crossover) -> str | None:
    """A line a shape that was measured at several numbers of tokens: speed over dense, its interval as bars.

    Shapes that are no MLP's first layer are left out. None where no line has three points.
    """
    widths = [shape for shape in one.shapes if shape[1] == 4 * shape[0]]
    lines = {
        shape: [(tokens, one.cells[tokens, shape]) for tokens in one.tokens if (tokens, shape) in one.cells]
        for shape in widths
    }
    lines = {shape: points for shape, points in lines.items() if len(points) > 2}
    if not lines:
        return None
    made, axes = figure(_WIDTH, _HEIGHT)
    axes.axhspan(0, 1, color="#D55E00", alpha=0.08, linewidth=0)
    axes.axhline(1.0, color=GREY, linewidth=1)
    styles = itertools.cycle((*LINES, ("#CC79A7", "v", "-")))
    for (shape, points), (color, marker, dashes) in zip(lines.items(), styles, strict=False):
        tokens, cells = zip(*points, strict=True)
        speeds = [cell.speedup for cell in cells]
        below = [cell.speedup - (cell.speedup if cell.low is None else cell.low) for cell in cells]
        above = [(cell.speedup if cell.high is None else cell.high) - cell.speedup for cell in cells]
        axes.errorbar(
            tokens,
            speeds,
            yerr=[below, above],
            color=color,
            marker=marker,
            linestyle=dashes,
            markersize=4,
            linewidth=1.2,
            elinewidth=0.7,
            label=f"{shape[0]} -> {shape[1]}",
        )
    every = sorted({tokens for points in lines.values() for tokens, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(_apart(every), [str(tokens) for tokens in _apart(every)], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.annotate("slower than dense", (every[0], 0.06), fontsize=8, color="#a04000")
    axes.set_xlabel("tokens")
    axes.set_ylabel("times as fast as dense")
    return _finished(made, axes)


def _apart(numbers: list[int]) -> list[int]:
    """Those that do not stand on top of each other on a logarithmic axis, from the largest down."""
    kept: list[int] = []
    for number in reversed(numbers):
        if not kept or number * 1.6 <= kept[-1]:
            kept.append(number)
    return kept[::-1]


def _finished(made: Any, axes: Any) -> str:
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return svg(made)
