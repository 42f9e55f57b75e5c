"""Accuracy against speed of everything that was measured of a model: a benchmark's file as table and page."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .figure import figure, svg
from .page import write_page

__all__ = [
    "AS_DENSE",
    "FRONTIER_FORMAT",
    "FUSED",
    "Point",
    "front",
    "frontier_plot",
    "frontier_table",
    "points_of",
    "write_frontier",
]

FRONTIER_FORMAT = "vlprune-frontier"

# Zeros that no kernel makes use of, and a model without any: as fast as dense by definition.
AS_DENSE = ("dense", "unstructured")
# A dense tower with what `vlprune.nn.blocks` leaves out.
FUSED = "fused blocks"

# Colour (Okabe and Ito's) and marker of each kind of model.
_LOOKS = {
    "dense": ("#1c2127", "D"),
    "zeros filled": ("#CC79A7", "D"),
    "zeros anywhere": ("#8a8f98", "o"),
    "2:4": ("#0072B2", "o"),
    "structure": ("#D55E00", "s"),
    "structure and 2:4": ("#009E73", "^"),
}
_MEASURES = {"pairs": "mean recall", "labelled": "top-1"}
_SPEEDS = (0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
# In points of a percentage; below one the scale is linear.
_CHANGES = (10, 3, 1, 0, -1, -3, -10, -30, -90)


@dataclass(frozen=True)
class Point:
    """One way to prune a model: speed-up of the image tower, mean score, and what that is above dense's."""

    name: str
    kind: str
    recovered: str | None
    speedup: float
    score: float
    change: float
    draws: int


def points_of(record: Mapping[str, Any]) -> list[Point]:
    """All points whose speed is known, the fastest first, and the dense model among them."""
    found = [Point("dense", "dense", None, 1.0, record["dense"], 0.0, 1)]
    for row in record["points"]:
        shape = row["shape"]
        if shape not in AS_DENSE and shape not in record["speeds"]:
            continue
        speedup = 1.0 if shape in AS_DENSE else record["speeds"][shape]["speedup"]
        score = statistics.mean(row["scores"])
        own = Point(row["name"], _kind(shape), row["recovered"], speedup, score, score - row["dense"],
                    len(row["scores"]))  # fmt: skip
        found.append(own)
    return sorted(found, key=lambda point: -point.speedup)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that none is at least as fast and as good as, the fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.change)):
        if not best or point.change > best[-1].change:
            best.append(point)
    return best


def frontier_table(record: Mapping[str, Any]) -> str:
    """The Pareto front as text."""
    conditions = [line for text in _conditions(record) for line in textwrap.wrap(text, 80)]
    lines = [*conditions, "", f"{'speed-up':>8}{'score':>8}{'change':>8}"]
    lines += [
        f"{p.speedup:7.2f}x{p.score:8.2f}{p.change:+8.2f}  {_label(p)}" for p in front(points_of(record))
    ]
    return "\n".join(lines)


def write_frontier(record: Mapping[str, Any], path: Path) -> None:
    """Write the page: the picture, the front, and all points; it needs nothing else."""
    points = points_of(record)
    best = front(points)
    write_page(
        path,
        "frontier.html",
        record=record,
        conditions=_conditions(record),
        measure=_measure(record),
        plot=frontier_plot(record),
        best=[(_label(p), p) for p in best],
        points=[(_label(p), p) for p in points],
        slow=sum(point.kind == "zeros anywhere" for point in points),
    )


