"""Rows in 8 bits with a scale each: a row is read once, its largest absolute value found, and written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

__all__ = ["quantize_rows"]

# A thread has 16 bytes of a row of 16-bit numbers, or more where eight warps are not enough for that.
THREAD, WARPS = 8, 8

# Added to a number below 2^22 and taken off again it leaves the nearest integer, among two the even one.
_INTEGERS = tl.constexpr(1.5 * 2.0**23)
# The least normal number of float32: no scale is below it.
_TINY = tl.constexpr(2.0**-126)


@triton.jit
def _quantize(
    x, q, scales, cols, pitch, LARGEST: tl.constexpr, INTEGER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < cols
    value = tl.load(x + row * pitch + column, inside, other=0).to(tl.float32)
    # The maximum of the hardware passes NaN over, so it is asked for by its bits, which order as numbers do.
    bits = tl.abs(value).to(tl.int32, bitcast=True)
    largest = tl.max(bits, axis=0).to(tl.float32, bitcast=True)
    scale = tl.div_rn(largest, LARGEST)
    # Not by a maximum either: NaN stays.
    scale = tl.where(scale < _TINY, _TINY, scale)
    scaled = tl.div_rn(value, scale)
    if INTEGER:
        scaled = (scaled + _INTEGERS) - _INTEGERS
    scaled = tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST)
    tl.store(q + row * cols + column, scaled.to(q.dtype.element_ty), inside)
    tl.store(scales + row, scale)


def quantize_rows(rows: Tensor, dtype: torch.dtype, largest: float) -> tuple[Tensor, Tensor]:
    """``(q, scale)`` of rows [tokens, in], float32, bfloat16 or float16, their inputs next to each other.

    Args:
        rows: at most `limits.MAX_COLUMNS` wide, of any row pitch.
        dtype: of q, torch.int8 or torch.float8_e4m3fn.
        largest: number of it that the largest absolute value of a row becomes.

    """
    tokens, cols = rows.shape
    q = rows.new_empty(tokens, cols, dtype=dtype)
    scales = rows.new_empty(tokens, dtype=torch.float32)
    if tokens:
        columns = triton.next_power_of_2(cols)
        warps = max(1, min(WARPS, columns // (32 * THREAD)))
        launch(
            _quantize, (tokens,), warps, rows, q, scales, cols, rows.stride(0),
            LARGEST=largest, INTEGER=dtype is torch.int8, COLUMNS=columns,
        )  # fmt: skip
    return q, scales
