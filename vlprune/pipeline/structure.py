"""The first step of a variant: heads, neurons and layers out, what is left trained if wished, and saved."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import save_pretrained
from ..structured import compact_
from .job import Job
from .start import Start

__all__ = ["layers_left", "structure", "train_structure", "weights_bytes"]


def structure(job: Job, start: Start) -> dict[str, Any]:
    """Take modules out of a copy of the dense model and save it; returns what the record says of it.

    Under a recovery that is width, training, depth, training. Of neurons that were judged one by one the
    record has no errors: there are too many to read.
    """
    began = time.perf_counter()
    model, config, recovery = copy.deepcopy(job.model), start.config, start.recovery
    notes = []
    if job.options.calib == job.options.data and config.criterion in ("mope", "gradient"):
        notes.append("modules were chosen on the images that they are evaluated with")
    trainings: list[dict[str, Any]] = []

    def train(narrow: nn.Module) -> None:
        assert recovery is not None
        name = f"{start.name}, after width"
        trainings.append(job.recover_(narrow, recovery, name, f"{start.folder.name}-width"))

    # what takes longest is kept module by module
    report = compact_(
        model,
        config,
        job.calib,
        notes=notes,
        recover=None if recovery is None else train,
        resume=job.out / "errors.json",
    )
    job.say(f"{start.name}: {report}")
    result = report.to_dict()
    if recovery is not None:
        retained = layers_left(result["keep_lists"])
        name = f"{start.name}, after depth"
        trainings.append(job.recover_(model, recovery, name, start.folder.name, retained))
        result["trainings"] = trainings
    seconds = time.perf_counter() - began - sum(training["seconds"] for training in trainings)
    save_pretrained(model, start.folder)
    if config.criterion != "mope":
        result["errors"] = [error for error in result["errors"] if error["kind"] != "neurons"]
    return {"config": config.to_dict(), "seconds": seconds, **result, "saved": _saved(start.folder)}


def train_structure(job: Job, start: Start, part: Mapping[str, Any]) -> dict[str, Any]:
    """Train what another start left and save it; returns what the record says of it.

    Args:
        job: the run.
        start: with a recovery and an origin.
        part: what the record says of the origin.

    """
    assert start.recovery is not None
    assert start.origin is not None
    model = job.load(start.origin.folder)
    retained = layers_left(part["keep_lists"])
    training = job.recover_(model, start.recovery, start.name, start.folder.name, retained)
    save_pretrained(model, start.folder)
    return {
        **part,
        "errors": [],
        "origin": start.origin.name,
        "trainings": [training],
        "saved": _saved(start.folder),
    }


def weights_bytes(folder: Path) -> int:
    """Size of a saved model's weights."""
    return (folder / "model.safetensors").stat().st_size


def layers_left(keep_lists: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tower -> numbers of the dense model's layers that stayed, where some went."""
    return {tower: tuple(own["layers"]) for tower, own in keep_lists.items() if "layers" in own}


def _saved(folder: Path) -> dict[str, Any]:
    return {"folder": folder.name, "bytes": weights_bytes(folder)}
