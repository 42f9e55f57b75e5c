"""A result file that a benchmark goes on with where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlprune.files import read_json

__all__ = ["continue_from"]

# by which seconds, and how numbers are rounded, may differ
_HARDWARE = ("cpu", "isa", "gpu")


def continue_from(
    path: Path, record: dict[str, Any], same: Sequence[str], parts: Sequence[str] = ("rows",)
) -> None:
    """Take over what a file holds already, if there is one.

    Args:
        path: of the file.
        record: what the file is to be, without results; its "machine" must be the file's too.
        same: keys by which both must agree, or the results were of something else.
        parts: keys of the results.

    """
    if not path.exists():
        return
    kept = read_json(path)
    if missing := [part for part in ("machine", *parts) if not isinstance(kept, dict) or part not in kept]:
        raise SystemExit(f"{path}: has no {', '.join(missing)} to go on with; give a new --out")
    differs = [key for key in same if kept.get(key) != record[key]]
    differs += [key for key in _HARDWARE if kept["machine"].get(key) != record["machine"][key]]
    if differs:
        raise SystemExit(f"{path}: has another {', '.join(differs)}; give a new --out")
    record |= {part: kept[part] for part in parts}
