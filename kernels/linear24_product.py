"""The product of few tokens with a packed weight: tiles of rows of the weight, a share of its columns each.

The weight is the left operand, which tensor cores of sm_90 take from registers, where it is made dense; the
tokens are columns of the result, whose tiles can be as narrow as 16. A program reads its rows of the weight once for
all its tokens. Where columns are shared out among several programs, their sums go to a workspace in float32,
and `finish` adds these up in the order of the columns: the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .linear24_expand import columns_of, unpacked, unpacked_exactly

__all__ = ["finish", "product"]


@triton.jit
def _finished(z, bias, residual, row, at, inside, ACTIVATION: tl.constexpr):
    """What follows the product, in float32; `row` and `at`, where the residual is, broadcast to `z`."""
    if bias is not None:
        z += tl.load(bias + row, inside, other=0.0).to(tl.float32)
    if ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "quick_gelu":
        z = z / (1.0 + tl.exp(-1.702 * z))
    if residual is not None:
        z += tl.load(residual + at, inside, other=0.0).to(tl.float32)
    return z


@triton.jit
def _load_weights(values, meta, line, k, groups, DEPTH: tl.constexpr, EVEN: tl.constexpr):
    """Dense weights [R, DEPTH] of rows `line` from column k on, zeros beyond the last one.

    EVEN: rows are whole tiles, which the compiler has to be told for 16 bytes to be read at once.
    """
    dtype: tl.constexpr = values.dtype.element_ty
    line = line[:, None]
    group = tl.arange(0, DEPTH // 4)[None, :]
    pitch = tl.cdiv(groups, 2)
    left = groups - k // 4
    if dtype == tl.float32:
        inside = group < left
        at = values + k // 2 + (line * (groups * 2) + group * 2)
        byte = tl.load(meta + k // 8 + (line * pitch + group // 2), inside, other=0).to(tl.int32)
        first, second = tl.load(at, inside, other=0.0), tl.load(at + 1, inside, other=0.0)
        return unpacked_exactly(first, second, (byte >> (group % 2 * 4)) & 15)
    unit = tl.arange(0, DEPTH // 16)[None, :]
    words = values.to(tl.pointer_type(tl.int32)) + k // 4
    if EVEN:
        tiles = groups // (DEPTH // 4)
        pairs = tl.load(words + (line * (tiles * (DEPTH // 4)) + group))
        indices = meta.to(tl.pointer_type(tl.int16)) + k // 16
        four = tl.load(indices + (line * (tiles * (DEPTH // 16)) + unit)).to(tl.int32)
    else:
        pairs = tl.load(words + (line * groups + group), group < left, other=0)
        at = meta + k // 8 + (line * pitch + unit * 2)
        four = tl.load(at, unit * 4 < left, other=0).to(tl.int32)
        four |= tl.load(at + 1, unit * 4 + 2 < left, other=0).to(tl.int32) << 8
    return unpacked(pairs, four, dtype)


@triton.jit(do_not_specialize=["tokens", "share"])
def product(
    x, values, meta, bias, residual, y, tokens, out, cols, share, x_pitch, residual_pitch, y_pitch,
    ROWS: tl.constexpr, TILE: tl.constexpr, STARTS: tl.constexpr, WIDTHS: tl.constexpr, DEPTH: tl.constexpr,
    SPLIT: tl.constexpr, ACTIVATION: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of rows times the tokens of one tile, over `share` steps of DEPTH columns.

    The tile's TILE tokens are of WIDTHS, powers of two, from STARTS on. With SPLIT programs to a tile `y` is
    the workspace, [SPLIT, tokens, out], and nothing follows the product.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    across = tl.cdiv(tokens, TILE)
    index = tl.program_id(0)
    first_token = index % across * TILE
    first = index // across % tl.cdiv(out, ROWS) * ROWS
    part = index // across // tl.cdiv(out, ROWS)
    groups = cols // 4
    # Rows and tokens beyond the last are read as the last one, and not written.
    line = tl.minimum(tl.arange(0, ROWS), out - 1 - first)
    values += first.to(tl.int64) * (groups * 2)
    meta += first.to(tl.int64) * tl.cdiv(groups, 2)
    x += first_token.to(tl.int64) * x_pitch
    column = tl.arange(0, DEPTH) if dtype == tl.float32 else columns_of(DEPTH)
    sums, places = (), ()
    for i in tl.static_range(len(WIDTHS)):
        token = STARTS[i] + tl.arange(0, WIDTHS[i])
        token = tl.minimum(token, tokens - 1 - first_token)
        places = places + (token[:, None] * x_pitch + column[None, :],)  # noqa: RUF005
        sums = sums + (tl.zeros((ROWS, WIDTHS[i]), tl.float32),)  # noqa: RUF005
    end = tl.minimum((part + 1) * share, tl.cdiv(cols, DEPTH))
    for step in tl.range(part * share, end, num_stages=STAGES):
        k = step * DEPTH
        weights = _load_weights(values, meta, line, k, groups, DEPTH, EVEN)
        totals = ()
        for i in tl.static_range(len(WIDTHS)):
            if EVEN:
                tokens_here = tl.load(x + k + places[i])
            else:
                tokens_here = tl.load(x + k + places[i], column[None, :] < cols - k, other=0.0)
            totals = totals + (tl.dot(weights, tokens_here.T, sums[i], input_precision="ieee"),)  # noqa: RUF005
        sums = totals
    row = first + tl.arange(0, ROWS)[:, None]
    for i in tl.static_range(len(WIDTHS)):
        token = first_token + STARTS[i] + tl.arange(0, WIDTHS[i])[None, :]
        inside = (row < out) & (token < tokens)
        z = sums[i]
        if SPLIT == 1:
            at = token.to(tl.int64) * residual_pitch + row
            z = _finished(z, bias, residual, row, at, inside, ACTIVATION)
        at = (part.to(tl.int64) * tokens + token) * y_pitch + row
        tl.store(y + at, z.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["tokens"])
def finish(
    workspace, bias, residual, y, tokens, out, residual_pitch, y_pitch,
    SPLIT: tl.constexpr, ACTIVATION: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sum of `workspace` [SPLIT, tokens, out] over its first dimension, and what follows the product."""
    row = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)[:, None]).to(tl.int64)
    inside = (token < tokens) & (row < out)
    z = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for part in tl.static_range(SPLIT):
        z += tl.load(workspace + (tokens.to(tl.int64) * part + token) * out + row, inside, other=0.0)
    z = _finished(z, bias, residual, row, token * residual_pitch + row, inside, ACTIVATION)
    tl.store(y + token * y_pitch + row, z.to(y.dtype.element_ty), inside)
