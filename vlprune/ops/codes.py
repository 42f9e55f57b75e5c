"""Numbers by which the compiled modules are told dtypes and activations, as `csrc/codes.h` has them."""

from __future__ import annotations

import torch

__all__ = ["ACTIVATION_CODE", "DTYPE_CODE", "check_activation"]

DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.float8_e4m3fn: 4}
ACTIVATION_CODE = {None: 0, "gelu": 1, "quick_gelu": 2}


def check_activation(op: str, activation: str | None) -> None:
    """Refuse, by the name of `op`, an activation other than None, "gelu" and "quick_gelu"."""
    if activation not in ACTIVATION_CODE:
        raise ValueError(f'{op}: expected activation None, "gelu" or "quick_gelu", got {activation!r}')
