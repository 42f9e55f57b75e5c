"""The plots of a run, as SVG text to put into a page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from .table import metric_columns, rows

__all__ = ["accuracy_against_speed", "layer_sparsities", "layer_times"]

_DENSE, _SPARSE, _TEXT = "#8a8f98", "#0b7a75", "#b4692b"


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


def layer_sparsities(variant: Mapping[str, Any]) -> str | None:
    """Fraction of zeros of each layer in model order, None where an allocation made no difference."""
    layers = variant["prune"]["layers"]
    shares = [layer["zeros"] / (layer["shape"][0] * layer["shape"][1]) for layer in layers]
    if len({layer["target"] for layer in layers}) < 2:
        return None
    figure, axes = _figure(6.4, 2.8)
    towers = ["image" if layer["tower"] == "visual" else layer["tower"] for layer in layers]
    for tower, color in (("image", _SPARSE), ("text", _TEXT)):
        places = [i for i, own in enumerate(towers) if own == tower]
        axes.bar(places, [100 * shares[i] for i in places], 0.8, color=color, label=f"{tower} tower")
    blocks = [f"{tower} {layer['block']}" for tower, layer in zip(towers, layers, strict=True)]
    first = [i for i, block in enumerate(blocks) if i == 0 or blocks[i - 1] != block]
    axes.set_xticks(first, [blocks[i] for i in first], fontsize=7, rotation=60, ha="right")
    axes.axhline(100 * variant["prune"]["sparsity"], color=_DENSE, linewidth=1, linestyle=":")
    axes.set_ylabel("zeros, %")
    axes.margins(x=0.01)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _svg(figure)


def _short(layer: Mapping[str, Any]) -> str:
    tower, number = _place(layer["name"])
    last = ".".join(layer["name"].split(".")[-2:])
    return f"{tower} {number} {last}" + ("" if layer["packed"] else " (stays dense)")


def _place(name: str) -> tuple[str, str]:
    """Tower and number of the block that a layer belongs to."""
    tower = "image" if name.startswith(("visual.", "vision_model.")) else "text"
    return tower, next((part for part in name.split(".") if part.isdigit()), "")


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
