"""What to make of a model, from the command line: options, or files of `Variant.to_dict`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

from ..allocation import Allocation, Uniform, allocation_from_dict
from ..config import METHODS, PruneConfig
from ..files import read_json
from ..pipeline import Variant
from .structured import STRUCTURED, structured_config

__all__ = ["variants_of"]

# What an option means that was not given; told apart from one that was, because --config excludes it.
_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(PruneConfig)
    if field.name in ("scope", "activations", "targets", "ignore", "samples", "token_weight")
}
# Options that ask for weights to be pruned; the calibration images are also those of structured pruning.
_WEIGHTS = ("method", "pattern", "sparsity", "allocation", *(name for name in _DEFAULTS if name != "samples"))


def variants_of(args: argparse.Namespace) -> list[Variant]:
    """What was asked for by options, or what the files say.

    Where modules go, weights are only pruned if an option of theirs is given; `run` then shows the model
    without the modules in a row of its own, before those that are pruned further.
    """
    if args.config:
        return _from_files(args)
    modules = any(getattr(args, name) is not None for name in STRUCTURED)
    weights = _weights(args, modules)
    sparse = bool(weights) and all(config.pattern == "2:4" for config in weights)
    if (structured := structured_config(args, sparse)) is None:
        return [Variant(config) for config in weights]
    both = [Variant(config, structured) for config in weights]
    return both if both and args.command == "prune" else [Variant(None, structured), *both]


def _weights(args: argparse.Namespace, modules: bool) -> list[PruneConfig]:
    """Every method with every pattern, sparsity and allocation; none if only modules are to go.

    What n:m fixes is not multiplied: an allocation belongs to the unstructured variants as long as there
    are any.
    """
    methods, patterns, sparsities = _as_list(args.method), _as_list(args.pattern), _as_list(args.sparsity)
    asked = [name for name in _WEIGHTS if getattr(args, name) is not None]
    if "none" in methods:
        if methods != ["none"]:
            raise ValueError(f"--method: none goes alone, got {' '.join(methods)}")
        if asked != ["method"]:
            raise ValueError(f"--method: none prunes no weights; leave out {_option(asked[1])}")
        if not modules:
            raise ValueError("--method: none leaves nothing to do; give --heads, --neurons or --layers")
        return []
    if modules and not asked:
        return []
    if args.model == "demo" and args.command == "run" and not (patterns or sparsities or modules):
        methods, patterns, sparsities = methods or ["magnitude", "wanda"], ["2:4"], [0.5, 0.7]
    if sparsities and "unstructured" not in patterns and (args.command == "run" or not patterns):
        patterns = [*patterns, "unstructured"]
    given = {name: getattr(args, name) for name in _DEFAULTS}
    common = {name: _DEFAULTS[name] if value is None else value for name, value in given.items()}
    if isinstance(common["token_weight"], str):
        common["token_weight"] = _kind(common["token_weight"], "--token-weight")
    alone = args.command == "prune"  # its one pattern gets its one sparsity and allocation, fitting or not
    allocations = [_allocation(text) for text in _as_list(args.allocation)] or [Uniform()]
    result = []
    for method, pattern in product(methods or ["wanda"], patterns or ["2:4"]):
        if method not in METHODS:
            raise ValueError(f"--method: expected one of {', '.join(METHODS)} or none, got {method!r}")
        free = pattern == "unstructured" or alone
        shares = allocations if free or "unstructured" not in patterns else [Uniform()]
        scope = common["scope"] if free or "unstructured" not in patterns else _DEFAULTS["scope"]
        for sparsity, share in product((sparsities or [None]) if free else [None], shares):
            fields = {**common, "scope": scope}
            made = METHODS[method](pattern=pattern, sparsity=sparsity, allocation=share, **fields)
            result.append(made)
    return result


def _from_files(args: argparse.Namespace) -> list[Variant]:
    for name in (*_WEIGHTS, "samples", *STRUCTURED):
        if getattr(args, name) is not None:
            raise ValueError(f"--config: the file says all of it; leave out {_option(name)}")
    result = []
    for path in _as_list(args.config):
        content = read_json(Path(path))
        for entry in content if isinstance(content, list) else [content]:
            if not isinstance(entry, dict):
                raise ValueError(f"{path}: expected a config, or a list of them, got {entry!r}")
            try:
                result.append(Variant.from_dict(entry))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: {error}") from error
    if args.command == "prune" and len(result) != 1:
        raise ValueError(f"--config: prune takes one config, the file holds {len(result)}")
    if args.command == "prune" and (result[0].recovery or result[0].between):
        raise ValueError("--config: prune does not train; leave recovery and between out, or take run")
    return result


def _allocation(text: str) -> Allocation:
    return allocation_from_dict(_kind(text, "--allocation"))


def _kind(text: str, option: str) -> dict[str, Any]:
    """Read ``kind``, ``kind:field=value,field=value`` or a JSON file of a `to_dict`."""
    if text.endswith(".json"):
        content = read_json(Path(text))
        if not isinstance(content, dict):
            raise ValueError(f"{text}: expected an object with a kind, got {content!r:.80}")
        return content
    kind, _, rest = text.partition(":")
    fields: dict[str, Any] = {"kind": kind}
    for pair in rest.split(",") if rest else []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{option}: expected KIND:FIELD=VALUE,..., got {text!r}")
        fields[name.strip()] = _value(value.strip())
    return fields


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
