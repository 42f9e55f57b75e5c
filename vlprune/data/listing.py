"""What a reader hands over: the images with their captions or labels, and the faults it met."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .images import ImageSource

REASONS_KEPT = 10


class Captioned(NamedTuple):
    """Images with at least one caption each, in the order of the file."""

    images: Sequence[ImageSource]
    captions: Sequence[list[str]]


class Classified(NamedTuple):
    """Images with one label each; labels index `classes`."""

    images: Sequence[ImageSource]
    labels: Sequence[int]
    classes: Sequence[str]


class Problems:
    """Raises the first fault, or counts faults and keeps the first reasons, as `on_error` says."""

    def __init__(self, on_error: str = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'load_data: on_error={on_error!r} is unknown; allowed: "raise", "skip"')
        self.on_error = on_error
        self.count = 0
        self.reasons: list[str] = []

    def report(self, error: ValueError | FileNotFoundError) -> None:
        """Raise `error`, or count it and let the caller leave the entry out."""
        if self.on_error == "raise":
            raise error
        self.count += 1
        if len(self.reasons) < REASONS_KEPT:
            self.reasons.append(str(error))

    def copy(self) -> Problems:
        """Return an independent copy with the same counts."""
        other = Problems(self.on_error)
        other.count, other.reasons = self.count, list(self.reasons)
        return other


def require_file(path: Path, form: str) -> None:
    """Raise FileNotFoundError unless `path` is a file; `form` is the spec the user should have written."""
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected {form}")


def require_folder(path: Path, form: str) -> None:
    """Raise FileNotFoundError unless `path` is a folder; `form` is the spec the user should have written."""
    if not path.is_dir():
        what = "is a file, not a folder" if path.is_file() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected {form}")


def image_exists(path: str, where: str, problems: Problems) -> bool:
    """Report an image that a list names but the disk does not hold; `where` is the place that names it."""
    if os.path.isfile(path):
        return True
    problems.report(FileNotFoundError(f"{where}: image {path} does not exist"))
    return False


def clean_caption(caption: object, where: str, problems: Problems) -> str | None:
    """Return the caption without outer white space, or report it (no text, empty) and return None."""
    if not isinstance(caption, str):
        problems.report(ValueError(f"{where}: the caption must be text, got {type(caption).__name__}"))
        return None
    if not caption.strip():
        problems.report(ValueError(f"{where}: the caption is empty"))
        return None
    return caption.strip()


def parse_json(raw: bytes, where: str) -> Any:
    """Parse JSON bytes; a fault is one ValueError with the place in the file."""
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} line {error.lineno} column {error.colno}: not valid JSON ({error.msg})"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ValueError(f"{where}: not valid JSON (nested too deeply)") from None
