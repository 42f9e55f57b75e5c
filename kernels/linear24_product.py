"""The product of few tokens with a packed weight: tiles of rows of the weight, a share of its columns each.

The weight is the left operand, which tensor cores of sm_90 take from registers, where it is made dense; the
tokens are columns of the result, whose tiles can be as narrow as 16. A program reads its rows of the weight
once for all its tokens. Where columns are shared out among several programs, their sums go to a workspace in
float32, and `finish` adds these up in the order of the columns: the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .head_attention_parts import zeros
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
def _weights(values, meta, line, k, groups, DEPTH: tl.constexpr, EVEN: tl.constexpr, ORDER: tl.constexpr):
    """Dense 16-bit weights [R, DEPTH] of rows `line` from column k on, zeros beyond the last one.

    EVEN: rows are whole tiles, which the compiler has to be told for 16 bytes to be read at once.
    """
    line = line[:, None]
    group, unit = tl.arange(0, DEPTH // 4)[None, :], tl.arange(0, DEPTH // 16)[None, :]
    words = values.to(tl.pointer_type(tl.int32)) + k // 4
    if EVEN:
        tiles = groups // (DEPTH // 4)
        pairs = tl.load(words + (line * (tiles * (DEPTH // 4)) + group))
        indices = meta.to(tl.pointer_type(tl.int16)) + k // 16
        four = tl.load(indices + (line * (tiles * (DEPTH // 16)) + unit)).to(tl.int32)
    else:
        left = groups - k // 4
        pairs = tl.load(words + (line * groups + group), group < left, other=0)
        at = meta + k // 8 + (line * tl.cdiv(groups, 2) + unit * 2)
        four = tl.load(at, unit * 4 < left, other=0).to(tl.int32)
        four |= tl.load(at + 1, unit * 4 + 2 < left, other=0).to(tl.int32) << 8
    return unpacked(pairs, four, values.dtype.element_ty, ORDER)


@triton.jit
def _weights_exactly(values, meta, line, k, groups, DEPTH: tl.constexpr):
    """Dense float32 weights, likewise."""
    line = line[:, None]
    group = tl.arange(0, DEPTH // 4)[None, :]
    inside = group < groups - k // 4
    at = values + k // 2 + (line * (groups * 2) + group * 2)
    byte = tl.load(meta + k // 8 + (line * tl.cdiv(groups, 2) + group // 2), inside, other=0).to(tl.int32)
    first, second = tl.load(at, inside, other=0.0), tl.load(at + 1, inside, other=0.0)
    return unpacked_exactly(first, second, (byte >> (group % 2 * 4)) & 15)


@triton.jit(do_not_specialize=["tokens", "share"])
def product(
    x, values, meta, bias, residual, y, tokens, out, cols, share, x_pitch, residual_pitch, y_pitch,
    ROWS: tl.constexpr, TILE: tl.constexpr, STARTS: tl.constexpr, WIDTHS: tl.constexpr, DEPTH: tl.constexpr,
    SPLIT: tl.constexpr, ACTIVATION: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr,
    ORDER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of rows times the tokens of one tile, over `share` steps of DEPTH columns.

    The tile's TILE tokens are of WIDTHS, powers of two, from STARTS on; `x_pitch` counts UNIT entries. With
    SPLIT programs to a tile `y` is the workspace, [SPLIT, tokens, out], and nothing follows the product.
    """
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
    x += first_token.to(tl.int64) * x_pitch * UNIT
    group, within = columns_of(DEPTH, ORDER)
    sums, places = zeros(ROWS, WIDTHS), ()
    for i in tl.static_range(len(WIDTHS)):
        token = tl.minimum(STARTS[i] + tl.arange(0, WIDTHS[i]), tokens - 1 - first_token)
        places = places + (token[:, None] * x_pitch * UNIT + (group * 4 + within)[None, :],)  # noqa: RUF005
    start = part * share
    end = tl.minimum(start + share, tl.cdiv(cols, DEPTH))
    # A loop that might not begin makes tensor cores wait for each product before they start the next one.
    tl.assume(start < end)
    for step in tl.range(start, end, num_stages=STAGES):
        k = step * DEPTH
        if ORDER == "columns":
            weights = _weights_exactly(values, meta, line, k, groups, DEPTH)
        else:
            weights = _weights(values, meta, line, k, groups, DEPTH, EVEN, ORDER)
        totals = ()
        for i in tl.static_range(len(WIDTHS)):
            if EVEN:
                these = tl.load(x + k + places[i])
            else:
                these = tl.load(x + k + places[i], (group < groups - k // 4)[None, :], other=0.0)
            totals = totals + (tl.dot(weights, these.T, sums[i], input_precision="ieee"),)  # noqa: RUF005
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
    z = tl.full((TOKENS, COLUMNS), 0.0, tl.float32)
    for part in tl.static_range(SPLIT):
        z += tl.load(workspace + (tokens.to(tl.int64) * part + token) * out + row, inside, other=0.0)
    z = _finished(z, bias, residual, row, token * residual_pitch + row, inside, ACTIVATION)
    tl.store(y + token * y_pitch + row, z.to(y.dtype.element_ty), inside)
