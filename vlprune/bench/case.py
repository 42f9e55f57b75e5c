"""What one measurement is: its name, what it computes, and who computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["DTYPES", "OURS", "Call", "Case", "Work", "seeded"]

Call = Callable[[], object]

# The name of this package's own form among the calls of a case.
OURS = "vlprune"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Work:
    """A case made ready on a device.

    Args:
        calls: `OURS` first, then its peers.
        check: compares the result of `OURS` with the right one and returns the largest relative error.
        operations: floating-point operations of the dense form; None where counting them means nothing.
        moved: bytes that each call has to read and write at least, as far as known.
        more: what else the row of a result should say.
        waits: names of calls that wait for the device, and so cannot be captured in a CUDA graph.
        against: peers of which a speed-up is over the fastest there is; without any, the first peer.

    """

    calls: Mapping[str, Call]
    check: Callable[[], float]
    operations: float | None = None
    moved: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    waits: frozenset[str] = frozenset()
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One operator or tower at one size.

    Args:
        op: what is measured: the name of an operator, or "tower".
        sizes: plain values that say which size, for JSON.
        label: the same in a few words, unique among the cases of this operator and dtype.
        dtype: "fp32", "bf16" or "fp16".
        peers: names of what stands beside this package's own form wherever it runs.
        make: builds it on a device.
        quick: whether the quick set has it.

    """

    op: str
    sizes: Mapping[str, Any] = field(hash=False)
    label: str
    dtype: str
    peers: tuple[str, ...]
    make: Callable[[torch.device], Work] = field(repr=False, compare=False)
    quick: bool = True

    @property
    def name(self) -> str:
        """Of this case alone: "linear24 fp32 50 x 768 -> 3072"."""
        return f"{self.op} {self.dtype} {self.label}"


def seeded(device: torch.device) -> torch.Generator:
    """Random numbers that are the same every time."""
    return torch.Generator(device).manual_seed(0)
