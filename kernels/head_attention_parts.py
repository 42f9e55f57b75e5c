"""What the attention kernels share: one head's rows as tiles, products of tiles, and the shape of a tile.

A tile's width is a power of two, and so a head of 80 is two tiles of 64 and 16, one of 88 is 64 and 32 of
which 8 columns are zeros. Tuples of such tiles are what the functions here take and return.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device_of

__all__ = [
    "load_head",
    "masked",
    "products",
    "run",
    "scaled",
    "steps",
    "store_head",
    "weighed",
    "widths",
    "zeros",
]


def widths(head_dim: int) -> tuple[int, ...]:
    """Powers of two that cover a head: one, or two where that is less."""
    first = max(16, 1 << head_dim.bit_length() - 1)
    if head_dim <= first:
        return (first,)
    second = max(16, triton.next_power_of_2(head_dim - first))
    return (2 * first,) if second == first else (first, second)


def steps(*strides: int) -> tuple[int, tuple[int, ...]]:
    """``(unit, strides / unit)``; the unit, 8 or 1, is how the compiler knows of 16-byte rows."""
    unit = 1 if any(stride % 8 for stride in strides) else 8
    return unit, tuple(stride // unit for stride in strides)


def run(kernel: Any, programs: int, first: Tensor, *rest: object, **options: object) -> None:
    """Launch on the device of `first`, which need not be the current one."""
    with on_device_of(first):
        kernel[(programs,)](first, *rest, **options)


@triton.jit
def load_head(x, first, length, step, UNIT: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
              WIDTHS: tl.constexpr):  # fmt: skip
    """Rows first.. of a head, the tiles of `WIDTHS` next to each other; zeros outside of it."""
    row = first + tl.arange(0, ROWS)
    at = x + row.to(tl.int64)[:, None] * step * UNIT
    tiles = ()
    for i in tl.static_range(len(WIDTHS)):
        column = i * WIDTHS[0] + tl.arange(0, WIDTHS[i])
        inside = (row < length)[:, None] & (column < DIM)[None, :]
        tiles = tiles + (tl.load(at + column[None, :], inside, other=0.0),)  # noqa: RUF005
    return tiles


@triton.jit
def store_head(tiles, x, first, length, step, UNIT: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
               WIDTHS: tl.constexpr):  # fmt: skip
    """Write what `load_head` reads, in the dtype of `x`."""
    row = first + tl.arange(0, ROWS)
    at = x + row.to(tl.int64)[:, None] * step * UNIT
    for i in tl.static_range(len(WIDTHS)):
        column = i * WIDTHS[0] + tl.arange(0, WIDTHS[i])
        inside = (row < length)[:, None] & (column < DIM)[None, :]
        tl.store(at + column[None, :], tiles[i].to(x.dtype.element_ty), inside)


@triton.jit
def zeros(ROWS: tl.constexpr, WIDTHS: tl.constexpr):
    """Float32 sums of a head's rows, to be added to."""
    tiles = ()
    for i in tl.static_range(len(WIDTHS)):
        tiles = tiles + (tl.full((ROWS, WIDTHS[i]), 0.0, tl.float32),)  # noqa: RUF005
    return tiles


@triton.jit
def products(rows, columns):
    """Every row times every column, summed over the head's width: float32 [rows, columns]."""
    total = tl.dot(rows[0], tl.trans(columns[0]), input_precision="ieee")
    for i in tl.static_range(1, len(rows)):
        total = tl.dot(rows[i], tl.trans(columns[i]), total, input_precision="ieee")
    return total


@triton.jit
def weighed(shares, rows, sums):
    """`sums` plus the rows weighed by `shares`, which are rounded to the rows' dtype for it."""
    tiles = ()
    for i in tl.static_range(len(rows)):
        share = shares.to(rows[i].dtype)
        tiles = tiles + (tl.dot(share, rows[i], sums[i], input_precision="ieee"),)  # noqa: RUF005
    return tiles


@triton.jit
def scaled(sums, factors):
    """Every row of `sums` times its factor."""
    tiles = ()
    for i in tl.static_range(len(sums)):
        tiles = tiles + (sums[i] * factors[:, None],)  # noqa: RUF005
    return tiles


@triton.jit
def masked(scores, row, column, length, CAUSAL: tl.constexpr):
    """The scores, minus infinity where a row does not see a column."""
    if CAUSAL:
        scores = tl.where(column <= row, scores, float("-inf"))
    return tl.where(column < length, scores, float("-inf"))
