"""When two measurements differ by more than chance: intervals around changes, and what they allow to say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ALPHA", "LEAST", "Change", "change_of", "changes"]

# The chance that any of the cases of a comparison is flagged although none changed.
ALPHA = 0.01
# Smaller changes are not flagged: where code and data come to lie in memory alone makes one or two percent.
LEAST = 0.03
# Times the variance that all cases share, from which on a case is another kind of case.
_FAR = 3.0


@dataclass(frozen=True)
class Change:
    """Of one case: new over old time.

    Args:
        name: of the case.
        ratio: the estimate; above 1 is slower.
        low: lower end of its interval.
        high: upper end.
        least: the smallest change that counts, as a fraction.

    """

    name: str
    ratio: float
    low: float
    high: float
    least: float = LEAST

    @property
    def verdict(self) -> str:
        """One of "slower", "faster", "same" (no change, or a small one), and "unclear"."""
        if self.low > 1.0 and self.ratio >= 1 + self.least:
            return "slower"
        if self.high < 1.0 and self.ratio <= 1 / (1 + self.least):
            return "faster"
        surely_small = self.low >= 1 / (1 + 2 * self.least) and self.high <= 1 + 2 * self.least
        return "same" if surely_small else "unclear"


def changes(logs: Mapping[str, Sequence[float]], least: float = LEAST) -> list[Change]:
    """Judge repeated comparisons: `logs` holds, for each case, the logarithm of new over old of each repeat.

    The interval is Student's around the mean of the repeats, at `ALPHA` shared out between the cases. All
    cases share the machine, so they share one estimate of the scatter, with the repeats of all of them behind
    it; a case that scatters far more than that is judged by its own.

    Raises:
        ValueError: a case has fewer than three repeats.

    """
    from scipy import stats  # type: ignore[import-untyped]

    variances = {}
    for name, values in logs.items():
        if len(values) < 3:
            raise ValueError(f"changes: expected at least 3 repeats, got {len(values)} of {name}")
        variances[name] = statistics.variance(values)
    shared = statistics.mean(variances.values()) if variances else 0.0
    freedom = sum(len(values) - 1 for values in logs.values())
    found = []
    for name, values in logs.items():
        alone = variances[name] > _FAR * shared
        degrees = len(values) - 1 if alone else freedom
        wide = float(stats.t.ppf(1 - ALPHA / (2 * len(logs)), degrees))
        half = wide * math.sqrt((variances[name] if alone else shared) / len(values))
        found.append(change_of(name, statistics.mean(values), half, least))
    return found


def change_of(name: str, log_ratio: float, half: float, least: float = LEAST) -> Change:
    """From an estimate on the scale of logarithms, and half the width of its interval there."""
    return Change(name, math.exp(log_ratio), math.exp(log_ratio - half), math.exp(log_ratio + half), least)
