"""The same sparsity everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from .base import Allocation

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform(Allocation):
    """Every layer gets the sparsity asked for; what Wanda and SparseGPT publish."""

    kind: ClassVar[str] = "uniform"

    def sparsities(self, sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
        """See `Allocation.sparsities`."""
        return dict.fromkeys(sizes, sparsity)
