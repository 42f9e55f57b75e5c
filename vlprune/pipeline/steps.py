"""Finished steps of a run, kept beside its report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import measure
from ..fingerprint import add_weights
from ..progress import Kept
from .job import Job

__all__ = ["Steps"]


class Steps:
    """Results of a job's steps; those that an earlier run with the same arguments finished are not redone."""

    def __init__(self, job: Job) -> None:
        self._kept = Kept(job.out / "progress.json", _fingerprint(job))

    def get(self, key: str, folder: Path | None, compute: Callable[[], Any]) -> Any:
        """The kept result, or else what is computed and kept now.

        Args:
            key: of the step.
            folder: that the step writes. Without it, or if another step wrote it since, the result is void.
            compute: does the step.

        """
        kept = self._kept.results
        held = {} if folder is None else {f"in {folder.name}": key}
        whole = folder is None or (
            folder.is_dir() and all(kept.get(place) == step for place, step in held.items())
        )
        if key not in kept or not whole:
            self._kept.add({key: compute()} | held)
        return kept[key]


def _fingerprint(job: Job) -> str:
    """Everything besides the config that a result depends on: weights, buffers, data, options, machine."""
    settings = [dataclasses.asdict(job.options), measure.machine_info()]
    digest = hashlib.sha256(json.dumps(settings).encode())
    add_weights(digest, job.model)
    for part in (job.data, job.calib):
        for i, image in enumerate(part.images):
            digest.update(f"{image.name} {part.text(i)}\n".encode())
    return digest.hexdigest()
