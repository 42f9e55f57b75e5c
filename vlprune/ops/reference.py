"""The operators in plain PyTorch: their definition of truth, and what runs where nothing faster does.

Arguments have been validated by `vlprune.ops.functional`; the only refusals here are those that need
the data itself (a weight that is not 2:4, a score that is not finite). The defaults repeat those of the
schemas in `library`, because the dispatcher leaves out what equals them.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ..patterns import Pattern

__all__ = [
    "LARGEST",
    "activate",
    "as_typed",
    "column_sumsq",
    "head_attention",
    "linear24",
    "linear24_scaled",
    "masked_update",
    "masked_update_backward",
    "not_finite_message",
    "pack24",
    "prune_counts",
    "quantize_rows",
    "rows_of",
    "scaled",
    "select",
    "take24",
    "unpack24",
    "wanda_mask",
    "wanda_pack24",
    "wanda_scores",
]

# Rows summed at once: bounds the float32 copy, and keeps every partial sum short enough to stay exact
# to a few units in the last place over millions of rows.
_ROWS = 4096

# The largest absolute value that rows are scaled to: int8 without -128, so that it is symmetric.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def column_sumsq(x: Tensor, token_weight: Tensor | None = None) -> Tensor:
    """Float32 [in]: sum over the leading dimensions of token_weight * x^2."""
    rows = rows_of(x)
    weight = None if token_weight is None else rows_of(token_weight.float().expand(x.shape[:-1])[..., None])
    parts = [x.new_zeros(x.shape[-1], dtype=torch.float32)]
    for start in range(0, rows.shape[0], _ROWS):
        squares = rows[start : start + _ROWS].float().square()
        parts.append((squares if weight is None else squares * weight[start : start + _ROWS]).sum(0))
    return torch.stack(parts).sum(0)


def wanda_scores(weight: Tensor, column_norm: Tensor) -> Tensor:
    """Float32 [out, in]: |weight| * column_norm, both taken to float32 first."""
    return (weight.abs().float() * column_norm.float()).contiguous()


def prune_counts(shape: torch.Size, pattern: str, sparsity: float | None, scope: str) -> tuple[int, int]:
    """Give ``(unit, prune)``: the entries compared with each other, and how many of them go."""
    rows, cols = shape
    kind = Pattern.parse(pattern)
    if kind.n is not None and kind.m is not None:
        return kind.m, kind.m - kind.n
    unit = cols if scope == "row" else rows * cols
    return unit, int(unit * kind.resolve_sparsity(sparsity))


def select(
    scores: Tensor, pattern: str = "unstructured", sparsity: float | None = None, scope: str = "row"
) -> Tensor:
    """Keep mask: the lowest scores of each unit go, and among equals those of the lowest index."""
    _check_finite("select", scores)
    unit, prune = prune_counts(scores.shape, pattern, sparsity, scope)
    keep = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if scores.numel() and prune:
        # + 0.0 makes -0.0 and 0.0 one value whatever the sort compares.
        order = (scores + 0.0).reshape(-1, unit).argsort(dim=1, stable=True)
        keep.view(-1, unit).scatter_(1, order[:, :prune], False)
    return keep


def wanda_mask(
    weight: Tensor,
    column_norm: Tensor,
    pattern: str = "2:4",
    sparsity: float | None = None,
    scope: str = "row",
) -> Tensor:
    """Keep mask of the Wanda scores."""
    scores = wanda_scores(weight, column_norm)
    _check_finite("wanda_mask", scores)
    return select(scores, pattern, sparsity, scope)


def wanda_pack24(weight: Tensor, column_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Packed form of the weight with its Wanda 2:4 mask applied."""
    scores = wanda_scores(weight, column_norm)
    _check_finite("wanda_pack24", scores)
    return pack24(weight.masked_fill(~select(scores, "2:4", None, "row"), 0))


