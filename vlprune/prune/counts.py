"""Whole numbers of zeros: what rounding takes from one layer goes to the next, so that budgets are met."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["layer_zeros", "mask_of_zeros"]


def layer_zeros(sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, int]:
    """Zeros of each layer: within one weight of ``size * share``, and together the rounded sum of these."""
    total, given = Fraction(0), 0
    zeros: dict[str, int] = {}
    for name, size in sizes.items():
        total += size * Fraction(shares[name])
        zeros[name] = math.floor(total + Fraction(1, 2)) - given
        given += zeros[name]
    return zeros


def mask_of_zeros(
    select: Callable[[slice, float], Tensor], shape: tuple[int, int], zeros: int, scope: str
) -> Tensor:
    """Keep mask [out, in] with exactly this many zeros.

    With scope "row" the rows have equally many, but for the first ones, which have one more where the
    number does not divide.

    Args:
        select: ``(rows, sparsity) -> keep mask`` of these rows.
        shape: [out, in].
        zeros: how many.
        scope: "row" or "layer".

    """
    rows, columns = shape
    if scope == "layer":
        return select(slice(rows), _share(zeros, rows * columns))
    each, more = divmod(zeros, rows)
    parts = [(slice(more), each + 1), (slice(more, rows), each)]
    return torch.cat(
        [select(part, _share(count, columns)) for part, count in parts if part.stop > (part.start or 0)]
    )


def _share(zeros: int, size: int) -> float:
    """A sparsity of which `int(size * sparsity)` is `zeros`, whichever way the product rounds."""
    return 1.0 if zeros == size else (zeros + 0.5) / size
