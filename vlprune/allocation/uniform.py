"""The same sparsity everywhere, or everywhere in a tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..patterns import Pattern
from .base import Allocation, LayerInfo

__all__ = ["PerTower", "Uniform"]


@dataclass(frozen=True)
class Uniform(Allocation):
    """Every layer gets the sparsity asked for; what Wanda and SparseGPT publish."""

    kind: ClassVar[str] = "uniform"

    def sparsities(
        self,
        layers: Mapping[str, LayerInfo],
        pattern: Pattern,
        sparsity: float | None,
        importance: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """See `Allocation.sparsities`."""
        return dict.fromkeys(layers, pattern.resolve_sparsity(sparsity))


@dataclass(frozen=True)
class PerTower(Allocation):
    """A sparsity for each tower; one left None gets the config's.

    The split between vision and language that He et al. 2024 vary ("Rethinking Pruning for
    Vision-Language Models", arXiv 2404.02424).

    Args:
        visual: fraction of zeros of the image tower's layers.
        text: fraction of zeros of the text tower's layers.

    """

    visual: float | None = None
    text: float | None = None
    kind: ClassVar[str] = "per_tower"

    def __post_init__(self) -> None:
        """Check the fractions."""
        for value in (self.visual, self.text):
            if value is not None:
                Pattern().resolve_sparsity(value)

    def sparsities(
        self,
        layers: Mapping[str, LayerInfo],
        pattern: Pattern,
        sparsity: float | None,
        importance: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """See `Allocation.sparsities`."""
        self._refuse_groups(pattern)
        given = {"visual": self.visual, "text": self.text}
        return {
            name: pattern.resolve_sparsity(sparsity if given[layer.tower] is None else given[layer.tower])
            for name, layer in layers.items()
        }
