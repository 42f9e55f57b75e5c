"""What a setting's value may be."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["check_flag", "is_number", "is_whole"]


def is_whole(value: Any) -> bool:
    """Whether it is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless it is a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
