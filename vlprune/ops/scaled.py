"""8-bit products of packed weights: rows quantised with one scale each, and `linear24` of such."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import (
    library,  # noqa: F401  (defines torch.ops.vlprune)
    reference,
)
from .backend import check_backend
from .checks import SCALED_DTYPES, check_float, check_input, name_of
from .codes import check_activation

__all__ = ["linear24_scaled", "quantize_rows"]

_OUT_DTYPES = (torch.bfloat16, torch.float16)

_quantize_rows: Callable[..., tuple[Tensor, Tensor]] = torch.ops.vlprune.quantize_rows.default
_linear24_scaled: Callable[..., Tensor] = torch.ops.vlprune.linear24_scaled.default


def quantize_rows(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Quantise rows symmetrically, each with a scale of its own: ``x ~ q * scale[..., None]``.

    The scale is the row's largest absolute value over the largest of `dtype` (127, or E4M3's 448); numbers
    are rounded to nearest, ties to even, and saturate. Zeros stay zeros, so what is 2:4 stays 2:4. A row with
    an infinite number or NaN gets a scale that is not finite, and so results that are not.

    On a CUDA device one kernel reads x once and writes q and the scales, 3 bytes an input from 16 bits. For
    `torch.compile` these are plain PyTorch operators, which it fuses with what comes before.

    Args:
        x: [..., in], any floating dtype; packed `values` are quantised as they are.
        dtype: torch.int8 or torch.float8_e4m3fn.

    Returns:
        q [..., in] of `dtype` and scale float32 [...], above 0.

    Raises:
        ValueError: bad arguments.

    """
    check_float("quantize_rows", "x", x)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"quantize_rows: expected x of shape [..., in], in at least 1, got {tuple(x.shape)}")
    _check_scaled("quantize_rows", "dtype", dtype)
    return (reference.quantize_rows if torch.compiler.is_compiling() else _quantize_rows)(x.detach(), dtype)


def linear24_scaled(
    x: Tensor,
    x_scale: Tensor,
    values: Tensor,
    meta: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: str = "auto",
    residual: Tensor | None = None,
) -> Tensor:
    """``act((x W^T) * x_scale * weight_scale + bias) + residual``: x and W in 8 bits, W packed 2:4.

    int8 is summed exactly. float8_e4m3fn is summed exactly on the CPU; Hopper's tensor cores keep about 14
    bits of a sum. What follows is float32, rounded once at the end; but PyTorch's product of E4M3, which runs
    where Hopper's kernels cannot, rounds to bfloat16 before the activation and the residual. On a CUDA device
    the fastest form is measured and remembered as by `linear24`. Gives no gradients.

    Args:
        x: [..., in], int8 or float8_e4m3fn, as `quantize_rows` makes it.
        x_scale: float32 [...], one a token.
        values: [out, in/2] of x's dtype: `quantize_rows` of those that `pack24` makes.
        meta: uint8 [out, ceil(in/8)], as `pack24` makes it.
        weight_scale: float32 [out].
        bias: float32 [out], or None.
        activation: None, "gelu" (exact) or "quick_gelu" (x * sigmoid(1.702 x)).
        out_dtype: torch.bfloat16 or torch.float16.
        backend: "auto", "torch" or "sm90" (Hopper).
        residual: [..., out] of out_dtype, added last, or None.

    Returns:
        [..., out] of out_dtype.

    Raises:
        ValueError: bad arguments, on the CPU also a scale not above 0 or a `weight_scale` that is not finite
            (an `x_scale` that is not gives results that are not); or a backend asked for by name that cannot
            do this; it says why.

    """
    op = "linear24_scaled"
    _check_scaled(op, "x of dtype", x.dtype)
    check_input(op, x, values, meta, SCALED_DTYPES)
    rows = values.shape[0]
    if out_dtype not in _OUT_DTYPES:
        raise ValueError(f"{op}: expected out_dtype bfloat16 or float16, got {_said(out_dtype)}")
    leading, shape = x.shape[:-1], (*x.shape[:-1], rows)
    _check_operand(op, "x_scale", x_scale, leading, torch.float32, x.device)
    _check_operand(op, "weight_scale", weight_scale, (rows,), torch.float32, x.device)
    if bias is not None:
        _check_operand(op, "bias", bias, (rows,), torch.float32, x.device)
        bias = bias.detach()
    if residual is not None:
        _check_operand(op, "residual", residual, shape, out_dtype, x.device)
        residual = residual.detach()
    check_activation(op, activation)
    check_backend(backend)
    return _linear24_scaled(
        x,
        x_scale.detach(),
        values,
        meta,
        weight_scale.detach(),
        out_dtype,
        bias,
        activation,
        backend,
        residual,
    )


def _check_scaled(op: str, name: str, dtype: torch.dtype) -> None:
    if dtype not in SCALED_DTYPES:
        raise ValueError(f"{op}: expected {name} int8 or float8_e4m3fn, got {_said(dtype)}")


def _said(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _check_operand(
    op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device:
        raise ValueError(
            f"{op}: expected {name} of shape {tuple(shape)}, dtype {str(dtype)[6:]} on {device}, "
            f"got {tuple(tensor.shape)}, {name_of(tensor)} on {tensor.device}"
        )
