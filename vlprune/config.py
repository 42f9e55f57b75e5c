"""What to prune and how, as frozen dataclasses that go to JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .allocation import Allocation, Uniform, allocation_from_dict
from .patterns import Pattern

__all__ = [
    "CONFIG_VERSION",
    "MagnitudeConfig",
    "PruneConfig",
    "TokenWeight",
    "WandaConfig",
    "config_from_dict",
]

CONFIG_VERSION = 1

# (qualified layer name, its input [..., in]) -> weights broadcastable to x.shape[:-1]
TokenWeight = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Fields common to every method of `prune_`.

    Args:
        pattern: "2:4", any "n:m" (n kept of m), or "unstructured".
        sparsity: fraction of zeros; required for "unstructured", implied by n:m.
        scope: "row" compares the weights of one output, "layer" all of a matrix (unstructured only).
        allocation: how the sparsity is shared out between layers.
        targets: shell patterns of qualified layer names, or the tower names "visual" and "text".
        ignore: the same, taken out of the targets.
        activations: "sequential" calibrates each block on the outputs of already pruned ones,
            "dense" calibrates all on the dense model in one pass.
        token_weight: weight of every token in the input norms, a function of layer name and input.
        samples: calibration images (or pairs) used.
        batch_size: how many of them at once.

    """

    pattern: str = "2:4"
    sparsity: float | None = None
    scope: str = "row"
    allocation: Allocation = dataclasses.field(default_factory=Uniform)
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    activations: str = "sequential"
    token_weight: TokenWeight | None = None
    samples: int = 128
    batch_size: int = 32

    method: ClassVar[str]
    needs_calibration: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check every field, so that a bad one fails before any work is done."""
        pattern = Pattern.parse(self.pattern)
        if not isinstance(self.allocation, Allocation):
            raise ValueError(f"allocation: expected an allocation such as Uniform(), got {self.allocation!r}")
        self.allocation.check(pattern, self.sparsity)
        for name, allowed in (("scope", ("row", "layer")), ("activations", ("sequential", "dense"))):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        for name in ("targets", "ignore"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(entry, str) for entry in value):
                raise ValueError(f"{name}: expected a sequence of name patterns, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        for name in ("samples", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a `token_weight` function cannot be written and is refused."""
        if self.token_weight is not None:
            raise ValueError("token_weight: a function cannot be written to a file; leave it None there")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "token_weight"}
        fields |= {"allocation": self.allocation.to_dict()}
        fields |= {"targets": list(self.targets), "ignore": list(self.ignore)}
        return {"version": CONFIG_VERSION, "method": self.method, **fields}


@dataclass(frozen=True, kw_only=True)
class MagnitudeConfig(PruneConfig):
    """Keep the weights of largest absolute value: the baseline that looks at no data."""

    method: ClassVar[str] = "magnitude"
    needs_calibration: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class WandaConfig(PruneConfig):
    """Keep the weights of largest ``|W_ij| * ||x_j||``: Sun et al. 2023, arXiv 2306.11695, eq. 1."""

    method: ClassVar[str] = "wanda"


METHODS: dict[str, type[PruneConfig]] = {config.method: config for config in (MagnitudeConfig, WandaConfig)}


def config_from_dict(data: dict[str, Any]) -> PruneConfig:
    """Read what `PruneConfig.to_dict` wrote; an unknown method, version or field is named."""
    fields = dict(data)
    version = fields.pop("version", CONFIG_VERSION)
    if version != CONFIG_VERSION:
        raise ValueError(f"config: expected version {CONFIG_VERSION}, got {version!r}")
    method = fields.pop("method", None)
    if method not in METHODS:
        raise ValueError(f"config: expected method to be one of {', '.join(METHODS)}, got {method!r}")
    config = METHODS[method]
    known = {f.name for f in dataclasses.fields(config)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config: unknown field {unknown[0]!r} for method {method!r}")
    if "allocation" in fields:
        fields["allocation"] = allocation_from_dict(fields["allocation"])
    return config(**fields)
