"""Prune, evaluate, sparsify, measure: one model, several variants, all numbers in one record."""

from __future__ import annotations

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
from .job import Job, RunOptions
from .make import is_24, make, prune_and_save, train_and_save
from .rehearse import rehearse
from .start import Start, start_key, starts_of
from .steps import Steps
from .structure import layers_left, structure, train_structure
from .variant import Variant, unique

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
    train: Any = None,
) -> dict[str, Any]:
    """Measure the dense model and every variant, and return (and keep in `out`) the record.

    Each finished step is written at once, so a killed run continues where it was when started again
    with the same arguments, a training with the step after its last checkpoint. What is left after taking
    modules out is a step of its own, done once for all variants that start with it, and saved to
    ``out/structured`` (``structured-2`` and so on). A variant that is trained is saved before and after as
    ``out/pruned`` and ``out/recovered``, with the log in ``out/training``; the last 2:4 variant to
    ``out/model``.

    Args:
        model: the dense model; it is not changed.
        data: evaluation data of `load_data`.
        calib: calibration data of `load_data`.
        variants: what to make of the model.
        options: names, sizes, rounds.
        out: folder for the record and the pruned models.
        say: told about progress, a line at a time.
        train: data of `load_data` to train by, which variants with a recovery need.

    """
    if not variants:
        raise ValueError("run: expected at least one variant, got none")
    if train is None and (trained := [v.name for v in variants if v.recovery or v.between]):
        raise ValueError(f"train: {trained[0]} needs data to train by, got None")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; expected a folder")
    model.eval()
    out.mkdir(parents=True, exist_ok=True)
    job = Job(model, data, calib, options, out, say, train)
    starts = starts_of(variants, out)
    folders = _folders(variants, out)
    for folder in (out / "model", *(start.folder for start in starts.values()), *folders.values()):
        check_target(folder)
    rehearse(model, variants, train)
    steps = Steps(job)
    dense = steps.get("dense", None, lambda: job.score(model, "dense"))
    structured: dict[str, Any] = {}
    for key, start in starts.items():
        if start.origin is None:
            compute, made_of = partial(structure, job, start), ""
        else:
            compute = partial(train_structure, job, start, structured[start.origin.name])
            # the same config may leave something else another time, when speed is measured
            made_of = _digest(structured[start.origin.name]["keep_lists"])
        structured[start.name] = steps.get(f"structured {start.name} {key}{made_of}", start.folder, compute)
    last_24 = max((i for i, variant in enumerate(variants) if is_24(variant)), default=None)
    results = []
    for i, (variant, name) in enumerate(zip(variants, unique([v.name for v in variants]), strict=True)):
        target = out / "model" if i == last_24 else None
        start_of = None if variant.structured is None else starts[start_key(variant)]
        left = None if start_of is None else structured[start_of.name]["keep_lists"]
        depends = None if left is None else _digest(left)
        done = _trained(job, steps, variant, name, start_of, left, folders)
        compute = partial(make, job, variant, name, start_of, target, done)
        results.append(steps.get(json.dumps([name, variant.to_dict(), depends]), target, compute))
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


def _trained(
    job: Job,
    steps: Steps,
    variant: Variant,
    name: str,
    start: Start | None,
    left: Any,
    folders: dict[str, Path],
) -> tuple[Path, dict[str, Any]] | None:
    """Folder of the pruned or trained model of a variant, and what the record says of it.

    None where it takes but a moment: weights pruned for one row alone.
    """
    pruned = folders.get(_key(variant.before, "pruned"))
    if pruned is None:
        return None
    of = json.dumps([variant.before.to_dict(), None if left is None else _digest(left)])
    first = steps.get(f"pruned {of}", pruned, partial(prune_and_save, job, variant, start, pruned))
    if variant.recovery is None:
        return pruned, first
    retained = layers_left(left or {})
    folder = folders[_key(variant, "recovered")]
    compute = partial(train_and_save, job, variant, name, (pruned, first), retained, folder)
    settings = json.dumps(variant.recovery.to_dict())
    return folder, steps.get(f"recovered {of} {settings}", folder, compute)


def _folders(variants: Sequence[Variant], out: Path) -> dict[str, Path]:
    """Where weights are trained: the folder of each variant before and after that."""
    found: dict[str, Path] = {}
    counts = {"pruned": 0, "recovered": 0}
    for variant in variants:
        if variant.weights is None or variant.recovery is None:
            continue
        for which, own in (("pruned", variant.before), ("recovered", variant)):
            if (key := _key(own, which)) not in found:
                counts[which] += 1
                number = "" if counts[which] == 1 else f"-{counts[which]}"
                found[key] = out / f"{which}{number}"
    return found


def _key(variant: Variant, which: str) -> str:
    return f"{which} {json.dumps(variant.to_dict())}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
