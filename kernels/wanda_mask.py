"""Score and select n of every m by Wanda's score: W is read once, the keep mask written once.

Groups of four have a form of their own: 16-byte accesses, a tournament in registers. Other groups of up to
`MAX_RANKED` entries are ranked: an entry stays if at least m - n others go before it. Larger groups are
selected from like rows, see `wanda_rows`; the whole matrix as one unit is in `wanda_layer`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .groups4 import (
    ROWS,
    UNITS,
    WARPS,
    concat,
    entries_of,
    halves,
    keys_of,
    load_unit,
    store_two,
    tile_of,
    tiling,
)
from .launch import aligned, launch, triton_dtype
from .scores import LAST, key_of, sign_of
from .wanda_layer import keep_of_layer
from .wanda_rows import keep_of_units

__all__ = ["MAX_RANKED", "wanda_mask"]

# Ranking costs m comparisons an entry; beyond this a search over the group is cheaper.
MAX_RANKED = 32
# Entries of a tile of ranked groups: 16 a thread, two 16-byte loads of 16-bit weights.
RANKED, RANKED_WARPS = 2048, 4


@triton.jit
def _group4(
    pair01, pair23, norm, start, groups, PRUNE: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, UNITS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Four bytes of keep mask as an int32."""
    x0, x1, x2, x3 = entries_of(pair01, pair23)
    k0, k1, k2, k3 = keys_of(x0, x1, x2, x3, norm, start, groups, GROUP, GROUPS, UNITS, dtype)
    low01, high01 = tl.minimum(k0, k1), tl.maximum(k0, k1)
    low23, high23 = tl.minimum(k2, k3), tl.maximum(k2, k3)
    last01, last23 = tl.where(k0 <= k1, 0x100, 1), tl.where(k2 <= k3, 0x1000000, 0x10000)
    if PRUNE == 2:
        both = tl.where(low23 >= high01, 0x1010000, last01 | last23)
        return tl.where(low01 > high23, 0x101, both)
    if PRUNE == 3:
        return tl.where(high01 <= high23, last23, last01)
    # The loser of a pair is the other entry than its winner.
    return 0x1010101 ^ tl.where(low01 <= low23, last01 ^ 0x101, last23 ^ 0x1010000)


@triton.jit(do_not_specialize=["rows", "groups"])
def _mask4(
    weight, norm, keep, rows, groups, PRUNE: tl.constexpr,
    dtype: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    GROUPS: tl.constexpr = 2 if dtype == tl.float32 else 4
    row, start = tile_of(tl.program_id(0), groups, GROUPS, ROWS, UNITS)
    unit = start + tl.arange(0, UNITS)
    group = unit * GROUPS
    w0, w1, w2, w3 = load_unit(weight, row, start, rows, groups, GROUPS, EVEN, UNITS)
    units = tl.cdiv(groups, GROUPS)
    inside = (row < rows)[:, None] & (unit < units)[None, :]
    line = row.to(tl.int64)[:, None]
    place = keep.to(tl.pointer_type(tl.int32)) + line * groups + group[None, :]
    second = inside & (group + 1 < groups)[None, :]
    if dtype == tl.float32:
        m0 = _group4(w0, w1, norm, start, groups, PRUNE, 0, GROUPS, UNITS, dtype)
        m1 = _group4(w2, w3, norm, start, groups, PRUNE, 1, GROUPS, UNITS, dtype)
        if EVEN:
            whole = keep.to(tl.pointer_type(tl.int64)) + line * units + unit[None, :]
            tl.store(whole, concat(m0, m1), inside)
        else:
            tl.store(place, m0, inside)
            tl.store(place + 1, m1, second)
    else:
        l0, h0 = halves(w0)
        l1, h1 = halves(w1)
        l2, h2 = halves(w2)
        l3, h3 = halves(w3)
        m0 = _group4(l0, h0, norm, start, groups, PRUNE, 0, GROUPS, UNITS, dtype)
        m1 = _group4(l1, h1, norm, start, groups, PRUNE, 1, GROUPS, UNITS, dtype)
        m2 = _group4(l2, h2, norm, start, groups, PRUNE, 2, GROUPS, UNITS, dtype)
        m3 = _group4(l3, h3, norm, start, groups, PRUNE, 3, GROUPS, UNITS, dtype)
        if EVEN:
            store_two(keep, row, start, rows, groups // 4, concat(m0, m1), concat(m2, m3), UNITS)
        else:
            tl.store(place, m0, inside)
            tl.store(place + 1, m1, second)
            tl.store(place + 2, m2, inside & (group + 2 < groups)[None, :])
            tl.store(place + 3, m3, inside & (group + 3 < groups)[None, :])


@triton.jit
def _mask_ranked(
    weight, norm, keep, count, groups,
    M: tl.constexpr, PRUNE: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # Where the tile begins may be beyond 2^31; what lies in it counts from there.
    first = tl.program_id(0).to(tl.int64) * TILE
    group = tl.arange(0, TILE)
    lane = tl.arange(0, PADDED)[None, :]
    inside = (group < tl.minimum(count - first, TILE).to(tl.int32))[:, None] & (lane < M)
    place = group[:, None] * M + lane
    column = ((first % groups).to(tl.int32) + group) % groups
    scale = tl.load(norm + column[:, None] * M + lane, inside, other=0)
    value = tl.load(weight + first * M + place, inside, other=0).to(tl.float32)
    key = tl.where(inside, key_of(value, scale, sign_of(scale)), LAST)
    before = tl.zeros((TILE, PADDED), tl.int32)
    for j in tl.static_range(M):
        # A group of 2, 8 or 16 lies in one thread, of which this then is a register; others mostly lie in two
        # or more, which exchange it.
        other = tl.sum(tl.where(lane == j, key, 0), axis=1)[:, None]
        before += ((other < key) | ((other == key) & (j < lane))).to(tl.int32)
    # Not the comparison's own bytes, which the compiler would put together in memory.
    tl.store(keep + first * M + place, tl.where(before >= PRUNE, 1, 0).to(tl.uint8), inside)


def wanda_mask(weight: Tensor, column_norm: Tensor, unit: int, prune: int, whole: bool) -> Tensor:
    """Keep mask, bool [out, in], without the `prune` lowest scores of every unit.

    Args:
        weight: [out, in], float32, bfloat16 or float16.
        column_norm: [in], any floating dtype.
        unit: entries compared with each other: a divisor of in, or all entries of the matrix.
        prune: how many of each unit go.
        whole: whether the unit is the matrix.

    """
    keep = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    if not weight.numel() or prune in (0, unit):
        return keep.fill_(prune == 0)
    weight, norm = aligned(weight), aligned(column_norm.float())
    rows, cols = weight.shape
    out = keep.view(torch.uint8)
    if whole:
        keep_of_layer(weight, norm, out, prune)
    elif unit == 4:
        tiles, even = tiling(weight)
        launch(
            _mask4, (tiles,), WARPS, weight, norm, out, rows, cols // 4, PRUNE=prune,
            dtype=triton_dtype(weight), EVEN=even, ROWS=ROWS, UNITS=UNITS,
        )  # fmt: skip
    elif unit <= MAX_RANKED:
        padded = triton.next_power_of_2(unit)
        count, tile = weight.numel() // unit, RANKED // padded
        launch(
            _mask_ranked, (triton.cdiv(count, tile),), RANKED_WARPS, weight, norm, out, count, cols // unit,
            M=unit, PRUNE=prune, PADDED=padded, TILE=tile,
        )  # fmt: skip
    else:
        keep_of_units(weight, norm, out, unit, prune)
    return keep
