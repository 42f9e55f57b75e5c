"""What the CUDA devices of this machine are, asked for only when a tensor or a caller points at one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

__all__ = [
    "capability",
    "capturing",
    "index_of",
    "is_current",
    "lasting",
    "multiprocessors",
    "stream_of",
    "too_old",
    "wait",
    "why_none",
]


def why_none(device: torch.device | None) -> str | None:
    """Say why kernels for NVIDIA's GPUs cannot run on `device` (None: on the current one), or None."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is not None:
        return (
            f"the kernels are written for NVIDIA's GPUs; this PyTorch is for AMD's (HIP {torch.version.hip})"
        )
    count, index = torch.cuda.device_count(), None if device is None else device.index
    if index is not None and index >= count:
        return f"there is no device cuda:{index}, only {count} CUDA device{'s' if count > 1 else ''}"
    return None


def index_of(device: torch.device | None) -> int:
    """Number of a CUDA device; None and one without a number are the current one."""
    if device is None or device.index is None:
        return torch.cuda.current_device()
    return device.index


@functools.cache
def capability(index: int) -> tuple[int, int]:
    """Compute capability of device `index`."""
    return torch.cuda.get_device_capability(index)


def too_old(index: int, wanted: tuple[int, int]) -> str | None:
    """Say that device `index` has a lower compute capability than `wanted`, or None."""
    has = capability(index)
    if has >= wanted:
        return None
    asked, found = (".".join(map(str, each)) for each in (wanted, has))
    return f"the kernels need a GPU of compute capability {asked}, cuda:{index} has {found}"


def stream_of(index: int) -> int:
    """Address of the current stream of device `index`."""
    return torch._C._cuda_getCurrentRawStream(index)


def capturing() -> bool:
    """Whether what is launched now goes into a CUDA graph."""
    return torch.cuda.is_current_stream_capturing()


@functools.cache
def multiprocessors(index: int) -> int:
    """Multiprocessors of device `index`."""
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def is_current(device: torch.device) -> bool:
    """Whether `device`, that of a tensor, is the one that launches go to."""
    # not by `torch.cuda`, which first looks whether it is set up: it is, where there is such a tensor
    return bool(device.index == torch._C._cuda_getDevice())


def wait(device: torch.device) -> None:
    """Let the current stream finish, so that any stream may read what it wrote."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def lasting(make: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Call `make` for a tensor that outlives what is going on, on the current stream.

    In a thread of its own: the memory of this one may be taken from the pool of a CUDA graph that a compiled
    model warms up for, which nothing may keep, and tensors made in its inference mode count no versions.
    """
    if device.type != "cuda":
        return make()
    stream = torch.cuda.current_stream(device)

    def on_stream() -> Tensor:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            return make()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(on_stream).result()
