"""The instructions of PTX that compute, for `ptx_machine`."""

import numpy as np

LANES = 32
# How a register is held that was declared so, and how an instruction of this type sees it.
KINDS = {
    "pred": bool, "b16": np.uint16, "f16": np.uint16, "b32": np.uint32, "f32": np.uint32, "b64": np.uint64,
}  # fmt: skip
TYPES = {
    "pred": bool, "u8": np.uint8, "u16": np.uint16, "b16": np.uint16, "s16": np.int16, "u32": np.uint32,
    "b32": np.uint32, "s32": np.int32, "f32": np.float32, "u64": np.uint64, "b64": np.uint64, "s64": np.int64,
    "f16": np.float16,
}  # fmt: skip


class Numbers:
    """Each reads and writes registers by `read` and `write`, and is named as the first part of its name."""

    def _mov(self, warp, ins, operands, lanes):
        to, what = operands
        kind = ins.op[-1]
        if to.startswith("{"):
            names = to.strip("{} ").split(",")
            part = f"b{int(kind[1:]) // len(names)}"
            values = self.read(warp, what, kind).view(TYPES[part]).reshape(LANES, len(names))
            for i, name in enumerate(names):
                self.write(warp, name.strip(), values[:, i].copy(), lanes)
            return
        if what.startswith("{"):
            part = f"b{int(kind[1:]) // (what.count(',') + 1)}"
            value = np.stack(self.several(warp, what, part), 1).reshape(-1).view(TYPES[kind])
        else:
            value = self.read(warp, what, kind)
        self.write(warp, to, value, lanes)

    def _compute(self, warp, ins, operands, lanes):
        kind = ins.op[-1]
        given = [self.read(warp, each, kind) for each in operands[1:]]
        with np.errstate(all="ignore"):
            self.write(warp, operands[0], COMPUTE[ins.op[0]](*given), lanes)

    _add = _sub = _and = _or = _xor = _not = _neg = _min = _max = _div = _compute

    def _mul(self, warp, ins, operands, lanes):
        kind, how = ins.op[-1], ins.op[1]
        a, b = (self.read(warp, each, kind) for each in operands[1:3])
        if kind == "f32" or how == "lo":
            product = a * b
        else:
            bits, whole = 8 * a.itemsize, [int(x) * int(y) for x, y in zip(a, b, strict=True)]
            shifted = [(each >> bits if how == "hi" else each) % (1 << 64) for each in whole]
            product = np.array(shifted, np.uint64)
        self.write(warp, operands[0], product, lanes)

    def _mad(self, warp, ins, operands, lanes):
        assert ins.op[1] == "lo"
        a, b, c = (self.read(warp, each, ins.op[-1]) for each in operands[1:])
        self.write(warp, operands[0], a * b + c, lanes)

    def _fma(self, warp, ins, operands, lanes):
        a, b, c = (self.read(warp, each, "f32").astype(np.float64) for each in operands[1:])
        with np.errstate(all="ignore"):
            self.write(warp, operands[0], (a * b + c).astype(np.float32), lanes)

    def _rcp(self, warp, ins, operands, lanes):
        with np.errstate(all="ignore"):
            self.write(warp, operands[0], np.float32(1) / self.read(warp, operands[1], "f32"), lanes)

    def _ex2(self, warp, ins, operands, lanes):
        with np.errstate(all="ignore"):
            self.write(warp, operands[0], np.exp2(self.read(warp, operands[1], "f32")), lanes)

    def _shl(self, warp, ins, operands, lanes):
        a, by = self.read(warp, operands[1], ins.op[-1]), self.read(warp, operands[2], "u32")
        bits = 8 * a.itemsize
        value = np.where(by < bits, a << np.minimum(by, bits - 1).astype(a.dtype), 0).astype(a.dtype)
        self.write(warp, operands[0], value, lanes)

    def _shr(self, warp, ins, operands, lanes):
        a, by = self.read(warp, operands[1], ins.op[-1]), self.read(warp, operands[2], "u32")
        bits = 8 * a.itemsize
        value = a >> np.minimum(by, bits - 1).astype(a.dtype)
        if a.dtype.kind == "u":
            value = np.where(by < bits, value, 0).astype(a.dtype)
        self.write(warp, operands[0], value, lanes)

    def _bfi(self, warp, ins, operands, lanes):
        a, b, start, length = (self.read(warp, each, "u32").astype(np.uint64) for each in operands[1:])
        mask = ((np.uint64(1) << length) - np.uint64(1)) << start
        self.write(warp, operands[0], (b & ~mask) | ((a << start) & mask), lanes)

    def _setp(self, warp, ins, operands, lanes):
        a, b = (self.read(warp, each, ins.op[-1]) for each in operands[1:])
        self.write(warp, operands[0], COMPARE[ins.op[1]](a, b), lanes)

    def _selp(self, warp, ins, operands, lanes):
        a, b = (self.read(warp, each, ins.op[-1]) for each in operands[1:3])
        self.write(warp, operands[0], np.where(self.read(warp, operands[3], "pred"), a, b), lanes)

    def _cvt(self, warp, ins, operands, lanes):
        to, start = ins.op[-2], ins.op[-1]
        given = [self.read(warp, each, start) for each in operands[1:]]
        if to in ("bf16x2", "f16x2"):
            high, low = (_to_16(each, to[:-2]).astype(np.uint32) for each in given)
            value = high << np.uint32(16) | low
        else:
            value = given[0].astype(TYPES[to])
        self.write(warp, operands[0], value, lanes)

    def _cvta(self, warp, ins, operands, lanes):
        self.write(warp, operands[0], self.read(warp, operands[1], "u64"), lanes)

    def _shfl(self, warp, ins, operands, lanes):
        assert ins.op[2] == "idx"
        assert lanes.all(), "some lanes are elsewhere"
        to, _, inside = operands[0].partition("|")
        values, source = self.read(warp, operands[1], "b32"), self.read(warp, operands[2], "u32")
        assert (self.read(warp, operands[3], "u32") == LANES - 1).all()
        self.write(warp, to, values[source % LANES], lanes)
        if inside:
            self.write(warp, inside, np.ones(LANES, bool), lanes)


COMPUTE = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "not": np.invert, "neg": np.negative, "min": np.fmin, "max": np.fmax, "div": np.floor_divide,
}  # fmt: skip
COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip


def _to_16(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)
