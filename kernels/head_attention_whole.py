"""Attention with all keys of a head on chip at once: a softmax in one pass, nothing to rescale.

The keys are tiles of powers of two whose sizes add up to the tokens rounded up to 16 (197 = 128 + 64 + 16,
less 11), so that of the products only rows and columns of the last 16 are made for nothing. One program
either does all rows of a head, and reads keys and values once, or one tile of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .head_attention_parts import load_head, masked, products, scaled, store_head, weighed, zeros

__all__ = ["LARGEST", "key_tiles", "whole_kernel"]

# Keys that a program holds at most: their scores are 136 registers a thread (64 rows, 128 threads).
LARGEST = 272


def key_tiles(length: int, largest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """``(starts, sizes)`` of the tiles: powers of two, descending from at most `largest`, down to 16."""
    left = -(-length // 16) * 16
    sizes: list[int] = []
    while left:
        sizes.append(min(largest, 1 << left.bit_length() - 1))
        left -= sizes[-1]
    return tuple(sum(sizes[:i]) for i in range(len(sizes))), tuple(sizes)


@triton.jit
def _rows(
    query, keys, values, out, lse, first, length, row_step, out_step, scale2,
    SEEN: tl.constexpr, ROWS: tl.constexpr, STARTS: tl.constexpr, SIZES: tl.constexpr, DIM: tl.constexpr,
    WIDTHS: tl.constexpr, CAUSAL: tl.constexpr, TRAINING: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    q = load_head(query, first, length, row_step, UNIT, ROWS, DIM, WIDTHS)
    row = first + tl.arange(0, ROWS)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = zeros(ROWS, WIDTHS)
    scores = ()
    for i in tl.static_range(SEEN):
        score = products(q, keys[i])
        if CAUSAL or i == len(SIZES) - 1:
            column = STARTS[i] + tl.arange(0, SIZES[i])
            score = masked(score, row[:, None], column[None, :], length, CAUSAL)
        top = tl.maximum(top, tl.max(score, 1))
        scores = scores + (score,)  # noqa: RUF005
    for i in tl.static_range(SEEN):
        # The difference first: times the scale, large scores would be off by more than 1 before it is taken.
        share = tl.exp2((scores[i] - top[:, None]) * scale2)
        total += tl.sum(share, 1)
        sums = weighed(share, values[i], sums)
    store_head(scaled(sums, 1 / total), out, first, length, out_step, UNIT, ROWS, DIM, WIDTHS)
    if TRAINING:
        tl.store(lse + row, top * scale2 + tl.log2(total), row < length)


@triton.jit
def _held(
    x, length, row_step, STARTS: tl.constexpr, SIZES: tl.constexpr, DIM: tl.constexpr, WIDTHS: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    tiles = ()
    for i in tl.static_range(len(SIZES)):
        tiles = tiles + (load_head(x, STARTS[i], length, row_step, UNIT, SIZES[i], DIM, WIDTHS),)  # noqa: RUF005
    return tiles


@triton.jit
def whole_kernel(
    qkv, out, lse, heads, length, batch_step, row_step, out_step, scale2,
    STARTS: tl.constexpr, SIZES: tl.constexpr, SEEN: tl.constexpr, ROWS: tl.constexpr, FULL: tl.constexpr,
    TAIL: tl.constexpr, SPLIT: tl.constexpr, DIM: tl.constexpr, WIDTHS: tl.constexpr, CAUSAL: tl.constexpr,
    TRAINING: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """`FULL` tiles of `ROWS` rows and one of `TAIL`, each by a program if `SPLIT`.

    Where it is causal, tile t of the rows sees the first SEEN[t] tiles of the keys.
    """
    TILES: tl.constexpr = FULL + (TAIL > 0)
    program = tl.program_id(0)
    tile = 0
    if SPLIT:
        tile = program % TILES
        program = program // TILES
    image = (program // heads).to(tl.int64)
    head = program % heads
    query = qkv + image * batch_step * UNIT + head * DIM
    key = query + heads * DIM
    value = key + heads * DIM
    out += image * length * out_step * UNIT + head * DIM
    lse += program.to(tl.int64) * length
    if CAUSAL:
        keys = _held(key, length, row_step, STARTS, SIZES, DIM, WIDTHS, UNIT)
        values = _held(value, length, row_step, STARTS, SIZES, DIM, WIDTHS, UNIT)
        # What a tile sees is known to the compiler only tile by tile.
        for t in tl.static_range(TILES):
            if not SPLIT or tile == t:
                _rows(
                    query, keys, values, out, lse, t * ROWS, length, row_step, out_step, scale2,
                    SEEN[t], ROWS if t < FULL else TAIL, STARTS, SIZES, DIM, WIDTHS, CAUSAL, TRAINING,
                    UNIT,
                )  # fmt: skip
    elif SPLIT:
        # Read in each branch: tiles of 64 rows and smaller ones have them laid out in different ways.
        if tile < FULL:
            keys = _held(key, length, row_step, STARTS, SIZES, DIM, WIDTHS, UNIT)
            values = _held(value, length, row_step, STARTS, SIZES, DIM, WIDTHS, UNIT)
            _rows(
                query, keys, values, out, lse, tile * ROWS, length, row_step, out_step, scale2,
                SEEN[0], ROWS, STARTS, SIZES, DIM, WIDTHS, CAUSAL, TRAINING, UNIT,
            )  # fmt: skip
        if TAIL > 0 and tile == FULL:
            keys = _held(key, length, row_step, STARTS, SIZES, DIM, WIDTHS, UNIT)
            values = _held(value, length, row_step, STARTS, SIZES, DIM, WIDTHS, UNIT)
            _rows(
                query, keys, values, out, lse, FULL * ROWS, length, row_step, out_step, scale2,
                SEEN[0], TAIL, STARTS, SIZES, DIM, WIDTHS, CAUSAL, TRAINING, UNIT,
            )  # fmt: skip
    else:
        keys = _held(key, length, row_step, STARTS, SIZES, DIM, WIDTHS, UNIT)
        values = _held(value, length, row_step, STARTS, SIZES, DIM, WIDTHS, UNIT)
        for t in tl.range(0, FULL):
            _rows(
                query, keys, values, out, lse, t * ROWS, length, row_step, out_step, scale2,
                SEEN[0], ROWS, STARTS, SIZES, DIM, WIDTHS, CAUSAL, TRAINING, UNIT,
            )  # fmt: skip
        if TAIL > 0:
            _rows(
                query, keys, values, out, lse, FULL * ROWS, length, row_step, out_step, scale2,
                SEEN[0], TAIL, STARTS, SIZES, DIM, WIDTHS, CAUSAL, TRAINING, UNIT,
            )  # fmt: skip
