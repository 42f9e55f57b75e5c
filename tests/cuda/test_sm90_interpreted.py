"""Hopper's kernels run on the host, instruction by instruction, with the parameters that their launch makes.

`ptx_hopper` says what of a GPU is not in it: time, and what goes wrong only in an order that did not come up.
VLPRUNE_EVERY_CONFIG=1 runs all configs of every dtype, for an hour.
"""

import os
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from build_tools import CSRC, cuobjdump, run
from hopper_build import address, compile_to, program_of
from ptx_hopper import Hopper
from ptx_machine import Broken
from ptx_program import parse

from vlprune import ops
from vlprune.ops import extensions

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "s8": torch.int8, "e4m3": torch.float8_e4m3fn}
# Each schedule, one with two blocks in a cluster, and each dtype.
SOME = [
    ("ping_pong_64x32", "bf16"), ("cooperative_256x128", "bf16"), ("split_128x32", "bf16"),
    ("ping_pong_128x128", "f16"), ("ping_pong_64x64", "s8"), ("split_128x32", "e4m3"),
]  # fmt: skip


EVERY = [
    (re.sub(r"linear24_sm90_|\.cu", "", source.name), dtype)
    for dtype in DTYPES
    for source in sorted(CSRC.glob("cuda/linear24_sm90_*.cu"))
    if dtype in ("bf16", "f16")
    or re.search(r"_(128x192|ping_pong_128x128|64x64|split_128x32)\.cu", source.name)
]


class Kernel:
    """A compiled config: its PTX, and what its launch asks for."""

    def __init__(self, folder, config, dtype):
        self.config, self.name, self.dtype = config, dtype, DTYPES[dtype]
        self.scaled = dtype in ("s8", "e4m3")
        made = compile_to(folder / "kernel.o", config, dtype, code="compute_90a")
        self.program = parse(run([cuobjdump(), "-ptx", made], text=True).stdout)
        self.launch = partial(
            program_of(made, config, dtype), PARAMETER_BYTES=str(self.program.parameter_bytes)
        )


@pytest.fixture(
    scope="module", params=EVERY if os.environ.get("VLPRUNE_EVERY_CONFIG") else SOME, ids=" ".join
)
def kernel(request, tmp_path_factory):
    return Kernel(tmp_path_factory.mktemp("ptx"), *request.param)


class Call:
    """Operands in memory as the launch has them, results full of NaN."""

    def __init__(self, kernel, tokens, out, inputs, residual=True, gap=0, sms=132):
        self.kernel, self.sizes, self.gap = kernel, (tokens, out, inputs), gap
        make = torch.Generator().manual_seed(0)
        self.values, self.meta = ops.wanda_pack24(
            torch.randn(out, inputs, generator=make), torch.ones(inputs)
        )
        self.x, self.bias = torch.randn(tokens, inputs, generator=make), torch.randn(out, generator=make)
        self.y_dtype = torch.bfloat16 if kernel.scaled else kernel.dtype
        self.residual = torch.randn(tokens, out, generator=make).to(self.y_dtype) if residual else None
        self.scales = [torch.rand(n, generator=make) + 0.5 for n in (tokens, out)]
        if kernel.name == "s8":
            self.values, self.x = (each.mul(30).clamp(-127, 127).round() for each in (self.values, self.x))
            self.scales = [each / 300 for each in self.scales]
        self.values, self.x = self.values.to(kernel.dtype), self.x.to(kernel.dtype)
        self.bias = self.bias if kernel.scaled else self.bias.to(kernel.dtype)
        ldx, ldy = inputs + 2 * gap, out + gap
        self.asked = kernel.launch((tokens, out, inputs, ldx, ldy if residual else 0, ldy, 0, sms))
        assert self.asked[-1]["code"] == 0
        self.memory = self.laid_out(ldx, ldy)

    def laid_out(self, ldx, ldy):
        tokens, out, inputs = self.sizes
        prefix, native = "sm90_scaled" if self.kernel.scaled else "sm90", extensions.extension()
        order = torch.empty(getattr(native, f"{prefix}_meta_bytes")(out, inputs), dtype=torch.uint8)
        getattr(native, f"{prefix}_reorder_meta")(self.meta.data_ptr(), out, inputs, order.data_ptr())
        x = torch.full((tokens, ldx, self.x.itemsize), 0x7F, dtype=torch.uint8)
        x[:, :inputs] = self.x.view(torch.uint8).view(tokens, inputs, -1)
        tensors = [x, self.values, order, self.bias]
        if self.residual is not None:
            added = torch.full((tokens, ldy), torch.nan, dtype=self.y_dtype)
            added[:, :out] = self.residual
            tensors.append(added)
        memory = {address(i + 1): bytes_of(each) for i, each in enumerate(tensors)}
        memory[address(6)] = np.full(2 * tokens * ldy, 0xFF, np.uint8)
        if self.kernel.scaled:
            memory |= {address(7 + i): bytes_of(each) for i, each in enumerate(self.scales)}
        memory[address(9)] = np.full(self.asked[-1]["workspace"], 0xFF, np.uint8)
        for each in self.asked:
            if each["what"] == "memset":
                start = each["address"] - address(9)
                memory[address(9)][start : start + each["bytes"]] = each["value"]
        return memory

    def run(self, machine=Hopper, seed=0, program=None):
        maps = [each for each in self.asked if each["what"] == "encode"]
        (launch,) = (each for each in self.asked if each["what"] == "launch")
        assert launch["cluster"][1] == 1
        machine(
            program or self.kernel.program, launch["grid"], launch["cluster"][0], launch["threads"],
            launch["shared"], bytes.fromhex(launch["parameters"]), self.memory, seed, maps=maps,
        ).run()  # fmt: skip
        tokens, out, _ = self.sizes
        y = torch.from_numpy(self.memory[address(6)]).view(self.y_dtype).view(tokens, -1)
        assert (self.memory[address(6)].reshape(tokens, -1)[:, 2 * out :] == 0xFF).all(), (
            "written between rows"
        )
        return y[:, :out].double()

    def right(self):
        dense = ops.unpack24(self.values.float(), self.meta).double()
        z = self.x.double() @ dense.T
        if self.kernel.scaled:
            z = z * self.scales[0].double()[:, None] * self.scales[1].double()
        z = torch.nn.functional.gelu(z + self.bias.double())
        return z if self.residual is None else z + self.residual.double()

    def is_right(self, y):
        digits = 10 if self.y_dtype is torch.float16 else 7
        return torch.allclose(y, self.right(), rtol=2.0**-digits, atol=2.0**-digits)


