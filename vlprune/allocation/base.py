"""What every allocation answers: a sparsity for each layer."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..patterns import Pattern

__all__ = ["Allocation", "LayerInfo"]


@dataclass(frozen=True)
class LayerInfo:
    """Where a layer stands: its number of weights, its tower ("visual" or "text"), its block's name."""

    size: int
    tower: str
    block: str


@dataclass(frozen=True)
class Allocation(ABC):
    """Shares a sparsity out between layers.

    `importance` names what the caller has to measure on the model first and to hand to `sparsities`, a
    number a layer: None (nothing), "zeroth_order" or "outliers".
    """

    kind: ClassVar[str]
    importance: ClassVar[str | None] = None

    @abstractmethod
    def sparsities(
        self,
        layers: Mapping[str, LayerInfo],
        pattern: Pattern,
        sparsity: float | None,
        importance: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Sparsity of each layer.

        Args:
            layers: layer name -> where it stands.
            pattern: what is asked for; n:m fixes the sparsity of every layer.
            sparsity: what is asked for over all of them, None under n:m.
            importance: layer name -> the number that the class attribute of this name asks for.

        """

    def check(self, pattern: Pattern, sparsity: float | None) -> None:
        """Refuse a pattern or a sparsity that this allocation cannot serve, before any work is done."""
        layers = {tower: LayerInfo(1, tower, tower) for tower in ("visual", "text")}
        self.sparsities(layers, pattern, sparsity, dict.fromkeys(layers, 1.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": self.kind, **dataclasses.asdict(self)}
