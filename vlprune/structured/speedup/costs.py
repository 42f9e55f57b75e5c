"""What layers cost by how much of them is left, from measured points: plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Curve", "LayerCost", "TowerCost", "fit_curve", "rising"]


@dataclass(frozen=True)
class Curve:
    """Seconds that a layer gains or loses by a count, linear between measured points.

    Args:
        points: ``(count, seconds more than the whole layer)`` by rising count, the last one of the whole
            layer: mostly negative, and there 0 unless 2:4 makes it faster.
        packed: the counts at which that is the time of 2:4 weights.

    """

    points: tuple[tuple[int, float], ...]
    packed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the points."""
        counts = [count for count, _ in self.points]
        if not counts or counts != sorted(set(counts)) or not all(math.isfinite(s) for _, s in self.points):
            raise ValueError(f"points: expected finite seconds by rising count, got {self.points!r:.120}")

    @property
    def total(self) -> int:
        """The count of the whole layer."""
        return self.points[-1][0]

    @property
    def least(self) -> int:
        """The smallest count that can be left."""
        return self.points[0][0]

    def at(self, count: int) -> float:
        """Seconds by which a layer with this count differs from the whole one."""
        if not self.least <= count <= self.total:
            raise ValueError(f"count: expected {self.least} to {self.total}, got {count}")
        for (low, before), (high, after) in pairwise(self.points):
            if low <= count <= high:
                return before + (after - before) * (count - low) / (high - low)
        return self.points[0][1]

    def packed_at(self, count: int) -> bool:
        """Whether 2:4 is the faster way to run this count, as it is at the nearest measured one."""
        return min(self.points, key=lambda point: abs(point[0] - count))[0] in self.packed


@dataclass(frozen=True)
class LayerCost:
    """Seconds of one layer: whole, and what fewer heads, or neurons, change of it; None if none can go."""

    whole: float
    heads: Curve | None = None
    neurons: Curve | None = None

    def seconds(self, heads: int | None = None, neurons: int | None = None) -> float:
        """Seconds with so many heads and neurons left, None for all: what both save adds up."""
        change = 0.0
        for curve, count in ((self.heads, heads), (self.neurons, neurons)):
            if curve is not None:
                change += curve.at(curve.total if count is None else count)
        return max(0.0, self.whole + change)


@dataclass(frozen=True)
class TowerCost:
    """Seconds of a tower: of what is no layer, and of every layer; None for layers that do not run in it.

    `agreement` is what the layers took when measured alone, over their share of the tower's time, to which
    `layers` are scaled.
    """

    tower: str
    fixed: float
    layers: tuple[LayerCost | None, ...]
    agreement: float = 1.0

    @property
    def whole(self) -> float:
        """Seconds of the tower as it is, dense."""
        return self.fixed + sum(layer.whole for layer in self.layers if layer)


def fit_curve(
    whole: float, total: int, dense: Mapping[int, float], packed: Mapping[int, float] | None = None
) -> Curve:
    """Fit a curve to measured times, each a multiple of the whole layer's.

    Fewer heads or neurons never take longer than more, but for the clock's noise: that is fitted away
    (`rising`) among the points that were measured. The whole layer stays what it is, which the cut ones
    may exceed because theirs is another attention. Where 2:4 was measured too the faster one counts.

    Args:
        whole: seconds of the whole layer.
        total: its count of heads or neurons.
        dense: time over the whole layer's by count, for counts below `total`.
        packed: the same with 2:4 weights, `total` included.

    """
    found = dict(zip(sorted(dense), rising([dense[count] for count in sorted(dense)]), strict=True))
    found[total] = 1.0
    faster = []
    if packed:
        for count, time in zip(sorted(packed), rising([packed[c] for c in sorted(packed)]), strict=True):
            if time < found.get(count, math.inf):
                found[count] = time
                faster.append(count)
    return Curve(tuple((n, whole * (found[n] - 1.0)) for n in sorted(found)), tuple(faster))


def rising(values: Sequence[float]) -> list[float]:
    """The sequence that never falls and is nearest by squares: neighbours in the wrong order share a mean."""
    runs: list[tuple[float, int]] = []
    for value in values:
        total, size = value, 1
        while runs and runs[-1][0] * size > total * runs[-1][1]:
            before, count = runs.pop()
            total, size = total + before, size + count
        runs.append((total, size))
    return [total / size for total, size in runs for _ in range(size)]
