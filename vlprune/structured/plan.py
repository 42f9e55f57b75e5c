"""Keep lists checked against a model, and laid out block by block."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import models
from ..models import Block
from ..models.parts import BlockParts, block_parts

__all__ = ["BlockPlan", "KeepLists", "plan_of"]

# {"visual": {"heads": {layer: [kept]}, "neurons": {layer: [kept]}, "layers": [kept]}, "text": ...}
KeepLists = Mapping[str, Mapping[str, Any]]

_EXAMPLE = '{"visual": {"heads": {0: [1, 2]}, "neurons": {0: [5, 7]}, "layers": [0, 1]}}'
_KINDS = ("heads", "neurons", "layers")


@dataclass(frozen=True)
class BlockPlan:
    """What stays of one block: ascending numbers of heads and neurons, None where nothing goes."""

    block: Block
    stays: bool
    heads: tuple[int, ...] | None
    neurons: tuple[int, ...] | None

    @property
    def parts(self) -> BlockParts:
        """The block's parts as they are now."""
        return block_parts(self.block)


def plan_of(model: nn.Module, keep_lists: KeepLists) -> list[BlockPlan]:
    """Lay keep lists out over every block of a model, in the order of the towers.

    Raises:
        ValueError: a tower, layer, head or neuron that is not there, or is named twice; nothing that
            would stay of a tower; heads or neurons of a block in which they are not known.

    """
    if not isinstance(keep_lists, Mapping):
        raise ValueError(f"keep_lists: expected a dict such as {_EXAMPLE}, got {keep_lists!r:.80}")
    towers = models.view(model).towers
    for name in keep_lists:
        if name not in towers:
            raise ValueError(f"keep_lists: unknown tower {name!r}; this model has {', '.join(towers)}")
    return [
        plan
        for name, tower in towers.items()
        for plan in _tower_plan(name, tower.blocks, keep_lists.get(name, {}))
    ]


def _tower_plan(tower: str, blocks: list[Block], lists: Mapping[str, Any]) -> list[BlockPlan]:
    where = f"keep_lists[{tower!r}]"
    if not isinstance(lists, Mapping):
        raise ValueError(f"{where}: expected a dict with heads, neurons or layers, got {lists!r:.80}")
    for key in lists:
        if key not in _KINDS:
            raise ValueError(f"{where}: unknown key {key!r}; expected {', '.join(_KINDS)}")
    layers = set(range(len(blocks)))
    if (given := lists.get("layers")) is not None:
        layers = set(_numbers(given, len(blocks), f"{where}['layers']", "layer"))
        if not layers:
            raise ValueError(f"{where}['layers']: at least one layer must stay, got none")
    heads = _by_layer(lists.get("heads"), blocks, f"{where}['heads']", "head")
    neurons = _by_layer(lists.get("neurons"), blocks, f"{where}['neurons']", "neuron")
    return [BlockPlan(b, b.index in layers, heads.get(b.index), neurons.get(b.index)) for b in blocks]


def _by_layer(given: Any, blocks: list[Block], where: str, what: str) -> dict[int, tuple[int, ...]]:
    """Kept numbers of each layer that loses some."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected a dict {{layer: [kept {what}s]}}, got {given!r:.80}")
    found: dict[int, tuple[int, ...]] = {}
    for key, kept in given.items():
        layer = _number(key, len(blocks), where, "layer")
        parts = block_parts(blocks[layer])
        total = _total(parts, what)
        if total is None:
            part = "attention" if what == "head" else "MLP"
            kind = type(blocks[layer].module).__name__
            raise ValueError(f"{where}: layer {layer}: {blocks[layer].name} ({kind}) has no known {part}")
        numbers = _numbers(kept, total, f"{where}[{layer}]", what)
        if len(numbers) < total:
            found[layer] = numbers
    return found


def _total(parts: BlockParts, what: str) -> int | None:
    if what == "head":
        return parts.attention.num_heads if parts.attention else None
    return parts.mlp.neurons if parts.mlp else None


def _numbers(given: Any, total: int, where: str, what: str) -> tuple[int, ...]:
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{where}: expected a list of {what} numbers, got {given!r:.80}")
    numbers = [_number(value, total, where, what) for value in given]
    kept = sorted(set(numbers))
    if len(kept) < len(numbers):
        twice = next(n for n in kept if numbers.count(n) > 1)
        raise ValueError(f"{where}: {what} {twice} is named twice")
    return tuple(kept)


def _number(value: Any, total: int, where: str, what: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{where}: expected a {what} number, got {value!r:.80}")
    if not 0 <= number < total:
        there = f"there are {what}s 0 to {total - 1}" if total else f"there are no {what}s left"
        raise ValueError(f"{where}: {what} {number} does not exist; {there}")
    return number
