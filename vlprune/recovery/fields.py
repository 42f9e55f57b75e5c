"""Fields of dataclasses: checked when one is made, and taken to JSON and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

from ..values import is_number, is_whole

__all__ = ["RECOVERY_VERSION", "Plain", "check_within", "text_tuple"]

RECOVERY_VERSION = 1


class Plain:
    """To JSON's values and back."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"version": RECOVERY_VERSION, **{name: _plain(value) for name, value in values.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a version or a field that this vlprune does not know, or a bad value.

        """
        given = dict(values)
        version = given.pop("version", RECOVERY_VERSION)
        if not is_whole(version) or not 1 <= version <= RECOVERY_VERSION:
            raise ValueError(f"version: this vlprune reads 1 to {RECOVERY_VERSION}, got {version!r}")
        known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{cls.__name__}: unknown field {unknown[0]!r}; it has {', '.join(known)}")
        return cls(**given)


def check_within(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise ValueError unless it is a finite number from low (excluded with `open_low`) to high."""
    if not is_number(value) or not low <= value <= high or (open_low and value == low):
        above = f"above {low}" if open_low else f"of at least {low}"
        allowed = f"a number {above}" if high == math.inf else f"a number in [{low}, {high}]"
        raise ValueError(f"{name}: expected {allowed}, got {value!r}")


def text_tuple(name: str, value: Any) -> tuple[str, ...]:
    """Return a sequence of texts as a tuple, or raise ValueError."""
    entries = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (None,)
    if not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{name}: expected a sequence of texts, got {value!r}")
    return entries


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value
