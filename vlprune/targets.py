"""Which layers a config or a filter means."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from . import models
from .config import PruneConfig

__all__ = ["NoMatchError", "block_linears", "match_layers", "matches", "require_linear", "select_layers"]


class NoMatchError(ValueError):
    """A `targets` pattern or a filter that matches no layer."""


def select_layers(
    model: nn.Module, config: PruneConfig, filter_fn: Callable[[nn.Module, str], bool] | None = None
) -> dict[str, nn.Linear]:
    """Linear layers inside the blocks of both towers that the config asks for, in model order.

    Raises:
        NoMatchError: see `match_layers`.
        ValueError: one of them is no plain linear layer.

    """
    chosen = match_layers(block_linears(model), config.targets, config.ignore, filter_fn)
    return {name: require_linear(name, module, "be pruned") for name, module in chosen.items()}


def block_linears(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Qualified name -> tower and layer, for what is linear inside the towers' blocks, in model order."""
    return {
        name: (tower.name, module)
        for tower in models.view(model).towers.values()
        for block in tower.blocks
        for name, module in block.linears().items()
    }


def match_layers(
    found: Mapping[str, tuple[str, nn.Module]],
    targets: Sequence[str],
    ignore: Sequence[str],
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> dict[str, nn.Module]:
    """Return the layers that the targets mean and that neither `ignore` nor the filter leaves out.

    A pattern is a tower's name ("visual", "text") or a shell pattern of qualified names.

    Args:
        found: qualified name -> tower and layer.
        targets: patterns.
        ignore: patterns.
        filter_fn: ``(module, qualified name) -> bool``, True for those to take.

    Raises:
        NoMatchError: a pattern that matches nothing, with the nearest names, since it is no silent no-op;
            or nothing is left.

    """
    for field, patterns in (("targets", targets), ("ignore", ignore)):
        for pattern in patterns:
            if not any(matches(pattern, name, tower) for name, (tower, _) in found.items()):
                near = difflib.get_close_matches(pattern, found, n=3, cutoff=0.0)
                raise NoMatchError(f"{field}: {pattern!r} matches no layer; nearest: {', '.join(near)}")
    chosen = {
        name: module
        for name, (tower, module) in found.items()
        if any(matches(pattern, name, tower) for pattern in targets)
        and not any(matches(pattern, name, tower) for pattern in ignore)
        and (filter_fn is None or filter_fn(module, name))
    }
    if not chosen:
        what = "targets and ignore" if filter_fn is None else "targets, ignore and filter_fn"
        raise NoMatchError(f"{what} together leave none of the {len(found)} layers")
    return chosen


def matches(pattern: str, name: str, tower: str) -> bool:
    """Whether a pattern means a layer of that name in that tower."""
    return pattern == tower or fnmatchcase(name, pattern)


def require_linear(name: str, module: nn.Module, purpose: str) -> nn.Linear:
    """Return the module, or raise ValueError unless it is a linear layer with nothing but its own weight."""
    if not isinstance(module, nn.Linear):
        remedy = "put its dense form back (Linear24.to_linear), or prune before it is quantised"
    elif "lora_A" in module._parameters:
        remedy = "put its adapter into its weight first (merge_sparse_lora_)"
    elif "weight" not in module._parameters:
        raise ValueError(f"{name}: its weight is computed by a parametrization; remove that first")
    else:
        return module
    raise ValueError(f"{name}: a {type(module).__name__} cannot {purpose}; ignore it, or {remedy}")
