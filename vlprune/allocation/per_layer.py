"""Sparsities that are known already, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..patterns import Pattern, PatternError
from .base import Allocation, LayerInfo

__all__ = ["PerLayer"]


@dataclass(frozen=True)
class PerLayer(Allocation):
    """The sparsity of every layer as given, for example what another allocation found before.

    Names are those in `prune_`'s report (packed attention counts as its split projections). The
    config's `sparsity` plays no part.

    Args:
        layers: qualified layer name -> fraction of zeros, for exactly the layers that are pruned.

    """

    layers: Mapping[str, float]
    kind: ClassVar[str] = "per_layer"
    exact_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check every fraction and keep a copy."""
        if not isinstance(self.layers, Mapping):
            raise ValueError(f"layers: expected a dict from layer name to sparsity, got {self.layers!r}")
        for name, value in self.layers.items():
            try:
                Pattern().resolve_sparsity(value)
            except PatternError:
                raise PatternError(f"{name}: expected a fraction of zeros in [0, 1], got {value!r}") from None
        object.__setattr__(self, "layers", dict(self.layers))

    def __hash__(self) -> int:
        """Hash the fractions by name; a dict has no hash of its own."""
        return hash(frozenset(self.layers.items()))

    def check(self, pattern: Pattern, sparsity: float | None) -> None:
        """Refuse n:m; which layers there are is not known yet."""
        self._refuse_groups(pattern)

    def sparsities(
        self,
        layers: Mapping[str, LayerInfo],
        pattern: Pattern,
        sparsity: float | None,
        importance: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """See `Allocation.sparsities`; ValueError where the names are not those of `layers`."""
        self.check(pattern, sparsity)
        for known, others, what in (
            (self.layers, layers, "to be pruned, but PerLayer gives it no sparsity"),
            (layers, self.layers, "given a sparsity by PerLayer, but it is no layer to be pruned"),
        ):
            if missing := [name for name in others if name not in known]:
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                raise ValueError(f"allocation: {missing[0]} is {what}{more}")
        return {name: float(self.layers[name]) for name in layers}
