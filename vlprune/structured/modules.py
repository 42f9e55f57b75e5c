"""Heads, groups of neurons and layers of a model, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import models
from ..models import Block
from ..models.parts import block_parts
from .plan import KeepLists
from .remove import partners_of

__all__ = ["KINDS", "ModuleError", "Removable", "check_names", "group_neurons", "removable_layers",
           "removable_modules"]  # fmt: skip

KINDS = ("heads", "neurons", "layers")


@dataclass(frozen=True)
class ModuleError:
    """What removing one head, group of neurons or layer costs.

    Args:
        tower: "visual" or "text".
        layer: counts from the input; None for a group that is missing in all layers at once.
        kind: "heads", "neurons" or "layers".
        index: the head, the group, or the layer again.
        error: the full model's score minus the score without the module: large is important, and it may be
            negative.

    """

    tower: str
    layer: int | None
    kind: str
    index: int
    error: float


@dataclass(frozen=True)
class Removable:
    """One thing to remove; `keep` are the keep lists of everything else, `blocks` the layers it is in."""

    tower: str
    layer: int | None
    kind: str
    index: int
    keep: KeepLists
    blocks: tuple[Block, ...]

    @property
    def key(self) -> str:
        """Tower, layer, kind and number: "visual 3 heads 5"."""
        layer = "all" if self.layer is None else self.layer
        return f"{self.tower} {layer} {self.kind} {self.index}"

    def costing(self, error: float) -> ModuleError:
        """The same with its error."""
        return ModuleError(self.tower, self.layer, self.kind, self.index, error)


def removable_modules(
    model: nn.Module, kinds: Sequence[str], towers: Sequence[str], groups: int, across_layers: bool
) -> list[Removable]:
    """List what can be removed, by tower, then by kind, then by layer.

    A layer that is alone in its tower cannot, nor one that runs in step with others, as in CoCa's decoder;
    what is not known of a block is not listed.

    Args:
        model: any model that `vlprune.models.view` knows.
        kinds: some of "heads", "neurons" and "layers".
        towers: some of "visual" and "text".
        groups: neurons of a layer come in this many groups, of one neuron at least.
        across_layers: a group of neurons is that group of all layers.

    Raises:
        ValueError: a kind or tower that is not there, or nothing to remove at all.

    """
    known = models.view(model).towers
    check_names("modules", kinds, KINDS)
    check_names("towers", towers, tuple(known))
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"groups: expected a whole number of at least 1, got {groups!r}")
    makers = {
        "heads": _heads,
        "neurons": lambda tower, blocks: _neurons(tower, blocks, groups, across_layers),
        "layers": _layers,
    }
    found = [module for t in towers for kind in kinds for module in makers[kind](t, known[t].blocks)]
    if not found:
        raise ValueError(f"modules: {' and '.join(towers)} have no known {' or '.join(kinds)} to remove")
    return found


def group_neurons(neurons: int, groups: int, index: int) -> range:
    """The neurons of one of equally large groups (but for rounding), which follow on one another."""
    return range(index * neurons // groups, (index + 1) * neurons // groups)


def check_names(what: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise ValueError unless some names are given, and only such as are allowed, each once."""
    # no set either: it has another order in every process
    names = given if isinstance(given, Sequence) and not isinstance(given, str) else ()
    wrong = next((name for name in names if name not in allowed or names.count(name) > 1), None)
    if not names or wrong is not None:
        got = given if wrong is None else wrong
        raise ValueError(f"{what}: expected some of {', '.join(allowed)}, got {got!r}")


def _heads(tower: str, blocks: list[Block]) -> Iterator[Removable]:
    for block in blocks:
        attention = block_parts(block).attention
        for head in range(attention.num_heads if attention else 0):
            kept = {block.index: _but(attention.num_heads if attention else 0, range(head, head + 1))}
            yield Removable(tower, block.index, "heads", head, {tower: {"heads": kept}}, (block,))


def _neurons(tower: str, blocks: list[Block], groups: int, across_layers: bool) -> Iterator[Removable]:
    sizes = {block: mlp.neurons for block in blocks if (mlp := block_parts(block).mlp) and mlp.neurons}
    if across_layers and sizes:
        for index in range(count := min(groups, *sizes.values())):
            own = {b.index: _but(n, group_neurons(n, count, index)) for b, n in sizes.items()}
            yield Removable(tower, None, "neurons", index, {tower: {"neurons": own}}, tuple(sizes))
        return
    for block, neurons in sizes.items():
        for index in range(count := min(groups, neurons)):
            own = {block.index: _but(neurons, group_neurons(neurons, count, index))}
            yield Removable(tower, block.index, "neurons", index, {tower: {"neurons": own}}, (block,))


def removable_layers(blocks: Sequence[Block]) -> list[Block]:
    """Layers of a tower that can be missing: none of one, nor those that run in step with others."""
    partners = partners_of(blocks)
    return [block for block in blocks if len(blocks) > 1 and block.name not in partners]


def _layers(tower: str, blocks: list[Block]) -> Iterator[Removable]:
    for block in removable_layers(blocks):
        kept = _but(len(blocks), range(block.index, block.index + 1))
        yield Removable(tower, block.index, "layers", block.index, {tower: {"layers": kept}}, (block,))


def _but(total: int, gone: range) -> list[Any]:
    return [number for number in range(total) if number not in gone]
