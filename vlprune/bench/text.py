"""A record as text of at most 80 columns: every case beside its peer, where 2:4 pays, and ceilings."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping
from typing import Any

from .case import OURS
from .crossover import Crossover, crossovers

__all__ = ["MARKS", "bench_conditions", "bench_table", "ceiling_lines", "of_ceiling", "seconds_text"]

_WIDTH = 80
# What stands after a speed in the crossover table.
MARKS = {"faster": "", "even": "=", "slower": "-"}


def bench_table(record: Mapping[str, Any]) -> str:
    """The whole record."""
    rows = record["rows"]
    parts = [
        _group(op, [row for row in rows if row["op"] == op]) for op in dict.fromkeys(r["op"] for r in rows)
    ]
    parts += [_crossover(one) for one in crossovers(record) if len(one.cells) > 1]
    if record["ceilings"]:
        parts.append("\n".join(ceiling_lines(record)))
    return "\n\n".join([*parts, *bench_conditions(record)])


def _group(op: str, rows: list[Mapping[str, Any]]) -> str:
    """Rows of one operator: a line for each peer of each case."""
    lines = [f"{op:38}{'ours':>9}  {'peer':<13}{'':>9}{'speed':>8}", "-" * 79]
    for row in rows:
        name = f"{row['dtype']} {row['label']}"
        if "error" in row:
            lines += [f"{name[:38]:38}failed:", *_wrapped(row["error"], "    ")]
            continue
        ours = row["times"][OURS]["median"]
        for place, (peer, timing) in enumerate((p, t) for p, t in row["times"].items() if p != OURS):
            lines.append(
                f"{name[:38] if place == 0 else '':38}{seconds_text(ours) if place == 0 else '':>9}  "
                f"{peer:<13}{seconds_text(timing['median']):>9}{row['ratios'][peer]['median']:>7.2f}x"
            )
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        found = [row["speedup"] for row in rows if row["dtype"] == dtype and row.get("speedup")]
        if len(found) > 1:
            mean = statistics.geometric_mean(found)
            lines.append(f"{f'{dtype}: geometric mean of {len(found)}':71}{mean:>7.2f}x")
    return "\n".join(lines)


def _crossover(one: Crossover) -> str:
    """Tokens down, shapes across."""
    names = [f"{inputs}->{outputs}" for inputs, outputs in one.shapes]
    width = max(10, *(len(name) + 1 for name in names))
    lines, per_line = [], (_WIDTH - 8) // width
    for first in range(0, len(names), per_line):
        shapes = one.shapes[first : first + per_line]
        lines.append(
            f"{'tokens':>7}" + "".join(f"{name:>{width}}" for name in names[first : first + per_line])
        )
        for tokens in one.tokens:
            cells = [one.cells.get((tokens, shape)) for shape in shapes]
            if any(cells):
                texts = [f"{c.speedup:.2f}x{MARKS[c.verdict] or ' '}" if c else "" for c in cells]
                lines.append(f"{tokens:>7}" + "".join(f"{text:>{width}}" for text in texts))
        lines.append("")
    counts = one.counts
    return "\n".join(
        [
            f"Where 2:4 pays, {one.dtype}: dense over 2:4 time of linear24",
            *lines,
            *_wrapped(
                f"Faster in {counts['faster']} of {len(one.cells)} cells, slower (-) in {counts['slower']}, "
                f"even (=: the median's 95 % interval holds 1) in {counts['even']}."
            ),
        ]
    )


def ceiling_lines(record: Mapping[str, Any]) -> list[str]:
    """What the machine reaches at most."""
    found = record["ceilings"]
    bandwidth = found["bandwidth"]
    return [
        f"Copy: {bandwidth['memory'] / 1e9:.1f} GB/s of memory, {bandwidth['cache'] / 1e9:.1f} in caches",
        *(f"Dense product, {dtype}: {rate / 1e9:.0f} GFLOP/s" for dtype, rate in found["rate"].items()),
    ]


def bench_conditions(record: Mapping[str, Any]) -> list[str]:
    """Where and how, in lines that fit a terminal."""
    machine = record["machine"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    where = machine["gpu"] if record["device"].startswith("cuda") else f"{machine['cpu']} ({machine['isa']})"
    took = f", {record['seconds']:.0f} s" if "seconds" in record else ""
    return [
        "\n".join(
            [
                *_wrapped(
                    f"{where}, {threads}, torch {machine['torch']}, vlprune {machine['vlprune']} "
                    f"({machine['commit']}); {record['set']} set{took}."
                ),
                *_wrapped(
                    "Medians, all calls of a case in turn, after a check of the result; a speed is the "
                    "median of the ratios within rounds."
                ),
            ]
        )
    ]


def of_ceiling(row: Mapping[str, Any], found: Mapping[str, Any], name: str) -> float | None:
    """Share of what the machine reaches where as much has to move; None if that is unknown."""
    if not row["operations"] or name not in row["moved"] or row["dtype"] not in found["rate"]:
        return None
    reached = row["operations"] / row["times"][name]["median"]
    slope = found["bandwidth"]["memory"] * row["operations"] / row["moved"][name]
    return float(reached / min(found["rate"][row["dtype"]], slope))


def seconds_text(seconds: float) -> str:
    """Three digits and a unit: "1.48 ms"."""
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    unit = next((unit for unit, size in units.items() if seconds >= size), "us")
    value = seconds / units[unit]
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
