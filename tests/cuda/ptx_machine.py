"""Runs PTX on the host: warps of 32 lanes in a random order, their registers, and memory.

Lanes of a warp that stand at different instructions run apart, those that are furthest behind first. Memory
is read and written in the order in which things happen here, which is one of those that a GPU may choose.
"""

import random
import re
from dataclasses import dataclass, field

import numpy as np
from ptx_numbers import KINDS, LANES, TYPES, Numbers
from ptx_program import Instruction, Program

PARAMETERS = 1 << 44  # where the kernel's parameters lie
SHARED = 1024  # where a block's own shared memory starts, as on Hopper
# Instructions of a warp in one go, by chance: many show who waits too little, few who is overtaken.
SLICES = (0, 5, 40, 400)


class Broken(Exception):
    """What no GPU would run to its end, or not as it should."""


@dataclass
class Block:
    """One of the grid, and of a cluster."""

    number: tuple[int, int, int]
    rank: int
    cluster: list["Block"]
    shared: np.ndarray
    barriers: dict = field(default_factory=dict)  # mbarriers by their addresses
    waiting: dict = field(default_factory=dict)  # warps at each barrier by its number
    warps: list = field(default_factory=list)

    def has_ended(self) -> bool:
        """Whether all its warps returned."""
        return all(warp.over for warp in self.warps)


class Warp:
    """32 lanes with their registers; `groups` are the lanes that stand at each instruction."""

    def __init__(self, block: Block, number: int) -> None:
        self.block, self.number = block, number
        self.registers: dict[str, np.ndarray] = {}
        self.groups: dict[int, np.ndarray] = {0: np.ones(LANES, bool)}
        self.over = False
        self.blocked = False  # at a barrier
        self.pauses = False  # until others had their turn
        self.products: list = []  # groups of wgmma that were committed, of which so many are done
        self.done = 0
        self.issued: list = []  # and what was not committed yet
        self.stores: list = []  # the same of bulk stores, those that are done left out
        self.stored: list = []


