"""Two result files: what changed beyond the noise of both."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from .noise import ALPHA, LEAST, Change, change_of

__all__ = ["changes_table", "compare_records", "differences"]

# Logarithms: what the same code differs by from one process to the next, where too few cases tell.
_USUAL = 0.015
_ENOUGH = 5
# From the 20th to the 80th percentile of a normal distribution, in standard deviations; and by how much the
# standard error of a median exceeds that of a mean.
_SPREAD, _MEDIAN = 1.683, 1.253

_FACTS = ("cpu", "isa", "gpu", "threads", "torch")


def compare_records(old: Mapping[str, Any], new: Mapping[str, Any], least: float = LEAST) -> list[Change]:
    """Judge every case that both have, by its speed beside its first peer.

    The two files were measured at different times, so absolute times tell more about the machine's mood than
    about the code; what ran in the same rounds shares that mood. Noise has two parts: that of the rounds,
    from their spread, and that of processes (where data lies in memory), from the scatter of the changes of
    all cases around their median, most of which are taken not to have changed.

    Raises:
        ValueError: no case is in both.

    """
    before, after = _ratios(old), _ratios(new)
    names = [name for name in before if name in after]
    if not names:
        raise ValueError("compare: the two files have no case with a peer in common")
    normal = statistics.NormalDist()
    logs = {name: math.log(before[name]["median"] / after[name]["median"]) for name in names}
    within = {name: math.hypot(_error(before[name]), _error(after[name])) for name in names}
    between = _scatter(list(logs.values())) if len(names) >= _ENOUGH else 0.0
    wide = normal.inv_cdf(1 - ALPHA / (2 * len(names)))
    return [
        change_of(name, logs[name], wide * math.hypot(within[name], max(between, _USUAL)), least)
        for name in names
    ]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What else is not the same about the two, a line each: machines and versions."""
    a, b = old["machine"], new["machine"]
    return [f"{fact}: {a.get(fact)} -> {b.get(fact)}" for fact in _FACTS if a.get(fact) != b.get(fact)]


def changes_table(found: Sequence[Change], old: str, new: str, notes: Sequence[str] = ()) -> str:
    """The changes as text of at most 80 columns, those beyond the noise first."""
    order = {"slower": 0, "faster": 1, "unclear": 2, "same": 3}
    lines = [f"{'time of new over old':46}{'change':>9}{'interval':>16}  verdict", "-" * 80]
    for change in sorted(found, key=lambda c: (order[c.verdict], -abs(math.log(c.ratio)))):
        interval = f"{_percent(change.low)}..{_percent(change.high)}"
        lines.append(f"{change.name[:45]:46}{_percent(change.ratio):>7} %{interval:>16}  {change.verdict}")
    verdicts = [change.verdict for change in found]
    count = {verdict: verdicts.count(verdict) for verdict in order}
    lines.append("")
    for line in (f"old: {old}", f"new: {new}", *notes):
        lines += textwrap.wrap(line, 80)
    lines += textwrap.wrap(
        f"{len(found)} cases: {count['slower']} slower, {count['faster']} faster, {count['same']} the same, "
        f"{count['unclear']} unclear (the noise hides changes below the interval's width). Intervals hold "
        f"for all cases together with {100 * (1 - ALPHA):g} % confidence.",
        80,
    )
    return "\n".join(lines)


def _ratios(record: Mapping[str, Any]) -> dict[str, Any]:
    return {row["name"]: row["ratio"] for row in record["rows"] if row.get("ratio")}


def _error(ratio: Mapping[str, float]) -> float:
    """Standard error of the median of the rounds' ratios, as a logarithm."""
    spread = math.log(ratio["p80"] / ratio["p20"]) / _SPREAD
    return _MEDIAN * spread / math.sqrt(ratio["samples"])


def _scatter(logs: Sequence[float]) -> float:
    """Standard deviation around the median, by the median: a few that did change do not count."""
    middle = statistics.median(logs)
    return 1.483 * statistics.median(abs(value - middle) for value in logs)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}"
