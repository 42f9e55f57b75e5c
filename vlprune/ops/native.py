"""The operators on CPU tensors through the C++ extension, where it can, else through the reference.

The extension takes pointers: what it reads is made contiguous here, and every output is made here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.packed import empty_packed
from . import reference
from ._threads import thread_count
from .backend import runs_natively
from .checks import LayerNorm
from .codes import ACTIVATION_CODE, DTYPE_CODE
from .extensions import extension
from .prepared import best_isa, few_below, prepared24
from .watched import is_watched

__all__ = [
    "column_sumsq",
    "head_attention",
    "head_attention_forward",
    "linear24",
    "masked_update",
    "masked_update_backward",
    "norm_linear24",
    "normalizes",
    "pack24",
    "unpack24",
    "wanda_mask",
    "wanda_pack24",
]

# Above these ranks the products outweigh the passes over memory, and PyTorch's blocked ones are faster.
_UPDATE_RANK, _GRADIENT_RANK = 192, 64


def column_sumsq(x: Tensor, token_weight: Tensor | None = None) -> Tensor:
    """See `reference.column_sumsq`."""
    if not runs_natively("column_sumsq", x.dtype):
        return reference.column_sumsq(x, token_weight)
    rows, pitch = _rows(x)
    weight = None if token_weight is None else token_weight.float().expand(x.shape[:-1]).contiguous()
    out = torch.empty(x.shape[-1], dtype=torch.float32)
    extension().column_sumsq(
        rows.data_ptr(), DTYPE_CODE[x.dtype], rows.shape[0], rows.shape[1], pitch,
        _pointer(weight), out.data_ptr(), thread_count(), best_isa(),
    )  # fmt: skip
    return out


def wanda_mask(
    weight: Tensor,
    column_norm: Tensor,
    pattern: str = "2:4",
    sparsity: float | None = None,
    scope: str = "row",
) -> Tensor:
    """See `reference.wanda_mask`."""
    if not runs_natively("wanda_mask", weight.dtype):
        return reference.wanda_mask(weight, column_norm, pattern, sparsity, scope)
    rows, cols = weight.shape
    unit, prune = reference.prune_counts(weight.shape, pattern, sparsity, scope)
    group = unit if pattern != "unstructured" or scope == "row" else 0
    weight, norm = weight.contiguous(), column_norm.float().contiguous()
    keep = torch.empty(rows, cols, dtype=torch.bool)
    bad = extension().wanda_mask(
        weight.data_ptr(), DTYPE_CODE[weight.dtype], rows, cols, norm.data_ptr(), group, prune,
        keep.data_ptr(), thread_count(), best_isa(),
    )  # fmt: skip
    _refuse_not_finite("wanda_mask", bad, weight, norm)
    return keep


def wanda_pack24(weight: Tensor, column_norm: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.wanda_pack24`."""
    if not runs_natively("wanda_pack24", weight.dtype):
        return reference.wanda_pack24(weight, column_norm)
    rows, cols = weight.shape
    weight, norm = weight.contiguous(), column_norm.float().contiguous()
    values, meta = empty_packed(weight)
    bad = extension().wanda_pack24(
        weight.data_ptr(), DTYPE_CODE[weight.dtype], rows, cols, norm.data_ptr(),
        values.data_ptr(), meta.data_ptr(), thread_count(), best_isa(),
    )  # fmt: skip
    _refuse_not_finite("wanda_pack24", bad, weight, norm)
    return values, meta


