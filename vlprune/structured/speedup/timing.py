"""Seconds of a model's real layers on this machine, measured once and remembered."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ... import measure, models
from ...cache_dir import load_cache, save_cache
from ...distributed import hides_progress
from ...models import Block
from ...models.parts import block_parts
from ...models.running import evaluating
from .calls import BlockCall, parts_of_towers, record_blocks, tower_calls
from .costs import Curve, LayerCost, TowerCost, fit_curve
from .shapes import Shape, cut_block, shapes_of

__all__ = ["KeptTimes", "measure_costs"]

# Shapes timed in turns with the whole block. Their weights together are more than a last-level cache holds
# wherever those of a tower are, so that they come from memory here as they do there.
_CHUNK = 4
_ROUNDS, _MIN_SECONDS, _MAX_SECONDS = 15, 1.0, 30.0


class KeptTimes:
    """Times by name, kept in the cache folder under a fingerprint of all that they depend on.

    Args:
        settings: what they depend on besides the machine: anything whose `repr` says it all.

    """

    def __init__(self, settings: Any) -> None:
        machine = {key: value for key, value in measure.machine_info().items() if key != "commit"}
        precision = torch.get_float32_matmul_precision()
        described = repr((machine, precision, os.environ.get("VLPRUNE_BACKEND"), settings))
        self._key = hashlib.sha256(described.encode()).hexdigest()
        self._name = f"layer-times-{self._key[:16]}.json"
        kept = load_cache(self._name)
        times = kept.get("times") if kept.get("key") == self._key else None
        self.times: dict[str, float] = {
            name: time
            for name, time in (times if isinstance(times, dict) else {}).items()
            if isinstance(time, float) and 0.0 < time < math.inf
        }

    def add(self, times: Mapping[str, float]) -> None:
        """Take these too, and write all."""
        self.times.update(times)
        save_cache(self._name, {"key": self._key, "times": self.times})


@torch.inference_mode()
def measure_costs(
    model: nn.Module,
    towers: Sequence[str],
    *,
    batch: int = 8,
    sparse: bool = False,
    progress: bool | None = None,
) -> list[TowerCost]:
    """Measure what the layers of some towers cost by how many heads and neurons they have.

    Each kind of block is timed as it is, in turns with copies of it that have fewer heads or fewer
    neurons, on what the model gives it: norms, residuals and the cost of calling included. Only the ratios
    to the whole block count, because machines change their pace. The seconds are those of all blocks in
    sequence, scaled so that together with what is no block they make up the tower as it runs.

    Times are kept in the cache folder (VLPRUNE_CACHE) by machine, versions, threads, sizes, dtypes and
    batch, written as they are measured, so that a killed call continues.

    Args:
        model: an open_clip model; unchanged afterwards. It runs in eval mode.
        towers: some of "visual" and "text".
        batch: made-up images, and texts, in a call.
        sparse: time 2:4 weights as well, and take the faster of both.
        progress: None shows a bar on a terminal, False never, True always.

    """
    device = next(model.parameters()).device
    with evaluating(model):
        runs = tower_calls(model, towers, batch)
        calls = {tower: record_blocks(model, tower, run) for tower, run in runs.items()}
        kinds: dict[str, list[BlockCall]] = {}
        for call in (call for own in calls.values() for call in own):
            kinds.setdefault(call.kind, []).append(call)
        kept = KeptTimes((list(kinds), repr(model), list(towers), batch, str(device)))
        numbers = {kind: number for number, kind in enumerate(kinds)}
        shapes = {number: shapes_of(kinds[kind][0].block, sparse) for kind, number in numbers.items()}
        wanted = [(n, s) for n, own in shapes.items() for s in own if f"{n} {s}" not in kept.times]
        candidates = parts_of_towers(runs, calls, numbers)
        missing = not candidates.keys() <= kept.times.keys()
        total = len(wanted) + missing
        with tqdm(total=total, desc="layer times", disable=hides_progress(progress)) as bar:
            if missing:
                kept.add(_timed(candidates, device))
                bar.update()
            for number, kind in enumerate(kinds):
                left = [shape for n, shape in wanted if n == number]
                for first in range(0, len(left), _CHUNK):
                    chunk = left[first : first + _CHUNK]
                    kept.add(_ratios(kinds[kind][0], number, chunk, device))
                    bar.update(len(chunk))
    return [_tower_cost(model, tower, own, numbers, shapes, kept.times) for tower, own in calls.items()]


def _ratios(call: BlockCall, number: int, shapes: Sequence[Shape], device: torch.device) -> dict[str, float]:
    """Time of each shape over the whole block's."""
    with torch.inference_mode(False):
        cut = {f"{number} {shape}": cut_block(call.block, shape) for shape in shapes}
    runs = {name: partial(call.run, module) for name, module in cut.items()}
    times = _timed({"": call.run, **runs}, device)
    return {name: times[name] / times[""] for name in cut}


def _timed(candidates: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    times = measure.compare(
        candidates, device=device, rounds=_ROUNDS, min_seconds=_MIN_SECONDS, max_seconds=_MAX_SECONDS
    )
    # the undisturbed calls: what else the machine does is not the shape's cost
    return {name: timing.p20 for name, timing in times.items()}


def _tower_cost(
    model: nn.Module,
    tower: str,
    calls: Sequence[BlockCall],
    numbers: Mapping[str, int],
    shapes: Mapping[int, Sequence[Shape]],
    times: Mapping[str, float],
) -> TowerCost:
    of = {call.block.index: numbers[call.kind] for call in calls}
    kinds = dict.fromkeys(of.values())
    # the rest may come out above the whole where blocks cost next to nothing
    fixed = min(times[f"{tower} rest"], times[tower])
    alone = sum(times[f"{tower} {kind}"] for kind in kinds)
    agreement = alone / (times[tower] - fixed) if times[tower] > fixed else 1.0
    costs = {}
    for kind in kinds:
        whole = times[f"{tower} {kind}"] / agreement / sum(other == kind for other in of.values())
        costs[kind] = whole
    blocks = models.view(model).towers[tower].blocks
    return TowerCost(
        tower,
        fixed,
        tuple(
            _layer_cost(block, costs[kind := of[block.index]], f"{kind} ", shapes[kind], times)
            if block.index in of
            else None
            for block in blocks
        ),
        agreement,
    )


def _layer_cost(
    block: Block, whole: float, prefix: str, shapes: Sequence[Shape], times: Mapping[str, float]
) -> LayerCost:
    parts = block_parts(block)
    curves: dict[str, Curve] = {}
    totals = {
        "heads": parts.attention.num_heads if parts.attention else 0,
        "neurons": parts.mlp.neurons if parts.mlp else 0,
    }
    for part, total in totals.items():
        own = [shape for shape in shapes if shape.part == part]
        dense = {shape.kept: times[f"{prefix}{shape}"] for shape in own if not shape.packed}
        packed = {shape.kept: times[f"{prefix}{shape}"] for shape in own if shape.packed}
        if dense:
            curves[part] = fit_curve(whole, total, dense, packed)
    return LayerCost(whole, curves.get("heads"), curves.get("neurons"))
