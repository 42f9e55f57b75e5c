"""Which implementation of each operator can run here, which one does, and why another cannot."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import shutil
from dataclasses import replace

import torch

from ..kernels.limits import MAX_COLUMNS, max_unit
from . import gpu
from .cuda24.forms import FORMS
from .cuda24.problem import Problem
from .extensions import MISSING, NATIVE

__all__ = [
    "BACKENDS",
    "asked",
    "backends",
    "check_backend",
    "runs_natively",
    "runs_on_triton",
    "why_not",
]

BACKENDS = ("torch", "cpu", "triton", "sm90", "sm80", "cusparselt")

_OPS = (
    "column_sumsq",
    "wanda_scores",
    "select",
    "wanda_mask",
    "wanda_pack24",
    "wanda_pack24_many",
    "pack24",
    "unpack24",
    "linear24",
    "linear24_scaled",
    "quantize_rows",
    "head_attention",
    "masked_update",
)
_STORED = frozenset({torch.float32, torch.bfloat16, torch.float16})
_NATIVE_DTYPES = {
    "column_sumsq": _STORED,
    "wanda_mask": _STORED,
    "wanda_pack24": _STORED,
    "wanda_pack24_many": _STORED,
    "pack24": _STORED,
    "unpack24": _STORED,
    "linear24": frozenset({torch.float32, torch.bfloat16}),
    "head_attention": frozenset({torch.float32, torch.bfloat16}),
    "masked_update": frozenset({torch.float32, torch.bfloat16}),
}
_TRITON_DTYPES = {
    **dict.fromkeys(
        (
            "column_sumsq",
            "wanda_mask",
            "wanda_pack24",
            "wanda_pack24_many",
            "pack24",
            "unpack24",
            "head_attention",
            "masked_update",
            "quantize_rows",
        ),
        _STORED,
    ),
    "linear24": FORMS["linear24"]["triton"].dtypes,
}
# The sums of a head's results, and of its gradients, stay in registers; float32, without tensor cores, takes
# those of the operands as well.
_MAX_HEAD_DIM, _MAX_HEAD_DIM_FLOAT32 = 128, 64
# Of NVIDIA's GPUs: the first with bfloat16, and the first that the kernels are compiled for in the tests.
_MIN_CAPABILITY = (8, 0)


@functools.cache
def _override() -> str:
    # Read at the first use: an import is to succeed whatever the environment says.
    value = os.environ.get("VLPRUNE_BACKEND", "auto")
    if value not in ("auto", *BACKENDS):
        raise ValueError(f"VLPRUNE_BACKEND: expected one of {', '.join(('auto', *BACKENDS))}, got {value!r}")
    return value


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
    in_features: int | None = None,
    head_dim: int | None = None,
    out_features: int | None = None,
    tokens: int | None = None,
) -> str | None:
    """Say why an operator cannot run on a backend, or None if it can.

    Args:
        backend: "torch" (plain PyTorch, any device), "cpu" (the C++ extension), "triton" (CUDA devices), or
            for "linear24" on CUDA devices "sm90" (Hopper's wgmma.sp), "sm80" (mma.sp) and "cusparselt"
            (NVIDIA's library, where PyTorch was built with it), of which "linear24_scaled" has "sm90".
        op: an operator of `torch.ops.vlprune`, for example "linear24".
        dtype: also judge this dtype of the weight (of x for "column_sumsq").
        device: also judge tensors on this device.
        in_features: also judge rows of this many inputs, for "wanda_mask" over whole rows and for
            "quantize_rows"; with `out_features` and `tokens` also judge "linear24" and "linear24_scaled" of
            these sizes.
        head_dim: also judge heads of this width, for "head_attention".
        out_features: see `in_features`.
        tokens: see `in_features`.

    Raises:
        ValueError: an unknown backend or operator; the known ones are listed.

    """
    if backend not in BACKENDS:
        raise ValueError(f"why_not: expected a backend of {', '.join(BACKENDS)}, got {backend!r}")
    if op not in _OPS:
        raise ValueError(f"why_not: expected an op of {', '.join(_OPS)}, got {op!r}")
    if backend == "torch":
        return None
    if op not in _NATIVE_DTYPES and op not in _TRITON_DTYPES and op not in FORMS:
        return f"{op} is composed of PyTorch operators only"
    where = None if device is None else torch.device(device)
    if backend == "cpu":
        return _why_not_cpu(op, dtype, where)
    if backend in FORMS.get(op, ()):
        reason = why_not_form(op, backend, dtype, where)
        if reason or tokens is None or in_features is None or out_features is None:
            return reason
        problem = Problem(tokens, out_features, in_features, dtype or torch.bfloat16)
        if op == "linear24_scaled":
            problem = replace(problem, dtype=dtype or torch.int8, out_dtype=torch.bfloat16)
        return FORMS[op][backend].why_not(problem)
    if backend != "triton":
        return f"{op} has no form on the {backend} backend"
    return _why_not_triton(op, where) or _why_not_kernel(op, dtype, in_features or 0, head_dim=head_dim or 0)


def _why_not_cpu(op: str, dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    if op not in _NATIVE_DTYPES:
        return f"{op} has no form on the cpu backend"
    if MISSING is not None:
        return MISSING
    if device is not None and device.type != "cpu":
        return f"the cpu backend takes tensors on the CPU, not on {device.type}"
    return _why_not_dtype("cpu", op, dtype, _NATIVE_DTYPES[op])


def why_not_form(op: str, backend: str, dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Say why this machine cannot run an operator by one of its `FORMS` for CUDA devices, or None."""
    form = FORMS[op][backend]
    if backend == "triton":
        reason = _why_not_triton(op, device)
    else:
        reason = _why_not_cuda(backend, device) or form.why_not_here(gpu.index_of(device))
    return reason or _why_not_dtype(backend, op, dtype, form.dtypes)


def _why_not_cuda(backend: str, device: torch.device | None) -> str | None:
    if device is not None and device.type != "cuda":
        return f"the {backend} backend takes tensors on CUDA devices, not on {device.type}"
    return gpu.why_none(device)


def _why_not_triton(op: str, device: torch.device | None) -> str | None:
    if op not in _TRITON_DTYPES:
        return f"{op} has no form on the triton backend"
    if not _triton_installed():
        return "triton is not installed"
    return (
        _why_not_cuda("triton", device)
        or gpu.too_old(gpu.index_of(device), _MIN_CAPABILITY)
        or _no_compiler()
    )


@functools.cache
def _no_compiler() -> str | None:
    # Triton's launchers are C that it compiles at the first launch.
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return None
    return "triton needs a C compiler: CC is not set, and neither gcc nor clang is on the PATH"


def _why_not_kernel(
    op: str,
    dtype: torch.dtype | None,
    unit: int,
    head_dim: int = 0,
    scale: float | None = None,
) -> str | None:
    if (reason := _why_not_dtype("triton", op, dtype, _TRITON_DTYPES[op])) is not None:
        return reason
    if op == "wanda_mask" and unit > max_unit(unit):
        these = "" if unit % 16 == 0 else " where 16 does not divide them"
        return (
            f"wanda_mask on the triton backend selects from at most {max_unit(unit)} inputs{these}, "
            f"not from {unit}"
        )
    if op == "quantize_rows" and unit > MAX_COLUMNS:
        return f"{op} on the triton backend takes rows of at most {MAX_COLUMNS} inputs, not {unit}"
    widest = _MAX_HEAD_DIM_FLOAT32 if dtype is torch.float32 else _MAX_HEAD_DIM
    if head_dim > widest:
        of = " of float32" if dtype is torch.float32 else ""
        return f"{op} on the triton backend takes heads{of} at most {widest} wide, not {head_dim}"
    if scale is not None and not 0 < scale < math.inf:
        return f"{op} on the triton backend takes a finite scale above 0, not {scale}"
    return None


def _why_not_dtype(
    backend: str, op: str, dtype: torch.dtype | None, allowed: frozenset[torch.dtype]
) -> str | None:
    if dtype is None or dtype in allowed:
        return None
    names = " or ".join(sorted(str(t)[6:] for t in allowed))
    return f"{op} on the {backend} backend takes {names}, not {str(dtype)[6:]}"


@functools.cache
def _triton_installed() -> bool:
    # Asked without importing it: that takes a second, and only CUDA tensors need it.
    return importlib.util.find_spec("triton") is not None


def backends() -> dict[str, dict[str, str | None]]:
    """For every operator and backend: None if it can run here, else the reason why not.

    Without an override, tensors on the CPU go to "cpu" and those on CUDA devices to "triton" where these can
    run, and all else to "torch"; "linear24" on a CUDA device goes to whichever of "sm90", "sm80" and "triton"
    measured fastest there, and to "cusparselt" where none of them can, "linear24_scaled" to "sm90". The
    environment variable VLPRUNE_BACKEND ("auto" or one of the backends; read once, when the first operator
    needs it) overrides that: "torch" everywhere, "cpu" for tensors on the CPU and the others for those on
    CUDA devices, where an operator that has such a form then refuses what that form cannot do.
    """
    return {op: {backend: why_not(backend, op) for backend in BACKENDS} for op in _OPS}


def asked(backend: str) -> str:
    """The backend that a call asks for: its own word, or for "auto" that of the environment."""
    return _override() if backend == "auto" else backend


def runs_natively(op: str, dtype: torch.dtype, backend: str = "auto") -> bool:
    """Whether the native form of `op` shall run on CPU tensors of `dtype`."""
    wanted = asked(backend)
    if wanted == "torch":
        return False
    if backend not in ("auto", "cpu"):
        raise ValueError(f'{op}: backend "{backend}" was asked for, but {why_not(backend, op, device="cpu")}')
    if NATIVE is not None and dtype in _NATIVE_DTYPES[op]:
        return True
    if wanted == "cpu":
        raise ValueError(f'{op}: backend "cpu" was asked for, but {why_not("cpu", op, dtype=dtype)}')
    return False


def runs_on_triton(
    op: str,
    dtype: torch.dtype,
    *,
    device: torch.device | None = None,
    unit: int = 0,
    head_dim: int = 0,
    scale: float | None = None,
) -> bool:
    """Whether the Triton form of `op` shall run on CUDA tensors of `dtype`.

    Args:
        op: an operator that has one.
        dtype: of the weight (of x for "column_sumsq").
        device: of the tensors; None is the current CUDA device.
        unit: entries selected from on chip, where the operator selects.
        head_dim: width of a head, where there are heads.
        scale: of the products of "head_attention"; None is the usual one.

    """
    wanted = _override()
    if wanted == "torch":
        return False
    reason = _why_not_triton(op, device) or _why_not_kernel(op, dtype, unit, head_dim, scale)
    if reason is not None and wanted == "triton":
        raise ValueError(f'{op}: backend "triton" was asked for, but {reason}')
    return reason is None
