"""Heads, neurons and layers taken out of a model: what is left is a smaller dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from .. import models
from ..patterns import Pattern
from .modules import ModuleError
from .plan import BlockPlan, KeepLists, plan_of
from .remove import check_heads, check_layers, check_neurons, keep_heads_, keep_layers_, keep_neurons_
from .speedup.choice import Speedup

__all__ = ["CompactReport", "LayerSizes", "check_cut", "cut_"]

_PATTERN = Pattern.parse("2:4")


@dataclass(frozen=True)
class LayerSizes:
    """One layer by its number and name before removal; heads and neurons before and after, 0 after removal.

    Heads and neurons are None in a block in which they are not known.
    """

    tower: str
    layer: int
    name: str
    stays: bool
    heads: tuple[int, int] | None
    neurons: tuple[int, int] | None


@dataclass(frozen=True)
class CompactReport:
    """What `compact_` did: every layer, the model's parameters before and after, and what to know besides.

    `keep_lists` says what stayed where something went, by the numbers before the call; `errors` are what it
    was chosen by, if it was, and `speedup` what for, if a speed-up was named.
    """

    layers: tuple[LayerSizes, ...]
    parameters: tuple[int, int]
    notes: tuple[str, ...] = ()
    keep_lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: tuple[ModuleError, ...] = ()
    speedup: Speedup | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [f"{before:,} -> {after:,} parameters ({after / before:.1%})"]
        for tower in dict.fromkeys(layer.tower for layer in self.layers):
            own = [layer for layer in self.layers if layer.tower == tower]
            counts = [f"{sum(layer.stays for layer in own)} of {len(own)} layers"]
            for kind in ("heads", "neurons"):
                sizes = [size for layer in own if (size := getattr(layer, kind)) is not None]
                counts.append(f"{sum(s[1] for s in sizes):,} of {sum(s[0] for s in sizes):,} {kind}")
            lines.append(f"{tower}: {', '.join(counts)}")
        reached = [] if self.speedup is None else [str(self.speedup)]
        return "\n".join([*lines, *reached, *self.notes])


def check_cut(model: nn.Module, keep_lists: KeepLists) -> list[BlockPlan]:
    """Lay keep lists out by block; ValueError if `cut_` cannot do what they say."""
    plans = plan_of(model, keep_lists)
    for plan in plans:
        if plan.stays:
            _check(plan)
    check_layers(model, plans)
    return plans


@torch.inference_mode(False)
@torch.no_grad()
def cut_(model: nn.Module, keep_lists: KeepLists, notes: Sequence[str] = ()) -> CompactReport:
    """Take out, in place, what keep lists leave out; see `vlprune.structured.compact_`."""
    plans = check_cut(model, keep_lists)
    before = _parameters(model)
    sizes = tuple(_sizes(plan) for plan in plans)
    patterned = [plan for plan in plans if plan.stays and plan.neurons is not None and _is_24(plan)]
    split = models.split_attention_(model)
    try:
        for plan in plans:
            if plan.stays and plan.heads is not None and (attention := plan.parts.attention):
                keep_heads_(attention, plan.heads)
            if plan.stays and plan.neurons is not None and (mlp := plan.parts.mlp):
                keep_neurons_(mlp, plan.neurons)
    finally:
        models.merge_attention_(model, split)
    said = list(notes)
    if broken := sum(not _is_24(plan) for plan in patterned):
        said.append(f"{broken} second MLP layers are not 2:4 any more: neurons went; prune to 2:4 afterwards")
    keep_layers_(model, plans)
    return CompactReport(sizes, (before, _parameters(model)), tuple(said), _lists(plans))


def _check(plan: BlockPlan) -> None:
    parts = plan.parts
    if plan.heads is not None and parts.attention:
        check_heads(parts.attention, len(plan.heads))
    if plan.neurons is not None and parts.mlp:
        check_neurons(parts.mlp)


def _lists(plans: Sequence[BlockPlan]) -> dict[str, dict[str, Any]]:
    """What stays of each tower in which something goes."""
    lists: dict[str, dict[str, Any]] = {}
    for tower in dict.fromkeys(plan.block.tower for plan in plans):
        own = [plan for plan in plans if plan.block.tower == tower]
        found: dict[str, Any] = {
            "heads": {plan.block.index: list(plan.heads) for plan in own if plan.heads is not None},
            "neurons": {plan.block.index: list(plan.neurons) for plan in own if plan.neurons is not None},
            "layers": [plan.block.index for plan in own if plan.stays],
        }
        if len(found["layers"]) == len(own):
            del found["layers"]
        if found := {kind: kept for kind, kept in found.items() if kept}:
            lists[tower] = found
    return lists


def _sizes(plan: BlockPlan) -> LayerSizes:
    def change(total: int, kept: tuple[int, ...] | None) -> tuple[int, int]:
        return total, 0 if not plan.stays else total if kept is None else len(kept)

    parts, block = plan.parts, plan.block
    heads = change(parts.attention.num_heads, plan.heads) if parts.attention else None
    neurons = change(parts.mlp.neurons, plan.neurons) if parts.mlp else None
    return LayerSizes(block.tower, block.index, block.name, plan.stays, heads, neurons)


def _is_24(plan: BlockPlan) -> bool:
    mlp = plan.parts.mlp
    weight = getattr(mlp.fc2, "weight", None) if mlp else None
    if not isinstance(weight, torch.Tensor) or weight.is_meta or not weight.numel():
        return False
    return _PATTERN.holds(weight)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
