"""One variant: made of the dense model or of what is left of it, trained, evaluated, packed, timed, saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import save_pretrained
from ..prune import prune_
from .job import Job
from .start import Start
from .structure import weights_bytes
from .towers import example, pack_, time_towers
from .variant import Variant

__all__ = ["is_24", "make", "prune_and_save", "train_and_save"]


def is_24(variant: Variant) -> bool:
    """Whether it ends up with packed layers."""
    return variant.weights is not None and variant.weights.pattern == "2:4"


def make(
    job: Job,
    variant: Variant,
    name: str,
    start: Start | None,
    target: Path | None,
    done: tuple[Path, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Make one variant and measure it; returns what the record says of it.

    Args:
        job: the run; its model is not changed.
        variant: what to make.
        name: its name.
        start: what is left of the dense model after taking modules out, if any went.
        target: folder to save it in, None for nowhere.
        done: folder of a model that is pruned (and trained) already, and what the record says of that.

    """
    result: dict[str, Any] = {"name": name}
    models, before = {"dense": job.model}, job.model
    if start is not None:
        before = job.load(start.folder)
        result["structured"] = start.name
    made = before
    if done is not None:
        made = job.load(done[0])
        result |= done[1]
    elif variant.weights is not None:
        made = copy.deepcopy(before)
        result |= _prune_(job, made, variant)
    if start is not None and made is not before:
        models["structured"] = before
    result["metrics"] = job.score(made, name)
    images, texts = example(job)
    if is_24(variant):
        result |= pack_(job, made, name, images, texts)
        result["packed_metrics"] = job.score(made, f"{name}, packed")
    result["timing"] = time_towers(job, models | {"variant": made}, name, images, texts)
    if target is not None:
        save_pretrained(made, target)
        result["saved"] = {"folder": target.name, "bytes": weights_bytes(target)}
        job.say(f"{name}: saved to {target} ({result['saved']['bytes'] / 1e6:.1f} MB)")
    return result


def prune_and_save(job: Job, variant: Variant, start: Start | None, folder: Path) -> dict[str, Any]:
    """Prune the weights of a variant that is to be trained, and save it; returns the record's part."""
    model = copy.deepcopy(job.model) if start is None else job.load(start.folder)
    result = _prune_(job, model, variant)
    save_pretrained(model, folder)
    return result


def train_and_save(
    job: Job,
    variant: Variant,
    name: str,
    pruned: tuple[Path, dict[str, Any]],
    retained: dict[str, tuple[int, ...]] | None,
    folder: Path,
) -> dict[str, Any]:
    """Train a variant whose weights are pruned, and save it, not yet packed; returns the record's part."""
    assert variant.recovery is not None
    model = job.load(pruned[0])
    part = job.recover_(model, variant.recovery, name, folder.name, retained)
    save_pretrained(model, folder)
    job.say(f"{name}: saved to {folder}")
    return {**pruned[1], "recovery": part, "saved": {"folder": folder.name, "bytes": weights_bytes(folder)}}


def _prune_(job: Job, model: nn.Module, variant: Variant) -> dict[str, Any]:
    assert variant.weights is not None
    report = prune_(model, variant.weights, job.calib)
    job.say(str(report))
    return {"config": variant.weights.to_dict(), "prune": report.to_dict()}
