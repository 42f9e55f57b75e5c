"""What to make of a model: modules out, weights to zero, or first the one and then the other; trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config import PruneConfig, config_from_dict
from ..patterns import Pattern
from ..structured import Keep, StructuredConfig
from .recovery import Recovery

__all__ = ["Variant", "start_name", "unique"]


@dataclass(frozen=True)
class Variant:
    """One row of a report.

    Args:
        weights: how weights are set to zero, None for no weight.
        structured: how heads, neurons and layers are taken out before that, None for none.
        recovery: how the result is trained, None for not at all. Without `weights` and with heads or neurons
            as well as layers to take out it is trained in between too: width, training, depth, training.
        between: with both, how what is left of modules is trained before weights are pruned, alike.

    """

    weights: PruneConfig | None = None
    structured: StructuredConfig | None = None
    recovery: Recovery | None = None
    between: Recovery | None = None

    def __post_init__(self) -> None:
        """Refuse the model as it is."""
        if self.weights is None and self.structured is None:
            raise ValueError("variant: expected weights to prune, modules to take out, or both; got neither")
        if self.between is not None and (self.weights is None or self.structured is None):
            raise ValueError("between: expected weights to prune after modules went; recovery comes last")
        for name in ("recovery", "between"):
            part = getattr(self, name)
            if part is not None and part.method == "lora":
                raise ValueError(f"{name}: lora fills the zeros that pruning made; expected another method")
            if part is not None and getattr(part.training, "retained", None):
                raise ValueError(f"{name}: retained: a run knows which layers it left; leave it out")

    @property
    def before(self) -> Variant:
        """The same without the last training."""
        return replace(self, recovery=None)

    @property
    def start_recovery(self) -> Recovery | None:
        """How what is left of modules is trained, before weights are pruned or without that."""
        return self.recovery if self.weights is None else self.between

    @property
    def name(self) -> str:
        """Short name: "wanda 2:4", "mope heads 50% neurons 50% + wanda 2:4 + sparselora"."""
        names = [] if self.structured is None else [start_name(self.structured, self.start_recovery)]
        if self.weights is not None:
            names.append(weights_name(self.weights))
            names += [] if self.recovery is None else [self.recovery.method]
        return " + ".join(names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of the weights' config, and a section for each of the rest."""
        result = {} if self.weights is None else self.weights.to_dict()
        parts = {name: getattr(self, name) for name in _SECTIONS}
        return result | {name: part.to_dict() for name, part in parts.items() if part is not None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Variant:
        """Read what `to_dict` returned; an unknown field is named."""
        fields = dict(data)
        parts: dict[str, Any] = {}
        for name, kind in _SECTIONS.items():
            if (section := fields.pop(name, None)) is None:
                continue
            if not isinstance(section, dict):
                raise ValueError(f"{name}: expected a section of its own, got {section!r:.80}")
            parts[name] = kind.from_dict(section)
        weights = config_from_dict(fields) if fields or "structured" not in parts else None
        return cls(weights, **parts)


# What a variant says besides the weights' config.
_SECTIONS: dict[str, Any] = {"structured": StructuredConfig, "recovery": Recovery, "between": Recovery}


def start_name(config: StructuredConfig, recovery: Recovery | None) -> str:
    """Short name of what weights are pruned in: "mope heads 50%", "mope heads 50% + distill"."""
    return structured_name(config) + ("" if recovery is None else f" + {recovery.method}")


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
