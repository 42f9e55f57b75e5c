"""Where measurements that are worth remembering lie: small JSON files, any of which may be deleted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .files import read_json, write_json

__all__ = ["cache_file", "load_cache", "save_cache"]


def cache_file(name: str) -> Path:
    """Path of a file in the cache folder, which need not exist yet.

    The folder is VLPRUNE_CACHE where that is set, else vlprune under XDG_CACHE_HOME, else under ~/.cache.

    Args:
        name: a file name; what is not a letter, a digit, "." or "-" becomes "_", so that it may be made of
            the name of a device.

    """
    own = os.environ.get("VLPRUNE_CACHE")
    if own:
        folder = Path(own)
    else:
        # The standard wants a relative path ignored.
        home = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (home if home.is_absolute() else Path.home() / ".cache") / "vlprune"
    plain = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in name)
    return folder / plain


def load_cache(name: str) -> dict[str, Any]:
    """Read a cache file; one that is missing, broken or no JSON object counts as empty."""
    try:
        found = read_json(cache_file(name))
    except (OSError, ValueError, RuntimeError):
        # RuntimeError: of a user that has no home.
        return {}
    return found if isinstance(found, dict) else {}


def save_cache(name: str, content: dict[str, Any]) -> bool:
    """Write a cache file, whole or not at all; False where the folder cannot be written to."""
    try:
        write_json(cache_file(name), content)
    except (OSError, RuntimeError):
        return False
    return True
