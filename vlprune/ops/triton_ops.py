"""The operators on CUDA tensors through the Triton kernels, where these can, else through the reference.

Triton is imported with the first kernel that is needed. The kernels' launchers do not wait for the device
(`pack24` does, and of the reference all packing), so scores are not looked at: see `select` for how those
that are not finite rank.
"""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType

import torch
from torch import Tensor

from ..kernels.limits import MAX_ENTRIES
from . import gpu, reference
from .backend import runs_on_triton

__all__ = [
    "column_sumsq",
    "head_attention",
    "head_attention_backward",
    "head_attention_forward",
    "masked_update",
    "pack24",
    "quantize_rows",
    "unpack24",
    "wanda_mask",
    "wanda_pack24",
    "wanda_pack24_many",
]

# The first that convert to E4M3.
_FP8_CAPABILITY = (8, 9)


@functools.cache
def _kernels(name: str) -> ModuleType:
    return importlib.import_module(f"vlprune.kernels.{name}")


def column_sumsq(x: Tensor, token_weight: Tensor | None = None) -> Tensor:
    """See `reference.column_sumsq`."""
    if not runs_on_triton("column_sumsq", x.dtype, device=x.device):
        return reference.column_sumsq(x, token_weight)
    rows = reference.rows_of(x)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    weight = None if token_weight is None else token_weight.float().expand(x.shape[:-1]).contiguous()
    out: Tensor = _kernels("column_sumsq").column_sumsq(rows, weight)
    return out


def wanda_mask(
    weight: Tensor,
    column_norm: Tensor,
    pattern: str = "2:4",
    sparsity: float | None = None,
    scope: str = "row",
) -> Tensor:
    """See `reference.wanda_mask`."""
    unit, prune = reference.prune_counts(weight.shape, pattern, sparsity, scope)
    whole = pattern == "unstructured" and scope == "layer"
    if whole and weight.numel() > MAX_ENTRIES:
        # Nor can PyTorch sort so many there.
        raise ValueError(
            f'wanda_mask: expected at most {MAX_ENTRIES} weights for scope "layer" on a CUDA device, got '
            f'{weight.numel()}; scope "row" takes more, and so does the CPU'
        )
    if not runs_on_triton("wanda_mask", weight.dtype, device=weight.device, unit=0 if whole else unit):
        return reference.wanda_mask(weight, column_norm, pattern, sparsity, scope)
    keep: Tensor = _kernels("wanda_mask").wanda_mask(weight, column_norm, unit, prune, whole)
    return keep


def wanda_pack24(weight: Tensor, column_norm: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.wanda_pack24`."""
    if not runs_on_triton("wanda_pack24", weight.dtype, device=weight.device):
        return reference.wanda_pack24(weight, column_norm)
    packed: tuple[Tensor, Tensor] = _kernels("wanda_pack24").wanda_pack24(weight, column_norm)
    return packed


def wanda_pack24_many(weights: list[Tensor], column_norms: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """`wanda_pack24` of each: in one launch those that the kernel takes, one by one the others."""
    # A list, since every dtype is to be asked for: an override refuses what the kernel does not take.
    grouped = [runs_on_triton("wanda_pack24_many", w.dtype, device=w.device) for w in weights]
    places = [place for place, yes in enumerate(grouped) if yes]
    packed: dict[int, tuple[Tensor, Tensor]] = {}
    if places:
        many = _kernels("wanda_pack24").wanda_pack24_many
        results = many([weights[i] for i in places], [column_norms[i] for i in places])
        packed.update(zip(places, results, strict=True))
    for place, weight in enumerate(weights):
        if place not in packed:
            packed[place] = torch.ops.vlprune.wanda_pack24.default(weight, column_norms[place])
    return [packed[i][0] for i in range(len(weights))], [packed[i][1] for i in range(len(weights))]


def pack24(weight: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.pack24`. Waits for the device once, to learn whether the weight is 2:4."""
    if not runs_on_triton("pack24", weight.dtype, device=weight.device):
        return reference.pack24(weight)
    equal = torch.ones(weight.shape[1], device=weight.device)
    packed: tuple[Tensor, Tensor] = _kernels("wanda_pack24").wanda_pack24(weight, equal)
    # Of four the two largest stay, so that some non-zeros are missing where a group has more: it says where.
    lost = packed[0].count_nonzero() != weight.count_nonzero()
    return reference.pack24(weight) if bool(lost) else packed


def unpack24(values: Tensor, meta: Tensor) -> Tensor:
    """See `reference.unpack24`."""
    if not runs_on_triton("unpack24", values.dtype, device=values.device):
        return reference.unpack24(values, meta)
    weight: Tensor = _kernels("unpack24").unpack24(values, meta)
    return weight


def masked_update(
    weight: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, keep: Tensor | None = None
) -> Tensor:
    """See `reference.masked_update`."""
    if not runs_on_triton("masked_update", weight.dtype, device=weight.device):
        return reference.masked_update(weight, a, b, scale, keep)
    out: Tensor = _kernels("masked_update").masked_update(weight, a, b, scale, keep)
    return out


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `reference.quantize_rows`."""
    unable = dtype is torch.float8_e4m3fn and x.is_cuda and gpu.too_old(x.device.index, _FP8_CAPABILITY)
    if unable or not runs_on_triton("quantize_rows", x.dtype, device=x.device, unit=x.shape[-1]):
        return reference.quantize_rows(x, dtype)
    rows = reference.rows_of(x)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    q, scale = _kernels("quantize_rows").quantize_rows(rows, dtype, reference.LARGEST[dtype])
    return q.view(x.shape), scale.view(x.shape[:-1])


def head_attention(qkv: Tensor, num_heads: int, causal: bool = False, scale: float | None = None) -> Tensor:
    """See `reference.head_attention`."""
    head_dim = qkv.shape[2] // (3 * num_heads)
    if not runs_on_triton("head_attention", qkv.dtype, device=qkv.device, head_dim=head_dim, scale=scale):
        return reference.head_attention(qkv, num_heads, causal, scale)
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    # As the gradient's formula will see it: this is above autograd, and traced through when compiling.
    training = torch.is_grad_enabled() and qkv.requires_grad
    out: Tensor = torch.ops.vlprune._head_attention.default(qkv, num_heads, causal, scale, training)[0]
    return out


def head_attention_forward(
    qkv: Tensor, num_heads: int, causal: bool, scale: float, training: bool
) -> tuple[Tensor, Tensor]:
    """The result, and the logarithms that its gradient needs; see `kernels/head_attention.py`."""
    both: tuple[Tensor, Tensor] = _kernels("head_attention").head_attention(
        qkv, num_heads, causal, scale, training
    )
    return both


def head_attention_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, causal: bool, scale: float
) -> Tensor:
    """The gradient in qkv."""
    grad_qkv: Tensor = _kernels("head_attention").head_attention_backward(
        grad, qkv, out, lse, num_heads, causal, scale
    )
    return grad_qkv
