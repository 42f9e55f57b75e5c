"""Gradients of the packed operators, `linear24`, `pack24` and `unpack24`, and of attention on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference

__all__ = ["forward_mode", "register"]


def forward_mode() -> bool:
    """Whether derivatives are taken in forward mode, which the formulas below would lose without a word."""
    return forward_ad._current_level >= 0


def register(library: torch.library.Library) -> None:
    """Attach the formulas below to their operators."""
    for op, setup, backward in (
        ("linear24", _linear24_setup, _linear24_backward),
        ("pack24", _pack24_setup, _pack24_backward),
        ("unpack24", _unpack24_setup, _unpack24_backward),
        ("_head_attention", _head_attention_setup, _head_attention_backward),
    ):
        torch.library.register_autograd(f"vlprune::{op}", backward, setup_context=setup, lib=library)


def _linear24_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, meta, bias, ctx.activation, ctx.backend, residual = inputs
    ctx.added = residual is not None
    ctx.save_for_backward(x, values, meta, bias)


def _linear24_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, meta, bias = ctx.saved_tensors
    # Trailing arguments that equal their defaults were never passed, so nothing is said of them.
    grad_residual = grad if ctx.added and ctx.needs_input_grad[6] else None
    rows = reference.rows_of(x)
    grad = reference.rows_of(grad)
    if ctx.activation is not None:
        # Made again rather than kept: z is as large as the output.
        z = torch.ops.vlprune.linear24(rows, values, meta, bias, None, ctx.backend)
        grad = _activation_backward(grad, z, ctx.activation)
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = (grad @ torch.ops.vlprune.unpack24(values, meta)).reshape(x.shape)
    if ctx.needs_input_grad[1]:
        grad_values = reference.take24(grad.t() @ rows, meta)
    if bias is not None and ctx.needs_input_grad[3]:
        grad_bias = grad.sum(0)
    return grad_x, grad_values, None, grad_bias, None, None, grad_residual


def _activation_backward(grad: Tensor, z: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, z)  # type: ignore[no-any-return]
    gate = torch.sigmoid(1.702 * z)
    return grad * (gate + 1.702 * z * gate * (1 - gate))


def _pack24_setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _pack24_backward(ctx: Any, grad_values: Tensor, _: Tensor | None) -> Tensor:
    return torch.ops.vlprune.unpack24(grad_values, ctx.saved_tensors[0])  # type: ignore[no-any-return]


def _unpack24_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _unpack24_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return reference.take24(grad, ctx.saved_tensors[0]), None


def _head_attention_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.num_heads, ctx.causal, ctx.scale, _ = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(qkv, out, lse)


def _head_attention_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    backward = torch.ops.vlprune._head_attention_backward.default
    grad_qkv = backward(grad, *ctx.saved_tensors, ctx.num_heads, ctx.causal, ctx.scale)
    return grad_qkv, None, None, None, None
