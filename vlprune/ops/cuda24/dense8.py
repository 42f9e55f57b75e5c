"""The dense product of 8-bit operands by what PyTorch has on this device: a rival, and the last resort."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference

__all__ = ["linear8", "sums8", "unpack8"]

# PyTorch's product of int8 takes no fewer rows, and multiples of 8 above 0; that of fp8 multiples of 16.
_FEWEST_INT8 = 17
_FP8_MULTIPLE = 16
# Ada and Hopper are the first with tensor cores for E4M3.
_FP8_CAPABILITY = (8, 9)


def unpack8(values: Tensor, meta: Tensor) -> Tensor:
    """`unpack24` of 8-bit values, which no kernel of PyTorch scatters in E4M3."""
    return reference.unpack24(values.view(torch.int8), meta).view(values.dtype)


def linear8(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """What `reference.linear24_scaled` computes, of x [tokens, in] and a dense weight [out, in]."""
    if not x.is_contiguous() or x.data_ptr() % 16:
        # PyTorch's products take nothing else
        x = x.clone(memory_format=torch.contiguous_format)
    x_scale, weight_scale = x_scale.contiguous(), weight_scale.contiguous()
    with reference.as_typed(x.device):
        whole = x.shape[1] % _FP8_MULTIPLE == weight.shape[0] % _FP8_MULTIPLE == 0
        if whole and out_dtype is torch.bfloat16 and _takes_fp8(x, weight):
            # The one form whose scales and bias are in the product's own epilogue.
            added = None if bias is None else bias.to(out_dtype)
            y = torch._scaled_mm(
                x, weight.t(), scale_a=x_scale[:, None], scale_b=weight_scale[None], bias=added,
                out_dtype=out_dtype, use_fast_accum=True,
            )  # fmt: skip
            y = reference.activate(y, activation)
            return y if residual is None else y + residual
        sums = sums8(x, weight)
        return reference.scaled(sums, x_scale, weight_scale, bias, activation, residual, out_dtype)


def sums8(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T`` before any scale [tokens, out]: of int8 exact, in int32; of E4M3 in float32."""
    tokens, inputs, out = *x.shape, weight.shape[0]
    if x.dtype is torch.int8:
        inputs, rows = _taken(inputs), _taken(out)
        x, weight = _padded(x, max(tokens, _FEWEST_INT8), inputs), _padded(weight, rows, inputs)
        return torch._int_mm(x, weight.t())[:tokens, :out]
    if _takes_fp8(x, weight):
        inputs, rows = (_up(size, _FP8_MULTIPLE) for size in (inputs, out))
        x, weight = _padded(x, tokens, inputs), _padded(weight, rows, inputs)
        one = x.new_ones((), dtype=torch.float32)
        return torch._scaled_mm(
            x, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=True
        )[:, :out]
    return F.linear(x.float(), weight.float())


def _takes_fp8(x: Tensor, weight: Tensor) -> bool:
    if x.dtype is torch.int8 or 0 in (*x.shape, weight.shape[0]):
        return False
    return x.is_cuda and torch.cuda.get_device_capability(x.device) >= _FP8_CAPABILITY


def _taken(size: int) -> int:
    return max(8, _up(size, 8))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    # by nothing it would still be copied
    if matrix.shape == (rows, columns):
        return matrix
    # as bytes, since PyTorch pads no E4M3
    padded = F.pad(matrix.view(torch.int8), (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))
    return padded.view(matrix.dtype)
