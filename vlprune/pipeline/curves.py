"""The log of a training, thinned to what a plot can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["curves"]

_POINTS = 400


def curves(rows: Sequence[Mapping[str, Any]], points: int = _POINTS) -> dict[str, list[float]]:
    """Column -> values over the steps: means of neighbouring steps where there are more than `points`.

    Args:
        rows: lines of ``log.jsonl``, one a step: "step", "loss", its terms, "lr" and "grad_norm".
        points: how many to leave at most.

    Returns:
        "step" (of a mean, the middle of its steps), "loss", the terms, "lr".

    """
    if not rows:
        return {}
    names = [name for name in rows[0] if name != "grad_norm"]
    count = min(points, len(rows))
    edges = [i * len(rows) // count for i in range(count + 1)]
    return {
        name: [sum(row[name] for row in rows[low:high]) / (high - low) for low, high in pairwise(edges)]
        for name in names
    }
