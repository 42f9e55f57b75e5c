"""When two measurements differ by more than chance: intervals around changes, and what they allow to say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ALPHA", "FEWEST", "LEAST", "Change", "change_of", "changes", "median_interval"]

# The chance that any of the cases of a comparison is flagged although none changed.
ALPHA = 0.01
# Smaller changes are not flagged: where code and data come to lie in memory alone makes one or two percent.
LEAST = 0.03
# Repeats without which `ALPHA` does not hold where cases scatter differently.
FEWEST = 6
# A difference of logarithms below what a clock resolves.
_TINY = 1e-6


@dataclass(frozen=True)
class Change:
    """Of one case: new over old time.

    Args:
        name: of the case.
        ratio: the estimate; above 1 is slower.
        low: lower end of its interval; None if too little was measured to tell.
        high: upper end, or None.
        least: the smallest change that counts, as a fraction.

    """

    name: str
    ratio: float
    low: float | None
    high: float | None
    least: float = LEAST

    @property
    def verdict(self) -> str:
        """One of "slower", "faster", "same" (no change, or a small one), and "unclear"."""
        if self.low is None or self.high is None:
            return "unclear"
        if self.low > 1.0 and self.ratio >= 1 + self.least:
            return "slower"
        if self.high < 1.0 and self.ratio <= 1 / (1 + self.least):
            return "faster"
        surely_small = self.low >= 1 / (1 + 2 * self.least) and self.high <= 1 + 2 * self.least
        return "same" if surely_small else "unclear"


def changes(logs: Mapping[str, Sequence[float]], least: float = LEAST) -> list[Change]:
    """Judge repeated comparisons: `logs` holds, for each case, the logarithm of new over old of each repeat.

    The interval is Student's around the mean of the repeats, at `ALPHA` shared out between the cases. Few
    repeats tell little of a case's scatter, so it is moderated by that of all cases, the more the more alike
    they scatter: Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3 (1), article 3.

    Raises:
        ValueError: a case has fewer than three repeats.

    """
    from scipy import stats  # type: ignore[import-untyped]

    for name, values in logs.items():
        if len(values) < 3:
            raise ValueError(f"changes: expected at least 3 repeats, got {len(values)} of {name}")
    variances = [max(statistics.variance(values), _TINY**2) for values in logs.values()]
    degrees = [len(values) - 1 for values in logs.values()]
    prior, common = _prior(variances, degrees) if len(logs) > 1 else (0.0, 0.0)
    found = []
    for (name, values), own, freedom in zip(logs.items(), variances, degrees, strict=True):
        variance = (prior * common + freedom * own) / (prior + freedom)
        wide = float(stats.t.ppf(1 - ALPHA / (2 * len(logs)), prior + freedom))
        half = wide * math.sqrt(variance / len(values))
        found.append(change_of(name, statistics.mean(values), half, least))
    return found


def _prior(variances: Sequence[float], degrees: Sequence[int]) -> tuple[float, float]:
    """Degrees of freedom and scale of the distribution that the cases' variances are drawn from.

    Its logarithm's first two moments fit the logarithms of the variances, less what few repeats alone make
    of equal ones (section 6.2). It counts for no more degrees than the other cases have.
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped]
    from scipy.special import digamma, polygamma  # type: ignore[import-untyped]

    centred = [
        math.log(v) - digamma(d / 2) + math.log(d / 2) for v, d in zip(variances, degrees, strict=True)
    ]
    excess = statistics.variance(centred) - statistics.mean(float(polygamma(1, d / 2)) for d in degrees)
    most = float(sum(degrees) - max(degrees))
    if excess < 1e-3:  # the scatter is the same
        return most, statistics.mean(variances)
    half = float(brentq(lambda h: polygamma(1, h) - excess, 1e-4, 1e4))
    scale = math.exp(statistics.mean(centred) + digamma(half) - math.log(half))
    return min(2 * half, most), scale


def change_of(name: str, log_ratio: float, half: float, least: float = LEAST) -> Change:
    """From an estimate on the scale of logarithms, and half the width of its interval there."""
    return Change(name, math.exp(log_ratio), math.exp(log_ratio - half), math.exp(log_ratio + half), least)


def median_interval(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float] | None:
    """Where the median of what these are drawn from lies, whatever its distribution.

    Two of the values, as far in from either end as the sign test allows: of n values, less than k lie on one
    side of the median with the chance that a coin thrown n times shows heads less than k times. None where
    all of them together do not tell: five values and fewer at 95 %.
    """
    from scipy import stats

    ordered = sorted(values)
    place = int(stats.binom.ppf(alpha / 2, len(ordered), 0.5))
    return (ordered[place - 1], ordered[-place]) if place else None