class Machine(Numbers):
    """A grid of blocks over memory: ``{first address: bytes}``.

    Args:
        program: what to run.
        grid: blocks.
        cluster: blocks along x that form one.
        threads: of a block.
        shared: bytes of memory that a block asks for.
        parameters: the kernel's.
        memory: uint8 arrays, which are written to.
        seed: of the order in which things happen.

    """

    def __init__(self, program: Program, grid, cluster, threads, shared, parameters, memory, seed=0) -> None:
        self.program, self.grid, self.cluster, self.threads = program, grid, cluster, threads
        self.parameters = np.frombuffer(parameters, np.uint8)
        assert len(self.parameters) == program.parameter_bytes
        self.memory, self.random = memory, random.Random(seed)
        self.changes = 0  # counted, to tell who waits for ever
        self.underway: list = []  # bulk loads, each with the blocks that it writes to
        self.warps = []
        for z in range(grid[2]):
            for y in range(grid[1]):
                for x in range(0, grid[0], cluster):
                    together: list[Block] = []
                    for rank in range(cluster):
                        own = np.full(shared, 0xFF, np.uint8)
                        together.append(Block((x + rank, y, z), rank, together, own))
                        together[-1].warps = [Warp(together[-1], n) for n in range(threads // LANES)]
                        self.warps += together[-1].warps

    def run(self) -> None:
        """Until every lane has returned.

        Raises:
            Broken: all wait for each other, or something is done that is not allowed.

        """
        alive, idle = list(self.warps), 0
        while alive:
            before = self.changes
            self.random.shuffle(alive)
            for warp in alive:
                self._advance(warp)
            self._deliver(all_of=self.changes == before)
            alive = [warp for warp in alive if not warp.over]
            waits = all(warp.blocked or warp.pauses for warp in alive)
            idle = idle + 1 if waits and self.changes == before and not self.underway else 0
            if idle > 50:
                where = {(w.block.number, w.number): sorted(w.groups) for w in alive}
                raise Broken(f"all wait for each other: {where}")

    def _deliver(self, all_of: bool) -> None:
        # As late as can be, or any time before.
        later = []
        for blocks, load in self.underway:
            if all_of or self.random.random() < 0.5:
                load()
                self.changes += 1
            else:
                later.append((blocks, load))
        self.underway = later

    def _advance(self, warp: Warp) -> None:
        slice_ = self.random.choice(SLICES)
        warp.pauses = warp.pauses and not slice_
        for _ in range(slice_):
            if warp.blocked or warp.pauses or not warp.groups:
                return
            at = min(warp.groups)
            lanes = warp.groups.pop(at)
            instruction = self.program.instructions[at]
            active = lanes
            if instruction.guard is not None:
                guard = self.read(warp, instruction.guard, "pred")
                active = lanes & (~guard if instruction.unless else guard)
            if instruction.op[0] == "bra":
                self._stand(warp, instruction.target, active)
                self._stand(warp, at + 1, lanes & ~active)
            elif instruction.op[0] == "ret":
                self._stand(warp, at + 1, lanes & ~active)
                if not warp.groups:
                    self.changes += 1
                    warp.over = True
                    self.ended(warp)
            else:
                again = False
                if active.any():
                    try:
                        again = self.execute(warp, instruction, active)
                    except (AssertionError, KeyError, IndexError) as error:
                        what = f"{'.'.join(instruction.op)} {', '.join(instruction.operands)}"
                        raise Broken(f"instruction {at}, {what[:200]}: {error!r}") from error
                self._stand(warp, at if again else at + 1, lanes)

    @staticmethod
    def _stand(warp: Warp, at: int, lanes: np.ndarray) -> None:
        if lanes.any():
            warp.groups[at] = warp.groups[at] | lanes if at in warp.groups else lanes

    def ended(self, warp: Warp) -> None:
        """All lanes of a warp returned."""

    def execute(self, warp: Warp, instruction: Instruction, lanes: np.ndarray) -> bool | None:
        """One that is no branch, for the lanes that it is for; whether it is to be run again."""
        return getattr(self, f"_{instruction.op[0]}")(warp, instruction, instruction.operands, lanes)

    # Operands.

    def read(self, warp: Warp, operand: str, kind: str) -> np.ndarray:
        """What an operand is for each lane, as of this type."""
        dtype = TYPES[kind]
        if operand in warp.registers:
            held = warp.registers[operand]
            same = held.dtype.itemsize == np.dtype(dtype).itemsize
            return held.view(dtype) if same else held.astype(dtype)
        if re.match(r"-?\d", operand):
            if operand[:2] in ("0f", "0F"):
                return np.full(LANES, int(operand[2:], 16), np.uint32).view(dtype)
            return np.full(LANES, int(operand, 0) % (1 << 64), np.uint64).astype(dtype)
        name, _, offset = operand.partition("+")
        if offset:
            return (self.read(warp, name, "u64") + np.uint64(int(offset, 0) % (1 << 64))).astype(dtype)
        return self._special(warp, operand).astype(dtype)

    def _special(self, warp: Warp, name: str) -> np.ndarray:
        lane, block = np.arange(LANES), warp.block
        if name == self.program.parameter:
            return np.full(LANES, PARAMETERS, np.uint64)
        if name.endswith("smemE"):
            return np.full(LANES, SHARED, np.uint64)
        if name in ("%tid.x", "%laneid"):
            return lane + (LANES * warp.number if name == "%tid.x" else 0)
        values = {"%cluster_ctarank": block.rank, "%cluster_nctarank": self.cluster, "%ntid.x": self.threads}
        for i, axis in enumerate("xyz"):
            inside, wide = (block.rank, self.cluster) if i == 0 else (0, 1)
            values |= {
                f"%ctaid.{axis}": block.number[i], f"%nctaid.{axis}": self.grid[i],
                f"%cluster_ctaid.{axis}": inside, f"%cluster_nctaid.{axis}": wide,
                f"%clusterid.{axis}": block.number[i] // wide, f"%nclusterid.{axis}": self.grid[i] // wide,
            }  # fmt: skip
        if name not in values:
            raise KeyError(f"{name} is read and was never written")
        return np.full(LANES, values[name])

    def write(self, warp: Warp, name: str, value: np.ndarray, lanes: np.ndarray) -> None:
        """Set a register, cut to its own width or widened by zeros."""
        if name == "_":
            return
        dtype = KINDS[self.program.kinds.get(name) or self.program.kinds[name.rstrip("0123456789")]]
        if value.dtype.kind == "f":
            value = value.view(f"u{value.dtype.itemsize}")
        if name not in warp.registers:
            warp.registers[name] = np.zeros(LANES, dtype)
        warp.registers[name][lanes] = value.astype(dtype)[lanes]

    def several(self, warp: Warp, operand: str, kind: str) -> list[np.ndarray]:
        """The operands in braces, or the one that is in none."""
        names = operand.strip("{} ").split(",") if operand.startswith("{") else [operand]
        return [self.read(warp, name.strip(), kind) for name in names]

    # Memory.

    def place(self, warp: Warp, operand: str) -> np.ndarray:
        """Addresses that an operand in brackets names."""
        return self.read(warp, operand.strip("[] "), "u64")

    def bytes_at(self, block: Block, space: str, address: int, count: int) -> np.ndarray:
        """Memory that may be read and written."""
        if space.startswith("shared"):
            rank, offset = address >> 24, address & 0xFFFFFF
            block = block if rank == 0 else block.cluster[rank - 1]
            if not (offset >= SHARED and offset + count <= SHARED + len(block.shared)):
                raise IndexError(f"{count} bytes at {offset} are not in shared memory")
            return block.shared[offset - SHARED : offset - SHARED + count]
        if PARAMETERS <= address <= PARAMETERS + len(self.parameters) - count:
            return self.parameters[address - PARAMETERS :][:count]
        for first, memory in self.memory.items():
            if first <= address and address + count <= first + len(memory):
                return memory[address - first : address - first + count]
        raise IndexError(f"{count} bytes at {address:#x} are in no memory")

    def _ld(self, warp, ins, operands, lanes):
        vector = next((int(part[1:]) for part in ins.op if re.fullmatch(r"v\d", part)), 1)
        names = [name.strip() for name in operands[0].strip("{} ").split(",")]
        assert len(names) == vector
        size = np.dtype(TYPES[ins.op[-1]]).itemsize
        result = np.zeros((LANES, vector), TYPES[ins.op[-1]])
        places = self.place(warp, operands[1])
        for lane in np.flatnonzero(lanes):
            assert places[lane] % (size * vector) == 0, "not aligned"
            found = self.bytes_at(warp.block, ins.op[1], int(places[lane]), size * vector)
            result[lane] = found.view(result.dtype)
        for i, name in enumerate(names):
            self.write(warp, name, result[:, i].copy(), lanes)
        warp.pauses = "acquire" in ins.op

    def _st(self, warp, ins, operands, lanes):
        values = np.stack(self.several(warp, operands[1], ins.op[-1]), 1)
        places = self.place(warp, operands[0])
        for lane in np.flatnonzero(lanes):
            assert places[lane] % values[lane].nbytes == 0, "not aligned"
            to = self.bytes_at(warp.block, ins.op[1], int(places[lane]), values[lane].nbytes)
            to[:] = values[lane].view(np.uint8)
        self.changes += 1

    def _atom(self, warp, ins, operands, lanes):
        assert "add" in ins.op
        to, place, what = operands if ins.op[0] == "atom" else ("_", *operands)
        values, places = self.read(warp, what, ins.op[-1]), self.place(warp, place)
        old = np.zeros_like(values)
        for lane in np.flatnonzero(lanes):
            at = self.bytes_at(warp.block, "global", int(places[lane]), values.itemsize).view(values.dtype)
            old[lane] = at[0]
            at[0] += values[lane]
        self.write(warp, to, old, lanes)
        self.changes += 1

    _red = _atom
