"""Heads, neurons and layers taken out of a model: what is left is a smaller dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .. import models
from ..patterns import Pattern
from .plan import BlockPlan, KeepLists, plan_of
from .remove import check_heads, check_layers, check_neurons, keep_heads_, keep_layers_, keep_neurons_

__all__ = ["CompactReport", "LayerSizes", "compact_"]

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
    """What `compact_` did: every layer, the model's parameters before and after, and what to know besides."""

    layers: tuple[LayerSizes, ...]
    parameters: tuple[int, int]
    notes: tuple[str, ...] = ()

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
        return "\n".join([*lines, *self.notes])


@torch.inference_mode(False)
@torch.no_grad()
def compact_(model: nn.Module, keep_lists: KeepLists, *, notes: Sequence[str] = ()) -> CompactReport:
    """Take out, in place, what keep lists leave out; outputs equal those inside `mask_modules`.

    A head takes its rows of q, k and v and its columns of the output projection with it, a neuron its row
    of the first and its column of the second MLP layer, a layer everything. A layer without heads or
    neurons still adds the bias of its attention or MLP. Weights that are zero stay zero. Attention that
    loses heads becomes `vlprune.nn.PackedAttention` (timm's stays timm's). Parameters that shrink are new
    objects: make optimizers afterwards.

    Args:
        model: an open_clip model, pruned or not, not yet sparsified.
        keep_lists: ``{"visual": {"heads": {layer: [kept, ...]}, "neurons": {layer: [kept, ...]},
            "layers": [kept, ...]}, "text": {...}}``. What is not named stays. Numbers are those before
            this call; a second call counts what the first one left.
        notes: sentences to put into the report.

    Raises:
        ValueError: keep lists that do not fit the model; packed layers; a norm over all heads or neurons;
            layers that run in step with others. The model is then as it was.

    """
    plans = plan_of(model, keep_lists)
    for plan in plans:
        if plan.stays:
            _check(plan)
    check_layers(model, plans)
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
    return CompactReport(sizes, (before, _parameters(model)), tuple(said))


def _check(plan: BlockPlan) -> None:
    parts = plan.parts
    if plan.heads is not None and parts.attention:
        check_heads(parts.attention, len(plan.heads))
    if plan.neurons is not None and parts.mlp:
        check_neurons(parts.mlp)


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
