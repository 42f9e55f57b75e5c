"""Scores kept in a file, so that a killed job continues where it was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..distributed import is_first, on_all_ranks, rank
from ..files import read_json, write_json

__all__ = ["KeptScores"]

# Jobs whose scores a file holds, the newest: both towers in width and in depth, and as much again.
_JOBS = 8


class KeptScores:
    """Scores by key; with a path those of the same job are read from there, and others' are left there.

    Where ranks share the work each writes a file of its own beside the path, and all read all that are
    there, so that a job can be continued by another number of ranks.

    Args:
        path: of a JSON file, or None to keep nothing.
        job: `fingerprint` of all that the scores depend on besides their keys.

    Raises:
        ValueError: something else is there.

    """

    def __init__(self, path: str | os.PathLike[str] | None, job: str) -> None:
        self._path = None if path is None else Path(path)
        # asked once: inside `alone`, where scores are added, every rank is the first
        self._suffix = "" if is_first() else f".rank{rank()}"
        self._job = job
        self.scores: dict[str, float] = {}
        self._others: dict[str, dict[str, float]] = {}
        if self._path is None:
            return
        paths = (self._path, *self._of_ranks(self._path))
        # what a rank sees may be younger than what another one saw, or on another machine
        for jobs in (jobs for seen in on_all_ranks(lambda: [_read(p) for p in paths]) for jobs in seen):
            for name, scores in jobs.items():
                (self.scores if name == job else self._others.setdefault(name, {})).update(scores)

    def add(self, scores: Mapping[str, float]) -> None:
        """Take these too, and write all."""
        self.scores.update(scores)
        if self._path is not None:
            others = dict(list(self._others.items())[1 - _JOBS :])
            own = self._path.with_name(self._path.name + self._suffix)
            write_json(own, {"jobs": {**others, self._job: self.scores}})

    def finish(self, scores: Mapping[str, float]) -> None:
        """Take what all ranks found; of their files one is left."""
        self.scores.update(scores)
        if self._path is not None and is_first():
            left = self._of_ranks(self._path)
            self.add({})
            for path in left:
                path.unlink(missing_ok=True)

    @staticmethod
    def _of_ranks(path: Path) -> list[Path]:
        start = f"{path.name}.rank"
        folder = path.parent
        return sorted(p for p in folder.iterdir() if p.name.startswith(start)) if folder.is_dir() else []


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Scores by job; none where there is no such file."""
    try:
        return {
            str(job): {str(key): float(score) for key, score in scores.items()}
            for job, scores in read_json(path)["jobs"].items()
        }
    except FileNotFoundError:
        return {}
    except (IsADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        # it would be written over
        raise ValueError(f"resume: {path} is no file of kept scores; give another, or move it away") from None
