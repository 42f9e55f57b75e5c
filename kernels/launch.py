"""What every launcher does: arguments made ready, and the launch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

__all__ = ["aligned", "launch", "triton_dtype"]

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def triton_dtype(tensor: Tensor) -> tl.dtype:
    """Triton's name for the dtype of `tensor`."""
    return _DTYPES[tensor.dtype]


def aligned(tensor: Tensor) -> Tensor:
    """`tensor` if it is contiguous and starts at a multiple of 16 bytes, else a copy that does."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def launch(
    kernel: Any, grid: tuple[int, ...], warps: int, first: Tensor, *rest: object, **constants: object
) -> None:
    """Run `kernel` with the arguments (first, *rest) on the device of `first`.

    A launch goes to the current device, which need not be that of the arguments. Products are not fused
    with sums, so that the bits of a result are those that the source says.
    """
    device = torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext()
    with device:
        kernel[grid](first, *rest, **constants, num_warps=warps, enable_fp_fusion=False)
