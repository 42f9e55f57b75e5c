"""How a sparsity is shared out between layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from .base import Allocation, LayerInfo
from .uniform import PerTower, Uniform

__all__ = ["Allocation", "LayerInfo", "PerTower", "Uniform", "allocation_from_dict"]

_KINDS: dict[str, type[Allocation]] = {kind.kind: kind for kind in (Uniform, PerTower)}


def allocation_from_dict(data: dict[str, Any]) -> Allocation:
    """Read what `Allocation.to_dict` wrote."""
    fields = dict(data) if isinstance(data, dict) else {}
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"allocation: expected kind to be one of {', '.join(_KINDS)}, got {data!r}")
    known = {field.name for field in dataclasses.fields(_KINDS[kind])}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"allocation: unknown field {unknown[0]!r} for kind {kind!r}")
    return _KINDS[kind](**fields)
