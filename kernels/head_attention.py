"""Softmax attention of every head straight from the packed projection: which kernel, with which tiles.

q, k and v are read where the projection left them, [B, S, 3*H*d] with any steps between images and between
tokens, and the result is written as the output projection reads it, [B, S, H*d]. Products are of the
tensor's dtype (float32 as such, not rounded), sums and the softmax float32. Heads that were removed are not
there: h of H heads are h/H of the programs.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .head_attention_backward import columns_kernel, rows_kernel
from .head_attention_parts import run, steps, widths
from .head_attention_tiled import tiled_kernel
from .head_attention_whole import LARGEST, key_tiles, whole_kernel

__all__ = [
    "Form",
    "backward_constants",
    "choose",
    "forward_call",
    "head_attention",
    "head_attention_backward",
]

LOG2E = math.log2(math.e)
# Keys and values of a head that a program holds at most: two such programs, or three of 197 tokens, fit the
# 227 KB of a multiprocessor of sm_90, one the 99 KB of sm_89.
HELD = 72 * 1024
# Rows that a warpgroup multiplies at once.
ROWS = 64
# Up to here tiles of a causal head are written out one by one, for what they see differs.
UNROLLED = 2 * ROWS
# Keys that a loop over rows can hold on sm_90: 257 tokens take more registers than there are.
LOOPED = 240
# Keys at once before sm_90.
SMALL = 80
# Tiles of the backward kernels: what stays, and what is passed over it.
TILE, STEP = 64, 32


class Form(NamedTuple):
    """How a call is made: all keys at once or by tiles, and what one program does."""

    whole: bool
    split: bool  # a program a tile of rows, else one for all rows of a head
    rows: int
    keys: int  # of a tile, where they come by tiles
    warps: int


def choose(
    size: int, head_dim: int, length: int, causal: bool, heads: int, processors: int, capability: int
) -> Form:
    """Pick a form: numbers of `size` bytes, `heads` over all images, a device of `processors`.

    Rows are split over programs where whole heads would leave a multiprocessor without a second one to
    compute while the first one loads, and where a loop over rows takes more registers than there are: above
    `LOOPED` keys, and on anything but sm_90. Before sm_90 many keys at once do as well.
    """
    wide = sum(widths(head_dim)) > 64
    if size == 4:
        # No tensor core takes float32 as it is: small tiles, whose operands fit the registers.
        return Form(False, True, 32, 16, 4)
    held = -(-length // 16) * 16 * sum(widths(head_dim)) * 2 * size
    most = UNROLLED if causal else LARGEST
    if length <= (most if capability >= 90 else SMALL) and held <= HELD:
        alone = capability != 90 or length > LOOPED or heads < 2 * processors
        return Form(True, length > ROWS and alone, ROWS, 0, 4)
    if capability < 90:
        return Form(False, True, ROWS, 32, 8) if wide else Form(False, True, ROWS, 64, 4)
    large = heads * -(-length // 128) >= 2 * processors
    return Form(False, True, 128, 64, 8) if large else Form(False, True, ROWS, 64, 4)


@functools.cache
def _device(index: int | None) -> tuple[int, int]:
    # Under the interpreter there is no device.
    if index is None:
        return 1, 90
    about = torch.cuda.get_device_properties(index)
    return about.multi_processor_count, 10 * about.major + about.minor


def head_attention(
    qkv: Tensor, num_heads: int, causal: bool, scale: float, training: bool, form: Form | None = None
) -> tuple[Tensor, Tensor]:
    """Attention, and what its gradient needs.

    Args:
        qkv: [B, S, 3*H*d], bfloat16, float16 or float32, d at most 128.
        num_heads: H.
        causal: whether a token sees only itself and those before it.
        scale: of the products, above 0.
        training: whether the logarithms are wanted.
        form: how; chosen by the sizes if None.

    Returns:
        [B, S, H*d] and, to the base 2, the logarithm of every row's sum of exponentials, float32 [B, H, S];
        [0] of them where they are not wanted.

    """
    qkv = qkv if qkv.stride(2) == 1 else qkv.contiguous()
    batch, length, width = qkv.shape
    inner = width // 3
    head_dim = inner // num_heads
    heads = batch * num_heads
    out = qkv.new_empty(batch, length, inner)
    lse = qkv.new_empty((batch, num_heads, length) if training else (0,), dtype=torch.float32)
    if not qkv.numel():
        return out, lse
    form = form or choose(qkv.itemsize, head_dim, length, causal, heads, *_device(qkv.device.index))
    unit, (batch_step, row_step, out_step, _) = steps(qkv.stride(0), qkv.stride(1), inner, head_dim)
    kernel, programs, constants = _forward_call(form, length, head_dim, causal, training, unit)
    run(
        kernel, heads * programs,
        qkv, out, lse, num_heads, length, batch_step, row_step, out_step, scale * LOG2E, **constants,
    )  # fmt: skip
    return out, lse


def forward_call(
    form: Form, length: int, head_dim: int, causal: bool, training: bool, unit: int
) -> tuple[Any, int, dict[str, Any]]:
    """``(kernel, programs a head, constants)``."""
    same = {
        "ROWS": form.rows, "DIM": head_dim, "WIDTHS": widths(head_dim), "CAUSAL": causal,
        "TRAINING": training, "UNIT": unit, "num_warps": form.warps,
        # No loop but that over keys is pipelined: in the others it would cost the registers of a program.
        "num_stages": 1,
    }  # fmt: skip
    if not form.whole:
        left = length % form.keys
        tail = max(16, triton.next_power_of_2(left)) if left else 0
        tiles = -(-length // form.rows)
        return tiled_kernel, tiles, {"KEYS": form.keys, "TAIL": tail, "STAGES": 2, **same}
    full, left = divmod(length, form.rows)
    tail = max(16, triton.next_power_of_2(left)) if left else 0
    if tail == form.rows or not (form.split or length <= UNROLLED):
        # A smaller tile at the end of a loop would want keys and values a second time, laid out for it.
        full, tail = full + (left > 0), 0
    starts, sizes = key_tiles(length, form.rows if causal else 256)
    tiles = full + (tail > 0)
    ends = [(tile + 1) * form.rows for tile in range(tiles)] if causal else [length]
    constants = {
        "STARTS": starts, "SIZES": sizes, "SEEN": tuple(sum(start < end for start in starts) for end in ends),
        "FULL": full, "TAIL": tail, "SPLIT": form.split,
    }  # fmt: skip
    return whole_kernel, tiles if form.split else 1, {**constants, **same}


# Not to be changed by who gets them: calls come again, and each would take the host microseconds.
_forward_call = functools.lru_cache(1024)(forward_call)


def head_attention_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, causal: bool, scale: float
) -> Tensor:
    """Gradient of `head_attention` in qkv, packed as qkv is: [B, S, 3*H*d], contiguous."""
    qkv = qkv if qkv.stride(2) == 1 else qkv.contiguous()
    grad = grad if grad.stride(2) == 1 else grad.contiguous()
    batch, length, width = qkv.shape
    inner = width // 3
    head_dim = inner // num_heads
    grad_qkv = qkv.new_empty(batch, length, width)
    delta = qkv.new_empty(lse.shape, dtype=torch.float32)
    if not qkv.numel():
        return grad_qkv
    unit, (batch_step, row_step, out_step, _) = steps(qkv.stride(0), qkv.stride(1), inner, head_dim)
    grad_unit, (grad_batch_step, grad_row_step) = steps(grad.stride(0), grad.stride(1))
    capability = _device(qkv.device.index)[1]
    constants = backward_constants(qkv.itemsize, head_dim, causal, unit, grad_unit, capability)
    tiles = -(-length // constants["TILE"])
    programs = batch * num_heads * tiles
    sizes = (num_heads, length, tiles, grad_batch_step, grad_row_step, batch_step, row_step, out_step)
    scales = (scale, scale * LOG2E)
    run(rows_kernel, programs, grad, qkv, out, lse, delta, grad_qkv, *sizes, *scales, **constants)
    run(columns_kernel, programs, grad, qkv, lse, delta, grad_qkv, *sizes, *scales, **constants)
    return grad_qkv


def backward_constants(
    size: int, head_dim: int, causal: bool, unit: int, grad_unit: int, capability: int
) -> dict[str, Any]:
    """Constants of both backward kernels, for numbers of `size` bytes."""
    exact = size == 4
    # Four warps have not the registers for the operands of float32, nor before sm_90 for wide heads' sums.
    many = exact or (capability < 90 and sum(widths(head_dim)) > 64)
    return {
        "TILE": STEP if exact else TILE, "STEP": STEP, "DIM": head_dim, "WIDTHS": widths(head_dim),
        "CAUSAL": causal, "UNIT": unit, "GRAD_UNIT": grad_unit, "STAGES": 1 if exact else 2,
        "num_warps": 8 if many else 4,
    }  # fmt: skip
