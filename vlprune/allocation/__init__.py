"""How a sparsity is shared out between layers."""

from __future__ import annotations

from typing import Any

from .base import Allocation
from .uniform import Uniform

__all__ = ["Allocation", "Uniform", "allocation_from_dict"]

_KINDS: dict[str, type[Allocation]] = {"uniform": Uniform}


def allocation_from_dict(data: dict[str, Any]) -> Allocation:
    """Read what `Allocation.to_dict` wrote."""
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"allocation: expected kind to be one of {', '.join(_KINDS)}, got {kind!r}")
    return _KINDS[kind](**fields)
