"""What the operator tests share: packed weights, and the native extension where it is built."""

import importlib
import itertools

import pytest
import torch
import torch.nn.functional as F

from vlprune import ops
from vlprune.ops import _threads

try:
    from vlprune import _C as native
except ImportError:
    native = None

needs_native = pytest.mark.skipif(native is None, reason="the native extension is not built")

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
every_float = pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)

ISAS = {"portable": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3}
RUNNING_ISAS = {name: code for name, code in ISAS.items() if native is not None and native.isa_runs(code)}
every_isa = pytest.mark.parametrize("isa", RUNNING_ISAS.values(), ids=RUNNING_ISAS)


def built_variants(*names):
    """Instruction sets by name: of the extension all, of the emulated one these, as parameters."""
    for module, (name, isa) in itertools.product(("_C", "_C_emulated"), ISAS.items()):
        if module == "_C" or name in names:
            yield pytest.param((module, isa), id=f"{name}{module[2:]}")


def built_variant(module, isa):
    """The extension and the code of the instruction set; skips the test where it cannot run."""
    try:
        built = importlib.import_module(f"vlprune.{module}")
    except ImportError:
        pytest.skip(f"vlprune.{module} is not built (_C_emulated: -DVLPRUNE_EMULATE_AVX512=ON)")
    if not built.isa_runs(isa):
        pytest.skip("this machine or build lacks the instruction set")
    _threads.install(built)
    return built, isa


def normal(*shape, dtype=torch.float32, seed=0):
    """Random-normal numbers, drawn in float32 so that every dtype gets the same ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(out, inputs, dtype=torch.float32, seed=0):
    """``(values, meta)`` of a random weight, scaled as a trained layer's would be."""
    weight = normal(out, inputs, seed=seed) / inputs**0.5
    return ops.wanda_pack24(weight.to(dtype), torch.ones(inputs))


# Of linear24, against float64.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3, torch.float64: 1e-12}


def exact(x, values, meta, bias, activation):
    """linear24 in float64, by the dense product."""
    z = F.linear(x.double(), ops.unpack24(values, meta).double(), None if bias is None else bias.double())
    if activation is None:
        return z
    return F.gelu(z) if activation == "gelu" else z * torch.sigmoid(1.702 * z)
