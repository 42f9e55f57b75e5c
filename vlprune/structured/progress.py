"""Scores kept in a file, so that a killed job continues where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..data import LabelledData, PairData
from ..files import read_json, write_json
from ..fingerprint import add_weights

__all__ = ["KeptScores", "fingerprint"]


class KeptScores:
    """Scores by key; with a path they are read from there, unless they are those of something else.

    Args:
        path: of a JSON file, or None to keep nothing.
        arguments: `fingerprint` of all that the scores depend on besides their keys.

    """

    def __init__(self, path: str | os.PathLike[str] | None, arguments: str) -> None:
        self._path = None if path is None else Path(path)
        self._arguments = arguments
        self.scores: dict[str, float] = {}
        if self._path is None:
            return
        try:
            kept = read_json(self._path)
            if kept["fingerprint"] == arguments:
                self.scores = {str(key): float(score) for key, score in kept["scores"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass  # nothing kept, or nothing of use: start anew

    def add(self, scores: Mapping[str, float]) -> None:
        """Take these too, and write all."""
        self.scores.update(scores)
        if self._path is not None:
            write_json(self._path, {"fingerprint": self._arguments, "scores": self.scores})


def fingerprint(model: nn.Module, data: PairData | LabelledData, *settings: Any) -> str:
    """Digest of weights and buffers, of the data's names and texts, and of settings that JSON can hold."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    add_weights(digest, model)
    for image in data.images:
        digest.update(f"{image.name}\n".encode())
    if isinstance(data, LabelledData):
        texts: list[Any] = [data.labels, data.classes, data.templates]
    else:
        texts = data.captions
    digest.update(json.dumps(texts).encode())
    return digest.hexdigest()
