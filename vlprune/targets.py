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
    """Dense linear layers inside the blocks of both towers that the config asks for, in model order.

    A pattern is a tower's name ("visual", "text") or a shell pattern of qualified names. One that
    matches nothing is an error that lists the nearest names, not a silent no-op.
    """
    found: dict[str, tuple[str, nn.Linear]] = {}
    for tower in models.view(model).towers.values():
        for block in tower.blocks:
            for name, module in block.linears().items():
                if isinstance(module, nn.Linear):
                    found[name] = (tower.name, module)
    for field, patterns in (("targets", config.targets), ("ignore", config.ignore)):
        for pattern in patterns:
            if not any(_matches(pattern, name, tower) for name, (tower, _) in found.items()):
                near = difflib.get_close_matches(pattern, found, n=3, cutoff=0.0)
                raise NoMatchError(f"{field}: {pattern!r} matches no layer; nearest: {', '.join(near)}")
    chosen = {
        name: module
        for name, (tower, module) in found.items()
        if _any(config.targets, name, tower)
        and not _any(config.ignore, name, tower)
        and (filter_fn is None or filter_fn(module, name))
    }
    if not chosen:
        raise NoMatchError(f"targets, ignore and filter_fn together leave none of the {len(found)} layers")
    return chosen


def _any(patterns: Sequence[str], name: str, tower: str) -> bool:
    return any(_matches(pattern, name, tower) for pattern in patterns)


def _matches(pattern: str, name: str, tower: str) -> bool:
    return pattern == tower or fnmatchcase(name, pattern)
