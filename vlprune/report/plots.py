"""The plots of a run, as SVG text to put into a page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from .table import metric_columns, rows

__all__ = ["accuracy_against_speed", "layer_times"]

_DENSE, _SPARSE = "#8a8f98", "#0b7a75"


def accuracy_against_speed(record: Mapping[str, Any]) -> str:
    """Every model as a point: image tower speed-up across, accuracy up."""
    columns = metric_columns(record)
    key = "mean_recall" if "mean_recall" in columns else "top1"
    figure, axes = _figure(6.4, 4.0)
    for row in rows(record):
        color = _DENSE if row.name == "dense" else _SPARSE
        axes.scatter(row.image_speedup, row.metrics[key], color=color, s=36, zorder=3)
        axes.annotate(
            row.name,
            (row.image_speedup, row.metrics[key]),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("image tower speed, times dense")
    axes.set_ylabel(f"{columns[key]}, %")
    axes.axvline(1.0, color=_DENSE, linewidth=0.8, linestyle=":")
    axes.margins(0.18, 0.12)
    return _svg(figure)


def layer_times(variant: Mapping[str, Any]) -> str | None:
    """Dense and sparse time of each measured 2:4 layer, None if the variant has none."""
    layers = [layer for layer in variant.get("sparsify", {}).get("layers", []) if layer["dense"]]
    if not layers:
        return None
    figure, axes = _figure(6.4, 0.6 + 0.24 * len(layers))
    places = range(len(layers))
    for offset, key, color, label in ((-0.2, "dense", _DENSE, "dense"), (0.2, "sparse", _SPARSE, "2:4")):
        times = [1e3 * layer[key] for layer in layers]
        axes.barh([place + offset for place in places], times, 0.38, color=color, label=label)
    axes.set_yticks(list(places), [_short(layer) for layer in layers], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a call")
    axes.legend(fontsize=8, frameon=False)
    axes.margins(y=0.01)
    return _svg(figure)


def _short(layer: Mapping[str, Any]) -> str:
    tower = "image" if layer["name"].startswith("visual.") else "text"
    number = next((part for part in layer["name"].split(".") if part.isdigit()), "")
    last = ".".join(layer["name"].split(".")[-2:])
    return f"{tower} {number} {last}" + ("" if layer["packed"] else " (stays dense)")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # The object interface needs no display and leaves the user's pyplot state alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vlprune"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
