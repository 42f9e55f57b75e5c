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
from ops.kernel_cases import CASES, DTYPES, empty, guards_stand, new_empty, run

from vlprune.ops import backend

__all__ = ["CASES", "DTYPES", "guards_stand", "poison"]


def poison():
    """Make all that is allocated from here on poisoned memory, and the operators take CPU tensors."""
    torch.empty, torch.Tensor.new_empty = empty, new_empty
    backend._why_not_triton = lambda op, device: None


def main():
    from attention_interpreted import mend_interpreter
    from linear24_interpreted import rounded
    from triton.runtime.interpreter import InterpreterBuilder

    mend_interpreter()
    InterpreterBuilder.create_fp_trunc = rounded
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