def frontier_plot(record: Mapping[str, Any]) -> str:
    """Speed-up across, change of the score up (log scales), hollow before and filled after training."""
    points = points_of(record)
    made, axes = figure(8.6, 6.0)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1, linscale=0.7)
    best = front(points)
    steps = sorted(best, key=lambda point: point.speedup)
    axes.plot(
        [p.speedup for p in steps], [p.change for p in steps],
        color="#1c2127", linewidth=1, drawstyle="steps-pre", zorder=1, label="Pareto front",
    )  # fmt: skip
    for kind, (color, marker) in _LOOKS.items():
        for trained in (False, True):
            own = [p for p in points if p.kind == kind and bool(p.recovered) == trained]
            if own:
                axes.scatter(
                    [p.speedup for p in own],
                    [p.change for p in own],
                    34,
                    marker=marker,
                    alpha=0.85,
                    facecolors=color if trained or kind == "dense" else "none",
                    edgecolors=color,
                    linewidths=1.1,
                    label=kind + (", trained" if trained else ""),
                    zorder=2,
                )
    left = 0.93 * min(1.0, *(p.speedup for p in points))
    right = 1.1 * max(4.0, *(p.speedup for p in points))
    axes.set_xlim(left, right)
    places = [x for x in _SPEEDS if left <= x <= right]
    axes.set_xticks(places, [f"{x:g}x" for x in places])
    axes.minorticks_off()
    low = 1.3 * min(p.change for p in points) - 0.3
    high = 1.3 * max(p.change for p in points) + 0.6
    axes.set_ylim(low, high)
    ticks = [y for y in _CHANGES if low <= y <= high]
    axes.set_yticks(ticks, [f"{y:+d}" if y else f"dense ({record['dense']:.1f})" for y in ticks])
    axes.set_xlabel("speed-up of the image tower over dense")
    axes.set_ylabel(f"{_measure(record)} against dense, points")
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    _write_labels(made, axes, best, points)
    return svg(made)


def _write_labels(made: Any, axes: Any, best: Sequence[Point], points: Sequence[Point]) -> None:
    """Name the points of the front, each where its name covers least of other names and points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(made)
    canvas.draw()
    renderer, inside = canvas.get_renderer(), axes.get_window_extent()
    marks = [axes.transData.transform((p.speedup, p.change)) for p in points]
    taken: list[Any] = []
    for point in best:
        tries = []
        for turn, (x, y, across, up) in enumerate(_PLACES):
            text = axes.annotate(
                _label(point), (point.speedup, point.change), (x, y), textcoords="offset points",
                fontsize=7.5, ha=across, va=up, zorder=3,
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            covered = sum(10 * box.overlaps(other) for other in taken)
            covered += sum(bool(box.contains(*mark)) for mark in marks)
            outside = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
            tries.append((covered + 20 * outside, turn, text, box))
        chosen = min(tries, key=lambda found: found[:2])
        for found in tries:
            if found is not chosen:
                found[2].remove()
        taken.append(chosen[3])


# Offsets in points and alignment of a name, the best first.
_PLACES = (
    (6, 5, "left", "bottom"),
    (-6, -5, "right", "top"),
    (6, -5, "left", "top"),
    (-6, 5, "right", "bottom"),
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 16, "center", "bottom"),
    (0, -16, "center", "top"),
    (14, 22, "left", "bottom"),
    (14, -22, "left", "top"),
    (-14, -22, "right", "top"),
    (-14, 22, "right", "bottom"),
)


def _kind(shape: str) -> str:
    if shape == FUSED:
        return "dense"
    if shape in AS_DENSE:
        return "zeros filled" if shape == "dense" else "zeros anywhere"
    if shape == "2:4":
        return shape
    return "structure and 2:4" if shape.endswith(" 2:4") else "structure"


def _label(point: Point) -> str:
    return point.name + (f", {point.recovered}" if point.recovered else "")


def _measure(record: Mapping[str, Any]) -> str:
    return _MEASURES[record["kind"]]


def _conditions(record: Mapping[str, Any]) -> list[str]:
    machine = record["machine"]
    return [
        f"{record['model']} on {record['data']}: {_measure(record)} {record['dense']:.2f} % dense; every "
        "score is set against that of the dense model on the same images",
        f"speed of the image tower, {record['batch']} images, float32, {machine['gpu'] or machine['cpu']}, "
        f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}, torch {machine['torch']}",
    ]
