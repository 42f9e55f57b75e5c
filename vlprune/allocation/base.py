"""What every allocation answers: a sparsity for each layer."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsFloat

from ..patterns import Pattern, PatternError

__all__ = ["Allocation", "LayerInfo", "as_list", "check_size", "is_finite"]


@dataclass(frozen=True)
class LayerInfo:
    """Where a layer stands.

    Args:
        size: its number of weights.
        tower: "visual" or "text".
        block: the name of its block.

    """

    size: int
    tower: str
    block: str


@dataclass(frozen=True)
class Allocation(ABC):
    """Shares a sparsity out between layers.

    `importance` names what the caller has to measure on the model first and to hand to `sparsities`, a
    number a layer: None (nothing), "zeroth_order" or "outliers". `prune_` measures them for `ECoFLaP` and
    `OWL`, whose settings say how (`vlprune.importance.measure_importance`); an allocation of another class
    that names one is handed None.
    """

    kind: ClassVar[str]
    importance: ClassVar[str | None] = None
    # Whether the layers together are to have exactly the zeros that their shares add up to; else each row
    # (or layer) has its own share rounded down, as Wanda publishes it.
    exact_budget: ClassVar[bool] = False

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

    def _refuse_groups(self, pattern: Pattern) -> None:
        """Refuse n:m, under which nothing is left to share out."""
        if pattern.m is not None:
            name = type(self).__name__
            raise PatternError(f'allocation: pattern "{pattern.name}" fixes every sparsity, {name} cannot')

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def is_finite(value: Any) -> bool:
    """Whether this is a number (also numpy's), and a finite one."""
    return isinstance(value, SupportsFloat) and not isinstance(value, bool) and math.isfinite(float(value))


def check_size(name: Any, size: Any) -> None:
    """Refuse what is no number of weights of the block or group of this name."""
    if not is_finite(size) or int(size) != size or size < 1:
        raise ValueError(f"size of {name}: expected a whole number of at least 1, got {size!r}")


def as_list(name: str, values: Any) -> list[Any]:
    """Read an argument of this name that holds several values."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name}: expected a list of numbers or a dict by name, got {values!r}")
    return list(values)
