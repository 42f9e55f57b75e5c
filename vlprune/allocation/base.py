"""What every allocation answers: a sparsity for each layer."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..patterns import Pattern

__all__ = ["Allocation"]


@dataclass(frozen=True)
class Allocation(ABC):
    """Shares a sparsity out between layers."""

    kind: ClassVar[str]

    @abstractmethod
    def sparsities(
        self,
        sizes: Mapping[str, int],
        towers: Mapping[str, str],
        pattern: Pattern,
        sparsity: float | None,
    ) -> dict[str, float]:
        """Sparsity of each layer.

        Args:
            sizes: layer name -> its number of weights.
            towers: layer name -> "visual" or "text".
            pattern: what is asked for; n:m fixes the sparsity of every layer.
            sparsity: what is asked for over all of them, None under n:m.

        """

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": self.kind, **dataclasses.asdict(self)}
