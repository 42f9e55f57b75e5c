"""Two result files: what changed beyond the noise of both."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from .noise import ALPHA, LEAST, Change, change_of

__all__ = ["changes_table", "compare_records", "differences"]

# Cases, and rounds of each, without which two files tell nothing of their noise.
_CASES, _ROUNDS = 10, 9
# By how much the standard error of a median exceeds that of a mean; and what share of the cases would tell as
# much in a standard deviation as all of them do in a median absolute deviation.
_MEDIAN, _SHARE = 1.253, 0.37

_FACTS = ("cpu", "isa", "gpu", "threads", "torch", "commit")


def compare_records(old: Mapping[str, Any], new: Mapping[str, Any], least: float = LEAST) -> list[Change]:
    """Judge every case that both have, by its speed beside its first peer.

    The two files were measured at different times, so absolute times tell more about the machine's mood than
    about the code; what ran in the same rounds shares that mood. Noise has two parts: that of the rounds,
    from their spread, and that of processes (where data lies in memory), from the scatter of the changes of
    all cases around their median, most of which are taken not to have changed. Both are estimates, so the
    interval is Student's, with the degrees of freedom of the poorer one. Fewer than ten cases, or nine rounds
    of a case, tell neither: the ends are None.

    Raises:
        ValueError: no case is in both, or they were measured on different devices.

    """
    if old["device"] != new["device"]:
        raise ValueError(
            f"--compare: expected files of one device, got {old['device']!r} and {new['device']!r}"
        )
    from scipy import stats  # type: ignore[import-untyped]

    before, after = _ratios(old), _ratios(new)
    names = [name for name in before if name in after]
    if not names:
        raise ValueError("compare: the two files have no case with a peer in common")
    logs = {name: math.log(before[name]["median"] / after[name]["median"]) for name in names}
    between, of_cases = _scatter(list(logs.values())), _SHARE * (len(names) - 1)
    found = []
    for name in names:
        rounds = min(before[name]["samples"], after[name]["samples"])
        if len(names) < _CASES or rounds < _ROUNDS:
            found.append(Change(name, math.exp(logs[name]), None, None, least))
            continue
        within = math.hypot(_error(before[name]), _error(after[name]))
        wide = float(stats.t.ppf(1 - ALPHA / (2 * len(names)), min(rounds - 1, of_cases)))
        found.append(change_of(name, logs[name], wide * math.hypot(within, between), least))
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What else is not the same about the two, a line each: the set, machines, versions and commits."""
    a, b = ({"set": record["set"], **record["machine"]} for record in (old, new))
    facts = ("set", *_FACTS)
    return [f"{fact}: {a.get(fact)} -> {b.get(fact)}" for fact in facts if a.get(fact) != b.get(fact)]


def changes_table(found: Sequence[Change], old: str, new: str, notes: Sequence[str] = ()) -> str:
    """The changes as text of at most 80 columns, those beyond the noise first."""
    order = {"slower": 0, "faster": 1, "unclear": 2, "same": 3}
    lines = [f"{'time of new over old':46}{'change':>9}{'interval':>16}  verdict", "-" * 80]
    for change in sorted(found, key=lambda c: (order[c.verdict], -abs(math.log(c.ratio)))):
        interval = "unknown"
        if change.low is not None and change.high is not None:
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
    """By case, beside its first peer: which one is the fastest may differ between two files."""
    return {row["name"]: next(iter(row["ratios"].values())) for row in record["rows"] if row.get("ratios")}


def _error(ratio: Mapping[str, float]) -> float:
    """Standard error of the median of the rounds' ratios, as a logarithm."""
    return _MEDIAN * ratio["deviation"] / math.sqrt(ratio["samples"])


def _scatter(logs: Sequence[float]) -> float:
    """Standard deviation around the median, by the median: a few that did change do not count."""
    middle = statistics.median(logs)
    return 1.483 * statistics.median(abs(value - middle) for value in logs)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}"
