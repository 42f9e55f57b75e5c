"""The instruction set that the CPU operators run with on this machine."""

from __future__ import annotations

from . import backend
from .prepared import best_isa

__all__ = ["cpu_isa"]

# As csrc/cpu/ops.h numbers them.
_NAMES = ("portable", "avx2", "avx512", "avx512_bf16")


def cpu_isa() -> str:
    """Name of the instruction set of the native operators, "none" if the extension is not built."""
    return "none" if backend.why_not("cpu", "linear24") else _NAMES[best_isa()]
