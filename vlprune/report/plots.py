"""The plots of a run, as SVG text to put into a page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from .figure import GREY, figure, svg
from .table import metric_columns, rows

__all__ = ["accuracy_against_speed", "layer_sparsities", "layer_times"]

_SPARSE, _TEXT = "#0b7a75", "#b4692b"


def accuracy_against_speed(record: Mapping[str, Any]) -> str:
    """Every model as a point: image tower speed-up across, accuracy up."""
    columns = metric_columns(record)
    key = "mean_recall" if "mean_recall" in columns else "top1"
    made, axes = figure(6.4, 4.0)
    points = rows(record)
    middle = (min(row.image_speedup for row in points) + max(row.image_speedup for row in points)) / 2
    for row in points:
        color = GREY if row.name == "dense" else _SPARSE
        axes.scatter(row.image_speedup, row.metrics[key], color=color, s=36, zorder=3)
        # names point inwards, so that long ones stay in the picture
        left = row.image_speedup > middle
        axes.annotate(
            textwrap.fill(row.name, 26),
            (row.image_speedup, row.metrics[key]),
            xytext=(-6 if left else 6, 4),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=8,
        )
    axes.set_xlabel("image tower speed, times dense")
    axes.set_ylabel(f"{columns[key]}, %")
    axes.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.margins(0.18, 0.12)
    return svg(made)


def layer_times(variant: Mapping[str, Any]) -> str | None:
    """Dense and sparse time of each measured 2:4 layer, None if the variant has none."""
    layers = [layer for layer in variant.get("sparsify", {}).get("layers", []) if layer["dense"]]
    if not layers:
        return None
    made, axes = figure(6.4, 0.6 + 0.24 * len(layers))
    places = range(len(layers))
    for offset, key, color, label in ((-0.2, "dense", GREY, "dense"), (0.2, "sparse", _SPARSE, "2:4")):
        times = [1e3 * layer[key] for layer in layers]
        axes.barh([place + offset for place in places], times, 0.38, color=color, label=label)
    axes.set_yticks(list(places), [_short(layer) for layer in layers], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a call")
    axes.legend(fontsize=8, frameon=False)
    axes.margins(y=0.01)
    return svg(made)


def layer_sparsities(variant: Mapping[str, Any]) -> str | None:
    """Fraction of zeros of each layer in model order, None where an allocation made no difference."""
    layers = variant.get("prune", {}).get("layers", [])
    shares = [layer["zeros"] / (layer["shape"][0] * layer["shape"][1]) for layer in layers]
    if len({layer["target"] for layer in layers}) < 2:
        return None
    made, axes = figure(6.4, 2.8)
    towers = ["image" if layer["tower"] == "visual" else layer["tower"] for layer in layers]
    for tower, color in (("image", _SPARSE), ("text", _TEXT)):
        places = [i for i, own in enumerate(towers) if own == tower]
        axes.bar(places, [100 * shares[i] for i in places], 0.8, color=color, label=f"{tower} tower")
    blocks = [f"{tower} {layer['block']}" for tower, layer in zip(towers, layers, strict=True)]
    first = [i for i, block in enumerate(blocks) if i == 0 or blocks[i - 1] != block]
    axes.set_xticks(first, [blocks[i] for i in first], fontsize=7, rotation=60, ha="right")
    axes.axhline(100 * variant["prune"]["sparsity"], color=GREY, linewidth=1, linestyle=":")
    axes.set_ylabel("zeros, %")
    axes.margins(x=0.01)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return svg(made)


def _short(layer: Mapping[str, Any]) -> str:
    tower, number = _place(layer["name"])
    last = ".".join(layer["name"].split(".")[-2:])
    return f"{tower} {number} {last}" + ("" if layer["packed"] else " (stays dense)")


def _place(name: str) -> tuple[str, str]:
    """Tower and number of the block that a layer belongs to."""
    tower = "image" if name.startswith(("visual.", "vision_model.")) else "text"
    return tower, next((part for part in name.split(".") if part.isdigit()), "")
