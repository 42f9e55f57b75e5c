"""From errors to keep lists: which heads, neurons and layers go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from .. import models
from ..models import Block
from ..models.parts import block_parts
from .keep import NEURON_MULTIPLE, Keep, KeepCounts, StructuredConfig
from .modules import KINDS, ModuleError, group_neurons

__all__ = ["choose", "counts_of", "turns_of"]

# What can go: error, place among equals, layer, number; equals are taken from all layers in turn.
_Turn = tuple[float, int, int, int]


def choose(
    model: nn.Module,
    config: StructuredConfig,
    errors: Iterable[ModuleError],
    kinds: Sequence[str] = KINDS,
) -> dict[str, dict[str, Any]]:
    """Keep lists that leave as much as the config says, without the modules of the lowest errors.

    Of equal errors the lower number goes first; of equally good neurons the higher one, because `rewire_`
    puts the important ones first, and a group of which only a part goes loses its last neurons. With scope
    "tower" every layer keeps at least a head and a neuron, and by a share a multiple of 16 neurons. Layers
    whose heads, neurons or selves have no error stay as they are: what the metric does not run.

    Args:
        model: the model that the errors are of.
        config: what stays; only `visual`, `text` and `scope` matter here.
        errors: of all modules of the towers and kinds that are to shrink.
        kinds: which ones to choose now.

    Returns:
        Keep lists as `compact_` and `mask_modules` take them.

    Raises:
        ValueError: a tower that the model does not have, errors that are missing, counts above what is
            there.

    """
    errors = list(errors)
    lists: dict[str, dict[str, Any]] = {}
    for tower, keep in (("visual", config.visual), ("text", config.text)):
        if keep is None:
            continue
        blocks = _blocks(model, tower)
        own = lists.setdefault(tower, {})
        for kind in kinds:
            if getattr(keep, kind) is None:
                continue
            found = [error for error in errors if (error.tower, error.kind) == (tower, kind)]
            if not found and not (kind == "layers" and len(blocks) == 1):
                raise ValueError(f"errors: there are none for {kind} of the {tower} tower")
            if kind == "layers":
                own[kind] = _layers(blocks, found, keep)
            else:
                own[kind] = _width(blocks, found, keep, kind, config.scope)
    return lists


def counts_of(keep: Keep, block: Block, layers: int) -> KeepCounts:
    """How much stays of one block, by its own sizes, and how many of these layers.

    Heads or neurons that are not known, or all gone already, are none before and after.
    """
    parts = block_parts(block)
    heads = parts.attention.num_heads if parts.attention else 0
    neurons = parts.mlp.neurons if parts.mlp else 0
    own = replace(keep, heads=keep.heads if heads else None, neurons=keep.neurons if neurons else None)
    try:
        return own.counts(heads, neurons, layers)
    except ValueError as error:
        raise ValueError(f"{block.name}: {error}") from None


def _blocks(model: nn.Module, tower: str) -> list[Block]:
    towers = models.view(model).towers
    if tower not in towers:
        raise ValueError(f"{tower}: expected None, this model has only {', '.join(towers)}")
    return towers[tower].blocks


def _layers(blocks: Sequence[Block], errors: Sequence[ModuleError], keep: Keep) -> list[int]:
    known = {error.index: error.error for error in errors}
    total = len(known) or len(blocks)
    kept = Keep(layers=keep.layers).counts(0, 0, total).layers
    order = sorted(known, key=lambda index: (known[index], index))
    gone = set(order[: total - kept])
    return [block.index for block in blocks if block.index not in gone]


def _width(
    blocks: Sequence[Block], errors: Sequence[ModuleError], keep: Keep, kind: str, scope: str
) -> dict[int, list[int]]:
    own = Keep(heads=keep.heads) if kind == "heads" else Keep(neurons=keep.neurons)
    totals: dict[int, int] = {}
    excess: dict[int, int] = {}
    turns: dict[int, list[_Turn]] = {}
    for block in blocks:
        parts = block_parts(block)
        part: Any = parts.attention if kind == "heads" else parts.mlp
        found = [error for error in errors if error.layer in (block.index, None)]
        if part is None or not found:
            continue
        totals[block.index] = total = part.num_heads if kind == "heads" else part.neurons
        excess[block.index] = total - getattr(counts_of(own, block, len(blocks)), kind)
        turns[block.index] = turns_of(block.index, found, kind, total)
    gone: dict[int, set[int]] = {layer: set() for layer in totals}
    if scope == "layer":
        for layer, own_turns in turns.items():
            gone[layer] = {number for *_, number in sorted(own_turns)[: excess[layer]]}
    else:
        # a share leaves every layer a multiple, as with the other scope; a count is what was asked for
        step = NEURON_MULTIPLE if isinstance(own.neurons, float) else 1
        left = sum(excess.values())
        parcels = [parcel for own_turns in turns.values() for parcel in _parcels(sorted(own_turns), step)]
        # by the largest error in it
        for parcel in sorted(parcels, key=lambda parcel: parcel[-1]):
            layer = parcel[-1][2]
            if len(parcel) <= left and len(gone[layer]) + len(parcel) < totals[layer]:
                gone[layer] |= {number for *_, number in parcel}
                left -= len(parcel)
    return {layer: [n for n in range(total) if n not in gone[layer]] for layer, total in totals.items()}


def _parcels(turns: Sequence[_Turn], step: int) -> list[Sequence[_Turn]]:
    """What goes of a layer at once, in order, so that a multiple of `step` is left each time."""
    ends = range(len(turns) % step or step, len(turns) + 1, step)
    return [turns[max(0, end - step) : end] for end in ends]


def turns_of(layer: int, errors: Sequence[ModuleError], kind: str, total: int) -> list[_Turn]:
    """All heads or neurons of a layer, to be sorted into the order in which they go.

    Error first, number last; a neuron has the error of its group.
    """
    groups = {error.index: error.error for error in errors}
    count = total if kind == "heads" else max(groups) + 1
    if sorted(groups) != list(range(count)):
        raise ValueError(
            f"errors: expected those of all {count} of the {kind} of layer {layer}, got {len(groups)}"
        )
    if kind == "heads":
        return [(error, head, layer, head) for head, error in groups.items()]
    return [
        (error, -neuron, layer, neuron)
        for group, error in groups.items()
        for neuron in group_neurons(total, count, group)
    ]
