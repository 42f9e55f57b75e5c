"""Sparsity patterns and the exact number of weights that each removes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Real
from typing import TypeGuard

from torch import Tensor

__all__ = ["Pattern", "PatternError"]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


_N_OF_M = re.compile(r"(\d+):(\d+)")


class PatternError(ValueError):
    """A pattern that does not exist, or that contradicts a sparsity or a shape."""


@dataclass(frozen=True)
class Pattern:
    """Which weights may be kept: ``n`` of every ``m`` consecutive inputs, or any (``unstructured``).

    ``n`` counts the weights that are *kept*, as NVIDIA and cuSPARSELt count. The published Wanda and
    SparseGPT code counts the pruned ones; the two only agree where n = m / 2.
    """

    n: int | None = None
    m: int | None = None

    @classmethod
    def parse(cls, pattern: str | Pattern) -> Pattern:
        """Read ``"2:4"``, ``"1:4"``, any other ``"n:m"`` with 0 < n < m, or ``"unstructured"``."""
        if isinstance(pattern, Pattern):
            return pattern
        if pattern == "unstructured":
            return cls()
        match = _N_OF_M.fullmatch(pattern) if isinstance(pattern, str) else None
        if match and 0 < int(match[1]) < int(match[2]):
            return cls(int(match[1]), int(match[2]))
        raise PatternError(f'pattern: expected "unstructured" or "n:m" with 0 < n < m, got {pattern!r}')

    @classmethod
    def parse_pruned(cls, pattern: str) -> Pattern:
        """Read "n:m" where n counts the *pruned*, as Wanda, SparseGPT and RIA publish it: "1:4" keeps 3.

        "unstructured" means the same in both.
        """
        read = cls.parse(pattern)
        return read if read.n is None or read.m is None else cls(read.m - read.n, read.m)

    @property
    def name(self) -> str:
        """The text that `parse` reads."""
        return "unstructured" if self.n is None else f"{self.n}:{self.m}"

    def resolve_sparsity(self, sparsity: float | None) -> float:
        """Fraction of zeros: given for unstructured, implied by n:m (and then refused if it differs)."""
        if self.n is None or self.m is None:
            if sparsity is None:
                raise PatternError('sparsity: required for pattern "unstructured", a fraction in [0, 1]')
            if not _is_number(sparsity) or not 0 <= sparsity <= 1:
                raise PatternError(f"sparsity: expected a fraction of zeros in [0, 1], got {sparsity!r}")
            return float(sparsity)
        implied = 1.0 - self.n / self.m
        if sparsity is not None and not (_is_number(sparsity) and abs(sparsity - implied) < 1e-9):
            raise PatternError(f'sparsity: pattern "{self.name}" means {implied:g}, got {sparsity!r}')
        return implied

    def check_inputs(self, in_features: int, name: str = "weight") -> None:
        """Refuse an input width that groups of m do not tile."""
        if self.m is not None and in_features % self.m:
            raise PatternError(
                f'{name}: pattern "{self.name}" needs in_features divisible by {self.m}, got {in_features}'
            )

    def holds(self, weight: Tensor) -> bool:
        """Whether a weight [out, in] already has at most n non-zeros in every m consecutive inputs."""
        if self.n is None or self.m is None:
            return True
        if weight.dim() != 2 or weight.shape[1] % self.m:
            return False
        kept = (weight != 0).reshape(weight.shape[0], -1, self.m).sum(2)
        return bool((kept <= self.n).all())
