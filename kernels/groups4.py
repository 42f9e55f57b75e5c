"""Groups of four in registers: how a matrix is read, and which entries of a group stay.

A thread reads a *unit* of 32 bytes (four groups of 16-bit weights, two of float32) in two 16-byte loads of
64-bit words. All that is made of a unit belongs to the thread that read it: nothing is exchanged between
threads, and the packed values of a unit are one 16-byte store.

An *entry* is a weight with its index in the group below it: 16 + 16 bits in an int32 for 16-bit weights,
32 + 32 bits in an int64 for float32. Choosing an entry chooses value and index in one instruction.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .scores import key_of, sign_of

__all__ = [
    "ROWS",
    "UNITS",
    "WARPS",
    "concat",
    "entries_of",
    "halves",
    "keys_of",
    "load_unit",
    "store_two",
    "tile_of",
    "tiling",
]

# A tile is 32 rows of 16 units, with 4 warps: 16 threads next to each other read 512 bytes of a row and write
# 256, whole 32-byte sectors of meta included; a warp holds two rows, so that a thread has four units, that is
# eight 16-byte loads, in flight, and pays for the norms of its columns once in four rows. By the
# compiler's count packing takes 96 registers of a thread, which leaves five such blocks or 80 KB of loads in
# flight on each multiprocessor, three times what 4.8 TB/s at a latency of 0.7 us ask for; a mask takes 64.
ROWS, UNITS, WARPS = 32, 16, 4


def tiling(weight: Tensor) -> tuple[int, bool]:
    """Tiles of a matrix [out, in], and whether the groups of its rows fill their units."""
    rows, cols = weight.shape
    per_unit = 2 if weight.dtype is torch.float32 else 4
    units = triton.cdiv(cols // 4, per_unit)
    return triton.cdiv(rows, ROWS) * triton.cdiv(units, UNITS), cols // 4 % per_unit == 0


@triton.jit
def halves(word):
    """Both int32 of an int64, lower first."""
    return word.to(tl.int32), (word >> 32).to(tl.int32)


@triton.jit
def concat(low, high):
    """Two int32 as one int64."""
    return low.to(tl.uint32, bitcast=True).to(tl.int64) | (high.to(tl.int64) << 32)


@triton.jit
def tile_of(index, groups, GROUPS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Rows [R] and first unit of tile `index` of a matrix; tiles run along the rows first."""
    across = tl.cdiv(tl.cdiv(groups, GROUPS), UNITS)
    return (index // across) * ROWS + tl.arange(0, ROWS), (index % across) * UNITS


@triton.jit
def _lanes(start, UNITS: tl.constexpr):
    # Each unit twice, and 0 and 1 in turn: words of which two at a time are neighbours. In two dimensions
    # [R, 2 * U], since the three of [R, U, 2] leave open whether threads go along the rows or down.
    lane = tl.arange(0, 2 * UNITS)
    return (start + lane // 2)[None, :], (lane % 2)[None, :]


@triton.jit
def _split(words):
    return words.reshape(words.shape[0], words.shape[1] // 2, 2).split()


@triton.jit
def load_unit(
    weight, row, start, rows, groups, GROUPS: tl.constexpr, EVEN: tl.constexpr, UNITS: tl.constexpr
):  # fmt: skip
    """Four int64 [R, U] of each unit, zeros outside. EVEN: the groups of a row fill its units."""
    unit, half = _lanes(start, UNITS)
    word = unit * 4 + half
    if EVEN:
        # Written as a product by 4, from which the compiler knows how every row is aligned.
        words = groups // GROUPS * 4
        first = (row < rows)[:, None] & (unit < groups // GROUPS)
        second = first
    else:
        words = groups * (4 // GROUPS)
        first = (row < rows)[:, None] & (word < words)
        second = (row < rows)[:, None] & (word + 2 < words)
    at = weight.to(tl.pointer_type(tl.int64)) + row.to(tl.int64)[:, None] * words + word
    w0, w1 = _split(tl.load(at, first, other=0))
    w2, w3 = _split(tl.load(at + 2, second, other=0))
    return w0, w1, w2, w3


@triton.jit
def store_two(base, row, start, rows, units, first, second, UNITS: tl.constexpr):
    """Store two int64 [R, U] next to each other, 16 bytes at once, in rows of `units` such pairs."""
    unit, half = _lanes(start, UNITS)
    at = base.to(tl.pointer_type(tl.int64)) + row.to(tl.int64)[:, None] * (units * 2) + unit * 2 + half
    both = tl.join(first, second).reshape(row.shape[0], 2 * UNITS)
    tl.store(at, both, (row < rows)[:, None] & (unit < units))


@triton.jit
def _load_norms(norm, start, groups, GROUP: tl.constexpr, GROUPS: tl.constexpr, UNITS: tl.constexpr):
    # Float32 [1, U], four times: the norms of the columns of group GROUP of each unit, zeros outside.
    unit, half = _lanes(start, UNITS)
    group = unit * GROUPS + GROUP
    at = norm.to(tl.pointer_type(tl.int64)) + group * 2 + half
    pair01, pair23 = _split(tl.load(at, group < groups, other=0))
    n0, n1 = halves(pair01)
    n2, n3 = halves(pair23)
    return (
        n0.to(tl.float32, bitcast=True),
        n1.to(tl.float32, bitcast=True),
        n2.to(tl.float32, bitcast=True),
        n3.to(tl.float32, bitcast=True),
    )


@triton.jit
def entries_of(pair01, pair23):
    """Entries without their index, from two int32 of two 16-bit weights or two int64 of two float32."""
    BITS: tl.constexpr = pair01.dtype.primitive_bitwidth // 2
    UPPER: tl.constexpr = -(1 << BITS)
    return pair01 << BITS, pair01 & UPPER, pair23 << BITS, pair23 & UPPER


@triton.jit
def keys_of(
    x0, x1, x2, x3, norm, start, groups,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, UNITS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Keys of the entries (without index) of group GROUP of each unit; `norm` is that of all columns."""
    n0, n1, n2, n3 = _load_norms(norm, start, groups, GROUP, GROUPS, UNITS)
    return (
        key_of(_weight(x0, dtype), n0, sign_of(n0)),
        key_of(_weight(x1, dtype), n1, sign_of(n1)),
        key_of(_weight(x2, dtype), n2, sign_of(n2)),
        key_of(_weight(x3, dtype), n3, sign_of(n3)),
    )


@triton.jit
def _weight(entry, dtype: tl.constexpr):
    if dtype == tl.bfloat16:
        # The upper half of a float32.
        return entry.to(tl.float32, bitcast=True)
    elif dtype == tl.float16:
        return (entry >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return (entry >> 32).to(tl.int32).to(tl.float32, bitcast=True)
