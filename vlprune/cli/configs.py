"""Pruning configs from the command line: options, or files of `PruneConfig.to_dict`."""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from ..allocation import Allocation, Uniform, allocation_from_dict
from ..config import METHODS, PruneConfig, config_from_dict
from ..files import read_json

__all__ = ["configs"]


def configs(args: argparse.Namespace) -> list[PruneConfig]:
    """Every method with every pattern, sparsity and allocation that was asked for, or what the files say.

    What n:m fixes is not multiplied: an allocation belongs to the unstructured variants as long as there
    are any.
    """
    if args.config:
        return _from_files(args)
    methods, patterns, sparsities = _as_list(args.method), _as_list(args.pattern), _as_list(args.sparsity)
    if args.model == "demo" and args.command == "run" and not (patterns or sparsities):
        methods, patterns, sparsities = methods or ["magnitude", "wanda"], ["2:4"], [0.5, 0.7]
    if sparsities and "unstructured" not in patterns and (args.command == "run" or not patterns):
        patterns = [*patterns, "unstructured"]
    common = {
        "scope": args.scope,
        "activations": args.activations,
        "targets": tuple(args.targets),
        "ignore": tuple(args.ignore),
        "samples": args.samples,
        "token_weight": args.token_weight,
    }
    alone = args.command == "prune"  # its one pattern gets its one sparsity and allocation, fitting or not
    allocations = [_allocation(text) for text in _as_list(args.allocation)] or [Uniform()]
    result = []
    for method, pattern in product(methods or ["wanda"], patterns or ["2:4"]):
        if method not in METHODS:
            raise ValueError(f"--method: expected one of {', '.join(METHODS)}, got {method!r}")
        free = pattern == "unstructured" or alone
        shares = allocations if free or "unstructured" not in patterns else [Uniform()]
        for sparsity, share in product((sparsities or [None]) if free else [None], shares):
            made = METHODS[method](pattern=pattern, sparsity=sparsity, allocation=share, **common)
            result.append(made)
    return result


def _from_files(args: argparse.Namespace) -> list[PruneConfig]:
    for name in ("method", "pattern", "sparsity", "allocation"):
        if getattr(args, name):
            raise ValueError(f"--config: the file says all of it; leave out --{name}")
    result = []
    for path in _as_list(args.config):
        content = read_json(Path(path))
        for entry in content if isinstance(content, list) else [content]:
            if not isinstance(entry, dict):
                raise ValueError(f"{path}: expected a config, or a list of them, got {entry!r}")
            try:
                result.append(config_from_dict(entry))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: {error}") from error
    if args.command == "prune" and len(result) != 1:
        raise ValueError(f"--config: prune takes one config, the file holds {len(result)}")
    return result


def _allocation(text: str) -> Allocation:
    """Read ``kind``, ``kind:field=value,field=value`` or a JSON file of `Allocation.to_dict`."""
    if text.endswith(".json"):
        return allocation_from_dict(read_json(Path(text)))
    kind, _, rest = text.partition(":")
    fields: dict[str, Any] = {"kind": kind}
    for pair in rest.split(",") if rest else []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--allocation: expected KIND:FIELD=VALUE,..., got {text!r}")
        fields[name.strip()] = _value(value.strip())
    return allocation_from_dict(fields)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
