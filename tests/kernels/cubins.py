"""Triton kernels compiled ahead of time for GPUs that are not here, and what is in their machine code."""

import subprocess
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# What multiplies matrices: warpgroups on sm_90, tensor memory on sm_100, warps before.
PRODUCT = {80: r"\bHMMA", 90: r"\bHGMMA", 100: r"\bUTC\w*MMA"}


def compile_for(architecture, kernel, types, constants, divisible, **options):
    """The kernel for sm_`architecture`; arguments are i32 unless `types` says more, pointers on 16 bytes.

    Args:
        architecture: 80, 90, 100.
        kernel: a `triton.jit` function.
        types: argument -> Triton's name of its type.
        constants: the constexpr arguments.
        divisible: integers that 16 divides.
        options: num_warps and what else the backend takes.

    """
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32")
        for argument in kernel.arg_names
    }
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, (argument, kind) in enumerate(signature.items())
        if kind.startswith("*") or argument in divisible
    }
    return triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options=options,
    )


def dump_of(compiled, what, path):
    """What cuobjdump prints of a compiled kernel, written to `path` for it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip(f"this triton comes without cuobjdump ({tool})")
    path.write_bytes(compiled.asm["cubin"])
    return subprocess.run([tool, what, path], capture_output=True, text=True, check=True).stdout
