"""The 2:4 linear layer on the CPU against torch's dense one, at the shapes of CLIP towers.

Dense and sparse runs alternate (A B A B) on the same random-normal data, and every cell is first checked
against the masked dense product in float64.

    python benchmarks/linear24.py [--dtype float32 bfloat16] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from vlprune import _C, ops

# B/32, B/16 and L/14 widths: MLP in and out, fused QKV; tokens of one B/32 or B/16 image and of batches.
SHAPES = [(768, 3072), (3072, 768), (768, 2304), (1024, 4096)]
TOKENS = [50, 197, 400, 1600]
# Largest error over largest output: float32 sums of up to 4096 products; one rounding in bfloat16.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


def weight_24(out: int, inputs: int, dtype: torch.dtype) -> Tensor:
    weight = torch.randn(out, inputs)
    keep = ops.wanda_mask(weight, torch.ones(inputs), "2:4")
    return (weight * keep).to(dtype)


def alternate(
    first: Callable[[], object], second: Callable[[], object], seconds: float
) -> tuple[float, float]:
    """Median seconds of each of two calls run in turn."""
    for _ in range(3):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or time.perf_counter() < end:
        for call, into in zip((first, second), times, strict=True):
            begin = time.perf_counter()
            call()
            into.append(time.perf_counter() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def measure(inputs: int, out: int, tokens: int, dtype: torch.dtype, seconds: float) -> dict[str, object]:
    weight, bias = weight_24(out, inputs, dtype), torch.randn(out).to(dtype)
    values, meta = ops.pack24(weight)
    x = torch.randn(tokens, inputs).to(dtype)
    exact = linear(x.double(), weight.double(), bias.double())
    error = ((ops.linear24(x, values, meta, bias).double() - exact).abs().max() / exact.abs().max()).item()
    if error > TOLERANCE[dtype]:
        raise SystemExit(
            f"{inputs}->{out}, {tokens} tokens, {dtype}: {error:.1e} of the largest output wrong"
        )
    dense, sparse = alternate(
        lambda: linear(x, weight, bias), lambda: ops.linear24(x, values, meta, bias), seconds
    )
    work = 2e-9 * tokens * inputs * out
    return {
        "dtype": str(dtype).removeprefix("torch."), "in": inputs, "out": out, "tokens": tokens,
        "dense_ms": dense * 1e3, "sparse_ms": sparse * 1e3, "dense_gflops": work / dense,
        "sparse_gflops": work / sparse, "speedup": dense / sparse, "error": error,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--seconds", type=float, default=1.0, help="of alternating runs per cell")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    isa = ("portable", "avx2", "avx512", "avx512_bf16")[_C.best_isa()]
    machine = {
        "processor": platform.processor() or platform.machine(), "isa": isa, "threads": arguments.threads,
        "torch": torch.__version__,
    }  # fmt: skip
    print(f"{machine['processor']}, {isa}, {arguments.threads} threads, torch {torch.__version__}")
    print("dtype     shape        tokens  dense ms    2:4 ms  dense GF  2:4 GF  ratio")
    rows = []
    for name in arguments.dtype:
        ratios = []
        for inputs, out in SHAPES:
            for tokens in arguments.tokens:
                row = measure(inputs, out, tokens, getattr(torch, name), arguments.seconds)
                rows.append(row)
                ratios.append(row["speedup"])
                print(
                    f"{name:9} {f'{inputs}->{out}':12} {tokens:6} {row['dense_ms']:9.3f} "
                    f"{row['sparse_ms']:9.3f} {row['dense_gflops']:9.0f} "
                    f"{row['sparse_gflops']:7.0f} {row['speedup']:6.2f}",
                    flush=True,
                )
        print(f"{name}: geometric mean {math.exp(statistics.fmean(map(math.log, ratios))):.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
