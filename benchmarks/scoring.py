"""Scoring and selection against the procedure published with Wanda: `python -m benchmarks.scoring`.

Every case is gated by equality of the result with the procedure's, written in plain PyTorch, then timed
interleaved with it. Groups are also held against the machine's copy bandwidth: a `copy_` that reads and
writes as many bytes together as the weight and the mask (a byte an entry) have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprune import measure, ops
from vlprune.bench import published

# What the project sets itself: times the published form, and share of the copy bandwidth.
GOALS = {"row": 10.0, "n:m": 100.0, "pack24": 50.0}
BANDWIDTH_GOAL = 0.7
PATTERNS = ("2:4", "1:4", "4:8")


def _same(name: str, ours: Any, published: Any) -> None:
    pairs = zip(ours, published, strict=True) if isinstance(ours, tuple) else [(ours, published)]
    if not all(torch.equal(a, b) for a, b in pairs):
        raise ValueError(f"{name}: differs from the published procedure")


def _cases(weight: Tensor, norm: Tensor) -> dict[str, tuple[str, Callable[[], Any], Callable[[], Any]]]:
    # name -> (goal, ours, published)
    cases: dict[str, tuple[str, Callable[[], Any], Callable[[], Any]]] = {
        "wanda_mask row 50%": (
            "row",
            partial(ops.wanda_mask, weight, norm, "unstructured", 0.5, "row"),
            partial(published.row_mask, weight, norm, 0.5),
        ),
        "wanda_pack24": (
            "pack24",
            partial(ops.wanda_pack24, weight, norm),
            partial(published.pack24, weight, norm),
        ),
    }
    for pattern in PATTERNS:
        kept, group = map(int, pattern.split(":"))
        cases[f"wanda_mask {pattern}"] = (
            "n:m",
            partial(ops.wanda_mask, weight, norm, pattern),
            partial(published.group_mask, weight, norm, kept, group),
        )
    return cases


def bench_scoring(size: int = 4096, rounds: int = 5) -> list[dict[str, Any]]:
    """Time every case on a [size, size] random-normal weight in float32 and bfloat16; times in seconds."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        norm = torch.rand(size, generator=generator) + 0.5
        weight = published.untied_weight((size, size), dtype, norm, generator)
        half = weight.numel() * (weight.element_size() + 1) // 2
        source, target = torch.ones(half, dtype=torch.uint8), torch.zeros(half, dtype=torch.uint8)
        for name, (goal, ours, plain) in _cases(weight, norm).items():
            _same(name, ours(), plain())
            against = measure.compare(
                {"ours": ours, "published": plain}, warmup=1, rounds=rounds, max_seconds=10
            )
            row = {
                "dtype": str(dtype).removeprefix("torch."),
                "size": size,
                "case": name,
                **{key: timing.to_dict() for key, timing in against.items()},
                "speedup": against["published"].median / against["ours"].median,
                "speedup_goal": GOALS[goal],
            }
            if goal == "n:m":
                copied = measure.compare(
                    {"ours": ours, "copy": partial(target.copy_, source)}, rounds=10 * rounds, max_seconds=5
                )
                row |= {
                    "copy": copied["copy"].to_dict(),
                    "bandwidth": 2 * half / copied["ours"].median,
                    "copy_bandwidth": 2 * half / copied["copy"].median,
                    "of_copy": copied["copy"].median / copied["ours"].median,
                    "of_copy_goal": BANDWIDTH_GOAL,
                }
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = []
    for row in rows:
        line = (
            f"{row['dtype']:9} {row['case']:20} {1e3 * row['published']['median']:>9.1f} ms published "
            f"{1e3 * row['ours']['median']:>8.2f} ms ours "
            f"{row['speedup']:>6.1f}x (goal {row['speedup_goal']:g}x)"
        )
        if "of_copy" in row:
            line += f", {row['bandwidth'] / 1e9:.1f} GB/s = {row['of_copy']:.0%} of a copy"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Print the table and, if asked, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = bench_scoring(arguments.size, arguments.rounds)
    print(table(rows))
    if arguments.json is not None:
        record = {"machine": measure.machine_info(), "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
