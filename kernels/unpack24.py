"""Packed 2:4 written out as dense with zeros: values and meta read once, the weight written once.

A *unit* is 16 bytes of the dense row, one store: two groups of 16-bit weights, one of float32. Its kept
values are shifted to their places and joined, so that nothing is exchanged between threads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .groups4 import halves, store_two
from .launch import aligned, launch, triton_dtype

__all__ = ["unpack24"]

# Eight units a thread: 64 bytes of values in flight, and a warp reads 256 bytes of a row next to each other.
ROWS, UNITS, WARPS = 16, 64, 4


@triton.jit
def _dense16(pair, nibble):
    # int64: four 16-bit entries, of two in an int32 (lower first) and where they stand.
    low, high = pair & 0xFFFF, (pair >> 16) & 0xFFFF
    at_low, at_high = (nibble & 3) * 16, ((nibble >> 2) & 3) * 16
    return (low.to(tl.int64) << at_low) | (high.to(tl.int64) << at_high)


@triton.jit
def _dense32(pair, nibble):
    # Two int64: four 32-bit entries, of two in an int64 (lower first) and where they stand.
    low, high = pair & 0xFFFFFFFF, (pair >> 32) & 0xFFFFFFFF
    at_low, at_high = nibble & 3, (nibble >> 2) & 3
    low, high = low << ((at_low & 1) * 32), high << ((at_high & 1) * 32)
    first = tl.where(at_low < 2, low, 0) | tl.where(at_high < 2, high, 0)
    return first, tl.where(at_low < 2, 0, low) | tl.where(at_high < 2, 0, high)


# Not told of a number of groups divisible by 16, the compiler reads values by the threads that store them.
@triton.jit(do_not_specialize=["rows", "groups"])
def _unpack(
    values, meta, weight, rows, groups,
    dtype: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    GROUPS: tl.constexpr = 1 if dtype == tl.float32 else 2
    units = tl.cdiv(groups, GROUPS)
    across = tl.cdiv(units, UNITS)
    row = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(0) % across * UNITS
    unit = (start + tl.arange(0, UNITS))[None, :]
    inside = (row < rows)[:, None] & (unit < units)
    line = row.to(tl.int64)[:, None]
    # Not `unit * GROUPS // 2`, of which Triton 3.6 does not see that it goes along the row.
    place = unit if GROUPS == 2 else unit // 2
    byte = tl.load(meta + line * tl.cdiv(groups, 2) + place, inside, other=0).to(tl.int32)
    if dtype == tl.float32:
        pair = tl.load(values.to(tl.pointer_type(tl.int64)) + line * groups + unit, inside, other=0)
        first, second = _dense32(pair, (byte >> unit % 2 * 4) & 15)
        store_two(weight, row, start, rows, units, first, second, UNITS)
    elif EVEN:
        both = tl.load(values.to(tl.pointer_type(tl.int64)) + line * units + unit, inside, other=0)
        low, high = halves(both)
        store_two(weight, row, start, rows, units, _dense16(low, byte), _dense16(high, byte >> 4), UNITS)
    else:
        at = line * groups + unit * 2
        more = inside & (unit * 2 + 1 < groups)
        low = tl.load(values.to(tl.pointer_type(tl.int32)) + at, inside, other=0)
        high = tl.load(values.to(tl.pointer_type(tl.int32)) + at + 1, more, other=0)
        place = weight.to(tl.pointer_type(tl.int64)) + at
        tl.store(place, _dense16(low, byte), inside)
        tl.store(place + 1, _dense16(high, byte >> 4), more)


def unpack24(values: Tensor, meta: Tensor) -> Tensor:
    """The dense weight [out, in] of values [out, in/2] in float32, bfloat16 or float16, and meta."""
    rows, half = values.shape
    weight = torch.empty(rows, 2 * half, dtype=values.dtype, device=values.device)
    if weight.numel():
        groups = half // 2
        even = values.dtype is torch.float32 or groups % 2 == 0
        units = groups if values.dtype is torch.float32 else triton.cdiv(groups, 2)
        tiles = triton.cdiv(rows, ROWS) * triton.cdiv(units, UNITS)
        launch(
            _unpack, (tiles,), WARPS, aligned(values), aligned(meta), weight, rows, groups,
            dtype=triton_dtype(values), EVEN=even, ROWS=ROWS, UNITS=UNITS,
        )  # fmt: skip
    return weight
