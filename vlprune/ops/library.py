"""The operators' schemas in `torch.ops.vlprune`, and what is registered for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels.packed import empty_packed
from . import autograd, native, reference, triton_ops
from .backend import why_not
from .cuda24 import entry

__all__ = ["LIBRARY"]

# `Library.define`, not `custom_op`: the latter costs twice as much a call.
LIBRARY: Any = torch.library.Library("vlprune", "DEF")  # type: ignore[no-untyped-call]

_SCHEMAS = (
    "column_sumsq(Tensor x, Tensor? token_weight=None) -> Tensor",
    "wanda_scores(Tensor weight, Tensor column_norm) -> Tensor",
    'select(Tensor scores, str pattern="unstructured", float? sparsity=None, str scope="row") -> Tensor',
    "wanda_mask(Tensor weight, Tensor column_norm, "
    'str pattern="2:4", float? sparsity=None, str scope="row") -> Tensor',
    "wanda_pack24(Tensor weight, Tensor column_norm) -> (Tensor values, Tensor meta)",
    "wanda_pack24_many(Tensor[] weights, Tensor[] column_norms) -> (Tensor[] values, Tensor[] meta)",
    "pack24(Tensor weight) -> (Tensor values, Tensor meta)",
    "unpack24(Tensor values, Tensor meta) -> Tensor",
    "linear24(Tensor x, Tensor values, Tensor meta, Tensor? bias=None, "
    'str? activation=None, str backend="auto", Tensor? residual=None) -> Tensor',
    "_norm_linear24(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor values, Tensor meta, "
    "Tensor? bias, str? activation, str backend, Tensor? residual) -> Tensor",
    "linear24_scaled(Tensor x, Tensor x_scale, Tensor values, Tensor meta, Tensor weight_scale, "
    "ScalarType out_dtype, Tensor? bias=None, str? activation=None, "
    'str backend="auto", Tensor? residual=None) -> Tensor',
    "quantize_rows(Tensor x, ScalarType dtype) -> (Tensor q, Tensor scale)",
    "head_attention(Tensor qkv, int num_heads, bool causal=False, float? scale=None) -> Tensor",
    "masked_update(Tensor weight, Tensor a, Tensor b, float scale=1.0, Tensor? keep=None) -> Tensor",
    "_masked_update_backward(Tensor grad, Tensor a, Tensor b, float scale, Tensor? keep) -> (Tensor, Tensor)",
    "_head_attention(Tensor qkv, int num_heads, bool causal, float scale, bool training) "
    "-> (Tensor out, Tensor lse)",
    "_head_attention_backward(Tensor grad, Tensor qkv, Tensor out, Tensor lse, int num_heads, "
    "bool causal, float scale) -> Tensor",
)


def _linear24_anywhere(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
    residual: Tensor | None = None,
) -> Tensor:
    if backend not in ("auto", "torch"):
        raise ValueError(f'linear24: backend "{backend}" takes no tensors on {x.device.type}')
    return reference.linear24(x, values, meta, bias, activation, residual)


def _linear24_scaled_anywhere(
    x: Tensor,
    x_scale: Tensor,
    values: Tensor,
    meta: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
    residual: Tensor | None = None,
) -> Tensor:
    if backend not in ("auto", "torch"):
        reason = why_not(backend, "linear24_scaled", device=x.device)
        raise ValueError(f'linear24_scaled: backend "{backend}" was asked for, but {reason}')
    return reference.linear24_scaled(
        x, x_scale, values, meta, weight_scale, out_dtype, bias, activation, residual
    )


def _wanda_pack24_many(
    weights: list[Tensor], column_norms: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    pack = torch.ops.vlprune.wanda_pack24.default
    packed = [pack(weight, norm) for weight, norm in zip(weights, column_norms, strict=True)]
    return [values for values, _ in packed], [meta for _, meta in packed]


def _head_attention(qkv: Tensor, num_heads: int, causal: bool = False, scale: float | None = None) -> Tensor:
    forms = {"cuda": triton_ops.head_attention, "cpu": native.head_attention}
    form = forms.get(qkv.device.type, reference.head_attention)
    return form(qkv, num_heads, causal, scale)


def _fake_column_sumsq(x: Tensor, token_weight: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape[-1], dtype=torch.float32)


def _fake_scores(weight: Tensor, column_norm: Tensor) -> Tensor:
    return weight.new_empty(weight.shape, dtype=torch.float32)


def _fake_select(
    scores: Tensor, pattern: str = "unstructured", sparsity: float | None = None, scope: str = "row"
) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def _fake_mask(
    weight: Tensor,
    column_norm: Tensor,
    pattern: str = "2:4",
    sparsity: float | None = None,
    scope: str = "row",
) -> Tensor:
    return weight.new_empty(weight.shape, dtype=torch.bool)


def _fake_wanda_pack24(weight: Tensor, column_norm: Tensor) -> tuple[Tensor, Tensor]:
    return empty_packed(weight)


def _fake_wanda_pack24_many(
    weights: list[Tensor], column_norms: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    packed = [empty_packed(weight) for weight in weights]
    return [values for values, _ in packed], [meta for _, meta in packed]


def _fake_unpack24(values: Tensor, meta: Tensor) -> Tensor:
    return values.new_empty(values.shape[0], values.shape[1] * 2)


def _fake_linear24(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
    residual: Tensor | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])


def _fake_linear24_scaled(
    x: Tensor,
    x_scale: Tensor,
    values: Tensor,
    meta: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
    residual: Tensor | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0], dtype=out_dtype)


def _fake_quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _fake_masked_update(
    weight: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, keep: Tensor | None = None
) -> Tensor:
    return weight.new_empty(weight.shape)


def _fake_masked_update_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: float, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _fake_head_attention(
    qkv: Tensor, num_heads: int, causal: bool, scale: float, training: bool
) -> tuple[Tensor, Tensor]:
    batch, length, width = qkv.shape
    sums = (batch, num_heads, length) if training else (0,)
    return qkv.new_empty(batch, length, width // 3), qkv.new_empty(sums, dtype=torch.float32)


def _fake_head_attention_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, causal: bool, scale: float
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _register(
    op: str,
    anywhere: Callable[..., Any],
    fake: Callable[..., Any],
    cpu: Callable[..., Any] | None = None,
    cuda: Callable[..., Any] | None = None,
) -> None:
    LIBRARY.impl(op, anywhere, "CompositeExplicitAutograd")
    if cpu is not None:
        LIBRARY.impl(op, cpu, "CPU")
    if cuda is not None:
        LIBRARY.impl(op, cuda, "CUDA")
    torch.library.register_fake(f"vlprune::{op}", fake, lib=LIBRARY)


# What makes a table on the host and sends it to the device; an older PyTorch has no name for such.
_UNSAFE = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()
for _schema in _SCHEMAS:
    _sends = _schema.startswith("wanda_pack24_many(")
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag, *(_UNSAFE if _sends else ())))

_register(
    "column_sumsq",
    reference.column_sumsq,
    _fake_column_sumsq,
    native.column_sumsq,
    triton_ops.column_sumsq,
)
_register("wanda_scores", reference.wanda_scores, _fake_scores)
_register("select", reference.select, _fake_select)
_register("wanda_mask", reference.wanda_mask, _fake_mask, native.wanda_mask, triton_ops.wanda_mask)
_register(
    "wanda_pack24",
    reference.wanda_pack24,
    _fake_wanda_pack24,
    native.wanda_pack24,
    triton_ops.wanda_pack24,
)
_register("wanda_pack24_many", _wanda_pack24_many, _fake_wanda_pack24_many, cuda=triton_ops.wanda_pack24_many)
_register("pack24", reference.pack24, empty_packed, native.pack24, triton_ops.pack24)
_register("unpack24", reference.unpack24, _fake_unpack24, native.unpack24, triton_ops.unpack24)
_register("linear24", _linear24_anywhere, _fake_linear24, native.linear24, entry.linear24)
_register("linear24_scaled", _linear24_scaled_anywhere, _fake_linear24_scaled, cuda=entry.linear24_scaled)
_register("quantize_rows", reference.quantize_rows, _fake_quantize_rows, cuda=triton_ops.quantize_rows)
_register(
    "masked_update",
    reference.masked_update,
    _fake_masked_update,
    native.masked_update,
    triton_ops.masked_update,
)
_register(
    "_masked_update_backward",
    reference.masked_update_backward,
    _fake_masked_update_backward,
    native.masked_update_backward,
)
# Made of traceable operators only, so that its gradient and its fake are theirs: PyTorch's own, or of the
# two below, of which the CPU has the first alone, where no gradient is wanted.
LIBRARY.impl("head_attention", _head_attention, "CompositeImplicitAutograd")
for _op, _form, _fake in (
    ("_head_attention", triton_ops.head_attention_forward, _fake_head_attention),
    ("_head_attention_backward", triton_ops.head_attention_backward, _fake_head_attention_backward),
):
    LIBRARY.impl(_op, _form, "CUDA")
    torch.library.register_fake(f"vlprune::{_op}", _fake, lib=LIBRARY)
LIBRARY.impl("_head_attention", native.head_attention_forward, "CPU")
# Has neither a gradient nor a fake: called where `native.normalizes`, so never traced.
LIBRARY.impl("_norm_linear24", native.norm_linear24, "CPU")

autograd.register(LIBRARY)
