"""How a sparsity is shared out between layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from .base import Allocation, LayerInfo
from .ecoflap import ECoFLaP, ecoflap_sparsities
from .owl import OWL, owl_sparsities
from .per_layer import PerLayer
from .uniform import PerTower, Uniform

__all__ = [
    "OWL",
    "Allocation",
    "ECoFLaP",
    "LayerInfo",
    "PerLayer",
    "PerTower",
    "Uniform",
    "allocation_from_dict",
    "ecoflap_sparsities",
    "owl_sparsities",
]

_KINDS: dict[str, type[Allocation]] = {
    kind.kind: kind for kind in (Uniform, PerTower, PerLayer, OWL, ECoFLaP)
}


def allocation_from_dict(data: dict[str, Any] | str) -> Allocation:
    """Read what `Allocation.to_dict` wrote, or a kind's name: that with its defaults.

    Raises:
        ValueError: an unknown kind or field, which is named.

    """
    fields = dict(data) if isinstance(data, dict) else {"kind": data}
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"allocation: expected kind to be one of {', '.join(_KINDS)}, got {data!r}")
    known = {field.name: field for field in dataclasses.fields(_KINDS[kind])}
    if unknown := sorted(set(fields) - set(known), key=str):
        raise ValueError(f"allocation: unknown field {unknown[0]!r} for kind {kind!r}")
    for name, field in known.items():
        if name not in fields and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"allocation: field {name!r} is missing for kind {kind!r}")
    return _KINDS[kind](**fields)
