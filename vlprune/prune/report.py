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
        target: fraction of zeros that the allocation gave it. Counts are whole. Where the allocation
            keeps a budget (ECoFLaP, OWL, PerLayer), within one weight of ``out * in * target``; else,
            under an unstructured pattern, ``int(in * target)`` of each row (of the layer with scope
            "layer"). SparseGPT has ``int`` of each block of columns, always.
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

    Under ECoFLaP, OWL and PerLayer the zeros of all layers together are the rounded sum of ``size *
    target`` (with SparseGPT fewer, by less than one a block of columns). More there can only be where a
    weight was zero before.
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
