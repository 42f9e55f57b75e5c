"""What the selecting kernels can take, without importing triton: asked for before they are."""

from __future__ import annotations

__all__ = ["MAX_ENTRIES", "MAX_UNIT"]

# Entries of a unit that is selected from on chip: 32 keys a thread in the 16 warps that have 128 registers
# each. The 32 warps that 32768 entries take have 64, and the compiler spills.
MAX_UNIT = 16384
# Entries of a matrix that is one unit: counts and offsets are int32.
MAX_ENTRIES = 2**31 - 1
