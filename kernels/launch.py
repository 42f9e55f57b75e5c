"""What every launcher does: arguments made ready, and the launch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

__all__ = ["aligned", "is_aligned", "launch", "on_device_of", "triton_dtype"]

_HERE = contextlib.nullcontext()
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def triton_dtype(tensor: Tensor) -> tl.dtype:
    """Triton's name for the dtype of `tensor`."""
    return _DTYPES[tensor.dtype]


def aligned(tensor: Tensor) -> Tensor:
    """`tensor` if it `is_aligned`, else a copy that is."""
    return tensor if is_aligned(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def is_aligned(tensor: Tensor) -> bool:
    """Whether `tensor` is contiguous and starts at a multiple of 16 bytes."""
    return tensor.is_contiguous() and tensor.data_ptr() % 16 == 0


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where to launch what reads `tensor`: a launch goes to the current device, which may be another."""
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return _HERE  # a switch takes the host over a microsecond, also to the device that it is on


def launch(
    kernel: Any, grid: tuple[int, ...], warps: int, first: Tensor, *rest: object, **constants: object
) -> None:
    """Run `kernel` with the arguments (first, *rest) on the device of `first`.

    Products are not fused with sums, so that the bits of a result are those that the source says.
    """
    with on_device_of(first):
        kernel[grid](first, *rest, **constants, num_warps=warps, enable_fp_fusion=False)
