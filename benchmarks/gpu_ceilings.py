"""What a GPU reaches at most here: bytes a second of a copy, operations a second of a dense product.

    python -m benchmarks.gpu_ceilings [--out benchmarks/results/<gpu>/ceilings.json]

Other shares are to be read against these. Products are of random normal numbers: zeros would cost less power,
and so clock higher.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_common import Report, calls_of, cold_times, copies_for, needs_gpu, parser
from vlprune import measure

COPIES = (2**22, 2**24, 2**26, 2**28, 2**30)
SQUARES = (1024, 2048, 4096, 8192)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    """Measure, write."""
    args = parser(__doc__).parse_args()
    needs_gpu("gpu_ceilings")
    report = Report("ceilings", args.out)
    for size in COPIES:
        report.attempt(f"copy of {size / 2**20:.0f} MiB", lambda size=size: copied(size))
    for name, dtype in DTYPES.items():
        for size in SQUARES:
            report.attempt(f"{size}^3 {name}", lambda size=size, dtype=dtype: multiplied(size, dtype))
    report.finish()


def copied(size: int) -> dict[str, Any]:
    """Copy `size` bytes, read and written counted."""
    pairs = [
        tuple(torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
        for _ in range(copies_for(2 * size))
    ]
    timing = cold_times({"copy": calls_of(lambda a, b: a.copy_(b), pairs)})["copy"]
    return {
        "microseconds": round(timing.median * 1e6, 2),
        "TB/s": round(2 * size / timing.median / 1e12, 3),
        "times": timing.to_dict(),
    }


def multiplied(size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Multiply two square matrices by cuBLAS."""
    count = copies_for(2 * size * size * dtype.itemsize)
    pairs = [tuple(torch.randn(size, size, device="cuda").to(dtype) for _ in range(2)) for _ in range(count)]
    a, b = pairs[0]
    measure.check_close("matmul", (a @ b)[:64], (a[:64].double() @ b.double()))
    timing = cold_times({"matmul": calls_of(torch.matmul, pairs)})["matmul"]
    return {
        "microseconds": round(timing.median * 1e6, 2),
        "TFLOP/s": round(2 * size**3 / timing.median / 1e12, 1),
        "times": timing.to_dict(),
    }


if __name__ == "__main__":
    main()
