"""Prune, evaluate, sparsify, measure: one model, several variants, all numbers in one record."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .. import measure
from ..checkpoint import check_target
from ..files import write_json
from ..models import merge_attention_, split_attention_
from ..structured import StructuredConfig, compact_
from ..targets import select_layers
from .job import Job, RunOptions
from .make import Start, is_24, make
from .steps import Steps
from .structure import structure
from .variant import Variant, structured_name, unique

__all__ = ["RECORD_VERSION", "run"]

RECORD_VERSION = 1


def run(
    model: nn.Module,
    data: Any,
    calib: Any,
    variants: Sequence[Variant],
    options: RunOptions,
    out: Path,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure the dense model and every variant, and return (and keep in `out`) the record.

    Each finished step is written at once, so a killed run continues where it was when started again
    with the same arguments. What is left after taking modules out is a step of its own, done once for all
    variants that start with it, and saved to ``out/structured`` (``structured-2`` and so on); the last 2:4
    variant is saved to ``out/model``.

    Args:
        model: the dense model; it is not changed.
        data: evaluation data of `load_data`.
        calib: calibration data of `load_data`.
        variants: what to make of the model.
        options: names, sizes, rounds.
        out: folder for the record and the pruned models.
        say: told about progress, a line at a time.

    """
    if not variants:
        raise ValueError("run: expected at least one variant, got none")
    model.eval()
    out.mkdir(parents=True, exist_ok=True)
    job = Job(model, data, calib, options, out, say)
    starts = _starts(variants, out)
    for folder in (out / "model", *(start.folder for start in starts.values())):
        check_target(folder)
    _rehearse(model, variants)
    steps = Steps(job)
    dense = steps.get("dense", None, lambda: job.score(model, "dense"))
    structured = {
        start.name: steps.get(
            f"structured {start.name} {key}",
            start.folder,
            partial(structure, job, start.config, start.name, start.folder),
        )
        for key, start in starts.items()
    }
    last_24 = max((i for i, variant in enumerate(variants) if is_24(variant)), default=None)
    results = []
    for i, (variant, name) in enumerate(zip(variants, unique([v.name for v in variants]), strict=True)):
        target = out / "model" if i == last_24 else None
        start = None if variant.structured is None else starts[_key(variant.structured)]
        # the same config may leave something else another time, when speed is measured
        left = None if start is None else _digest(structured[start.name]["keep_lists"])
        compute = partial(make, job, variant, name, start, target)
        results.append(steps.get(json.dumps([name, variant.to_dict(), left]), target, compute))
    parameter = next(model.parameters())
    record = {
        "format": "vlprune-report",
        "version": RECORD_VERSION,
        **dataclasses.asdict(options),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "machine": measure.machine_info(),
        "dense": {"metrics": dense, "bytes": sum(p.numel() * p.element_size() for p in model.parameters())},
        "structured": structured,
        "variants": results,
    }
    write_json(out / "report.json", record)
    return record


def _key(config: StructuredConfig) -> str:
    # as text, because a share of 1.0 and a count of 1 are equal numbers
    return json.dumps(config.to_dict())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _starts(variants: Sequence[Variant], out: Path) -> dict[str, Start]:
    configs = {_key(variant.structured): variant.structured for variant in variants if variant.structured}
    names = unique([structured_name(config) for config in configs.values()])
    return {
        key: Start(config, name, out / ("structured" if i == 0 else f"structured-{i + 1}"))
        for i, ((key, config), name) in enumerate(zip(configs.items(), names, strict=True))
    }


def _rehearse(model: nn.Module, variants: Sequence[Variant]) -> None:
    """Counts that do not fit and patterns that match no layer are errors now, not after an hour."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(_key(variant.structured) if variant.structured else "", []).append(variant)
    for group in groups.values():
        small = model
        config = group[0].structured
        if config is not None and config.target_speedup is None:
            small = copy.deepcopy(model)
            # chance needs no data, and leaves as much as any other criterion
            compact_(small, dataclasses.replace(config, criterion="random"))
        split = split_attention_(small)
        try:
            for weights in (variant.weights for variant in group):
                if weights is not None:
                    select_layers(small, weights)
        finally:
            merge_attention_(small, split)
