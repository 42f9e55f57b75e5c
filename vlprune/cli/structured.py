"""Options that take heads, neurons and layers out of a model."""

from __future__ import annotations

import argparse
import math
import re
from typing import Any

from ..structured import Keep, StructuredConfig
from ..structured.keep import CRITERIA, NEURON_GROUPS, TOWERS

__all__ = ["STRUCTURED", "add_structured", "structured_config"]

_KINDS = ("heads", "neurons", "layers")

# Names of the options, as argparse has them.
STRUCTURED = (*_KINDS, "target_speedup", "tower", "criterion", "neuron_groups")


def add_structured(command: argparse.ArgumentParser) -> None:
    """Add the options to a command; `structured_config` reads them."""
    group = command.add_argument_group(
        "structured pruning",
        "Whole modules are taken out, before any weight is pruned. A number with a dot is the share that "
        "stays, one without a count. Weights are then only pruned if --method, --pattern, --sparsity or "
        "another option of theirs is given.",
    )
    group.add_argument("--heads", metavar="KEEP", help="attention heads of each layer that stay: 0.5, or 6")
    group.add_argument("--neurons", metavar="KEEP", help="MLP neurons of each layer that stay: 0.5, or 1536")
    group.add_argument("--layers", metavar="KEEP", help="layers of a tower that stay: 0.75, or 9")
    group.add_argument(
        "--target-speedup",
        metavar="TIMES",
        help="instead: how much faster the model is to run on this machine, such as 2.0; with --pattern 2:4 "
        "after that",
    )
    group.add_argument("--tower", help=f"{', '.join(TOWERS)} (default: both)")
    group.add_argument(
        "--criterion", help=f"what is needed least is found by: {', '.join(CRITERIA)} (default: mope)"
    )
    group.add_argument(
        "--neuron-groups",
        help=f"how mope judges groups of neurons: {', '.join(NEURON_GROUPS)}; rank takes the same group out "
        "of all layers at once, which is faster (default: layer)",
    )


def structured_config(args: argparse.Namespace, sparse: bool) -> StructuredConfig | None:
    """Config of the options, None if they take nothing out.

    Args:
        args: of a command that `add_structured` was called for.
        sparse: whether weights are pruned to 2:4 afterwards, which counts for a target speed-up.

    Raises:
        ValueError: a value that is not allowed, or options that do not go together.

    """
    kept = {kind: _keep(kind, text) for kind in _KINDS if (text := getattr(args, kind)) is not None}
    target = args.target_speedup
    if not kept and target is None:
        for name in ("tower", "criterion", "neuron_groups"):
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{option}: needs one of --heads, --neurons, --layers or --target-speedup beside it"
                )
        return None
    if kept and target is not None:
        raise ValueError(f"--target-speedup: chooses how much stays; leave out --{next(iter(kept))}")
    tower, criterion = args.tower or "both", args.criterion or "mope"
    groups = args.neuron_groups or "layer"
    for name, value, allowed in (
        ("tower", tower, TOWERS),
        ("criterion", criterion, CRITERIA),
        ("neuron-groups", groups, NEURON_GROUPS),
    ):
        if value not in allowed:
            raise ValueError(f"--{name}: expected one of {', '.join(allowed)}, got {value!r}")
    if args.neuron_groups is not None and (criterion != "mope" or target is not None):
        other = f"criterion {criterion}" if criterion != "mope" else "--target-speedup"
        raise ValueError(f"--neuron-groups: {other} judges no groups of all layers at once; leave it out")
    fields: dict[str, Any] = {"criterion": criterion, "neuron_groups": groups}
    if args.samples is not None:
        fields["samples"] = args.samples
    if target is not None:
        fields |= {"target_speedup": _times(target), "tower": tower, "sparse": sparse}
        if batch := getattr(args, "batch", None):
            fields["timed_batch"] = batch
    else:
        keep = Keep(**kept)
        fields |= {name: keep for name in ("visual", "text") if tower in (name, "both")}
    return StructuredConfig(**fields)


def _times(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 < value < math.inf:
        raise ValueError(f"--target-speedup: expected a number above 1, such as 2.0, got {text!r}")
    return value


def _keep(kind: str, text: str) -> float | int:
    """A share with a dot, a count without."""
    least = 1 if kind == "layers" else 0
    if re.fullmatch(r"[0-9]+", text) and int(text) >= least:
        return int(text)
    if re.fullmatch(r"[0-9]*\.[0-9]*", text) and text != "." and 0 < float(text) <= 1:
        return float(text)
    raise ValueError(
        f"--{kind}: expected the share that stays, with a dot, above 0 and up to 1.0, or a count of at "
        f"least {least}, got {text!r}"
    )
