"""Results of a long job, kept in a file, so that a killed one continues where it was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import read_json, write_json

__all__ = ["Kept"]


class Kept:
    """Results by key; with a path they are read from there, unless they are those of something else.

    Args:
        path: of a JSON file, or None to keep nothing.
        fingerprint: of all that the results depend on besides their keys.

    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str) -> None:
        self._path = None if path is None else Path(path)
        self._fingerprint = fingerprint
        self.results: dict[str, Any] = {}
        if self._path is None:
            return
        try:
            kept = read_json(self._path)
            if kept["fingerprint"] == fingerprint:
                self.results = dict(kept["results"])
        except (OSError, ValueError, TypeError, KeyError):
            pass  # nothing kept, or nothing of use: start anew

    def add(self, results: Mapping[str, Any]) -> None:
        """Take these too, and write all."""
        self.results.update(results)
        if self._path is not None:
            write_json(self._path, {"fingerprint": self._fingerprint, "results": self.results})
