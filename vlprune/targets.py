"""Which layers a config or a filter means."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from . import models
from .config import PruneConfig

__all__ = ["NoMatchError", "select_layers"]


class NoMatchError(ValueError):
    """A `targets` pattern or a filter that matches no layer."""


def select_layers(
    model: nn.Module, config: PruneConfig, filter_fn: Callable[[nn.Module, str], bool] | None = None
) -> dict[str, nn.Linear]:
    """Linear layers inside the blocks of both towers that the config asks for, in model order.

    A pattern is a tower's name ("visual", "text") or a shell pattern of qualified names. One that
    matches nothing is an error that lists the nearest names, not a silent no-op.
    """
    found: dict[str, tuple[str, nn.Module]] = {
        name: (tower.name, module)
        for tower in models.view(model).towers.values()
        for block in tower.blocks
        for name, module in block.linears().items()
    }
    for field, patterns in (("targets", config.targets), ("ignore", config.ignore)):
        for pattern in patterns:
            if not any(_matches(pattern, name, tower) for name, (tower, _) in found.items()):
                near = difflib.get_close_matches(pattern, found, n=3, cutoff=0.0)
                raise NoMatchError(f"{field}: {pattern!r} matches no layer; nearest: {', '.join(near)}")
    chosen: dict[str, nn.Linear] = {}
    for name, (tower, module) in found.items():
        if not _any(config.targets, name, tower) or _any(config.ignore, name, tower):
            continue
        if filter_fn is not None and not filter_fn(module, name):
            continue
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"{name}: a {type(module).__name__} cannot be pruned, only nn.Linear; ignore it, or put "
                "its dense form back (Linear24.to_linear)"
            )
        chosen[name] = module
    if not chosen:
        raise NoMatchError(f"targets, ignore and filter_fn together leave none of the {len(found)} layers")
    return chosen


def _any(patterns: Sequence[str], name: str, tower: str) -> bool:
    return any(_matches(pattern, name, tower) for pattern in patterns)


def _matches(pattern: str, name: str, tower: str) -> bool:
    return pattern == tower or fnmatchcase(name, pattern)