def pack24(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``(values, meta)``; groups with fewer than two non-zeros are filled with their first zeros."""
    rows, cols = weight.shape
    groups = weight.reshape(rows, cols // 4, 4)
    nonzero = groups != 0
    crowded = nonzero.sum(-1) > 2
    if bool(crowded.any()):
        row, group = (int(i) for i in crowded.nonzero()[0])
        raise ValueError(not_24_message(row, group, weight[row, 4 * group : 4 * group + 4].tolist()))
    # Non-zeros first, then zeros, each by index; the first two are the entries to store.
    index = (~nonzero).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort(dim=-1).values
    # A stored zero is +0.0: -0.0 means "not kept", so its sign must not survive.
    values = groups.gather(-1, index).reshape(rows, cols // 2)
    values = values.masked_fill(values == 0, 0).contiguous()
    nibbles = (index[..., 0] | (index[..., 1] << 2)).to(torch.uint8)
    if nibbles.shape[1] % 2:
        nibbles = F.pad(nibbles, (0, 1))
    meta = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return values, meta.contiguous()


def unpack24(values: Tensor, meta: Tensor) -> Tensor:
    """Dense [out, in] with zeros."""
    rows, half = values.shape
    weight = values.new_zeros(rows, half // 2, 4)
    weight.scatter_(-1, _indices(meta, half // 2), values.reshape(rows, half // 2, 2))
    return weight.reshape(rows, 2 * half)


def take24(weight: Tensor, meta: Tensor) -> Tensor:
    """Gather the [out, in/2] entries of a dense [out, in] at the places that `meta` names."""
    rows, cols = weight.shape
    taken = weight.reshape(rows, cols // 4, 4).gather(-1, _indices(meta, cols // 4))
    return taken.reshape(rows, cols // 2)


def linear24(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``act(x W^T + bias) + residual`` through the dense weight."""
    rows = rows_of(x)
    with as_typed(x.device):
        y = activate(F.linear(rows, unpack24(values, meta), bias), activation)
    y = y.reshape(*x.shape[:-1], values.shape[0])
    return y if residual is None else y + residual


def linear24_scaled(
    x: Tensor,
    x_scale: Tensor,
    values: Tensor,
    meta: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``act((x W^T) * x_scale * weight_scale + bias) + residual``, summed exactly.

    A product of two E4M3 numbers is a multiple of 2^-18 below 2^18, one of two int8 an integer: float64 adds
    2^17 of them without rounding.
    """
    _check_scales("x_scale", x_scale, "above 0", x_scale <= 0)
    _check_scales(
        "weight_scale", weight_scale, "finite and above 0", ~((weight_scale > 0) & weight_scale.isfinite())
    )
    with as_typed(x.device):
        sums = F.linear(rows_of(x).double(), unpack24(values.double(), meta))
    added = None if residual is None else rows_of(residual)
    y = scaled(sums, x_scale.reshape(-1), weight_scale, bias, activation, added, out_dtype)
    return y.reshape(*x.shape[:-1], values.shape[0])


def scaled(
    sums: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """What follows the sums [tokens, out] of 8-bit products: in float32, rounded once."""
    z = sums.float() * x_scale[:, None] * weight_scale
    y = activate(z if bias is None else z + bias, activation)
    return (y if residual is None else y + residual).to(out_dtype)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``(q, scale)``: rows over their scales, each the largest absolute value over that of the dtype."""
    largest = LARGEST[dtype]
    # a tensor: PyTorch's CUDA kernels multiply by the reciprocal of a number instead
    whole = torch.full((), largest, dtype=torch.float32, device=x.device)
    low, high = torch.aminmax(x, dim=-1)
    # The least normal number stands in for scales of rows of zeros, and of what float32 hardly holds.
    scale = (torch.maximum(high, -low).float() / whole).clamp_min(torch.finfo(torch.float32).tiny)
    q = x.float() / scale[..., None]
    q = (q.round() if dtype is torch.int8 else q).clamp(-largest, largest).to(dtype)
    return q.contiguous(), scale.contiguous()


def as_typed(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off: what is computed has the dtype that its operands say, as it has in the other forms."""
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def activate(z: Tensor, activation: str | None) -> Tensor:
    """None, "gelu" (exact, with erf) or "quick_gelu" (z * sigmoid(1.702 z))."""
    if activation is None:
        return z
    return F.gelu(z) if activation == "gelu" else z * torch.sigmoid(1.702 * z)


def head_attention(qkv: Tensor, num_heads: int, causal: bool = False, scale: float | None = None) -> Tensor:
    """Softmax attention of every head, straight from the packed projection."""
    batch, length, width = qkv.shape
    head_dim = width // (3 * num_heads)
    split = qkv.reshape(batch, length, 3, num_heads, head_dim)
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
    with as_typed(qkv.device):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return out.transpose(1, 2).reshape(batch, length, num_heads * head_dim)


def masked_update(
    weight: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, keep: Tensor | None = None
) -> Tensor:
    """``(weight + scale * b a) * keep``, where what is not kept is +0.0 whatever the weight."""
    wide = torch.float64 if weight.dtype is torch.float64 else torch.float32
    with as_typed(weight.device):
        summed = torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale)
    if keep is not None:
        summed.masked_fill_(keep.logical_not(), 0)
    return summed.to(weight.dtype)


def masked_update_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: float, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Its gradients in a and b, of their dtypes, for that of the result; float16 sums would overflow."""
    wide = torch.float64 if grad.dtype is torch.float64 else torch.float32
    masked = (grad if keep is None else torch.where(keep, grad, 0)).to(wide)
    with as_typed(grad.device):
        for_a = (b.to(wide) * scale).T @ masked
        for_b = masked @ (a.to(wide) * scale).T
    return for_a.to(a.dtype), for_b.to(b.dtype)


def rows_of(x: Tensor) -> Tensor:
    """View [..., in] as [tokens, in], also where one of the two is zero."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def not_24_message(row: int, group: int, entries: list[float]) -> str:
    """Say what `pack24` says of the first group that does not fit."""
    return (
        f"pack24: expected at most 2 non-zeros in every 4 consecutive inputs, "
        f"got {entries} in row {row}, group {group} (inputs {4 * group} to {4 * group + 3})"
    )


def not_finite_message(op: str, row: int, column: int, score: float) -> str:
    """Say what the selecting operators say of the first score that cannot be ranked."""
    return f"{op}: expected finite scores, got {score} at row {row}, column {column}"


def _check_finite(op: str, scores: Tensor) -> None:
    # Only on the CPU: elsewhere the test would stop the host for the device.
    if scores.device.type == "cpu" and not bool(scores.isfinite().all()):
        row, column = (int(i) for i in scores.isfinite().logical_not().nonzero()[0])
        raise ValueError(not_finite_message(op, row, column, float(scores[row, column])))


def _check_scales(name: str, scales: Tensor, what: str, wrong: Tensor) -> None:
    # Only on the CPU, as above.
    if scales.device.type == "cpu" and bool(wrong.any()):
        row = int(wrong.reshape(-1).nonzero()[0])
        got = float(scales.reshape(-1)[row])
        raise ValueError(f"linear24_scaled: expected {name} {what}, got {got} at row {row}")


def _indices(meta: Tensor, groups: int) -> Tensor:
    nibbles = torch.stack((meta & 15, meta >> 4), dim=-1).flatten(1)[:, :groups]
    return torch.stack((nibbles & 3, nibbles >> 2), dim=-1).long()
