"""What pruning did, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LayerReport", "PruneReport"]


@dataclass(frozen=True)
class LayerReport:
    """One pruned weight.

    Args:
        name: qualified name of its layer.
        shape: [out, in].
        zeros: exact number of zeros.
        target: fraction of zeros that the allocation gave it. Counts are whole: under an unstructured
            pattern ``int(in * target)`` of each row (``int(out * in * target)`` with scope "layer", as
            many of each block of columns for SparseGPT), so `sparsity` may lie just below.
        tower: "visual" or "text".
        block: number of its block in the tower, from the input.
        importance: what the allocation measured on it (OWL: percentage of outliers in its block, ECoFLaP:
            its zeroth-order score), None for one that measures nothing.

    """

    name: str
    shape: tuple[int, int]
    zeros: int
    target: float
    tower: str
    block: int
    importance: float | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return self.zeros / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class PruneReport:
    """What `prune_` did: method, pattern, every layer, seconds.

    An allocation's budget is exact in fractions, ``sum size * target``; the zeros stay below it by less
    than one weight a row (scope "layer": a layer; SparseGPT: a block of columns), and may exceed it where
    a weight was zero before.
    """

    method: str
    pattern: str
    layers: tuple[LayerReport, ...]
    seconds: float

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all pruned weights."""
        total = sum(layer.shape[0] * layer.shape[1] for layer in self.layers)
        return sum(layer.zeros for layer in self.layers) / total

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "sparsity": self.sparsity}

    def __str__(self) -> str:
        zeros = sum(layer.zeros for layer in self.layers)
        return (
            f"{self.method} {self.pattern}: {len(self.layers)} layers, {zeros:,} weights set to zero, "
            f"sparsity {self.sparsity:.4f}, {self.seconds:.1f} s"
        )
