"""Compiles one config of the Hopper kernel, and runs its launches on the host."""

import json
import os
import sys

from build_tools import CSRC, ROOT, cuda_headers, cutlass, cxx, nvcc, run

HOPPER = ["-std=c++17", "-O3", "-DNDEBUG", "-gencode=arch=compute_90a,code=sm_90a"]
STRICT = [sys.executable, str(CSRC / "cuda/strict_nvcc.py")]


def compile_to(made, config, dtype, code="sm_90a"):
    """One config: machine code in half a minute to one and a half, PTX (compute_90a) in twenty seconds."""
    machine = f"-gencode=arch=compute_90a,code={code}"
    flags = [*HOPPER[:-1], machine, "--expt-relaxed-constexpr", f"-I{CSRC}", "-isystem", cutlass()]
    limits = ["-Xptxas", "--warn-on-spills,--warning-as-error", f"-DVLPRUNE_SM90_DTYPE={dtype}"]
    source = CSRC / f"cuda/linear24_sm90_{config}.cu"
    run([*STRICT, nvcc(), *flags, *limits, "-c", source, "-o", made])
    return made


def program_of(compiled, config, dtype):
    """What one call after the other asks of CUDA.

    A call is tokens, out, in, ldx, ldr (0: no residual), ldy, what is added to addresses, and the
    multiprocessors, 132 if it does not say.
    """
    program = compiled.with_name("program")
    flags = ["-std=c++17", "-w", f"-I{CSRC}", *cuda_headers(), f"-DVLPRUNE_DTYPE={dtype}"]
    flags.append(f"-DVLPRUNE_CONFIG={config}")
    run([cxx(), *flags, ROOT / "tests/cuda/sm90_launch.cpp", compiled, "-o", program])

    def asked(*calls, **environment):
        numbers = [str(number) for call in calls for number in (*call, 132)[:8]]
        done = run([program, *numbers], text=True, env={**os.environ, **environment})
        return [json.loads(line) for line in done.stdout.splitlines()]

    return asked


def address(place, offset=0):
    """Where the program has x, values, meta, bias, residual, y, two scales and the workspace: from 1 to 9."""
    return (place << 28) + offset
