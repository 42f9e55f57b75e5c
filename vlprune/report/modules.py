"""Module pruning errors as plots: heads and groups of neurons by layer, layers as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figure import GREY, bare, panels, svg

__all__ = ["error_plots"]

_BAR = "#3573b1"
_TITLES = {"heads": "heads", "neurons": "groups of neurons", "layers": "layers"}

# Width of the bars in cells; a cell and the room around them in inches.
_BARS, _CELL, _ROOM = 5, (0.36, 0.24), (0.8, 0.75)

# Errors of one kind in one tower: by layer, None for all layers at once, then by number.
_Cells = dict[int | None, dict[int, float]]


def error_plots(
    errors: Sequence[Mapping[str, Any]], keep_lists: Mapping[str, Any] | None = None
) -> list[str]:
    """Plot every error in its place, a row a layer and one for what is of all layers, a plot a tower.

    Args:
        errors: `ModuleError` as dicts.
        keep_lists: what stayed, as in a `CompactReport`, with layers as text as JSON has them. Heads and
            layers that went are crossed out.

    """
    plots = []
    for tower in dict.fromkeys(error["tower"] for error in errors):
        kinds = {kind: cells for kind in _TITLES if (cells := _cells(errors, tower, kind))}
        plots.append(_tower_plot(tower, kinds, (keep_lists or {}).get(tower, {})))
    return plots


def _tower_plot(tower: str, kinds: Mapping[str, _Cells], kept: Mapping[str, Any]) -> str:
    found = {layer for cells in kinds.values() for layer in cells}
    layers = sorted(found, key=lambda layer: (layer is None, layer or 0))
    places = {layer: place for place, layer in enumerate(layers)}
    names = ["all" if layer is None else str(layer) for layer in layers]
    widths = [_BARS if kind == "layers" else _columns(cells) for kind, cells in kinds.items()]
    made, axes = panels(
        max(8.0, _CELL[0] * sum(widths) + _ROOM[0]),
        _CELL[1] * len(layers) + _ROOM[1],
        len(kinds),
        width_ratios=widths,
    )
    for i, (kind, cells) in enumerate(kinds.items()):
        one = axes[i]
        if kind == "layers":
            stay = kept.get("layers", layers)
            _bars(one, [(places[n], error, n in stay) for n, own in cells.items() for error in own.values()])
        else:
            # neurons changed places before they were judged, so their numbers say nothing about groups
            stayed = kept.get("heads", {}) if kind == "heads" else {}
            _heat(one, cells, places, {n: stayed.get(str(n), stayed.get(n)) for n in cells})
        one.set_title(_TITLES[kind], fontsize=9, loc="left")
        one.set_yticks(range(len(layers)), names if i == 0 else [], fontsize=8)
        one.set_ylim(len(layers) - 0.5, -0.5)
    axes[0].set_ylabel("image tower, layer" if tower == "visual" else f"{tower} tower, layer", fontsize=8)
    return svg(made)


def _heat(
    axes: Any,
    cells: _Cells,
    places: Mapping[int | None, int],
    kept: Mapping[int | None, Sequence[int] | None],
) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    top = max(max(row.values()) for row in cells.values())
    shades = colormaps["Blues"]
    for layer, row in cells.items():
        y = places[layer]
        for x, error in row.items():
            share = min(1.0, max(0.0, error / top)) if top > 0 else 0.0
            shade = shades(0.05 + 0.8 * share)
            axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=shade))
            stayed = kept[layer]
            if stayed is not None and x not in stayed:
                for ends in ((-0.46, 0.46), (0.46, -0.46)):
                    axes.plot([x - 0.48, x + 0.48], [y + ends[0], y + ends[1]], color=GREY, linewidth=0.8)
            axes.text(
                x,
                y,
                _text(error),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share > 0.6 else "black",
                bbox={"facecolor": shade, "edgecolor": "none", "pad": 0.8},
            )
    count = _columns(cells)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_xticks(range(count), [str(x) for x in range(count)], fontsize=7)
    bare(axes)


def _bars(axes: Any, bars: Sequence[tuple[int, float, bool]]) -> None:
    for y, error, stays in bars:
        axes.barh(
            y, error, 0.7, color=_BAR if stays else "white", edgecolor=_BAR, hatch="" if stays else "////"
        )
        axes.annotate(
            _text(error) + ("" if stays else " out"),
            (max(error, 0.0), y),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.margins(x=0.25)
    axes.tick_params(labelsize=7)


def _cells(errors: Sequence[Mapping[str, Any]], tower: str, kind: str) -> _Cells:
    found: _Cells = {}
    for error in errors:
        if (error["tower"], error["kind"]) == (tower, kind):
            found.setdefault(error["layer"], {})[error["index"]] = error["error"]
    return found


def _columns(cells: _Cells) -> int:
    return 1 + max(index for row in cells.values() for index in row)


def _text(error: float) -> str:
    """Two decimals, without a zero's sign: as many as fit into a cell and as the metric is worth."""
    return f"{error:.2f}".replace("-0.00", "0.00")
