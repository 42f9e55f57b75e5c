"""Which form and config of `linear24` runs while nothing has been measured: by counting, not by the clock.

That is while a CUDA graph is captured, where Triton could not compile: compiled kernels come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .problem import Problem

__all__ = ["default", "steps"]

# Steps along the inputs that starting and ending a tile costs as much as.
_ENDS = 4


def default(problem: Problem, able: Mapping[str, Mapping[str, Any]], processors: int) -> tuple[str, str]:
    """Pick ``(backend, config)``.

    Args:
        problem: what is to be computed.
        able: for each backend that can, best first, its configs in their order and what is known of each:
            a tile as `ConfigInfo` of csrc/cuda/linear24.h has it, or None.
        processors: multiprocessors of the device.

    """
    backend, configs = next(iter(able.items()))
    tiled = {name: tile for name, tile in configs.items() if tile}
    if not tiled:
        return backend, next(iter(configs))
    return backend, min(tiled, key=lambda name: steps(problem, tiled[name], processors))


def steps(problem: Problem, tile: Mapping[str, Any], processors: int) -> float:
    """Work that the busiest multiprocessor does with such tiles: results times inputs summed."""
    tiles = -(-problem.out // tile["out"]) * -(-problem.tokens // tile["tokens"])
    # A kernel that splits as it likes leaves nobody idle, but shares out no less than two steps.
    parts = tile["split"] or max(1, min(processors // tiles, problem.inputs // (2 * tile["in"])))
    rounds = -(-tiles * parts // processors)
    inputs = problem.inputs / parts + _ENDS * tile["in"]
    return float(rounds * inputs * tile["out"] * tile["tokens"])
