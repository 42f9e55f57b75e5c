"""OWL: blocks with more outliers keep more of their weights."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, overload

from ..patterns import Pattern
from .base import Allocation, LayerInfo, as_list, check_size, is_finite

__all__ = ["OWL", "owl_sparsities"]

K = TypeVar("K", bound=Hashable)


@overload
def owl_sparsities(
    outlier_ratios: Mapping[K, float],
    sparsity: float,
    lam: float = 0.08,
    *,
    sizes: Mapping[K, int] | None = None,
) -> dict[K, float]: ...


@overload
def owl_sparsities(
    outlier_ratios: Sequence[float],
    sparsity: float,
    lam: float = 0.08,
    *,
    sizes: Sequence[int] | None = None,
) -> list[float]: ...


def owl_sparsities(
    outlier_ratios: Any, sparsity: float, lam: float = 0.08, *, sizes: Any = None
) -> dict[Any, float] | list[float]:
    """Sparsity of each block from its share of outliers: Yin et al. 2023, arXiv 2310.05175.

    The ratios D are scaled to r = 2 lam (D - min) / (max - min), and ``s = sparsity - (r - mean(r))``:
    sparsities lie within 2 lam of each other, and their mean is the one asked for. Where blocks differ
    in size the mean counts every weight once, so that the budget holds over all weights together. What
    would lie outside of [0, 1] is clipped, and the others shift by as much as that takes for the budget
    to hold (the published code sets a sparsity of at most 0 to 0.01 and leaves the budget). Equal ratios
    give every block the same.

    Args:
        outlier_ratios: percentage (or any other measure) of outliers of each block; a list, or a dict
            by name.
        sparsity: fraction of zeros over all blocks together.
        lam: half of the widest difference between two blocks' sparsities, at least 0.
        sizes: weights in each block, in the same form; None if all blocks have as many.

    Returns:
        The sparsity of each block, in the form of `outlier_ratios`.

    Raises:
        ValueError: a ratio is not finite (the block is named), `sizes` does not match or holds a size
            that is no whole number of at least 1, `sparsity` is no fraction, `lam` is negative.

    """
    _check_number("lam", lam, 0.0)
    wanted = Pattern().resolve_sparsity(sparsity)
    if isinstance(outlier_ratios, Mapping):
        names = list(outlier_ratios)
        if sizes is not None and (not isinstance(sizes, Mapping) or sizes.keys() != outlier_ratios.keys()):
            raise ValueError("owl_sparsities: expected sizes of the very blocks in outlier_ratios")
        counts = [1] * len(names) if sizes is None else [sizes[name] for name in names]
        shares = _shares(names, [outlier_ratios[name] for name in names], counts, wanted, lam)
        return dict(zip(names, shares, strict=True))
    ratios = as_list("outlier_ratios", outlier_ratios)
    counts = [1] * len(ratios) if sizes is None else as_list("sizes", sizes)
    if len(counts) != len(ratios):
        raise ValueError(f"owl_sparsities: {len(ratios)} outlier ratios but {len(counts)} sizes")
    return _shares(list(range(len(ratios))), ratios, counts, wanted, lam)


def _shares(
    names: list[Any], ratios: list[float], sizes: list[int], sparsity: float, lam: float
) -> list[float]:
    for name, ratio, size in zip(names, ratios, sizes, strict=True):
        if not is_finite(ratio):
            raise ValueError(f"outlier ratio of {name}: expected a finite number, got {ratio!r}")
        check_size(name, size)
    if not ratios or sparsity in (0, 1):  # at either end nothing is left to share, not even to rounding
        return [sparsity] * len(ratios)
    low, spread = min(ratios), max(ratios) - min(ratios)
    scaled = [2 * lam * (ratio - low) / spread if spread else 0.0 for ratio in ratios]
    top = _top(scaled, sizes, sparsity)
    return [min(max(top - r, 0.0), 1.0) for r in scaled]


def _top(scaled: list[float], sizes: list[int], sparsity: float) -> float:
    """The t at which the sparsities ``clip(t - r, 0, 1)`` remove the budget of weights."""
    total = sum(sizes)
    top = sparsity + sum(n * r for n, r in zip(sizes, scaled, strict=True)) / total
    if all(0 <= top - r <= 1 for r in scaled):
        return top
    # Removed weights grow with t along a line that bends only where a block starts (t = r) or is
    # gone (t = r + 1): find the piece that holds the budget, and the place on it.
    before, removed = min(scaled), 0.0
    for bend in sorted({*scaled, *(r + 1 for r in scaled)}):
        reached = sum(n * min(max(bend - r, 0.0), 1.0) for n, r in zip(sizes, scaled, strict=True))
        if reached >= sparsity * total and reached > removed:
            return before + (bend - before) * (sparsity * total - removed) / (reached - removed)
        before, removed = bend, reached
    return before


def _check_number(name: str, value: float, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise ValueError(f"{name}: expected a number of at least {least:g}, got {value!r}")


@dataclass(frozen=True)
class OWL(Allocation):
    """Outlier-weighed layer-wise sparsity: Yin et al. 2023, arXiv 2310.05175.

    An outlier is a Wanda score greater than `m` times the mean score of its block; a block's D is the
    percentage of its scores that are. All layers of a block get the block's sparsity, see
    `owl_sparsities`. The blocks of both towers share one budget.

    Args:
        lam: half of the widest difference between two blocks' sparsities.
        m: how many times the mean makes an outlier.

    """

    lam: float = 0.08
    m: float = 5
    kind: ClassVar[str] = "owl"
    exact_budget: ClassVar[bool] = True
    importance: ClassVar[str | None] = "outliers"

    def __post_init__(self) -> None:
        """Check both numbers, so that a bad one fails before any work is done."""
        _check_number("lam", self.lam, 0.0)
        _check_number("m", self.m, 0.0)

    def sparsities(
        self,
        layers: Mapping[str, LayerInfo],
        pattern: Pattern,
        sparsity: float | None,
        importance: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """See `Allocation.sparsities`; `importance` holds for every layer the D of its block."""
        self._refuse_groups(pattern)
        wanted = pattern.resolve_sparsity(sparsity)
        importance = importance or {}
        ratios: dict[str, float] = {}
        sizes: dict[str, int] = {}
        for name, layer in layers.items():
            if name not in importance:
                raise ValueError(f"{name}: OWL needs the outlier ratio of its block, none was given")
            ratios[layer.block] = importance[name]
            sizes[layer.block] = sizes.get(layer.block, 0) + layer.size
        shares = owl_sparsities(ratios, wanted, self.lam, sizes=sizes)
        return {name: shares[layer.block] for name, layer in layers.items()}
