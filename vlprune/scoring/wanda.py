"""Wanda: weights and activations, Sun et al. 2023 (arXiv 2306.11695)."""

from __future__ import annotations

from torch import Tensor

from .. import ops
from ..patterns import Pattern

__all__ = ["wanda_mask"]


def wanda_mask(
    weight: Tensor, column_norm: Tensor, pattern: str | Pattern, sparsity: float, scope: str = "row"
) -> Tensor:
    """Keep mask [out, in] of ``S_ij = |W_ij| * ||x_j||`` (eq. 1), the lowest scores of each unit pruned.

    Args:
        weight: [out, in], any floating dtype.
        column_norm: float32 [in], `Calibration.column_norm`.
        pattern: "n:m" prunes m - n of each m consecutive inputs, "unstructured" ``int(n * sparsity)``
            of each row or of the matrix.
        sparsity: fraction of zeros; n:m implies it.
        scope: "row" or "layer".

    """
    kind = Pattern.parse(pattern)
    return ops.wanda_mask(weight, column_norm, kind.name, None if kind.m else sparsity, scope)
