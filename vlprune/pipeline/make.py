"""One variant: made of the dense model or of what is left of it, evaluated, packed, timed, saved."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import from_pretrained, save_pretrained
from ..prune import prune_
from ..structured import StructuredConfig
from .job import Job
from .structure import weights_bytes
from .towers import example, pack_, time_towers
from .variant import Variant

__all__ = ["Start", "is_24", "make"]


@dataclass(frozen=True)
class Start:
    """What variants start from that take the same modules out: a model saved in a folder."""

    config: StructuredConfig
    name: str
    folder: Path


def is_24(variant: Variant) -> bool:
    """Whether it ends up with packed layers."""
    return variant.weights is not None and variant.weights.pattern == "2:4"


def make(job: Job, variant: Variant, name: str, start: Start | None, target: Path | None) -> dict[str, Any]:
    """Make one variant and measure it; returns what the record says of it.

    Args:
        job: the run; its model is not changed.
        variant: what to make.
        name: its name.
        start: what is left of the dense model after taking modules out, if any went.
        target: folder to save it in, None for nowhere.

    """
    result: dict[str, Any] = {"name": name}
    models, before = {"dense": job.model}, job.model
    if start is not None:
        before = from_pretrained(start.folder, str(next(job.model.parameters()).device))
        result["structured"] = start.name
    made = before
    if (config := variant.weights) is not None:
        made = copy.deepcopy(before)
        if start is not None:
            models["structured"] = before
        report = prune_(made, config, job.calib)
        job.say(str(report))
        result |= {"config": config.to_dict(), "prune": report.to_dict()}
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
