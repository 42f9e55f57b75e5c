"""What kernels can take, without importing triton: asked for before they are."""

from __future__ import annotations

__all__ = ["MAX_COLUMNS", "MAX_ENTRIES", "max_unit"]

# Entries of a matrix that is one unit: counts are int32, and so are offsets, which go beyond its last row and
# column by less than a block.
MAX_ENTRIES = 2**31 - 2**16

# Inputs of a row that is quantised on chip: 64 a thread in eight warps.
MAX_COLUMNS = 16384


def max_unit(entries: int) -> int:
    """Entries of a unit that is selected from on chip, at most, for one of `entries` of them.

    16384 are 32 keys a thread in 16 warps, whose threads have 128 registers; the compiler spills in the 32
    warps, of 64 registers, that more would take. Where it is not told that units are multiples of 16 entries,
    addresses take more registers, and it spills in 16 warps as well.
    """
    return 16384 if entries % 16 == 0 else 8192
