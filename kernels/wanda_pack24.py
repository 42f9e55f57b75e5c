"""Prune to 2:4 by Wanda's score and pack, in one pass over one matrix or over many in one launch.

Reads W once (and the norms, out of the cache), writes values and meta once. Two of four are chosen by a
tournament: the winners of (0, 1) and (2, 3) stay, unless the loser of one pair beats the winner of the
other. Of equal keys the lower index loses, everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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
from .launch import aligned, is_aligned, launch, triton_dtype
from .packed import empty_packed

__all__ = ["Tower", "wanda_pack24", "wanda_pack24_many"]


@triton.jit
def _pack_group(
    pair01, pair23, norm, start, groups,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, UNITS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    BITS: tl.constexpr = pair01.dtype.primitive_bitwidth // 2
    # Of the value: all but its sign, since -0.0 counts as zero.
    VALUE: tl.constexpr = ((1 << (BITS - 1)) - 1) << BITS
    x0, x1, x2, x3 = entries_of(pair01, pair23)
    k0, k1, k2, k3 = keys_of(x0, x1, x2, x3, norm, start, groups, GROUP, GROUPS, UNITS, dtype)
    x1, x2, x3 = x1 | 1, x2 | 2, x3 | 3
    first, second = tl.minimum(k0, k1) > tl.maximum(k2, k3), tl.minimum(k2, k3) >= tl.maximum(k0, k1)
    a = tl.where(first, x0, tl.where(second, x2, tl.where(k0 <= k1, x1, x0)))
    b = tl.where(first, x1, tl.where(second, x3, tl.where(k2 <= k3, x3, x2)))
    # What is stored are the non-zeros of the two, then the first zeros of the pruned group. A zero `a` gives
    # way to a zero at 0; a zero `b` to one at 1 or, where `a` lies beyond 0, to `a`, with a zero at 0.
    a = tl.where((a & VALUE) != 0, a, 0)
    empty, beyond = (b & VALUE) == 0, (a & 3) != 0
    b = tl.where(empty, tl.where(beyond, a, 1), b)
    a = tl.where(empty & beyond, 0, a)
    # Above the two indices there are value bits, which drop out when as many groups as fit are put together.
    return ((a >> BITS) & ((1 << BITS) - 1)) | (b & -(1 << BITS)), (a + b * 4).to(tl.int32)


@triton.jit
def _pack_tile(
    weight, norm, values, meta, rows, groups, index,
    dtype: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    GROUPS: tl.constexpr = 2 if dtype == tl.float32 else 4
    row, start = tile_of(index, groups, GROUPS, ROWS, UNITS)
    unit = start + tl.arange(0, UNITS)
    group = unit * GROUPS
    w0, w1, w2, w3 = load_unit(weight, row, start, rows, groups, GROUPS, EVEN, UNITS)
    units = tl.cdiv(groups, GROUPS)
    inside = (row < rows)[:, None] & (unit < units)[None, :]
    line = row.to(tl.int64)[:, None]
    if dtype == tl.float32:
        v0, m0 = _pack_group(w0, w1, norm, start, groups, 0, GROUPS, UNITS, dtype)
        v1, m1 = _pack_group(w2, w3, norm, start, groups, 1, GROUPS, UNITS, dtype)
        second = (group + 1 < groups)[None, :]
        bits = m0 | tl.where(second, m1 << 4, 0)
        tl.store(meta + line * units + unit[None, :], bits.to(tl.uint8), inside)
        place = values.to(tl.pointer_type(tl.int64)) + line * groups + group[None, :]
        if EVEN:
            store_two(values, row, start, rows, groups // 2, v0, v1, UNITS)
        else:
            tl.store(place, v0, inside)
            tl.store(place + 1, v1, inside & second)
    else:
        l0, h0 = halves(w0)
        l1, h1 = halves(w1)
        l2, h2 = halves(w2)
        l3, h3 = halves(w3)
        v0, m0 = _pack_group(l0, h0, norm, start, groups, 0, GROUPS, UNITS, dtype)
        v1, m1 = _pack_group(l1, h1, norm, start, groups, 1, GROUPS, UNITS, dtype)
        v2, m2 = _pack_group(l2, h2, norm, start, groups, 2, GROUPS, UNITS, dtype)
        v3, m3 = _pack_group(l3, h3, norm, start, groups, 3, GROUPS, UNITS, dtype)
        if EVEN:
            store_two(values, row, start, rows, groups // 4, concat(v0, v1), concat(v2, v3), UNITS)
            bits = m0 + (m1 << 4) + (m2 << 8) + (m3 << 12)
            place = meta.to(tl.pointer_type(tl.int16)) + line * units + unit[None, :]
            tl.store(place, bits.to(tl.int16), inside)
        else:
            third, last = (group + 2 < groups)[None, :], (group + 3 < groups)[None, :]
            second = (group + 1 < groups)[None, :]
            place = values.to(tl.pointer_type(tl.int32)) + line * groups + group[None, :]
            tl.store(place, v0, inside)
            tl.store(place + 1, v1, inside & second)
            tl.store(place + 2, v2, inside & third)
            tl.store(place + 3, v3, inside & last)
            byte = meta + line * tl.cdiv(groups, 2) + (unit * 2)[None, :]
            tl.store(byte, ((m0 & 15) | tl.where(second, m1 << 4, 0)).to(tl.uint8), inside)
            tl.store(byte + 1, ((m2 & 15) | tl.where(last, m3 << 4, 0)).to(tl.uint8), inside & third)


# Not told of a number of groups divisible by 16, the compiler stores meta from the threads that made it.
@triton.jit(do_not_specialize=["rows", "groups"])
def _pack_one(
    weight, norm, values, meta, rows, groups,
    dtype: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    _pack_tile(weight, norm, values, meta, rows, groups, index, dtype, EVEN, ROWS, UNITS)


@triton.jit
def _pack_many(
    table, count, dtype: tl.constexpr, EVEN: tl.constexpr,
    MATRICES: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    # Row f of the table has field f of every matrix; the first row is the number of its first tile.
    each = tl.arange(0, MATRICES)
    first = tl.load(table + each, each < count, other=0x7FFFFFFF)
    here = table + tl.sum((first <= index).to(tl.int32)) - 1
    index -= tl.load(here).to(tl.int32)
    shape = tl.load(here + count)
    groups, rows = halves(shape)
    if EVEN:
        groups = tl.multiple_of(groups, 2 if dtype == tl.float32 else 4)
    weight = tl.multiple_of(tl.load(here + 2 * count).to(tl.pointer_type(tl.int64)), 16)
    norm = tl.multiple_of(tl.load(here + 3 * count).to(tl.pointer_type(tl.int64)), 16)
    values = tl.multiple_of(tl.load(here + 4 * count).to(tl.pointer_type(tl.int64)), 16)
    meta = tl.multiple_of(tl.load(here + 5 * count).to(tl.pointer_type(tl.uint8)), 16)
    _pack_tile(weight, norm, values, meta, rows, groups, index, dtype, EVEN, ROWS, UNITS)


def wanda_pack24(weight: Tensor, column_norm: Tensor) -> tuple[Tensor, Tensor]:
    """``(values, meta)`` of a float32, bfloat16 or float16 weight [out, in] pruned to 2:4."""
    values, meta = empty_packed(weight)
    if weight.numel():
        weight, norm = aligned(weight), aligned(column_norm.float())
        tiles, even = tiling(weight)
        launch(
            _pack_one, (tiles,), WARPS, weight, norm, values, meta, weight.shape[0], weight.shape[1] // 4,
            dtype=triton_dtype(weight), EVEN=even, ROWS=ROWS, UNITS=UNITS,
        )  # fmt: skip
    return values, meta


class Tower:
    """Matrices of one dtype and one device to be packed by one launch, any number of times.

    The table that says where each lies goes to the device once, here. It holds addresses: the weights and
    norms are kept, what is written into them in place is what the next `pack` packs, and they must not be
    given other memory. A CUDA graph that captured `pack` holds the table's address and those of the results:
    it is good for as long as the tower is.

    Raises:
        ValueError: a weight or norm that could be read in a copy only, which later changes would not reach;
            or a CUDA graph is being captured, which would replay the table's way from memory that is gone.

    """

    def __init__(self, weights: Sequence[Tensor], column_norms: Sequence[Tensor]) -> None:
        if weights[0].is_cuda and torch.cuda.is_current_stream_capturing():
            raise ValueError(
                "wanda_pack24_many: expected no CUDA graph to be capturing, since the table of addresses "
                "comes from the host; make vlprune.kernels.wanda_pack24.Tower before, capture its pack()"
            )
        for place, (weight, norm) in enumerate(zip(weights, column_norms, strict=True)):
            if norm.dtype is not torch.float32 or not (is_aligned(weight) and is_aligned(norm)):
                raise ValueError(
                    f"Tower: expected contiguous tensors at multiples of 16 bytes, the norms float32, since "
                    f"they are read where they lie; got weights[{place}] of strides {weight.stride()} at "
                    f"{weight.data_ptr()}, column_norms[{place}] of strides {norm.stride()} at "
                    f"{norm.data_ptr()}, {norm.dtype}"
                )
        self._read = [*weights, *column_norms]
        self.packed = [empty_packed(weight) for weight in weights]
        tilings = [tiling(weight) for weight in weights]
        first = [0, *itertools.accumulate(tiles for tiles, _ in tilings)]
        self._tiles = first.pop()
        self._even = all(even for _, even in tilings)
        fields = [
            first,
            [(weight.shape[0] << 32) | (weight.shape[1] // 4) for weight in weights],
            [weight.data_ptr() for weight in weights],
            [norm.data_ptr() for norm in column_norms],
            [values.data_ptr() for values, _ in self.packed],
            [meta.data_ptr() for _, meta in self.packed],
        ]
        table = torch.tensor(fields, dtype=torch.int64)
        if weights[0].is_cuda:
            device = weights[0].device
            # From pinned memory the copy is ordered on the stream and the host does not wait for it.
            table = table.pin_memory().to(device, non_blocking=True)
            self._stream = torch.cuda.current_stream(device)
            self._sent = self._stream.record_event()
        self._table = table

    def pack(self) -> list[tuple[Tensor, Tensor]]:
        """Launch; the same ``(values, meta)`` tensors each time."""
        if self._tiles:
            if self._table.is_cuda:
                self._follow(torch.cuda.current_stream(self._table.device))
            launch(
                _pack_many, (self._tiles,), WARPS, self._table, len(self.packed),
                dtype=triton_dtype(self._read[0]), EVEN=self._even,
                MATRICES=triton.next_power_of_2(len(self.packed)), ROWS=ROWS, UNITS=UNITS,
            )  # fmt: skip
        return self.packed

    def _follow(self, stream: torch.cuda.Stream) -> None:
        # The stream that the table was sent on is followed by itself. One that is being captured must not
        # wait for what lies outside; `torch.cuda.graph` has waited for the device before it began.
        if stream == self._stream or torch.cuda.is_current_stream_capturing():
            return
        stream.wait_event(self._sent)
        for tensor in (self._table, *itertools.chain.from_iterable(self.packed)):
            tensor.record_stream(stream)


def wanda_pack24_many(
    weights: Sequence[Tensor], column_norms: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """`wanda_pack24` of each, in one launch for each device, dtype and kind of width among them."""
    batches: dict[object, list[int]] = {}
    for place, weight in enumerate(weights):
        batches.setdefault((weight.device, weight.dtype, tiling(weight)[1]), []).append(place)
    packed: list[tuple[Tensor, Tensor] | None] = [None] * len(weights)
    for places in batches.values():
        tower = Tower(
            [aligned(weights[i]) for i in places], [aligned(column_norms[i].float()) for i in places]
        )
        for place, result in zip(places, tower.pack(), strict=True):
            packed[place] = result
    return packed  # type: ignore[return-value]
