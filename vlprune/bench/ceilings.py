"""What a machine reaches at most: bytes a second of a copy, operations a second of the best dense product."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from .. import measure
from .case import DTYPES, seeded
from .onednn import ONEDNN, OneDnnLinear, has_onednn
from .ops_cases import DENSE

__all__ = ["ceilings"]

# Bytes of a copy's source: what stays in a core's own cache, in the last-level cache, and in neither.
_COPIES = {"cpu": (2**17, 2**20, 2**22, 2**28), "cuda": (2**20, 2**22, 2**24, 2**30)}
# A copy of which fits no cache of machines in use.
_MEMORY = 2**27
_SQUARES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}


def ceilings(device: torch.device, dtypes: tuple[str, ...], *, seconds: float = 0.3) -> dict[str, Any]:
    """Measure both.

    Args:
        device: where.
        dtypes: of the products: "fp32", "bf16", "fp16".
        seconds: to spend on each size at least, five rounds in any case.

    Returns:
        By the 20th percentile of the rounds, as undisturbed as it gets:
        ``bandwidth`` in bytes a second, read and written counted: "memory", and the best of smaller copies
        as "cache"; ``rate`` in operations a second, the best of the sizes and forms, by dtype; and ``rows``.

    """
    rows: list[dict[str, Any]] = []
    copies = _COPIES[device.type]
    for size in copies:
        source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
        timing = _timed(partial(target.copy_, source), device, seconds)
        rows.append({"copy": size, "bytes_per_second": 2 * size / timing.p20, "times": timing.to_dict()})
    bandwidths = {row["copy"]: row["bytes_per_second"] for row in rows}
    rate: dict[str, float] = {}
    for name in dtypes:
        for size in _SQUARES[device.type]:
            x, w = (
                torch.randn(size, size, generator=seeded(device), device=device).to(DTYPES[name])
                for _ in range(2)
            )
            forms: dict[str, Any] = {DENSE: partial(F.linear, x, w)}
            if has_onednn(DTYPES[name], device):
                forms[ONEDNN] = partial(OneDnnLinear(w, None, size), x)
            fastest = float("inf")
            for form, call in forms.items():
                timing = _timed(call, device, seconds)
                reached = 2 * size**3 / timing.p20
                rate[name] = max(rate.get(name, 0.0), reached)
                fastest = min(fastest, timing.median)
                rows.append(
                    {
                        "product": size,
                        "form": form,
                        "dtype": name,
                        "operations_per_second": reached,
                        "times": timing.to_dict(),
                    }
                )
            # the next one takes eight times as long: some CPUs have no fast product of some dtypes
            if fastest > seconds:
                break
    return {
        "bandwidth": {
            "memory": max(speed for size, speed in bandwidths.items() if size >= _MEMORY),
            "cache": max(speed for size, speed in bandwidths.items() if size < _MEMORY),
        },
        "rate": rate,
        "rows": rows,
    }


def _timed(call: Any, device: torch.device, seconds: float) -> measure.Timing:
    times = measure.compare(
        {"call": call}, device=device, warmup=1, rounds=5, min_seconds=seconds, max_seconds=4 * seconds
    )
    return times["call"]
