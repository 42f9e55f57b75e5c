"""Trainings of a record: what they did in a few lines, and how loss and learning rate went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figure import LINES, panels, svg

__all__ = ["training_lines", "training_plot", "trainings_of"]

_TERMS = {
    "task": "task",
    "kl": "divergence from the teacher",
    "itc": "contrastive",
    "sim": "similarities",
    "feat": "embeddings",
    "hidden": "hidden states",
}
_INK, _RATE = "#1c2127", "#b4692b"

# A loss that falls by more is drawn on a logarithmic scale.
_FALL = 20.0


def trainings_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every training of a run, in the order they were done in."""
    first = [part for start in record.get("structured", {}).values() for part in start.get("trainings", [])]
    return [*first, *(v["recovery"] for v in record["variants"] if "recovery" in v)]


def training_lines(part: Mapping[str, Any]) -> list[str]:
    """What was trained, by what, and what became of the zeros."""
    config, curves, zeros = part["config"], part["curves"], part["zeros"]
    adapters = f" of rank {config['rank']}" if "rank" in config else ""
    lines = [
        f"{config['method']}{adapters}, taught by {part['taught_by']}: {part['steps']:,} steps of "
        f"{config['batch_size']} images, {part['trained']:,} numbers trained",
        f"loss {curves['loss'][0]:.4g} -> {curves['loss'][-1]:.4g}, learning rate at most "
        f"{max(curves['lr']):.2g}, {part['seconds']:.0f} s"
        + (f" since it was resumed at step {part['resumed']:,}" if part["resumed"] else ""),
    ]
    if zeros["before"] or zeros["after"]:
        what = "the same ones" if zeros["kept"] and zeros["before"] == zeros["after"] else "not the same ones"
        lines.append(f"zeros: {zeros['before']:,} before, {zeros['after']:,} after: {what}")
    return lines


def training_plot(part: Mapping[str, Any]) -> str:
    """Loss and its weighted terms over the steps, and beside them the learning rate."""
    curves = part["curves"]
    steps = [step + 1 for step in curves["step"]]
    made, (losses, rates) = panels(8.6, 3.0, 2, width_ratios=[2.2, 1])
    marker = "o" if len(steps) == 1 else None
    terms = [name for name in curves if name not in ("step", "loss", "lr")]
    if len(terms) > 1:
        for name, (color, _, dashes) in zip(terms, LINES, strict=False):
            label = _TERMS.get(name, name)
            losses.plot(
                steps, curves[name], color=color, linestyle=dashes, linewidth=1.2, marker=marker, label=label
            )
    losses.plot(steps, curves["loss"], color=_INK, linewidth=1.6, marker=marker, label="loss")
    shown = [value for name in ("loss", *terms) for value in curves[name]]
    if min(shown) > 0 and max(shown) > _FALL * min(shown):
        losses.set_yscale("log")
    losses.set_xlabel("step")
    losses.set_ylabel("loss")
    rates.plot(steps, curves["lr"], color=_RATE, linewidth=1.6, marker=marker)
    rates.set_xlabel("step")
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0.0)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    handles, labels = losses.get_legend_handles_labels()
    if len(labels) > 1:
        made.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    return svg(made)