def bytes_of(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1).copy()


# Tokens, out, in: a part of a tile, parts of several, and more inputs than there are stages.
SHAPES = [(1, 8, 32), (7, 72, 160), (50, 264, 416), (130, 136, 96), (33, 128, 4096)]


@pytest.mark.slow
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results(kernel, shape, residual):
    call = Call(kernel, *shape, residual=residual)
    assert call.is_right(call.run())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sms", [2, 5])
def test_blocks_that_take_tile_after_tile_in_any_order(kernel, sms, seed):
    call = Call(kernel, 150, 520, 288, gap=16, sms=sms)
    assert call.is_right(call.run(seed=seed))


@pytest.mark.slow
def test_the_workspace_is_left_as_the_next_call_needs_it(kernel):
    call = Call(kernel, 40, 264, 4096)
    assert ("split" in call.kernel.config) == (len(call.memory[address(9)]) > 0)
    for seed in range(2):
        call.memory[address(6)][:] = 0xFF
        assert call.is_right(call.run(seed=seed))


class Impatient(Hopper):
    """Whoever waits for memory goes on at once."""

    def _mbarrier(self, warp, ins, operands, lanes):
        super()._mbarrier(warp, ins, operands, lanes)
        if ins.op[1] == "try_wait":
            self.write(warp, operands[0], np.ones(32, bool), lanes)


class Ordered(Hopper):
    """Indices of other lanes."""

    def _product(self, warp, form, names, weight, x, indices, *more):
        super()._product(warp, form, names, weight, x, np.roll(indices, 4), *more)


@pytest.mark.slow
def test_who_does_not_wait_for_memory_is_wrong(kernel):
    call = Call(kernel, 50, 264, 2080)
    try:
        right = call.is_right(call.run(Impatient))
    except Broken as broken:
        right = "more arrive" not in str(broken) and "the block" not in str(broken)
    assert not right


@pytest.mark.slow
def test_indices_of_other_lanes_are_wrong(kernel):
    call = Call(kernel, 50, 264, 416)
    assert not call.is_right(call.run(Ordered))


@pytest.mark.slow
def test_a_stage_given_back_before_its_product_is_done_is_wrong(kernel):
    at, wait = next(
        (i, each) for i, each in enumerate(kernel.program.instructions) if "wait_group" in each.op
    )
    assert wait.op[0] == "wgmma"
    instructions = list(kernel.program.instructions)
    instructions[at] = replace(wait, operands=[str(int(wait.operands[0]) + 1)])
    program = replace(kernel.program, instructions=instructions)
    outcomes = []
    for seed in range(4):
        # on so few multiprocessors no inputs are shared out, and every stage is filled again
        call = Call(kernel, 40, 264, 4096, sms=6)
        try:
            outcomes.append(call.is_right(call.run(seed=seed, program=program)))
        except Broken as broken:
            # A warp that comes late finds its stage filled twice since.
            outcomes.append("all wait for each other" not in str(broken))
    assert not all(outcomes)


@pytest.mark.slow
def test_metadata_in_the_order_of_the_file_is_wrong(kernel):
    call = Call(kernel, 50, 264, 416)
    order = call.memory[address(3)]
    order[: call.meta.numel()] = call.meta.numpy().reshape(-1)
    assert not call.is_right(call.run())
