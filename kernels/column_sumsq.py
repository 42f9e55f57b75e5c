"""Token-weighted sum of squares of each column, in two stages without atomics: the same bits every time.

The first stage reads x once, each block a chunk of tokens of 128 columns, and writes one partial sum a
column and chunk; the second adds the chunks in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

__all__ = ["column_sumsq"]

# 16 threads read 256 bytes of a token of 16-bit numbers (32 threads 512 of float32), and a thread has four
# (eight) 16-byte loads of a step in flight, which with the 10 blocks that fit a multiprocessor's registers
# is 80 KB, three times what 4.8 TB/s at a latency of 0.7 us ask for.
TOKENS, COLUMNS, WARPS = 32, 128, 4
# Tokens of a chunk at least, so that the partial sums are 8 of 512 bytes; and chunks at most, so that the
# second stage, which is one pass over them, stays short.
CHUNK, CHUNKS = 256, 1024
SUM_CHUNKS, SUM_COLUMNS = 32, 32


@triton.jit
def _partial(
    x, token_weight, partial, tokens, cols, pitch, chunk,
    WEIGHTED: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    # Where the chunk begins may be beyond 2^31; its tokens count from there.
    first = tl.program_id(1).to(tl.int64) * chunk
    left = tl.minimum(tokens - first, chunk).to(tl.int32)
    x += first * pitch
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    start = 0
    while start < left:
        token = start + tl.arange(0, TOKENS)
        at = x + token.to(tl.int64)[:, None] * pitch + column[None, :]
        inside = (token < left)[:, None] & (column < cols)[None, :]
        value = tl.load(at, inside, other=0).to(tl.float32)
        square = value * value
        if WEIGHTED:
            square *= tl.load(token_weight + first + token, token < left, other=0)[:, None]
        total += square
        start += TOKENS
    place = tl.program_id(1).to(tl.int64) * cols + column
    tl.store(partial + place, tl.sum(total, axis=0), column < cols)


@triton.jit
def _total(partial, out, chunks, cols, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((CHUNKS, COLUMNS), tl.float32)
    start = 0
    while start < chunks:
        chunk = start + tl.arange(0, CHUNKS)
        at = partial + chunk.to(tl.int64)[:, None] * cols + column[None, :]
        total += tl.load(at, (chunk < chunks)[:, None] & (column < cols)[None, :], other=0)
        start += CHUNKS
    tl.store(out + column, tl.sum(total, axis=0), column < cols)


def column_sumsq(rows: Tensor, token_weight: Tensor | None) -> Tensor:
    """Float32 [in]: sum over the tokens of token_weight * x^2.

    Args:
        rows: [tokens, in], float32, bfloat16 or float16, its inputs next to each other (any row pitch).
        token_weight: float32 [tokens], contiguous, or None.

    """
    tokens, cols = rows.shape
    out = rows.new_empty(cols, dtype=torch.float32)
    if not rows.numel():
        return out.zero_()
    chunk = max(CHUNK, triton.cdiv(triton.cdiv(tokens, CHUNKS), TOKENS) * TOKENS)
    chunks = triton.cdiv(tokens, chunk)
    partial = rows.new_empty(chunks, cols, dtype=torch.float32)
    launch(
        _partial, (triton.cdiv(cols, COLUMNS), chunks), WARPS,
        rows, token_weight, partial, tokens, cols, rows.stride(0), chunk,
        WEIGHTED=token_weight is not None, TOKENS=TOKENS, COLUMNS=COLUMNS,
    )  # fmt: skip
    launch(
        _total, (triton.cdiv(cols, SUM_COLUMNS),), WARPS,
        partial, out, chunks, cols, CHUNKS=SUM_CHUNKS, COLUMNS=SUM_COLUMNS,
    )  # fmt: skip
    return out
