"""The first step of a variant: heads, neurons and layers out, and what is left saved."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from ..checkpoint import save_pretrained
from ..structured import StructuredConfig, compact_
from .job import Job

__all__ = ["structure", "weights_bytes"]


def structure(job: Job, config: StructuredConfig, name: str, folder: Path) -> dict[str, Any]:
    """Take modules out of a copy of the dense model and save it; returns what the record says of it.

    Of neurons that were judged one by one the record has no errors: there are too many to read.
    """
    start = time.perf_counter()
    model = copy.deepcopy(job.model)
    notes = []
    if job.options.calib == job.options.data and config.criterion in ("mope", "gradient"):
        notes.append("modules were chosen on the images that they are evaluated with")
    # what takes longest is kept module by module
    report = compact_(model, config, job.calib, notes=notes, resume=job.out / "errors.json")
    seconds = time.perf_counter() - start
    job.say(f"{name}: {report}")
    save_pretrained(model, folder)
    result = report.to_dict()
    if config.criterion != "mope":
        result["errors"] = [error for error in result["errors"] if error["kind"] != "neurons"]
    return {
        "config": config.to_dict(),
        "seconds": seconds,
        **result,
        "saved": {"folder": folder.name, "bytes": weights_bytes(folder)},
    }


def weights_bytes(folder: Path) -> int:
    """Size of a saved model's weights."""
    return (folder / "model.safetensors").stat().st_size
