"""Hopper's own instructions for `ptx_machine`: barriers in memory, bulk copies by tensor maps, wgmma.

Written from the PTX manual; where lanes hold a sparse operand's indices is CUTLASS's ELayout_64x32 and
ELayout_64x64 (cute/atom/mma_traits_sm90_gmma_sparse.hpp). What is asynchronous happens as late as the program
allows: a product when it is waited for, a bulk store too, a bulk load at any moment. So memory that is given
back, or sums that are read, before that was waited for are not what they should be. Fences do nothing: memory
is the same for all and in order, so one that is missing is not seen. Nor is what only ptxas or time does.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from ptx_machine import LANES, Block, Machine

# Of cuTensorMapEncodeTiled.
BYTES_OF_DATA_TYPE = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2}
MARK = 0x6D61705F6F665F78  # with which the tensor maps of tests/cuda/sm90_launch.cpp begin
WRONG = -(2**30)  # what stands for a sum that may be anything
FLOATS = {"bf16": torch.bfloat16, "f16": torch.float16, "e4m3": torch.float8_e4m3fn}


@dataclass
class Barrier:
    """An mbarrier."""

    count: int
    pending: int
    bytes: int = 0
    phase: int = 0

    def settle(self) -> None:
        assert self.pending >= 0, "more arrive than were said to"
        if self.pending == 0 and self.bytes == 0:
            self.pending, self.phase = self.count, self.phase ^ 1


@dataclass
class Meeting:
    """Of all warps of a cluster."""

    arrived: int = 0
    phase: int = 0


def swizzled(address: np.ndarray, bits: int) -> np.ndarray:
    """Where 16 bytes lie: Swizzle<bits, 4, 3> of addresses."""
    return address ^ ((address >> 7 & (1 << bits) - 1) << 4)


class Hopper(Machine):
    """A machine with the instructions of sm_90a.

    Args:
        maps: the tensor maps by the numbers that the kernel's parameters have of them: sizes, strides, box,
            type and swizzle, as they were encoded.

    """

    def __init__(self, *arguments, maps, **options) -> None:
        super().__init__(*arguments, **options)
        self.maps = maps
        for each in maps:
            # What cuTensorMapEncodeTiled asks for.
            width = each["box"][0] * BYTES_OF_DATA_TYPE[each["type"]]
            assert all(step == 1 for step in each["steps"])
            assert each["others"] == 0, "interleaved, or filled with NaN"
            assert all(1 <= n <= 256 for n in each["box"])
            assert all(stride % 16 == 0 for stride in each["strides"])
            assert width % 16 == 0
            assert not each["swizzle"] or width <= 16 << each["swizzle"]
        self.meetings: dict[int, Meeting] = defaultdict(Meeting)

    def _nothing(self, warp, ins, operands, lanes):
        pass

    _fence = _prefetch = _setmaxnreg = _nothing

    def _elect(self, warp, ins, operands, lanes):
        lane, _, elected = operands[0].partition("|")
        first = np.flatnonzero(lanes)[0]
        self.write(warp, lane, np.full(LANES, first, np.uint32), lanes)
        self.write(warp, elected, np.arange(LANES) == first, lanes)

    def _mapa(self, warp, ins, operands, lanes):
        address, rank = self.read(warp, operands[1], "u32"), self.read(warp, operands[2], "u32")
        self.write(warp, operands[0], (rank + np.uint32(1)) << np.uint32(24) | address, lanes)

    # Waiting for each other.

    def _bar(self, warp, ins, operands, lanes):
        assert ins.op[1] == "sync"
        assert lanes.all(), "some lanes are elsewhere"
        number = int(self.read(warp, operands[0], "u32")[0])
        count = int(self.read(warp, operands[1], "u32")[0]) if len(operands) > 1 else self.threads
        waiting = warp.block.waiting.setdefault(number, [])
        waiting.append(warp)
        warp.blocked = True
        if len(waiting) * LANES == count:
            for each in waiting:
                each.blocked = False
            waiting.clear()
            self.changes += 1

    def _barrier(self, warp, ins, operands, lanes):
        """Of a cluster."""
        meeting = self.meetings[id(warp.block.cluster)]
        if ins.op[2] == "arrive":
            warp.met = meeting.phase
            meeting.arrived += 1
            if meeting.arrived == self.cluster * self.threads // LANES:
                meeting.arrived, meeting.phase = 0, meeting.phase + 1
            self.changes += 1
        elif meeting.phase == warp.met:
            warp.pauses = True
        return warp.pauses

    def _barrier_at(self, block: Block, address: int) -> Barrier:
        rank, offset = address >> 24, address & 0xFFFFFF
        there = block if rank == 0 else block.cluster[rank - 1]
        assert not there.has_ended(), "the block of the barrier has ended"
        return there.barriers[offset]

    def _mbarrier(self, warp, ins, operands, lanes):
        what = ins.op[1]
        if what == "init":
            for place, count in self._lanes(warp, lanes, operands[0].strip("[] "), operands[1]):
                assert place % 8 == 0
                warp.block.barriers[place] = Barrier(count, count)
        elif what == "try_wait":
            done = np.zeros(LANES, bool)
            pairs = self._lanes(warp, lanes, operands[1].strip("[] "), operands[2])
            for lane, (place, parity) in zip(np.flatnonzero(lanes), pairs, strict=True):
                done[lane] = self._barrier_at(warp.block, place).phase != parity
            self.write(warp, operands[0], done, lanes)
            warp.pauses = not done[lanes].all()
            return
        else:
            arrives = what == "arrive"
            place = operands[1 if arrives else 0].strip("[] ")
            expected = operands[-1] if "expect_tx" in ins.op else "0"
            for address, count in self._lanes(warp, lanes, place, expected):
                barrier = self._barrier_at(warp.block, address)
                barrier.bytes += count
                barrier.pending -= arrives
                barrier.settle()
        self.changes += 1

    def _lanes(self, warp, lanes, *operands):
        values = [self.read(warp, operand, "u32") for operand in operands]
        return [tuple(int(value[lane]) for value in values) for lane in np.flatnonzero(lanes)]

    # Bulk copies.

    def _cp(self, warp, ins, operands, lanes):
        if "commit_group" in ins.op:
            warp.stores.append(warp.stored)
            warp.stored = []
        elif "wait_group" in ins.op:
            self._store(warp, int(operands[0]))
        elif "bulk_group" in ins.op:
            copy = self._box(warp, operands[0], lanes)
            ((source,),) = set(self._lanes(warp, lanes, operands[1].strip("[] ")))
            warp.stored.append(lambda: self._copy_out(warp.block, copy, source))
        else:
            copy = self._box(warp, operands[1], lanes)
            ((to, barrier),) = self._lanes(warp, lanes, operands[0].strip("[] "), operands[2].strip("[] "))
            mask = 1 << warp.block.rank
            if any("multicast" in part for part in ins.op):
                mask = int(self.read(warp, operands[3], "u16")[np.flatnonzero(lanes)[0]])
            blocks = [block for block in warp.block.cluster if mask >> block.rank & 1]
            assert mask < 1 << len(warp.block.cluster)
            self.underway.append((blocks, lambda: self._copy_in(blocks, copy, to, barrier)))

    def _store(self, warp, left):
        while len(warp.stores) > left:
            for store in warp.stores.pop(0):
                store()
                self.changes += 1

    def ended(self, warp):
        """Stores that nobody waited for happen all the same; products would be lost."""
        waited_for = warp.done == len(warp.products) and not warp.issued
        assert waited_for, "the kernel ends before its products"
        self._store(warp, 0)
        coming = any(warp.block in blocks for blocks, _ in self.underway)
        assert not (coming and warp.block.has_ended()), "the block ends before its loads"

    def _box(self, warp, operand, lanes):
        """``(tensor map, address, first coordinates)`` of a bulk copy.

        One lane starts a load. CUTLASS has all lanes of a warp start a store: the same, so once is as often.
        """
        place, _, coordinates = operand.strip("[] ").partition(",")
        lane = np.flatnonzero(lanes)[0]
        address = int(self.read(warp, place.strip(), "u64")[lane])
        mark, base, number = self.bytes_at(warp.block, "param", address, 24).view(np.uint64)
        assert mark == MARK, "no tensor map"
        numbers = self.several(warp, coordinates.strip(), "s32")
        assert all(len(set(each[lanes])) == 1 for each in numbers), "lanes copy different boxes"
        first = [int(each[lane]) for each in numbers]
        return self.maps[int(number)], int(base), first

    def _rows(self, copy, to):
        """Each row of a box: its bytes in global memory or None, the first of them, and where all lie."""
        tensor, base, first = copy
        size = BYTES_OF_DATA_TYPE[tensor["type"]]
        sizes, box = tensor["sizes"], tensor["box"]
        width = box[0] * size
        assert len(first) == len(sizes)
        for i, outer in enumerate(np.ndindex(*reversed(box[1:]))):
            at = [begin + offset for begin, offset in zip(first[1:], reversed(outer), strict=True)]
            left, right = max(0, -first[0]), min(box[0], sizes[0] - first[0])
            inside = all(0 <= c < n for c, n in zip(at, sizes[1:], strict=True)) and left < right
            row = None
            if inside:
                start = base + sum(c * s for c, s in zip(at, tensor["strides"], strict=True))
                start += (first[0] + left) * size
                row = self.bytes_at(None, "global", start, (right - left) * size)
            chunks = swizzled(to + i * width + np.arange(0, width, 16), tensor["swizzle"])
            yield row, left * size, chunks

    def _copy_in(self, blocks, copy, to, barrier):
        assert to % 128 == 0, "not aligned"
        total = 0
        for row, left, chunks in self._rows(copy, to):
            bytes_ = np.zeros(16 * len(chunks), np.uint8)
            if row is not None:
                bytes_[left : left + len(row)] = row
            for block in blocks:
                for i, chunk in enumerate(chunks):
                    self.bytes_at(block, "shared", int(chunk), 16)[:] = bytes_[16 * i : 16 * i + 16]
            total += len(bytes_)
        for block in blocks:
            done = self._barrier_at(block, barrier)
            done.bytes -= total
            done.settle()

    def _copy_out(self, block, copy, source):
        for row, left, chunks in self._rows(copy, source):
            if row is not None:
                shared = [self.bytes_at(block, "shared", int(chunk), 16) for chunk in chunks]
                row[:] = np.concatenate(shared)[left : left + len(row)]

    # Matrices.

    def _matrices(self, warp, operand, lanes):
        assert lanes.all(), "some lanes are elsewhere"
        places = self.place(warp, operand)
        rows = [self.bytes_at(warp.block, "shared", int(place), 16) for place in places]
        assert not (places % 16).any(), "not aligned"
        return [row.view(np.uint16) for row in rows]

    def _ldmatrix(self, warp, ins, operands, lanes):
        assert {"x4", "trans"} <= set(ins.op)
        rows = self._matrices(warp, operands[1], lanes)
        for i, name in enumerate(operands[0].strip("{} ").split(",")):
            matrix = np.stack(rows[8 * i : 8 * i + 8])
            low, high = (matrix[start::2].T.reshape(-1).astype(np.uint32) for start in (0, 1))
            self.write(warp, name.strip(), high << np.uint32(16) | low, lanes)

    def _stmatrix(self, warp, ins, operands, lanes):
        assert {"x4", "trans"} <= set(ins.op)
        rows = self._matrices(warp, operands[0], lanes)
        for i, words in enumerate(self.several(warp, operands[1], "b32")):
            for start, half in enumerate((words & np.uint32(0xFFFF), words >> np.uint32(16))):
                for row, values in zip(
                    rows[8 * i + start : 8 * i + 8 : 2], half.reshape(8, 4).T, strict=True
                ):
                    row[:] = values

    # Products.

    def _wgmma(self, warp, ins, operands, lanes):
        assert lanes.all(), "some lanes are elsewhere"
        what = ins.op[1]
        if what == "commit_group":
            warp.products.append(warp.issued)
            warp.issued = []
            self.changes += 1
        elif what == "wait_group":
            return self._finish(warp, len(warp.products) - int(operands[0]))
        elif what == "mma_async":
            assert ins.op[2] == "sp"
            names = [name.strip() for name in operands[0].strip("{} ").split(",")]
            weight, x = (int(self.read(warp, each, "u64")[0]) for each in operands[1:3])
            indices = self.read(warp, operands[3], "u32").copy()
            selector, adds = int(operands[4]), bool(self.read(warp, operands[5], "pred")[0])
            assert all(each == "1" for each in operands[6:8]), "negated"
            assert all(each == "0" for each in operands[8:]), "transposed"
            warp.issued.append(
                lambda: self._product(warp, ins.op[5:], names, weight, x, indices, selector, adds)
            )
        return None

    def _finish(self, warp, groups):
        """A product is one of four warps: done when all have asked for it, and then for all."""
        first = warp.number // 4 * 4
        together = warp.block.warps[first : first + 4]
        for group in range(warp.done, groups):
            if any(len(each.products) <= group for each in together):
                warp.pauses = True
                return True
            for each in together:
                if each.done == group:
                    for product in each.products[group]:
                        product()
                    each.products[group], each.done = [], group + 1
        return None

    def _product(self, warp, form, names, weight, x, indices, selector, adds):
        shape, sums, kind = form[0], form[1], form[2]
        tokens, inputs = int(shape[shape.index("n") + 1 : shape.index("k")]), int(shape.partition("k")[2])
        size = 64 // inputs
        first = 16 * (warp.number % 4)
        kept = _numbers(self._operand(warp.block, weight, range(first, first + 16), 32), kind)
        rows = np.zeros((16, inputs))
        at, right = positions(indices, inputs, selector)
        np.put_along_axis(rows, at, kept, 1)
        columns = _numbers(self._operand(warp.block, x, range(tokens), inputs * size), kind)
        product = rows @ columns.T
        product[~right] = np.nan if sums == "f32" else WRONG
        assert len(names) == tokens // 2
        lane = np.arange(LANES)
        for i, name in enumerate(names):
            row, column = lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2
            value = product[row, column]
            if adds:
                value = value + self.read(warp, name, sums)
            value = value.astype(np.float32 if sums == "f32" else np.int32)
            self.write(warp, name, value, np.ones(LANES, bool))

    def _operand(self, block, descriptor, rows, width):
        """[rows, width] bytes of a matrix whose inputs lie next to each other, as its descriptor says."""
        start, group = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
        bits = {1: 3, 2: 2, 3: 1}[descriptor >> 62]
        assert descriptor >> 49 & 7 == 0
        found = []
        for row in rows:
            begin = start + row // 8 * group + row % 8 * (16 << bits)
            chunks = swizzled(begin + np.arange(0, width, 16), bits)
            found.append(np.concatenate([self.bytes_at(block, "shared", int(each), 16) for each in chunks]))
        return np.stack(found)


def positions(words: np.ndarray, inputs: int, selector: int) -> tuple[np.ndarray, np.ndarray]:
    """[16, inputs / 2]: which input each kept number of a warp's rows belongs to, by the words of its lanes.

    And [16], the rows of which all indices ascend; of others nobody knows what is computed.
    """
    at, right = np.zeros((16, inputs // 2), np.int64), np.ones(16, bool)
    for row in range(16):
        for group in range(inputs // 4):
            lane = 4 * (row % 8)
            if inputs == 32:
                lane += 2 * selector + group // 4
                nibble = 4 * (group % 4) + 16 * (row // 8)
            else:
                lane += row // 8 + 2 * (group // 8)
                nibble = 4 * (group % 8)
            both = int(words[lane]) >> nibble
            low, high = both & 3, both >> 2 & 3
            right[row] &= low < high
            at[row, 2 * group], at[row, 2 * group + 1] = 4 * group + low, 4 * group + high
    return at, right


def _numbers(found: np.ndarray, kind: str) -> np.ndarray:
    if kind == "s8":
        return found.view(np.int8).astype(np.float64)
    return torch.from_numpy(found.copy()).view(FLOATS[kind]).double().numpy()
