"""The gradient of attention: scores made again from q, k and the saved logarithms, no atomics.

With s = scale q.k, p = exp2(s log2(e) - lse), dp = do.v and delta = sum(do * out) over a row's head,
ds = p (dp - delta), dq = scale ds k, dk = scale ds' q and dv = p' do (arXiv 2205.14135, appendix B.2).
The first kernel goes along the keys of a tile of rows and leaves delta behind, the second along the rows of
a tile of keys: seven products for the five of a kernel that would have to add its dq up in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .head_attention_parts import load_head, masked, products, scaled, store_head, weighed, zeros

__all__ = ["columns_kernel", "rows_kernel"]


@triton.jit
def rows_kernel(
    grad, qkv, out, lse, delta, grad_qkv, heads, length, tiles, grad_batch_step, grad_row_step, batch_step,
    row_step, out_step, scale, scale2,
    TILE: tl.constexpr, STEP: tl.constexpr, DIM: tl.constexpr, WIDTHS: tl.constexpr, CAUSAL: tl.constexpr,
    UNIT: tl.constexpr, GRAD_UNIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Delta and the gradient of q, of one tile of rows of one head."""
    program = tl.program_id(0)
    first = program % tiles * TILE
    program = program // tiles
    image = (program // heads).to(tl.int64)
    head = program % heads
    query = qkv + image * batch_step * UNIT + head * DIM
    key = query + heads * DIM
    value = key + heads * DIM
    grad += image * grad_batch_step * GRAD_UNIT + head * DIM
    out += image * length * out_step * UNIT + head * DIM
    grad_qkv += image * length * out_step * 3 * UNIT + head * DIM
    row = first + tl.arange(0, TILE)
    at = program.to(tl.int64) * length + row
    q = load_head(query, first, length, row_step, UNIT, TILE, DIM, WIDTHS)
    do = load_head(grad, first, length, grad_row_step, GRAD_UNIT, TILE, DIM, WIDTHS)
    o = load_head(out, first, length, out_step, UNIT, TILE, DIM, WIDTHS)
    shift = tl.zeros((TILE,), tl.float32)
    for i in tl.static_range(len(WIDTHS)):
        shift += tl.sum(do[i].to(tl.float32) * o[i].to(tl.float32), 1)
    tl.store(delta + at, shift, row < length)
    high = tl.load(lse + at, row < length, other=0.0)
    sums = zeros(TILE, WIDTHS)
    stop = tl.minimum(first + TILE, length) if CAUSAL else length
    for start in tl.range(0, stop, STEP, num_stages=STAGES):
        k = load_head(key, start, length, row_step, UNIT, STEP, DIM, WIDTHS)
        v = load_head(value, start, length, row_step, UNIT, STEP, DIM, WIDTHS)
        column = start + tl.arange(0, STEP)
        score = masked(products(q, k), row[:, None], column[None, :], length, CAUSAL)
        share = tl.exp2(score * scale2 - high[:, None])
        sums = weighed(share * (products(do, v) - shift[:, None]), k, sums)
    store_head(
        scaled(sums, tl.full((TILE,), scale, tl.float32)),
        grad_qkv,
        first,
        length,
        out_step * 3,
        UNIT,
        TILE,
        DIM,
        WIDTHS,
    )


@triton.jit
def columns_kernel(
    grad, qkv, lse, delta, grad_qkv, heads, length, tiles, grad_batch_step, grad_row_step, batch_step,
    row_step, out_step, scale, scale2,
    TILE: tl.constexpr, STEP: tl.constexpr, DIM: tl.constexpr, WIDTHS: tl.constexpr, CAUSAL: tl.constexpr,
    UNIT: tl.constexpr, GRAD_UNIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradients of k and v, of one tile of keys of one head; a row of the scores is a key's."""
    program = tl.program_id(0)
    first = program % tiles * TILE
    program = program // tiles
    image = (program // heads).to(tl.int64)
    head = program % heads
    query = qkv + image * batch_step * UNIT + head * DIM
    key = query + heads * DIM
    value = key + heads * DIM
    grad += image * grad_batch_step * GRAD_UNIT + head * DIM
    grad_key = grad_qkv + image * length * out_step * 3 * UNIT + (heads + head) * DIM
    lse += program.to(tl.int64) * length
    delta += program.to(tl.int64) * length
    column = first + tl.arange(0, TILE)
    k = load_head(key, first, length, row_step, UNIT, TILE, DIM, WIDTHS)
    v = load_head(value, first, length, row_step, UNIT, TILE, DIM, WIDTHS)
    key_sums = zeros(TILE, WIDTHS)
    value_sums = zeros(TILE, WIDTHS)
    begin = first // STEP * STEP if CAUSAL else 0
    for start in tl.range(begin, length, STEP, num_stages=STAGES):
        q = load_head(query, start, length, row_step, UNIT, STEP, DIM, WIDTHS)
        do = load_head(grad, start, length, grad_row_step, GRAD_UNIT, STEP, DIM, WIDTHS)
        row = start + tl.arange(0, STEP)
        # Of rows outside q and do are zero, and so is what they add.
        high = tl.load(lse + row, row < length, other=0.0)
        shift = tl.load(delta + row, row < length, other=0.0)
        score = masked(products(k, q), row[None, :], column[:, None], length, CAUSAL)
        share = tl.exp2(score * scale2 - high[None, :])
        value_sums = weighed(share, do, value_sums)
        key_sums = weighed(share * (products(v, do) - shift[None, :]), q, key_sums)
    store_head(
        scaled(key_sums, tl.full((TILE,), scale, tl.float32)),
        grad_key,
        first,
        length,
        out_step * 3,
        UNIT,
        TILE,
        DIM,
        WIDTHS,
    )
    store_head(value_sums, grad_key + heads * DIM, first, length, out_step * 3, UNIT, TILE, DIM, WIDTHS)
