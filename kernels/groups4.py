"""Groups of four in registers: how a matrix is read, and which entries of a group stay.

A thread reads a *unit* of 32 bytes (four groups of 16-bit weights, two of float32) in two 16-byte loads of
64-bit words. All that is made of a unit belongs to the thread that read it: nothing is exchanged between
threads, and the packed values of a unit are one 16-byte store.

An *entry* is a weight with its index in the group below it: 16 + 16 bits in an int32 for 16-bit weights,
32 + 32 bits in an int64 for float32. Choosing an entry chooses value and index in one instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .scores import key_of, sign_of

__all__ = ["concat", "entries_of", "halves", "keys_of", "load_norms", "load_unit", "store_two", "tile_of"]


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
    """Rows [R] and units [U] of tile `index` of a matrix; tiles run along the rows first."""
    across = tl.cdiv(tl.cdiv(groups, GROUPS), UNITS)
    return (index // across) * ROWS + tl.arange(0, ROWS), (index % across) * UNITS + tl.arange(0, UNITS)


@triton.jit
def load_unit(weight, row, unit, rows, groups, GROUPS: tl.constexpr, EVEN: tl.constexpr):
    """Four int64 [R, U] of each unit, zeros outside. EVEN: the groups of a row fill its units."""
    two = tl.arange(0, 2)[None, None, :]
    if EVEN:
        # Written as a product by 4, from which the compiler knows how every row is aligned.
        words = groups // GROUPS * 4
        inside = ((row < rows)[:, None] & (unit < groups // GROUPS)[None, :])[:, :, None]
        first = tl.broadcast_to(inside, (inside.shape[0], inside.shape[1], 2))
        second = first
    else:
        words = groups * (4 // GROUPS)
        first = (row < rows)[:, None, None] & ((unit * 4)[None, :, None] + two < words)
        second = (row < rows)[:, None, None] & ((unit * 4 + 2)[None, :, None] + two < words)
    place = row.to(tl.int64)[:, None] * words + unit[None, :] * 4
    at = weight.to(tl.pointer_type(tl.int64)) + place[:, :, None] + two
    w0, w1 = tl.load(at, first, other=0).split()
    w2, w3 = tl.load(at + 2, second, other=0).split()
    return w0, w1, w2, w3


@triton.jit
def store_two(base, place, first, second, inside):
    """Store two int64 [R, U] next to each other, at twice `place`: 16 bytes at once."""
    at = base.to(tl.pointer_type(tl.int64)) + (place * 2)[:, :, None] + tl.arange(0, 2)[None, None, :]
    mask = tl.broadcast_to(inside[:, :, None], (inside.shape[0], inside.shape[1], 2))
    tl.store(at, tl.join(first, second), mask)


@triton.jit
def load_norms(norm, group, groups):
    """Float32 [1, U], four times: the norms of a group's columns, zeros outside."""
    at = norm.to(tl.pointer_type(tl.int64)) + (group * 2)[:, None] + tl.arange(0, 2)[None, :]
    inside = (group < groups)[:, None]
    pair01, pair23 = tl.load(at, tl.broadcast_to(inside, (inside.shape[0], 2)), other=0).split()
    n0, n1 = halves(pair01[None, :])
    n2, n3 = halves(pair23[None, :])
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
def keys_of(x0, x1, x2, x3, norm, group, groups, dtype: tl.constexpr):
    """Keys of the scores of four entries without index; `norm` points to the norms of all columns."""
    n0, n1, n2, n3 = load_norms(norm, group, groups)
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
