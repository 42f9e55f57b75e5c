"""Thread count and thread pool of the native operators: torch's own."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Protocol

import torch


class _Native(Protocol):
    def set_openmp(self, gomp_parallel: int, get_thread_num: int, get_num_threads: int) -> None: ...


def thread_count() -> int:
    """Threads a native operator may use: what `torch.set_num_threads` or OMP_NUM_THREADS say."""
    return torch.get_num_threads()


def install(native: _Native) -> bool:
    """Make the native operators run on torch's OpenMP pool; False leaves them their own small pool.

    Two OpenMP runtimes in one process spin against each other, so the extension links none and is
    handed the entry points of the one that torch's own library resolves to.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # Already loaded: this only takes a handle, whose symbol look-up walks torch's own dependencies.
        openmp = ctypes.CDLL(str(library))
        addresses = [
            ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value or 0
            for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        ]
    except (OSError, AttributeError):
        return False
    native.set_openmp(*addresses)
    return all(addresses)
