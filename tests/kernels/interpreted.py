"""The Triton kernels under Triton's interpreter, on CPU tensors: run as a script, in a process of its own.

Prints one JSON object: case of `ops.kernel_cases` -> null or what was wrong.
"""

import json
import os
import sys
import traceback

if __name__ == "__main__":
    # Read by triton when a kernel is decorated.
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from ops.kernel_cases import CASES, DTYPES, run
from ops.kernel_watch import empty, guards_stand, new_empty

from vlprune.ops import backend

__all__ = ["CASES", "DTYPES", "guards_stand", "poison"]


def poison():
    """Make all that is allocated from here on poisoned memory, and the operators take CPU tensors."""
    torch.empty, torch.Tensor.new_empty = empty, new_empty
    backend._why_not_triton = lambda op, device: None


def to_e4m3(convert):
    """The conversion to E4M3 as a GPU does it: the interpreter's loses a carry into the exponent."""
    import numpy as np
    from triton.runtime.interpreter import TensorHandle

    def converted(self, source, dtype, mode):
        if str(dtype.scalar) != "fp8e4nv":
            return convert(self, source, dtype, mode)
        values = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.float8_e4m3fn)
        return TensorHandle(values.view(torch.uint8).numpy(), dtype.scalar)

    return converted


def main():
    from attention_interpreted import mend_interpreter
    from linear24_interpreted import rounded
    from triton.runtime.interpreter import InterpreterBuilder

    mend_interpreter()
    InterpreterBuilder.create_fp_trunc = rounded
    InterpreterBuilder.create_fp_to_fp = to_e4m3(InterpreterBuilder.create_fp_to_fp)
    backend._why_not_triton = lambda op, device: None
    results = {}
    for name in CASES:
        try:
            run(name, "cpu")
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
