"""The compiled modules: `vlprune._C` for the CPU, loaded at once, and `vlprune._C_cuda`, at its first use."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from . import _threads

__all__ = ["MISSING", "NATIVE", "cuda_extension", "extension"]


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        native = importlib.import_module("vlprune._C")
    except ImportError as error:
        return None, f"the native extension is not built: {error}"
    _threads.install(native)
    return native, None


NATIVE, MISSING = _load()


def extension() -> ModuleType:
    """Return the CPU module; to be asked for only where `MISSING` is None."""
    if NATIVE is None:
        raise RuntimeError(MISSING)
    return NATIVE


@functools.cache
def cuda_extension() -> tuple[ModuleType | None, str | None]:
    """The CUDA module, or None and the reason why there is none.

    Not loaded with the package: it brings the CUDA runtime along, which tensors on the CPU do not need.
    """
    try:
        return importlib.import_module("vlprune._C_cuda"), None
    except ImportError as error:
        return None, f"the CUDA extension is not built (VLPRUNE_CUDA=1 builds it): {error}"
