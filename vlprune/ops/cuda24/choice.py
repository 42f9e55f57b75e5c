"""Which form of `linear24` runs a problem on a GPU: what was measured there, and a memory of it.

Pure: times come from the caller (`measure24`), and the file from `vlprune.cache_dir`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...cache_dir import load_cache, save_cache
from .problem import Problem

__all__ = ["MARGIN", "Choice", "Memory", "bucket", "key", "pick"]

# A packed layer must beat the dense one by more than what the clock cannot tell apart: dense wins ties.
MARGIN = 1.03


@dataclass(frozen=True)
class Choice:
    """The fastest form of a problem, its config, and seconds a call takes, beside the dense product's."""

    backend: str
    config: str
    seconds: float
    dense: float

    @property
    def faster(self) -> bool:
        """Whether it beats the dense product by more than a tie."""
        return self.dense > self.seconds * MARGIN


def pick(times: Mapping[tuple[str, str], float], dense: float) -> Choice | None:
    """Take the fastest of the (backend, config) that were timed, the first of equals; None of none.

    Args:
        times: seconds a call; one that is not finite and above 0 was not measured.
        dense: the same of the dense product with the same epilogue.

    """
    fastest = min(((t, name) for name, t in times.items() if 0 < t < math.inf), default=None, key=_seconds)
    return None if fastest is None else Choice(*fastest[1], fastest[0], dense)


def _seconds(timed: tuple[float, tuple[str, str]]) -> float:
    return timed[0]


def bucket(tokens: int) -> int:
    """Round a number of tokens up to one of eight between each power of two and the next, at least by eights.

    Calls of one bucket share what was measured: batches come in many sizes, and tiles hold eight tokens or
    more.
    """
    step = max(8, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // step) * step


def key(problem: Problem, wanted: str) -> str:
    """The name that a choice is stored under; `wanted` is the backend that was asked for, or "auto"."""
    ends = [f"+{part}" for part in ("bias", "residual") if getattr(problem, part)]
    sizes = f"{bucket(problem.tokens)}x{problem.inputs}x{problem.out}"
    dtypes = [str(dtype)[6:] for dtype in (problem.dtype, problem.out_dtype) if dtype is not None]
    return " ".join([wanted, *dtypes, sizes, problem.activation or "none", *ends])


class Memory:
    """Choices by their keys, in one cache file a kind of GPU.

    Args:
        name: of the file.
        made_with: versions of what was measured; a file of others counts as empty and is replaced.

    """

    def __init__(self, name: str, made_with: Mapping[str, str]) -> None:
        self._name, self._made_with = name, dict(made_with)
        self._choices: dict[str, Choice] = self._stored()
        self._lock = threading.Lock()

    def find(self, key: str) -> Choice | None:
        """What was remembered, if anything."""
        return self._choices.get(key)

    def remember(self, key: str, choice: Choice) -> None:
        """Keep a choice, and what other processes stored meanwhile; a folder that is closed is let be."""
        with self._lock:
            self._choices = {**self._stored(), **self._choices, key: choice}
            stored = {key: vars(each) for key, each in sorted(self._choices.items())}
            save_cache(self._name, {"made with": self._made_with, "choices": stored})

    def _stored(self) -> dict[str, Choice]:
        content = load_cache(self._name)
        stored = content.get("choices")
        if content.get("made with") != self._made_with or not isinstance(stored, dict):
            return {}
        read = {key: _read(each) for key, each in stored.items()}
        return {key: choice for key, choice in read.items() if choice is not None}


def _read(stored: Any) -> Choice | None:
    try:
        choice = Choice(**stored)
        named = isinstance(choice.backend, str) and isinstance(choice.config, str)
        timed = all(0 < float(t) < math.inf for t in (choice.seconds, choice.dense))
    except (TypeError, ValueError):
        return None
    return choice if named and timed else None
