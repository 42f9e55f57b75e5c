"""Exact selection from a whole matrix: its threshold digit by digit, in passes over memory.

Four passes find the threshold, each 8 bits of it: a pass counts the digits of the keys that begin with the
digits found so far. Counts are integers, so that adding them atomically gives the same sum in any order.
A fifth pass counts each row's ties, and a sixth writes the mask, where the ties of the lowest indices go.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .scores import key_of, sign_of

__all__ = ["keep_of_layer"]

# 1024 columns with 4 warps: 8 entries a thread, one 16-byte load of 16-bit weights. A block counts at least
# 32768 entries before it adds its 256 counts to those of all, one atomic addition in 128 entries.
BLOCK, WARPS, ENTRIES = 1024, 4, 32768


@triton.jit
def _ordered(weight, norm, row, start, cols, BLOCK: tl.constexpr):
    """Keys as unsigned numbers, in int32, and which of them exist."""
    # The start is a loop's, of which the compiler does not know how it is aligned.
    column = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
    inside = column < cols
    scale = tl.load(norm + column, inside, other=0)
    value = tl.load(weight + row * cols + column, inside, other=0).to(tl.float32)
    return key_of(value, scale, sign_of(scale)) ^ -0x80000000, inside


@triton.jit
def _found(histograms, prune, PASSES: tl.constexpr):
    """Digits found by the first PASSES passes, as the upper bits of an int32, and how many go beyond them."""
    digit = tl.arange(0, 256)
    prefix = prune * 0
    for step in tl.static_range(PASSES):
        counts = tl.load(histograms + step * 256 + digit)
        chosen = tl.sum((tl.cumsum(counts) < prune).to(tl.int32))
        prune -= tl.sum(tl.where(digit < chosen, counts, 0))
        prefix |= chosen << (24 - 8 * step)
    return prefix, prune


@triton.jit
def _count_digits(
    weight, norm, histograms, rows, cols, prune, rows_each,
    PASS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    SHIFT: tl.constexpr = 24 - 8 * PASS
    prefix, _ = _found(histograms, prune, PASS)
    first = tl.program_id(0) * rows_each
    counts = tl.zeros((256,), tl.int32)
    row, last = first, tl.minimum(first + rows_each, rows)
    while row < last:
        start = 0
        while start < cols:
            key, counted = _ordered(weight, norm, row, start, cols, BLOCK)
            if PASS > 0:
                counted &= (key >> (SHIFT + 8)) == (prefix >> (SHIFT + 8))
            counts += tl.histogram((key >> SHIFT) & 255, 256, mask=counted)
            start += BLOCK
        row += 1
    tl.atomic_add(histograms + PASS * 256 + tl.arange(0, 256), counts, mask=counts > 0, sem="relaxed")


@triton.jit
def _count_ties(weight, norm, histograms, ties, rows, cols, prune, BLOCK: tl.constexpr):
    threshold, _ = _found(histograms, prune, 4)
    row = tl.program_id(0)
    count = prune * 0
    start = 0
    while start < cols:
        key, inside = _ordered(weight, norm, row, start, cols, BLOCK)
        count += tl.sum(((key == threshold) & inside).to(tl.int32))
        start += BLOCK
    tl.store(ties + row, count)


@triton.jit
def _write(weight, norm, histograms, ties, keep, rows, cols, prune, BLOCK: tl.constexpr):
    threshold, left = _found(histograms, prune, 4)
    row = tl.program_id(0)
    # Ties up to and with this row, less its own: those of the rows before.
    seen = tl.load(ties + rows + row) - tl.load(ties + row)
    start = 0
    while start < cols:
        key, inside = _ordered(weight, norm, row, start, cols, BLOCK)
        equal = ((key == threshold) & inside).to(tl.int32)
        rank = seen + tl.cumsum(equal)
        above = (key ^ -0x80000000) > (threshold ^ -0x80000000)
        stays = above | ((key == threshold) & (rank > left))
        column = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
        tl.store(keep + row * cols + column, stays.to(tl.uint8), inside)
        seen += tl.sum(equal)
        start += BLOCK


def keep_of_layer(weight: Tensor, norm: Tensor, keep: Tensor, prune: int) -> None:
    """Fill `keep` (uint8) where 0 < `prune` < the number of entries go; at most `limits.MAX_ENTRIES` entries.

    `weight` [out, in] and `norm` float32 [in] are contiguous.
    """
    rows, cols = weight.shape
    histograms = torch.zeros(4 * 256, dtype=torch.int32, device=weight.device)
    rows_each = triton.cdiv(ENTRIES, cols)
    sizes = (rows, cols, prune)
    for step in range(4):
        launch(
            _count_digits, (triton.cdiv(rows, rows_each),), WARPS,
            weight, norm, histograms, *sizes, rows_each, PASS=step, BLOCK=BLOCK,
        )  # fmt: skip
    ties = torch.empty(2, rows, dtype=torch.int32, device=weight.device)
    launch(_count_ties, (rows,), WARPS, weight, norm, histograms, ties, *sizes, BLOCK=BLOCK)
    torch.cumsum(ties[0], 0, out=ties[1])
    launch(_write, (rows,), WARPS, weight, norm, histograms, ties, keep, *sizes, BLOCK=BLOCK)
