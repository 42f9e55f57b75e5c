"""Magnitude pruning: the baseline of Han et al. 2015 (arXiv 1506.02626)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..patterns import Pattern
from .wanda import wanda_mask

__all__ = ["magnitude_mask"]


def magnitude_mask(weight: Tensor, pattern: str | Pattern, sparsity: float, scope: str = "row") -> Tensor:
    """Keep mask [out, in] of ``|W|``: Wanda's with every input norm one.

    `weight`, `pattern`, `sparsity` and `scope` are those of `wanda_mask`.
    """
    norm = torch.ones(weight.shape[1], dtype=torch.float32, device=weight.device)
    return wanda_mask(weight, norm, pattern, sparsity, scope)
