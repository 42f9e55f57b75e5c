"""A named speed-up chosen by measured costs, checked on the smaller model itself, and corrected."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from ... import measure, models
from ...models.running import evaluating
from ..cut import cut_
from ..keep import StructuredConfig
from ..modules import ModuleError
from ..plan import BlockPlan, KeepLists, plan_of
from .calls import tower_calls
from .choice import Chosen, Speedup, choose_for_speed, most_speedup
from .costs import Curve, TowerCost
from .shapes import pack_part_

__all__ = ["choose_and_verify", "measure_speedup", "pack_where_faster_"]

# A measured speed-up this near to the named one is as good as hit; else the choice is corrected.
_NEAR = 0.03
_TRIES = 5
# Comparisons, each of so many rounds, whose median is the measured speed-up.
_REPEATS, _ROUNDS, _MIN_SECONDS, _MAX_SECONDS = 5, 5, 0.2, 30.0


def choose_and_verify(
    model: nn.Module, config: StructuredConfig, costs: Sequence[TowerCost], errors: Sequence[ModuleError]
) -> tuple[KeepLists, Speedup]:
    """Choose what goes, measure the model without it, and choose anew where that is off the target.

    Costs of layers measured one by one need not add up to what the smaller model takes. If it is more than
    three percent faster or slower than named, another choice is made (`_next_aim`), at most
    four times, and the one that measured nearest is taken.

    Args:
        model: unchanged; a smaller copy is made of it.
        config: with `target_speedup`.
        costs: of `measure_costs`.
        errors: of all modules of the towers.

    Raises:
        ValueError: the target cannot be reached.

    """
    target = config.target_speedup
    assert target is not None
    found: list[tuple[Chosen, list[float]]] = []
    aim = target
    for _ in range(_TRIES):
        chosen = choose_for_speed(model, costs, errors, aim)
        if any(chosen.keep_lists == before.keep_lists for before, _ in found):
            break
        smaller = copy.deepcopy(model)
        cut_(smaller, chosen.keep_lists)
        if config.sparse:
            pack_where_faster_(smaller, plan_of(model, chosen.keep_lists), costs)
        ratios = measure_speedup(model, smaller, config.towers, config.timed_batch)
        found.append((chosen, ratios))
        measured = statistics.median(ratios)
        if abs(measured / target - 1) <= _NEAR:
            break
        aim = _next_aim(target, [(choice.predicted, statistics.median(own)) for choice, own in found])
        aim = max(1.0, min(aim, most_speedup(model, costs, errors)))
    chosen, ratios = min(found, key=lambda pair: abs(statistics.median(pair[1]) / target - 1))
    return chosen.keep_lists, Speedup(
        target,
        config.tower,
        config.timed_batch,
        config.sparse,
        chosen.predicted,
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        len(found),
        chosen.error,
        chosen.layers,
    )


def _next_aim(target: float, found: Sequence[tuple[float, float]]) -> float:
    """Return what to predict next, after (predicted, measured) speed-ups that were off the target.

    As much lower or higher as the last one was off; or, once the target lies between two measured ones,
    between what the nearest two were predicted to be, as correcting by the one leads back to the other.
    """
    below = max((pair for pair in found if pair[1] <= target), key=lambda pair: pair[1], default=None)
    above = min((pair for pair in found if pair[1] > target), key=lambda pair: pair[1], default=None)
    if below is None or above is None:
        predicted, measured = found[-1]
        return target * predicted / measured
    share = math.log(target / below[1]) / math.log(above[1] / below[1])
    return math.exp((1 - share) * math.log(below[0]) + share * math.log(above[0]))


@torch.inference_mode()
def measure_speedup(
    model: nn.Module, smaller: nn.Module, towers: Sequence[str], batch: int, repeats: int = _REPEATS
) -> list[float]:
    """Time of some towers of a model over that of a smaller one's, in several comparisons.

    Args:
        model: the whole one.
        smaller: the other one.
        towers: some of "visual" and "text", one after the other.
        batch: made-up images, and texts, in a call.
        repeats: how many comparisons, each of the medians of interleaved calls.

    """
    device = next(model.parameters()).device
    with evaluating(model), evaluating(smaller):
        runs = {
            name: tower_calls(own, towers, batch) for name, own in (("whole", model), ("smaller", smaller))
        }

        def run(name: str) -> None:
            for call in runs[name].values():
                call()

        found = []
        for _ in range(repeats):
            times = measure.compare(
                {name: partial(run, name) for name in runs},
                device=device,
                warmup=1,
                rounds=_ROUNDS,
                min_seconds=_MIN_SECONDS,
                max_seconds=_MAX_SECONDS,
            )
            found.append(times["whole"].median / times["smaller"].median)
    return found


def pack_where_faster_(smaller: nn.Module, plans: Sequence[BlockPlan], costs: Sequence[TowerCost]) -> None:
    """Make what is left of a model 2:4 and packed, in place, wherever that was the faster way when measured.

    Args:
        smaller: the model that the plans leave, its weights of no more use.
        plans: of the whole model.
        costs: of the whole model.

    """
    split = models.split_attention_(smaller)
    layers = {cost.tower: cost.layers for cost in costs}
    towers = models.view(smaller).towers
    for name in layers:
        staying = [plan for plan in plans if plan.stays and plan.block.tower == name]
        for block, plan in zip(towers[name].blocks, staying, strict=True):
            cost = layers[name][plan.block.index]
            for part in ("heads", "neurons"):
                curve: Curve | None = getattr(cost, part, None)
                kept: tuple[int, ...] | None = getattr(plan, part)
                if curve and curve.packed_at(curve.total if kept is None else len(kept)):
                    pack_part_(block.module, part)
    models.merge_attention_(smaller, split)
