"""Finished steps of a run, kept beside its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import measure
from ..files import read_json, write_json
from ..fingerprint import fingerprint
from .job import Job

__all__ = ["Steps"]


class Steps:
    """Results of a job's steps; those that an earlier run with the same arguments finished are not redone."""

    def __init__(self, job: Job) -> None:
        self._path = job.out / "progress.json"
        settings = [dataclasses.asdict(job.options), measure.machine_info()]
        data = [job.data, job.calib, *([] if job.train is None else [job.train])]
        self._fingerprint = fingerprint(job.model, data, settings)
        self._done: dict[str, Any] = {}
        try:
            kept = read_json(self._path)
            if kept["fingerprint"] == self._fingerprint:
                self._done = dict(kept["steps"])
        except (OSError, ValueError, TypeError, KeyError):
            pass  # nothing kept, or nothing of use: start anew

    def get(self, key: str, folder: Path | None, compute: Callable[[], Any]) -> Any:
        """The kept result, or else what is computed and kept now.

        Args:
            key: of the step.
            folder: that the step writes. Without it, or if another step wrote it since, the result is void.
            compute: does the step.

        """
        done, place = self._done, "" if folder is None else f"in {folder.name}"
        gone = folder is not None and (done.get(place) != key or not folder.is_dir())
        if key not in done or gone:
            done[key] = compute()
            if folder is not None:
                done[place] = key
            write_json(self._path, {"fingerprint": self._fingerprint, "steps": done})
        return done[key]
