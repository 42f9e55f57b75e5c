"""What every allocation answers: a sparsity for each layer."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["Allocation"]


@dataclass(frozen=True)
class Allocation(ABC):
    """Shares a sparsity out between layers."""

    kind: ClassVar[str]

    @abstractmethod
    def sparsities(self, sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
        """Sparsity of each layer, given its number of weights, for `sparsity` over all of them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": self.kind, **dataclasses.asdict(self)}
