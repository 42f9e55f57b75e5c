"""What has to go for a named speed-up, at the least summed error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ... import models
from ...models import Block
from ..choose import turns_of
from ..modules import ModuleError
from .costs import LayerCost, TowerCost
from .knapsack import Option, fastest, least_error
from .shapes import neuron_counts

__all__ = ["Chosen", "LayerChoice", "Speedup", "check_reachable", "choose_for_speed", "most_speedup"]


@dataclass(frozen=True)
class LayerChoice:
    """What stays of one layer, None for all, and what that costs: seconds before and after, and the error."""

    tower: str
    layer: int
    stays: bool
    heads: int | None
    neurons: int | None
    seconds: tuple[float, float]
    error: float


@dataclass(frozen=True)
class Speedup:
    """A speed-up that was named, what the costs of layers predict of the choice, and what was measured of it.

    Args:
        target: what was named.
        tower: "visual", "text" or "both".
        batch: images, or texts, in a call.
        sparse: whether what remains counts as 2:4.
        predicted: by the costs of the layers.
        measured: the median of several comparisons with the whole model.
        spread: the least and the largest of them.
        tries: how many choices were measured, of which this one is nearest to `target`.
        error: the sum of those of `layers`.
        layers: what is left of each.

    """

    target: float
    tower: str
    batch: int
    sparse: bool
    predicted: float
    measured: float
    spread: tuple[float, float]
    tries: int
    error: float
    layers: tuple[LayerChoice, ...]

    def __str__(self) -> str:
        what = {"visual": "image tower", "text": "text tower", "both": "both towers"}[self.tower]
        lines = [
            f"{what}, batch {self.batch}{', what remains as 2:4' * self.sparse}: {self.target:g}x named, "
            f"{self.predicted:.2f}x predicted, {self.measured:.2f}x measured "
            f"({self.spread[0]:.2f} to {self.spread[1]:.2f}); errors of what goes add up to {self.error:.4g}"
        ]
        for tower in dict.fromkeys(layer.tower for layer in self.layers):
            own = [layer for layer in self.layers if layer.tower == tower]
            for kind in ("heads", "neurons"):
                counts = ["all" if (n := getattr(layer, kind)) is None else str(n) for layer in own]
                left = [count if layer.stays else "-" for count, layer in zip(counts, own, strict=True)]
                lines.append(f"{tower}, {kind} left by layer: {' '.join(left)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Chosen:
    """Keep lists, the speed-up that the measured costs predict of them, and the layers one by one."""

    keep_lists: dict[str, dict[str, Any]]
    predicted: float
    layers: tuple[LayerChoice, ...]

    @property
    def error(self) -> float:
        """Sum of the errors of what goes; what the model is better without counts nothing."""
        return sum(layer.error for layer in self.layers)


@dataclass(frozen=True)
class _Way:
    """One way to leave a layer, and the numbers of the heads and neurons that stay then, None for all."""

    option: Option
    heads: list[int] | None = None
    neurons: list[int] | None = None


def choose_for_speed(
    model: nn.Module, costs: Sequence[TowerCost], errors: Iterable[ModuleError], target: float
) -> Chosen:
    """Choose heads, neurons and layers to remove so that some towers run `target` times as fast.

    Errors add up: those of a layer's heads and groups of neurons in the order in which `choose` removes
    them, a part of a group in proportion, or that of the layer as a whole. One below zero counts as zero,
    so it is free to remove, but nothing is removed that the speed does not ask for. Within the time
    allowed the sum is least (`least_error`).

    Args:
        model: the model that the costs and errors are of, its neurons sorted.
        costs: of the towers that are to be faster together.
        errors: of their heads, neurons and layers; what has none stays.
        target: time of these towers as they are over the time they may take.

    Raises:
        ValueError: no choice is that fast: the largest speed-up there is is named.

    """
    errors = list(errors)
    check_reachable(model, costs, errors, target)
    ways = {cost.tower: _ways_of_tower(model, cost, errors) for cost in costs}
    options = [_options(own) for own in ways.values()]
    fixed, whole = sum(cost.fixed for cost in costs), sum(cost.whole for cost in costs)
    # rounding can hide what only just fits
    numbers = least_error(options, whole / target - fixed) or fastest(options)
    chosen = {
        tower: {layer: own[layer][number] for layer, number in zip(own, picked, strict=True)}
        for (tower, own), picked in zip(ways.items(), numbers, strict=True)
    }
    return Chosen(
        {cost.tower: _keep_list(cost, chosen[cost.tower]) for cost in costs},
        whole / (fixed + _seconds(options, numbers)),
        tuple(
            LayerChoice(
                cost.tower,
                layer,
                way.option.stays,
                None if way.heads is None else len(way.heads),
                None if way.neurons is None else len(way.neurons),
                (before.whole, way.option.seconds),
                way.option.error,
            )
            for cost in costs
            for layer, before in enumerate(cost.layers)
            if before and (way := chosen[cost.tower][layer])
        ),
    )


def most_speedup(model: nn.Module, costs: Sequence[TowerCost], errors: Iterable[ModuleError]) -> float:
    """Return the largest speed-up that can be chosen of what has an error, whatever that is."""
    errors = list(errors)
    options = [_options(_ways_of_tower(model, cost, errors)) for cost in costs]
    fixed, whole = sum(cost.fixed for cost in costs), sum(cost.whole for cost in costs)
    return whole / (fixed + _seconds(options, fastest(options)))


def check_reachable(
    model: nn.Module, costs: Sequence[TowerCost], errors: Iterable[ModuleError], target: float
) -> None:
    """Raise ValueError, with the largest speed-up there is, if no choice is `target` times as fast."""
    most = most_speedup(model, costs, errors)
    if target > most * (1 + 1e-9):
        raise ValueError(
            f"target_speedup: {target:g} cannot be reached, one layer and what is no layer take too long; "
            f"expected at most {int(100 * most) / 100:g}"
        )


def _options(ways: Mapping[int, Sequence[_Way]]) -> list[list[Option]]:
    return [[way.option for way in own] for own in ways.values()]


def _seconds(options: Sequence[Sequence[Sequence[Option]]], numbers: Sequence[Sequence[int]]) -> float:
    return sum(
        layer[number].seconds
        for tower, own in zip(options, numbers, strict=True)
        for layer, number in zip(tower, own, strict=True)
    )


def _ways_of_tower(model: nn.Module, cost: TowerCost, errors: Sequence[ModuleError]) -> dict[int, list[_Way]]:
    """Ways to leave every layer that runs."""
    blocks = models.view(model).towers[cost.tower].blocks
    own = [error for error in errors if error.tower == cost.tower]
    return {
        block.index: _ways(block, layer, own)
        for block, layer in zip(blocks, cost.layers, strict=True)
        if layer is not None
    }


def _ways(block: Block, cost: LayerCost, errors: Sequence[ModuleError]) -> list[_Way]:
    width = [error for error in errors if error.layer in (block.index, None)]
    heads = _kept(block.index, width, "heads", cost.heads.total if cost.heads else 0)
    neurons = _kept(block.index, width, "neurons", cost.neurons.total if cost.neurons else 0)
    if cost.heads:
        heads = [(kept, error) for kept, error in heads if kept is None or len(kept) >= cost.heads.least]
    found = [
        _Way(
            Option(
                cost.seconds(*(None if k is None else len(k) for k in (kept_heads, kept_neurons))),
                error + other,
            ),
            kept_heads,
            kept_neurons,
        )
        for kept_heads, error in heads
        for kept_neurons, other in neurons
    ]
    gone = [e.error for e in errors if (e.kind, e.index) == ("layers", block.index)]
    return [*found, *(_Way(Option(0.0, max(0.0, error), False)) for error in gone)]


def _kept(
    layer: int, errors: Sequence[ModuleError], kind: str, total: int
) -> list[tuple[list[int] | None, float]]:
    """Numbers that stay, by every count that may be left, each with the summed error of the others."""
    own = [error for error in errors if error.kind == kind]
    if not own or not total:
        return [(None, 0.0)]
    turns = sorted(turns_of(layer, own, kind, total))
    # a neuron carries its share of the error of its group
    shares = len(own) / total if kind == "neurons" else 1.0
    sums = [0.0]
    for error, *_ in turns:
        sums.append(sums[-1] + max(0.0, error) * shares)
    counts = neuron_counts(total)[:-1] if kind == "neurons" else range(total)
    gone = [total - count for count in counts]
    return [*((sorted(number for *_, number in turns[n:]), sums[n]) for n in gone), (None, 0.0)]


def _keep_list(cost: TowerCost, chosen: Mapping[int, _Way]) -> dict[str, Any]:
    gone = {layer for layer, way in chosen.items() if not way.option.stays}
    return {
        "heads": {layer: way.heads for layer, way in chosen.items() if way.heads is not None},
        "neurons": {layer: way.neurons for layer, way in chosen.items() if way.neurons is not None},
        "layers": [layer for layer in range(len(cost.layers)) if layer not in gone],
    }
