"""Which implementation of each operator can run here, which one does, and why another cannot."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch

from . import _threads

__all__ = ["BACKENDS", "backends", "check_backend", "extension", "runs_natively", "why_not"]

BACKENDS = ("torch", "cpu")

_OPS = (
    "column_sumsq",
    "wanda_scores",
    "select",
    "wanda_mask",
    "wanda_pack24",
    "pack24",
    "unpack24",
    "linear24",
    "head_attention",
)
_STORED = frozenset({torch.float32, torch.bfloat16, torch.float16})
_NATIVE_DTYPES = {
    "column_sumsq": _STORED,
    "wanda_mask": _STORED,
    "wanda_pack24": _STORED,
    "pack24": _STORED,
    "unpack24": _STORED,
    "linear24": frozenset({torch.float32, torch.bfloat16}),
}


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        native = importlib.import_module("vlprune._C")
    except ImportError as error:
        return None, f"the native extension is not built: {error}"
    _threads.install(native)
    return native, None


_extension, _missing = _load()


@functools.cache
def _override() -> str:
    # Read at the first use: an import is to succeed whatever the environment says.
    value = os.environ.get("VLPRUNE_BACKEND", "auto")
    if value not in ("auto", *BACKENDS):
        raise ValueError(f"VLPRUNE_BACKEND: expected one of {', '.join(('auto', *BACKENDS))}, got {value!r}")
    return value


def extension() -> ModuleType:
    """Return the compiled module; to be asked for only where `runs_natively` said yes."""
    if _extension is None:
        raise RuntimeError(_missing)
    return _extension


def check_backend(backend: str) -> None:
    """Refuse a name that is neither "auto" nor one of `BACKENDS`."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(('auto', *BACKENDS))}, got {backend!r}")


def why_not(
    backend: str,
    op: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> str | None:
    """Say why an operator cannot run on a backend, or None if it can.

    Args:
        backend: "torch" (plain PyTorch, any device) or "cpu" (the C++ extension).
        op: an operator of `torch.ops.vlprune`, for example "linear24".
        dtype: also judge this dtype of the weight (of x for "column_sumsq").
        device: also judge tensors on this device.

    Raises:
        ValueError: an unknown backend or operator; the known ones are listed.

    """
    if backend not in BACKENDS:
        raise ValueError(f"why_not: expected a backend of {', '.join(BACKENDS)}, got {backend!r}")
    if op not in _OPS:
        raise ValueError(f"why_not: expected an op of {', '.join(_OPS)}, got {op!r}")
    if backend == "torch":
        return None
    if op not in _NATIVE_DTYPES:
        return f"{op} is composed of PyTorch operators only"
    if _missing is not None:
        return _missing
    if device is not None and torch.device(device).type != "cpu":
        return f"the cpu backend takes tensors on the CPU, not on {torch.device(device).type}"
    if dtype is not None and dtype not in _NATIVE_DTYPES[op]:
        allowed = " or ".join(sorted(str(t)[6:] for t in _NATIVE_DTYPES[op]))
        return f"{op} on the cpu backend takes {allowed}, not {str(dtype)[6:]}"
    return None


def backends() -> dict[str, dict[str, str | None]]:
    """For every operator and backend: None if it can run here, else the reason why not.

    Without an override the operators take "cpu" where it can run and "torch" elsewhere. The environment
    variable VLPRUNE_BACKEND ("auto", "torch", "cpu"; read once, when the first operator needs it) overrides
    that for tensors on the CPU; with "cpu", an operator that has a native form refuses what the native form
    cannot do.
    """
    return {op: {backend: why_not(backend, op) for backend in BACKENDS} for op in _OPS}


def runs_natively(op: str, dtype: torch.dtype, backend: str = "auto") -> bool:
    """Whether the native form of `op` shall run on CPU tensors of `dtype`."""
    wanted = _override() if backend == "auto" else backend
    if wanted == "torch":
        return False
    if _extension is not None and dtype in _NATIVE_DTYPES[op]:
        return True
    if wanted == "cpu":
        raise ValueError(f'{op}: backend "cpu" was asked for, but {why_not("cpu", op, dtype=dtype)}')
    return False
