"""Scoring, selecting and packing on a CUDA device: first the definition's bits, then shares of memory speed.

    python -m benchmarks.gpu_scoring [--check] [--out benchmarks/results/<gpu>/scoring.json]

Times are those of `gpu_common`. A share is the bytes that have to move (the weight read once,
the result written once) by the time, over what a copy of a tensor of the weight's size reaches in the same
rounds. Weights are random normal: zeros would cost a GPU less power, and so clock higher.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_common import Report, calls_of, cold_times, copies_for, parser
from vlprune import measure, ops
from vlprune.ops import reference

# [out, in] of the linears of ViT-L/14's 24 blocks: q, k, v and out; fc1; fc2.
TOWER = [*[(1024, 1024)] * 4, (4096, 1024), (1024, 4096)] * 24
# 64 MB of bfloat16: more than a level-2 cache holds, so that a share of memory speed means something.
LARGE = ((8192, 4096), (32768, 1024), (43690, 768))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# All divisible by 48.
SHAPES = ((1, 48), (67, 240), (333, 768), (64, 4608), (5, 16368), (1024, 1200))
SELECTIONS = (
    ("2:4", None, "row"),
    ("1:4", None, "row"),
    ("3:4", None, "row"),
    ("4:8", None, "row"),
    ("2:16", None, "row"),
    ("24:48", None, "row"),
    ("unstructured", 0.5, "row"),
    ("unstructured", 0.71, "row"),
    ("unstructured", 0.5, "layer"),
)
ROUNDS = 50


def main() -> None:
    """Check, measure, write."""
    options = parser(__doc__)
    options.add_argument("--check", action="store_true", help="compare the bits and time nothing")
    args = options.parse_args()
    # By name, an operator refuses what its kernel cannot do, where it else would go to the definition.
    os.environ["VLPRUNE_BACKEND"] = "triton"
    if (reason := ops.why_not("triton", "wanda_pack24")) is not None:
        sys.exit(f"gpu_scoring: nothing to measure: {reason}")
    if args.check:
        print(f"{check('cuda')} results have the bits of the definition")
        return
    report = Report("scoring", args.out)
    report.attempt("results that have the bits of the definition", lambda: {"count": check("cuda")})
    measured(report)
    report.finish()


def matrix(
    shape: tuple[int, int], dtype: torch.dtype, device: str = "cuda", *, ties: bool = False
) -> tuple[Tensor, Tensor]:
    """Weight and norms on the device, the same every time; with ties also zeros of both signs."""
    generator = torch.Generator(device).manual_seed(shape[0] * 100_000 + shape[1])
    weight = torch.randn(shape, device=device, generator=generator)
    norm = torch.rand(shape[1], device=device, generator=generator) + 0.1
    if ties:
        weight, norm = (weight * 2).round(), (norm * 2).round()
        weight[weight == 1] = -0.0
    return weight.to(dtype), norm


def check(device: str, shapes: tuple[tuple[int, int], ...] = SHAPES) -> int:
    """Compare every operator on a device with the definition on the CPU; how many results were compared."""
    matrices = []
    for shape in shapes:
        for name, dtype in DTYPES.items():
            for ties in (False, True):
                weight, norm = matrix(shape, dtype, device, ties=ties)
                matrices.append((weight, norm))
                for how in SELECTIONS:
                    expected = on_cpu("wanda_mask", weight, norm, *how)
                    case = f"wanda_mask {how} {shape} {name}, ties: {ties}"
                    same(case, ops.wanda_mask(weight, norm, *how), expected)
    packed = ops.wanda_pack24_many([w for w, _ in matrices], [n for _, n in matrices])
    for place, (weight, norm) in enumerate(matrices):
        expected = on_cpu("wanda_pack24", weight, norm)
        for actual in (ops.wanda_pack24(weight, norm), packed[place]):
            for one, other in zip(actual, expected, strict=True):
                same(f"wanda_pack24 of matrix {place}, {tuple(weight.shape)} {weight.dtype}", one, other)
        dense = ops.unpack24(*packed[place])
        same(f"unpack24 of matrix {place}", dense, reference.unpack24(*expected))
        for one, other in zip(ops.pack24(dense), expected, strict=True):
            same(f"pack24 of matrix {place}", one, other)
    x, _ = matrix((3000, 1024), torch.bfloat16, device)
    sums = ops.column_sumsq(x)
    measure.check_close("column_sumsq", sums, x.double().square().sum(0).float())
    same("column_sumsq, twice", sums, ops.column_sumsq(x).cpu())
    return len(matrices) * (len(SELECTIONS) + 4) + 2


def on_cpu(op: str, weight: Tensor, norm: Tensor, *how: object) -> Any:
    """Run the definition."""
    return getattr(reference, op)(weight.cpu(), norm.cpu(), *how)


def same(name: str, actual: Tensor, expected: Tensor) -> None:
    """Refuse what differs in a bit."""
    if not torch.equal(actual.cpu().view(torch.uint8), expected.view(torch.uint8)):
        sys.exit(f"gpu_scoring: {name}: not the bits of the definition")


def compared(
    bytes_: int, copied: Tensor, calls: dict[str, Callable[..., object]], operands: tuple[Tensor, ...] = ()
) -> dict[str, Any]:
    """Time calls on copies of the operands beside a copy of `copied`; `bytes_` have to move in the first."""
    count = copies_for(bytes_) if operands else 1
    each = [operands, *(tuple(t.clone() for t in operands) for _ in range(count - 1))]
    candidates = {name: calls_of(call, each) for name, call in calls.items()}
    pairs = [(torch.empty_like(copied), copied.clone()) for _ in each]
    candidates["copy"] = calls_of(lambda target, source: target.copy_(source), pairs)
    times = cold_times(candidates, ROUNDS)
    first = times[next(iter(calls))].median
    copy = 2 * copied.nbytes / times["copy"].median
    return {
        "microseconds": round(first * 1e6, 1),
        "TB/s": round(bytes_ / first / 1e12, 3),
        "copy TB/s": round(copy / 1e12, 3),
        "share of copy": round(bytes_ / first / copy, 3),
        **{f"{name} times as long": round(times[name].median / first, 2) for name in list(calls)[1:]},
        "times": {name: timing.to_dict() for name, timing in times.items()},
    }


def measured(report: Report) -> None:
    """Add a row for each thing measured."""
    selections = (("2:4", None), ("4:8", None), ("unstructured", 0.5))
    for shape in LARGE:
        report.attempt(f"wanda_pack24 {shape}", lambda shape=shape: packed(shape))
        report.attempt(f"unpack24 {shape}", lambda shape=shape: unpacked(shape))
        for pattern, sparsity in selections:
            how = (pattern, sparsity, "row")
            report.attempt(f"wanda_mask {pattern} {shape}", lambda shape=shape, how=how: masked(shape, how))
        report.attempt(f"column_sumsq {shape}", lambda shape=shape: summed(shape))
    report.attempt(f"wanda_pack24, the {len(TOWER)} linears of ViT-L/14's image tower", tower)


def packed(shape: tuple[int, int]) -> dict[str, Any]:
    """Score, select and pack one matrix."""
    weight, norm = matrix(shape, torch.bfloat16)
    written = sum(t.nbytes for t in ops.wanda_pack24(weight, norm))
    return compared(weight.nbytes + written, weight, {"kernel": ops.wanda_pack24}, (weight, norm))


def unpacked(shape: tuple[int, int]) -> dict[str, Any]:
    """Write one packed matrix out as dense, beside the definition, which scatters."""
    weight, norm = matrix(shape, torch.bfloat16)
    values, meta = ops.wanda_pack24(weight, norm)
    calls = {"kernel": ops.unpack24, "scatter": reference.unpack24}
    return compared(values.nbytes + meta.nbytes + weight.nbytes, weight, calls, (values, meta))


def masked(shape: tuple[int, int], how: tuple[Any, ...]) -> dict[str, Any]:
    """Score and select, beside the definition, which sorts."""
    weight, norm = matrix(shape, torch.bfloat16)
    calls = {
        "kernel": lambda w, n: ops.wanda_mask(w, n, *how),
        "sort": lambda w, n: reference.wanda_mask(w, n, *how),
    }
    return compared(weight.nbytes + weight.numel(), weight, calls, (weight, norm))


def summed(shape: tuple[int, int]) -> dict[str, Any]:
    """Sums of squares."""
    weight, _ = matrix(shape, torch.bfloat16)
    return compared(weight.nbytes, weight, {"kernel": ops.column_sumsq}, (weight,))


def tower() -> dict[str, Any]:
    """Score, select and pack all linears of ViT-L/14's image tower: one launch, and one launch a matrix."""
    from vlprune.kernels.wanda_pack24 import Tower

    weights, norms = zip(*(matrix(shape, torch.bfloat16) for shape in TOWER), strict=True)
    one = Tower(weights, norms)
    moved = sum(t.nbytes for t in weights) + sum(t.nbytes for pair in one.packed for t in pair)
    everything = torch.cat([weight.flatten() for weight in weights])
    return compared(
        moved,
        everything,
        {
            "one launch": one.pack,
            "a launch a matrix": lambda: [
                ops.wanda_pack24(w, n) for w, n in zip(weights, norms, strict=True)
            ],
        },
    )


if __name__ == "__main__":
    main()
