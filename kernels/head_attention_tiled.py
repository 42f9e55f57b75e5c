"""Attention over any number of keys: a loop over tiles of them, the softmax rescaled as its maximum grows.

Milakov and Gimelshein (arXiv 1805.02867) for the softmax, Dao et al. (arXiv 2205.14135) for the tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .head_attention_parts import load_head, masked, products, scaled, store_head, weighed, zeros

__all__ = ["tiled_kernel"]


@triton.jit
def _step(
    q, key, value, start, row, length, row_step, scale2, top, total, sums,
    KEYS: tl.constexpr, DIM: tl.constexpr, WIDTHS: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    score = products(q, load_head(key, start, length, row_step, UNIT, KEYS, DIM, WIDTHS))
    if MASKED:
        column = start + tl.arange(0, KEYS)
        score = masked(score, row[:, None], column[None, :], length, CAUSAL)
    higher = tl.maximum(top, tl.max(score, 1))
    # Nothing seen yet but minus infinity: any number will do, and the difference to it stays minus infinity.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    before = tl.exp2((top - base) * scale2)
    share = tl.exp2((score - base[:, None]) * scale2)
    values = load_head(value, start, length, row_step, UNIT, KEYS, DIM, WIDTHS)
    return higher, total * before + tl.sum(share, 1), weighed(share, values, scaled(sums, before))


@triton.jit
def tiled_kernel(
    qkv, out, lse, heads, length, batch_step, row_step, out_step, scale2,
    ROWS: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr, DIM: tl.constexpr, WIDTHS: tl.constexpr,
    CAUSAL: tl.constexpr, TRAINING: tl.constexpr, UNIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one head a program; after the full tiles of keys one of `TAIL`, if not causal."""
    program = tl.program_id(0)
    tiles = tl.cdiv(length, ROWS)
    tile = program % tiles
    program = program // tiles
    if CAUSAL:
        # Those that see the most begin first.
        tile = tiles - 1 - tile
    image = (program // heads).to(tl.int64)
    head = program % heads
    query = qkv + image * batch_step * UNIT + head * DIM
    key = query + heads * DIM
    value = key + heads * DIM
    first = tile * ROWS
    q = load_head(query, first, length, row_step, UNIT, ROWS, DIM, WIDTHS)
    row = first + tl.arange(0, ROWS)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = zeros(ROWS, WIDTHS)
    # Up to here every row of the tile sees every key.
    clear = (first // KEYS if CAUSAL else length // KEYS) * KEYS
    for start in tl.range(0, clear, KEYS, num_stages=STAGES):
        top, total, sums = _step(
            q, key, value, start, row, length, row_step, scale2, top, total, sums,
            KEYS, DIM, WIDTHS, False, CAUSAL, UNIT,
        )  # fmt: skip
    if CAUSAL:
        for start in tl.range(clear, tl.minimum(first + ROWS, length), KEYS, num_stages=STAGES):
            top, total, sums = _step(
                q, key, value, start, row, length, row_step, scale2, top, total, sums,
                KEYS, DIM, WIDTHS, True, CAUSAL, UNIT,
            )  # fmt: skip
    elif TAIL > 0:
        top, total, sums = _step(
            q, key, value, clear, row, length, row_step, scale2, top, total, sums,
            TAIL, DIM, WIDTHS, True, CAUSAL, UNIT,
        )  # fmt: skip
    out += image * length * out_step * UNIT + head * DIM
    store_head(scaled(sums, 1 / total), out, first, length, out_step, UNIT, ROWS, DIM, WIDTHS)
    if TRAINING:
        lse += program.to(tl.int64) * length
        tl.store(lse + row, top * scale2 + tl.log2(total), row < length)
