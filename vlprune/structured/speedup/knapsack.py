"""One option for every layer, within a time, with the least summed error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["TICKS", "Option", "fastest", "least_error"]

# The time allowed is cut into so many; every layer's is rounded up to whole ones.
TICKS = 8192


@dataclass(frozen=True)
class Option:
    """One way to leave a layer: how long it takes, what it costs, and whether it is there at all."""

    seconds: float
    error: float
    stays: bool = True


def least_error(towers: Sequence[Sequence[Sequence[Option]]], limit: float) -> list[list[int]] | None:
    """Choose by dynamic programming over time, of which there are `TICKS` steps.

    Of choices with the same summed error the slowest one is taken, which keeps the most. Rounding costs
    a step a layer at most: the sum of the chosen errors is no larger than the least one within
    ``limit * (1 - layers / TICKS)``.

    Args:
        towers: of each tower the options of every layer; at least one layer of every tower stays.
        limit: seconds that all layers of all towers may take together.

    Returns:
        Of each tower the number of the option of every layer; None if nothing fits.

    """
    unit = limit / TICKS
    if not 0 < unit < math.inf:
        return None
    # state 0: no layer of this tower stays so far; state 1: one does
    errors = np.full((2, TICKS + 1), np.inf)
    errors[1, 0] = 0.0
    steps: list[tuple[Sequence[Option], list[int], np.ndarray, np.ndarray]] = []
    for layers in towers:
        errors = np.stack([errors[1], np.full(TICKS + 1, np.inf)])
        for options in layers:
            # what fits exactly must not be rounded up by the last bit of a division
            ticks = [math.ceil(option.seconds / unit - 1e-6) for option in options]
            new = np.full((2, TICKS + 1), np.inf)
            choice = np.full((2, TICKS + 1), -1, np.int32)
            came_from = np.zeros((2, TICKS + 1), np.int8)
            for number in _worthwhile(options):
                option, used = options[number], ticks[number]
                if used > TICKS:
                    continue
                for state in (0, 1):
                    to = 1 if option.stays else state
                    reached = errors[state, : TICKS + 1 - used] + option.error
                    better = reached < new[to, used:]
                    new[to, used:][better] = reached[better]
                    choice[to, used:][better] = number
                    came_from[to, used:][better] = state
            errors = new
            steps.append((options, ticks, choice, came_from))
    if not np.isfinite(errors[1].min()):
        return None
    least = errors[1].min()
    # sums in another order may differ in their last bits
    tick = int(np.flatnonzero(errors[1] <= least + 1e-9 * max(1.0, abs(least)))[-1])
    return _trace_back([len(layers) for layers in towers], steps, tick)


def _trace_back(
    sizes: Sequence[int], steps: list[tuple[Sequence[Option], list[int], np.ndarray, np.ndarray]], tick: int
) -> list[list[int]]:
    chosen: list[list[int]] = []
    for size in reversed(sizes):
        state, own = 1, []
        for _ in range(size):
            _, ticks, choice, came_from = steps.pop()
            number = int(choice[state, tick])
            state = int(came_from[state, tick])
            own.append(number)
            tick -= ticks[number]
        chosen.append(own[::-1])
    return chosen[::-1]


def fastest(towers: Sequence[Sequence[Sequence[Option]]]) -> list[list[int]]:
    """Choose the least time, at least one layer of every tower staying: of equal times the smaller error."""
    chosen = []
    for layers in towers:
        own = [min(range(len(o)), key=lambda i, o=o: (o[i].seconds, o[i].error)) for o in layers]  # type: ignore[misc]
        if layers and not any(o[i].stays for o, i in zip(layers, own, strict=True)):
            standing = [
                min((i for i in range(len(o)) if o[i].stays), key=lambda i, o=o: (o[i].seconds, o[i].error))  # type: ignore[misc]
                for o in layers
            ]
            extra = [o[s].seconds - o[i].seconds for o, s, i in zip(layers, standing, own, strict=True)]
            least = extra.index(min(extra))
            own[least] = standing[least]
        chosen.append(own)
    return chosen


def _worthwhile(options: Sequence[Option]) -> list[int]:
    """Options than which none has less error in no more time; of equal errors all count.

    One that stays is worth having beside one that does not, because a layer of a tower has to.
    """
    found: list[int] = []
    for stays in (True, False):
        own = [i for i, option in enumerate(options) if option.stays is stays]
        own.sort(key=lambda i: (options[i].seconds, options[i].error))
        least = math.inf
        for i in own:
            if options[i].error <= least:
                least = options[i].error
                found.append(i)
    return found
