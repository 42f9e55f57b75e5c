"""Figures without a display, colours that everyone can tell apart, and SVG to put into a page."""

from __future__ import annotations

import io
from typing import Any

__all__ = ["GREY", "LINES", "bare", "figure", "panels", "svg"]

GREY = "#8a8f98"

# Colour, marker and dashes of each line (the colours are Okabe and Ito's).
LINES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#8a8f98", "D", ":"))


def figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of this many inches, and its axes."""
    made, (axes,) = panels(width, height, 1)
    return made, axes


def panels(width: float, height: float, columns: int, **options: Any) -> tuple[Any, list[Any]]:
    """A figure of this many inches with axes side by side; `options` are those of `Figure.subplots`."""
    # The object interface needs no display and leaves the user's pyplot state alone.
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    found = list(made.subplots(1, columns, squeeze=False, **options)[0])
    for axes in found:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return made, found


def bare(axes: Any) -> None:
    """Leave only what is drawn, and the labels."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def svg(made: Any) -> str:
    """The figure as SVG, the same text for the same figure."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vlprune"}):
        made.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
