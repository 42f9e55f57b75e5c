"""What to prune and how, as frozen dataclasses that go to JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from .allocation import Allocation, Uniform, allocation_from_dict
from .patterns import Pattern
from .token_weights import TokenWeight, TokenWeighting, token_weighting
from .values import check_flag, is_number, is_whole

__all__ = [
    "CONFIG_VERSION",
    "MagnitudeConfig",
    "PruneConfig",
    "RIAConfig",
    "SparseGPTConfig",
    "WandaConfig",
    "config_from_dict",
]

CONFIG_VERSION = 1


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
        activations: "sequential" calibrates each block on the outputs of already pruned ones, "dense" on
            those of the model as it was.
        token_weight: weight of every token in the statistics: a function of layer name and input, a
            weighting such as ``AttentionMask()``, its name ("attention_mask", "modality", "atv"), or None.
        samples: calibration images (or pairs) used.
        batch_size: how many of them at once.
        offload: keep statistics, cached activations and the weights as they were in CPU memory, for
            models on a device that is short of it.

    """

    pattern: str = "2:4"
    sparsity: float | None = None
    scope: str = "row"
    allocation: Allocation = dataclasses.field(default_factory=Uniform)
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    activations: str = "sequential"
    token_weight: TokenWeight | TokenWeighting | str | None = None
    samples: int = 128
    batch_size: int = 32
    offload: bool = False

    method: ClassVar[str]
    statistics: ClassVar[str | None] = "norm"

    @property
    def needs_calibration(self) -> bool:
        """Whether the method or the allocation looks at data."""
        return self.statistics is not None or self.allocation.importance is not None

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
        if self.scope == "layer" and pattern.m is not None:
            raise ValueError(
                f'scope: pattern "{pattern.name}" compares the weights of a group, leave it out; got "layer"'
            )
        for name in ("targets", "ignore"):
            value = getattr(self, name)
            entries = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (None,)
            if not all(isinstance(entry, str) for entry in entries):
                raise ValueError(f"{name}: expected a sequence of name patterns, got {value!r}")
            object.__setattr__(self, name, entries)
        for name in ("samples", "batch_size"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        check_flag("offload", self.offload)
        object.__setattr__(self, "token_weight", token_weighting(self.token_weight))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a `token_weight` function cannot be written and is refused."""
        weight = self.token_weight
        if callable(weight):
            raise ValueError(
                "token_weight: a function cannot be written to a file; leave it None there, or name a "
                "built-in one"
            )
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"token_weight": weight.to_dict() if isinstance(weight, TokenWeighting) else None}
        fields |= {"allocation": self.allocation.to_dict()}
        fields |= {"targets": list(self.targets), "ignore": list(self.ignore)}
        return {"version": CONFIG_VERSION, "method": self.method, **fields}


@dataclass(frozen=True, kw_only=True)
class MagnitudeConfig(PruneConfig):
    """Keep the weights of largest absolute value: the baseline that looks at no data.

    Its fields, by keyword, `PruneConfig` explains: pattern, sparsity, scope, allocation, targets and ignore;
    activations, token_weight, samples, batch_size and offload for an allocation that looks at data.

    """

    method: ClassVar[str] = "magnitude"
    statistics: ClassVar[str | None] = None


@dataclass(frozen=True, kw_only=True)
class WandaConfig(PruneConfig):
    """Keep the weights of largest ``|W_ij| * ||x_j||``: Sun et al. 2023, arXiv 2306.11695, eq. 1.

    Its fields, by keyword, `PruneConfig` explains: pattern, sparsity, scope, allocation, targets, ignore,
    activations, token_weight, samples, batch_size and offload.

    """

    method: ClassVar[str] = "wanda"


@dataclass(frozen=True, kw_only=True)
class SparseGPTConfig(PruneConfig):
    """Remove weights and move the others to make up for it: Frantar and Alistarh 2023, arXiv 2301.00774.

    It compares the weights of all outputs within a block of columns, so `scope` does not apply.
    `PruneConfig` explains its other fields: pattern, sparsity, allocation, targets, ignore, activations,
    token_weight, samples, batch_size and offload.

    Args:
        blocksize: columns whose weights are compared with each other; a multiple of m under n:m.
        damping: share of the mean of the Hessian's diagonal that is added to the diagonal.

    """

    blocksize: int = 128
    damping: float = 0.01

    method: ClassVar[str] = "sparsegpt"
    statistics: ClassVar[str | None] = "hessian"

    def __post_init__(self) -> None:
        """Check every field."""
        if self.scope != "row":
            raise ValueError(
                f"scope: sparsegpt compares what is in a block of columns, leave it out; got {self.scope!r}"
            )
        super().__post_init__()
        if not is_whole(self.blocksize) or self.blocksize < 1:
            raise ValueError(f"blocksize: expected a whole number of at least 1, got {self.blocksize!r}")
        if self.blocksize % (Pattern.parse(self.pattern).m or 1):
            raise ValueError(
                f'blocksize: pattern "{self.pattern}" needs a multiple of its group, got {self.blocksize}'
            )
        if not is_number(self.damping) or self.damping <= 0:
            raise ValueError(f"damping: expected a number above 0, got {self.damping!r}")


@dataclass(frozen=True, kw_only=True)
class RIAConfig(PruneConfig):
    """Keep the weights that matter relative to their row and column: Zhang et al. 2024, ICLR.

    `PruneConfig` explains its other fields: pattern, sparsity, scope, allocation, targets, ignore,
    activations, token_weight, samples, batch_size and offload.

    Args:
        a: power of the input norm.
        permute: under n:m, first reorder the hidden neurons of every MLP and the value channels of every
            head, so that few important weights share a group. The rows of the layers that feed them
            (also of ones that are not pruned) are reordered alike, so the model computes what it did; but
            masks of the result fit no model in the old order.

    """

    a: float = 0.5
    permute: bool = False

    method: ClassVar[str] = "ria"

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        if not is_number(self.a) or self.a < 0:
            raise ValueError(f"a: expected a number of at least 0, got {self.a!r}")
        check_flag("permute", self.permute)
        if self.permute and Pattern.parse(self.pattern).m is None:
            raise ValueError('permute: only an n:m pattern has groups to permute for, got "unstructured"')


METHODS: dict[str, type[PruneConfig]] = {
    config.method: config for config in (MagnitudeConfig, WandaConfig, SparseGPTConfig, RIAConfig)
}


def config_from_dict(data: dict[str, Any]) -> PruneConfig:
    """Read what `PruneConfig.to_dict` wrote.

    Token weight and allocation may also be a kind's name alone, such as "atv" and "ecoflap".

    Raises:
        ValueError: an unknown method, version or field, which is named, or a value that is not allowed.

    """
    if not isinstance(data, dict):
        raise ValueError(f"config: expected a dict as PruneConfig.to_dict writes, got {data!r}")
    fields = dict(data)
    version = fields.pop("version", CONFIG_VERSION)
    if version != CONFIG_VERSION:
        raise ValueError(f"config: expected version {CONFIG_VERSION}, got {version!r}")
    method = fields.pop("method", None)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"config: expected method to be one of {', '.join(METHODS)}, got {method!r}")
    config = METHODS[method]
    known = {f.name for f in dataclasses.fields(config)}
    if unknown := sorted(set(fields) - known, key=str):
        raise ValueError(f"config: unknown field {unknown[0]!r} for method {method!r}")
    if "allocation" in fields:
        fields["allocation"] = allocation_from_dict(fields["allocation"])
    return config(**fields)