def pack24(weight: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.pack24`."""
    if not runs_natively("pack24", weight.dtype):
        return reference.pack24(weight)
    rows, cols = weight.shape
    weight = weight.contiguous()
    values, meta = empty_packed(weight)
    bad = extension().pack24(
        weight.data_ptr(), DTYPE_CODE[weight.dtype], rows, cols, values.data_ptr(), meta.data_ptr(),
        thread_count(), best_isa(),
    )  # fmt: skip
    if bad >= 0:
        row, group = divmod(bad, cols // 4)
        entries = weight[row, 4 * group : 4 * group + 4].tolist()
        raise ValueError(reference.not_24_message(row, group, entries))
    return values, meta


def unpack24(values: Tensor, meta: Tensor) -> Tensor:
    """See `reference.unpack24`."""
    if not runs_natively("unpack24", values.dtype):
        return reference.unpack24(values, meta)
    rows, cols = values.shape[0], 2 * values.shape[1]
    values, meta = values.contiguous(), meta.contiguous()
    weight = torch.empty(rows, cols, dtype=values.dtype)
    extension().unpack24(
        values.data_ptr(), meta.data_ptr(), DTYPE_CODE[values.dtype], rows, cols, weight.data_ptr(),
        thread_count(), best_isa(),
    )  # fmt: skip
    return weight


def linear24(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
    residual: Tensor | None = None,
) -> Tensor:
    """See `reference.linear24`."""
    if not runs_natively("linear24", x.dtype, backend) or x.numel() == 0:
        return reference.linear24(x, values, meta, bias, activation, residual)
    return _linear24(x, None, values, meta, bias, activation, residual)


def normalizes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether `norm_linear24` is for these: plain float32 tensors, no gradient, and nobody that watches."""
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    given = [tensor for tensor in (x, *others) if tensor is not None]
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in given) or is_watched():
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))


def norm_linear24(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    activation: str | None,
    backend: str,
    residual: Tensor | None,
) -> Tensor:
    """`linear24` of the layer norm of x, which is made while x is read, and for few tokens before."""
    many = x.numel() >= max(1, few_below(x.dtype) * x.shape[-1])
    if many and runs_natively("linear24", x.dtype, backend):
        norm = (norm_weight.contiguous(), norm_bias.contiguous(), eps)
        return _linear24(x, norm, values, meta, bias, activation, residual)
    normalized = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    return linear24(normalized, values, meta, bias, activation, backend, residual)


def _linear24(
    x: Tensor,
    norm: LayerNorm | None,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    out, inputs = values.shape[0], x.shape[-1]
    tokens = x.numel() // inputs
    few = tokens < few_below(x.dtype)
    weight = prepared24(values, meta)  # to stay while it is read
    bias, residual = (None if given is None else given.contiguous() for given in (bias, residual))
    scale, shift, eps = (None, None, 0.0) if norm is None else norm
    y = x.new_empty(*x.shape[:-1], out)
    rows, pitch = (x, inputs) if x.is_contiguous() else _rows(x)
    extension().linear24(
        rows.data_ptr(), pitch, _pointer(scale), _pointer(shift), eps,
        weight.pointer(values, meta, few), few, _pointer(bias), _pointer(residual),
        DTYPE_CODE[x.dtype], tokens, out, inputs, ACTIVATION_CODE[activation], y.data_ptr(),
        thread_count(), best_isa(),
    )  # fmt: skip
    return y


def head_attention(qkv: Tensor, num_heads: int, causal: bool = False, scale: float | None = None) -> Tensor:
    """See `reference.head_attention`, which computes wherever a gradient will be asked for.

    And where somebody watches the operators.
    """
    training = torch.is_grad_enabled() and qkv.requires_grad
    if training or is_watched() or not runs_natively("head_attention", qkv.dtype):
        return reference.head_attention(qkv, num_heads, causal, scale)
    scale = 1 / math.sqrt(qkv.shape[2] // (3 * num_heads)) if scale is None else scale
    out: Tensor = torch.ops.vlprune._head_attention.default(qkv, num_heads, causal, scale, False)[0]
    return out


def head_attention_forward(
    qkv: Tensor, num_heads: int, causal: bool, scale: float, training: bool
) -> tuple[Tensor, Tensor]:
    """The result; the logarithms for a gradient, which has no native form, are not made."""
    if training:
        raise ValueError("_head_attention: expected training=False on the CPU, got True")
    qkv = qkv if qkv.stride(2) == 1 else qkv.contiguous()
    batch, length, width = qkv.shape
    out = qkv.new_empty(batch, length, width // 3)
    extension().head_attention(
        qkv.data_ptr(), DTYPE_CODE[qkv.dtype], qkv.stride(0), qkv.stride(1), batch, length, num_heads,
        width // (3 * num_heads), causal, scale, out.data_ptr(), thread_count(), best_isa(),
    )  # fmt: skip
    return out, qkv.new_empty(0)


def masked_update(
    weight: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, keep: Tensor | None = None
) -> Tensor:
    """See `reference.masked_update`."""
    if not runs_natively("masked_update", weight.dtype):
        return reference.masked_update(weight, a, b, scale, keep)
    if a.shape[0] > _UPDATE_RANK:
        summed = reference.masked_update(weight, a, b, scale, None)
        return summed if keep is None else masked_update(summed, a[:0], b[:, :0], keep=keep)
    rows, cols = weight.shape
    weight, a, b = weight.contiguous(), a.float().contiguous(), (b.float() * scale).contiguous()
    keep = None if keep is None else keep.contiguous()
    out = torch.empty(rows, cols, dtype=weight.dtype)
    extension().masked_update(
        weight.data_ptr(), DTYPE_CODE[weight.dtype], rows, cols, a.data_ptr(), b.data_ptr(), a.shape[0],
        _pointer(keep), out.data_ptr(), thread_count(), best_isa(),
    )  # fmt: skip
    return out


def masked_update_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: float, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `reference.masked_update_backward`."""
    if not runs_natively("masked_update", grad.dtype):
        return reference.masked_update_backward(grad, a, b, scale, keep)
    if a.shape[0] > _GRADIENT_RANK:
        masked = grad if keep is None else masked_update(grad, a[:0], b[:, :0], keep=keep)
        return reference.masked_update_backward(masked, a, b, scale, None)
    rows, cols = grad.shape
    grad, left, right = grad.contiguous(), (b.float() * scale).contiguous(), (a.float() * scale).contiguous()
    keep = None if keep is None else keep.contiguous()
    for_a, for_b = torch.empty(a.shape), torch.empty(b.shape)
    extension().masked_update_backward(
        grad.data_ptr(), DTYPE_CODE[grad.dtype], rows, cols, right.data_ptr(), left.data_ptr(), a.shape[0],
        _pointer(keep), for_a.data_ptr(), for_b.data_ptr(), thread_count(), best_isa(),
    )  # fmt: skip
    return for_a.to(a.dtype), for_b.to(b.dtype)


def _rows(x: Tensor) -> tuple[Tensor, int]:
    # [tokens, in] with the inputs next to each other, and the distance from token to token.
    rows = reference.rows_of(x)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    return rows, rows.stride(0)


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _refuse_not_finite(op: str, bad: int, weight: Tensor, norm: Tensor) -> None:
    if bad >= 0:
        row, column = divmod(bad, weight.shape[1])
        score = float(weight[row, column].abs().float() * norm[column])
        raise ValueError(reference.not_finite_message(op, row, column, score))
