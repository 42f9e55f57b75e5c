"""``(W + scale * B A) * M``: W [out, in] and M read once, the result written once, A and B out of the caches.

The product is `tl.dot` over padded ranks: by tensor cores where A and B are of 16 bits, else in float32 as
it is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

__all__ = ["masked_update"]

# 32 sums a thread; a row of the tile is 128 bytes of mask and 256 or 512 of weight.
ROWS, COLUMNS, WARPS = 64, 128, 8
# Ranks of a step; fewer are padded to 16, which is as few as tl.dot takes.
STEP = 32


@triton.jit
def _update(
    weight, a, b, keep, out, rows, cols, scale, RANK: tl.constexpr, STEP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(cols, COLUMNS)
    row = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    in_rows, in_columns = row < rows, column < cols
    line = row.to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, RANK, STEP):
        k = start + tl.arange(0, STEP)
        in_rank = k < RANK
        at = b + line[:, None] * RANK + k[None, :]
        factors = tl.load(at, in_rows[:, None] & in_rank[None, :], other=0)
        at = a + k[:, None] * cols + column[None, :]
        inputs = tl.load(at, in_rank[:, None] & in_columns[None, :], other=0)
        total = tl.dot(factors, inputs, total, input_precision="ieee")
    inside = in_rows[:, None] & in_columns[None, :]
    place = line[:, None] * cols + column[None, :]
    total = total * scale + tl.load(weight + place, inside, other=0).to(tl.float32)
    if keep is not None:
        total = tl.where(tl.load(keep + place, inside, other=0) != 0, total, 0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), inside)


def masked_update(weight: Tensor, a: Tensor, b: Tensor, scale: float, keep: Tensor | None) -> Tensor:
    """``(weight + scale * b a) * keep`` of the weight's dtype; what is not kept is +0.0.

    Args:
        weight: [out, in], float32, bfloat16 or float16.
        a: [rank, in], any floating dtype.
        b: [out, rank], any floating dtype.
        scale: factor of the product.
        keep: bool [out, in], or None.

    """
    rows, cols = weight.shape
    rank = a.shape[0]
    out = torch.empty(rows, cols, dtype=weight.dtype, device=weight.device)
    if not weight.numel():
        return out
    if a.dtype != b.dtype or a.dtype is torch.float64:
        a, b = a.float(), b.float()
    weight, a, b = weight.contiguous(), a.contiguous(), b.contiguous()
    mask = None if keep is None else keep.contiguous().view(torch.uint8)
    step = 16 if rank <= 16 else STEP
    tiles = triton.cdiv(rows, ROWS) * triton.cdiv(cols, COLUMNS)
    launch(
        _update, (tiles,), WARPS, weight, a, b, mask, out, rows, cols, float(scale),
        RANK=rank, STEP=step, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    return out
