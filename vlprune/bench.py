"""`linear24` against the dense layer at the linear shapes of CLIP towers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import measure, ops

__all__ = ["BENCH_SHAPES", "BENCH_TOKENS", "bench_linear24", "bench_table"]

# One 224-px image of ViT-B/32 and of B/16, and batches of 8 and 32 of the former.
BENCH_TOKENS = (50, 197, 400, 1600)
# in -> out: fc1, fc2 and qkv of ViT-B, fc1 of ViT-L.
BENCH_SHAPES = ((768, 3072), (3072, 768), (768, 2304), (1024, 4096))


def bench_linear24(
    tokens: Sequence[int] = BENCH_TOKENS,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    shapes: Sequence[tuple[int, int]] = BENCH_SHAPES,
    *,
    rounds: int = 20,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Time both, interleaved, random-normal data, after a check against the masked dense product.

    Returns:
        One row a case: dtype, tokens, in, out, dense and sparse `Timing` as dicts (seconds), speedup.

    """
    cases = [(d, i, o, t) for d in dtypes for i, o in shapes for t in tokens]
    rows = []
    generator = torch.Generator().manual_seed(0)
    for dtype, inputs, outputs, count in tqdm(
        cases, unit="case", disable=None if progress is None else not progress
    ):
        weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
        bias = torch.randn(outputs, generator=generator).to(dtype)
        x = torch.randn(count, inputs, generator=generator).to(dtype)
        values, meta = ops.wanda_pack24(weight, torch.ones(inputs))
        dense = ops.unpack24(values, meta)
        exact = F.linear(x.double(), dense.double(), bias.double())
        with torch.inference_mode():
            measure.check_close(
                f"linear24 {count}x{inputs}->{outputs}", ops.linear24(x, values, meta, bias), exact
            )
            times = measure.compare(
                {
                    "dense": lambda x=x, w=weight, b=bias: F.linear(x, w, b),  # type: ignore[misc]
                    "sparse": lambda x=x, v=values, m=meta, b=bias: ops.linear24(x, v, m, b),  # type: ignore[misc]
                },
                rounds=rounds,
            )
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "tokens": count,
                "in": inputs,
                "out": outputs,
                **{name: timing.to_dict() for name, timing in times.items()},
                "speedup": times["dense"].median / times["sparse"].median,
            }
        )
    return rows


def bench_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text, with the geometric mean of the speed-ups for each dtype."""
    lines = [
        f"{'dtype':9} {'shape':>12} {'tokens':>6} {'dense ms':>9} {'2:4 ms':>8} {'GFLOP/s':>8} {'speed':>6}"
    ]
    for row in rows:
        dense, sparse = row["dense"]["median"], row["sparse"]["median"]
        rate = 2 * row["tokens"] * row["in"] * row["out"] / sparse / 1e9
        lines.append(
            f"{row['dtype']:9} {row['in']:>5} ->{row['out']:>5} {row['tokens']:>6} "
            f"{1e3 * dense:>9.3f} {1e3 * sparse:>8.3f} {rate:>8.0f} {row['speedup']:>5.2f}x"
        )
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        mean = statistics.geometric_mean(row["speedup"] for row in rows if row["dtype"] == dtype)
        lines.append(f"{dtype}: geometric mean {mean:.2f}x (GFLOP/s are dense-equivalent)")
    return "\n".join(lines)
