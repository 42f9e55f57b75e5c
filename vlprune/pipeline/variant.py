"""What to make of a model: modules out, weights to zero, or first the one and then the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import PruneConfig, config_from_dict
from ..patterns import Pattern
from ..structured import Keep, StructuredConfig

__all__ = ["Variant", "unique"]


@dataclass(frozen=True)
class Variant:
    """One row of a report.

    Args:
        weights: how weights are set to zero, None for no weight.
        structured: how heads, neurons and layers are taken out before that, None for none.

    """

    weights: PruneConfig | None = None
    structured: StructuredConfig | None = None

    def __post_init__(self) -> None:
        """Refuse the model as it is."""
        if self.weights is None and self.structured is None:
            raise ValueError("variant: expected weights to prune, modules to take out, or both; got neither")

    @property
    def name(self) -> str:
        """Short name: "wanda 2:4", "mope heads 50% neurons 50% + wanda 2:4"."""
        names = [] if self.structured is None else [structured_name(self.structured)]
        names += [] if self.weights is None else [weights_name(self.weights)]
        return " + ".join(names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of the weights' config, and a section "structured"."""
        result = {} if self.weights is None else self.weights.to_dict()
        return result if self.structured is None else {**result, "structured": self.structured.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Variant:
        """Read what `to_dict` returned; an unknown field is named."""
        fields = dict(data)
        section = fields.pop("structured", None)
        if section is not None and not isinstance(section, dict):
            raise ValueError(f"structured: expected a section of its own, got {section!r:.80}")
        structured = None if section is None else StructuredConfig.from_dict(section)
        return cls(config_from_dict(fields) if fields or structured is None else None, structured)


def weights_name(config: PruneConfig) -> str:
    """Short name of what is done to weights: "wanda 2:4", "magnitude 70%", "wanda 60% ecoflap"."""
    pattern = Pattern.parse(config.pattern)
    share = config.pattern if config.sparsity is None or pattern.m else f"{100 * config.sparsity:g}%"
    kind = config.allocation.kind
    return f"{config.method} {share}" + ("" if kind == "uniform" else f" {kind}")


def structured_name(config: StructuredConfig) -> str:
    """Short name of what is left of modules: "mope heads 50%", "random visual heads 6", "mope 2x speed"."""
    if config.target_speedup is not None:
        where = [] if config.tower == "both" else [config.tower]
        return " ".join([config.criterion, *where, f"{config.target_speedup:g}x", "speed"])
    towers = {"visual": config.visual, "text": config.text}
    kept = {tower: _kept(keep) for tower, keep in towers.items() if keep is not None}
    same = len(kept) == 2 and kept["visual"] == kept["text"]
    parts = [kept["visual"]] if same else [f"{tower} {what}" for tower, what in kept.items()]
    return " ".join([config.criterion, *parts])


def unique(names: Sequence[str]) -> list[str]:
    """Number the second and later ones of a name: "wanda 2:4", "wanda 2:4 (2)"."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def _kept(keep: Keep) -> str:
    values = {kind: getattr(keep, kind) for kind in ("heads", "neurons", "layers")}
    return " ".join(
        f"{kind} {value}" if isinstance(value, int) else f"{kind} {100 * value:g}%"
        for kind, value in values.items()
        if value is not None
    )
