"""A stand-in for `vlprune._C_cuda` and for a GPU, so that the way down to the addresses runs on CPU tensors.

The functions take what the compiled ones take, read the operands from the addresses, and multiply in float32.
Each address must belong to memory that the test knows of, which catches one that is off.
"""

import contextlib
import ctypes
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from vlprune.ops import backend, extensions, gpu, reference
from vlprune.ops.cuda24 import chooser, entry, forms, measure

from .cases import TOLERANCE, exact

DTYPES = {0: torch.float32, 1: torch.bfloat16, 2: torch.float16, 3: torch.int8, 4: torch.float8_e4m3fn}
ACTIVATIONS = {0: None, 1: "gelu", 2: "quick_gelu"}
STAYING = ("config", "values", "meta", "bias", "tokens", "out", "in_", "dtype", "activation", "sms")
LOCKS = 4096
SCALED = ("x_scale", "w_scale", "y_dtype")
OPERANDS = measure.Operands


def at(address, dtype, rows, columns, step):
    """View of memory as [rows, columns]."""
    assert address % 16 == 0
    count = (rows - 1) * step + columns
    buffer = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
    plain = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype)
    return plain.as_strided((rows, columns), (step, 1))


@dataclass
class Kernels:
    """One architecture: three configs, of which the last splits and so wants a workspace."""

    name: str
    calls: list = field(default_factory=list)
    wrong: set = field(default_factory=set)  # configs that compute something else
    failing: set = field(default_factory=set)  # configs that return an error
    reordered: list = field(default_factory=list)

    def configs(self):
        shapes = (("128x128", 128, 128, 1), ("64x32", 64, 32, 1), ("64x32 split", 64, 32, 0))
        return [
            {"name": name, "out": out, "tokens": tokens, "in": 64, "stages": 4, "split": split}
            for name, out, tokens, split in shapes
        ]

    def workspace(self, config, tokens, out, in_, dtype):
        return 2 * LOCKS + 4 * tokens * out if config == 2 else 0

    def why_not(self, config, tokens, out, in_, dtype, activation, residual):
        assert dtype in DTYPES
        assert activation in ACTIVATIONS
        assert isinstance(residual, bool)
        if in_ % 16:
            return f"{self.name} needs in_features divisible by 16"
        return "too many tokens for this tile" if config == 1 and tokens > 4096 else None

    def launcher(self, *arguments):
        names = (*STAYING, *SCALED) if self.name.endswith("_scaled") else STAYING
        staying = dict(zip(names, arguments, strict=True))

        def launch(x, residual, y, stream, ldx, ldr, ldy, workspace=0, workspace_bytes=0, fresh=False):
            varying = {"x": x, "residual": residual, "y": y, "stream": stream, "ldx": ldx, "ldr": ldr}
            sizes = {"ldy": ldy, "workspace": workspace, "workspace_bytes": workspace_bytes}
            return self.run(SimpleNamespace(**staying, **varying, **sizes, fresh=fresh))

        return SimpleNamespace(launch=launch)

    def run(self, call):
        scaled = self.name.endswith("_scaled")
        self.calls.append(call)
        if call.config in self.failing:
            return 700
        dtype = DTYPES[call.dtype]
        needed = self.workspace(call.config, call.tokens, call.out, call.in_, call.dtype)
        assert call.workspace_bytes >= needed
        assert (call.workspace != 0) == (needed > 0)
        if needed:
            memory = at(call.workspace, torch.uint8, 1, call.workspace_bytes, 0)[0]
            if call.fresh:
                memory[:LOCKS] = memory[-LOCKS:] = 0
            assert not memory[:LOCKS].any()
            assert not memory[-LOCKS:].any()
            memory[LOCKS:-LOCKS] = 255
        x = at(call.x, dtype, call.tokens, call.in_, call.ldx)
        values = at(call.values, dtype, call.out, call.in_ // 2, call.in_ // 2)
        columns = -(-call.in_ // 8)
        meta = at(call.meta, torch.uint8, 1, call.out * columns, 0)[0].flip(0).view(call.out, columns)
        ends, added = (torch.float32, DTYPES[call.y_dtype]) if scaled else (dtype, dtype)
        bias = at(call.bias, ends, 1, call.out, 0)[0].float() if call.bias else None
        activation = ACTIVATIONS[call.activation]
        if scaled:
            y = reference.linear24(x.float(), values.float(), meta)
            y = y * at(call.x_scale, ends, call.tokens, 1, 1) * at(call.w_scale, ends, 1, call.out, 0)
            y = reference.activate(y if bias is None else y + bias, activation)
        else:
            y = reference.linear24(x.float(), values.float(), meta, bias, activation)
        if call.residual:
            y = y + at(call.residual, added, call.tokens, call.out, call.ldr)
        if call.config in self.wrong:
            y = y + 1
        at(call.y, added, call.tokens, call.out, call.ldy).copy_(y)
        return 0

    # Of vlprune._C: the order pretended is the bytes backwards.
    def meta_bytes(self, out, in_):
        return out * -(-in_ // 8) + 16

    def reorder_meta(self, meta, out, in_, to):
        columns = -(-in_ // 8)
        there = at(to, torch.uint8, 1, out * columns, 0)[0]
        there.copy_(at(meta, torch.uint8, 1, out * columns, 0)[0].flip(0))
        self.reordered.append((out, in_))


def module_of(kernels, what):
    functions = {f"{each.name}_{name}": getattr(each, name) for each in kernels for name in what}
    return SimpleNamespace(**functions)


def install(monkeypatch, tmp_path, capability=(9, 0), kernels=None):
    """As if a GPU with compiled kernels were here, and the operator's CPU tensors on it; the kernels."""
    if kernels is None:
        kernels = [Kernels(name) for name in ("sm90", "sm80", "sm90_scaled")]
    cuda = module_of(kernels, ("configs", "workspace", "why_not", "launcher"))
    cuda.error_name = lambda code: f"error {code}"
    cuda.__file__ = __file__
    native = module_of(kernels, ("meta_bytes", "reorder_meta"))
    monkeypatch.setattr(extensions, "cuda_extension", lambda: (cuda, None))
    monkeypatch.setattr(extensions, "extension", lambda: native)
    monkeypatch.setattr(extensions, "MISSING", None)
    monkeypatch.setattr(backend, "_why_not_cuda", lambda name, device: None)
    monkeypatch.setattr(backend, "_triton_installed", lambda: False)
    monkeypatch.setattr(backend, "_override", lambda: "auto")
    monkeypatch.setattr(gpu, "index_of", lambda device: 0)
    monkeypatch.setattr(gpu, "is_current", lambda device: True)
    monkeypatch.setattr(gpu, "capability", lambda index: capability)
    monkeypatch.setattr(gpu, "capturing", lambda: False)
    monkeypatch.setattr(gpu, "stream_of", lambda index: 77)
    monkeypatch.setattr(gpu, "multiprocessors", lambda index: 132)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Pretended GPU")
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path))
    for op, each in forms.all_forms().items():
        monkeypatch.setitem(forms.FORMS, op, each)
    monkeypatch.setattr(entry, "_chosen", {})
    for calls in (entry.OUTSIDE, entry._INSIDE):
        monkeypatch.setattr(calls, "_metas", {})
    chooser._memory.cache_clear()
    here = torch.device("cpu")
    monkeypatch.setattr(
        measure, "Operands", lambda problem, device, copies=2: OPERANDS(problem, here, copies)
    )
    return {each.name: each for each in kernels}


def pretend_times(monkeypatch, **times):
    """Replace the clock: seconds by a candidate's name, 9 where none is given; what was timed."""
    timed = []

    def seconds_a_call(candidates):
        timed.append(list(candidates))
        for calls in candidates.values():
            for call in calls:
                call()
        known = {name.replace("_", ", config ", 1).replace("_", " "): t for name, t in times.items()}
        return {name: known.get(name, 9.0) for name in candidates}

    monkeypatch.setattr(measure, "seconds_a_call", seconds_a_call)
    return timed


def check(x, values, meta, bias=None, activation=None, residual=None, asked="auto"):
    """Compare linear24 on these tensors, as if they were on a GPU, with float64."""
    got = entry.linear24(x, values, meta, bias, activation, asked, residual)
    right = exact(x, values, meta, bias, activation)
    right = right if residual is None else right + residual.double()
    assert got.dtype is x.dtype
    assert got.shape == right.shape
    torch.testing.assert_close(got.double(), right, rtol=TOLERANCE[x.dtype], atol=TOLERANCE[x.dtype])
