"""The public tensor functions: the one place where arguments are checked (by `checks`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..patterns import Pattern
from . import (
    library,  # noqa: F401  (defines torch.ops.vlprune)
    native,
    reference,
)
from .autograd import forward_mode
from .backend import check_backend
from .checks import (
    FLOAT_DTYPES,
    LayerNorm,
    broadcasts,
    check_device,
    check_float,
    check_groups,
    check_linear24,
    check_matrix,
    check_norm,
    check_packed,
    check_scored,
    check_selection,
    name_of,
)
from .codes import check_activation
from .cuda24 import entry

__all__ = [
    "FLOAT_DTYPES",
    "column_sumsq",
    "head_attention",
    "linear24",
    "masked_update",
    "pack24",
    "select",
    "unpack24",
    "wanda_mask",
    "wanda_pack24",
    "wanda_pack24_many",
    "wanda_scores",
]

# Looked up once: `torch.ops` resolves a name at each access.
_column_sumsq: Callable[..., Tensor] = torch.ops.vlprune.column_sumsq.default
_wanda_scores: Callable[..., Tensor] = torch.ops.vlprune.wanda_scores.default
_select: Callable[..., Tensor] = torch.ops.vlprune.select.default
_wanda_mask: Callable[..., Tensor] = torch.ops.vlprune.wanda_mask.default
_wanda_pack24: Callable[..., tuple[Tensor, Tensor]] = torch.ops.vlprune.wanda_pack24.default
_wanda_pack24_many: Callable[..., tuple[list[Tensor], list[Tensor]]] = (
    torch.ops.vlprune.wanda_pack24_many.default
)
_pack24: Callable[..., tuple[Tensor, Tensor]] = torch.ops.vlprune.pack24.default
_unpack24: Callable[..., Tensor] = torch.ops.vlprune.unpack24.default
_linear24: Callable[..., Tensor] = torch.ops.vlprune.linear24.default
_norm_linear24: Callable[..., Tensor] = torch.ops.vlprune._norm_linear24.default
_head_attention: Callable[..., Tensor] = torch.ops.vlprune.head_attention.default
_masked_update: Callable[..., Tensor] = torch.ops.vlprune.masked_update.default


def column_sumsq(x: Tensor, token_weight: Tensor | None = None) -> Tensor:
    """Sum over all leading dimensions of token_weight * x^2: Wanda's statistic before its division by n.

    Args:
        x: activations [..., in], any floating dtype.
        token_weight: floats or bools that broadcast to x.shape[:-1]; None counts every token once.

    Returns:
        float32 [in], accumulated in float32 over short partial sums.

    Raises:
        ValueError: a dtype that is no float, or a token_weight that does not broadcast or is elsewhere.

    """
    check_float("column_sumsq", "x", x)
    if x.dim() < 1:
        raise ValueError("column_sumsq: expected x of shape [..., in], got a scalar")
    if token_weight is not None:
        if token_weight.dtype is not torch.bool:
            check_float("column_sumsq", "token_weight", token_weight)
        check_device("column_sumsq", "token_weight", token_weight, "x", x)
        if not broadcasts(token_weight.shape, x.shape[:-1]):
            raise ValueError(
                f"column_sumsq: expected token_weight that broadcasts to {tuple(x.shape[:-1])}, "
                f"got shape {tuple(token_weight.shape)}"
            )
        token_weight = token_weight.detach()
    return _column_sumsq(x.detach(), token_weight)


def wanda_scores(weight: Tensor, column_norm: Tensor) -> Tensor:
    """Wanda's score |W_ij| * norm_j (arXiv 2306.11695, equation 1), in float32.

    Args:
        weight: [out, in], any floating dtype.
        column_norm: [in], the norm of each input column, any floating dtype.

    Returns:
        float32 [out, in].

    """
    check_scored("wanda_scores", weight, column_norm)
    return _wanda_scores(weight.detach(), column_norm.detach())


def select(
    scores: Tensor,
    pattern: str | Pattern = "unstructured",
    sparsity: float | None = None,
    scope: str = "row",
) -> Tensor:
    """Choose the weights to keep: exact counts, lowest scores go, among equals the lowest index goes.

    Args:
        scores: [out, in], any floating dtype, finite.
        pattern: "n:m" keeps exactly n of each m consecutive inputs; "unstructured" prunes exactly
            int(n * sparsity) of the n entries of each unit.
        sparsity: fraction of zeros in [0, 1]; required for "unstructured", implied by "n:m".
        scope: the unit of "unstructured": "row" (each output's inputs) or "layer" (the whole matrix).

    Returns:
        keep mask, bool [out, in].

    Raises:
        ValueError: bad arguments, or (on the CPU) a score that is not finite. Elsewhere the host does not
            wait to look: the counts stay exact, infinity ranks highest of the numbers and NaN above it.

    """
    check_matrix("select", "scores", scores)
    name = check_selection("select", scores.shape[1], pattern, sparsity, scope)
    return _select(scores.detach(), name, sparsity, scope)


def wanda_mask(
    weight: Tensor,
    column_norm: Tensor,
    pattern: str | Pattern = "2:4",
    sparsity: float | None = None,
    scope: str = "row",
) -> Tensor:
    """Score and select in one go: equal to ``select(wanda_scores(weight, column_norm), ...)`` bit for bit.

    `weight` and `column_norm` are those of `wanda_scores`; `pattern`, `sparsity`, `scope`, the result and
    what is refused are those of `select`.
    """
    check_scored("wanda_mask", weight, column_norm)
    name = check_selection("wanda_mask", weight.shape[1], pattern, sparsity, scope)
    return _wanda_mask(weight.detach(), column_norm.detach(), name, sparsity, scope)


def wanda_pack24(weight: Tensor, column_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Prune to 2:4 by Wanda's score and pack: ``pack24`` of the weight with its Wanda mask applied.

    Args:
        weight: [out, in], any floating dtype, in divisible by 4.
        column_norm: [in], any floating dtype.

    Returns:
        ``(values, meta)`` as of `pack24`.

    Raises:
        ValueError: bad arguments, or (on the CPU) a score that is not finite.

    """
    check_scored("wanda_pack24", weight, column_norm)
    check_groups("wanda_pack24", weight)
    return _wanda_pack24(weight.detach(), column_norm.detach())


def wanda_pack24_many(
    weights: Sequence[Tensor], column_norms: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """`wanda_pack24` of many matrices, say of a whole tower: in one launch on a CUDA device.

    Matrices of different dtypes, or of widths that are and are not multiples of 16 (of 8 for float32), take a
    launch a kind. The launch is told by a table that is copied to the device without the host waiting for
    it; it is not to be captured in a CUDA graph.

    Args:
        weights: matrices [out, in] of any floating dtypes on one device, in divisible by 4.
        column_norms: the [in] of each, any floating dtype.

    Returns:
        ``(values, meta)`` of each, as of `pack24`.

    Raises:
        ValueError: bad arguments, or (on the CPU) a score that is not finite.

    """
    if len(weights) != len(column_norms):
        raise ValueError(
            f"wanda_pack24_many: expected a column_norm for each weight, "
            f"got {len(weights)} weights and {len(column_norms)} norms"
        )
    for place, (weight, norm) in enumerate(zip(weights, column_norms, strict=True)):
        op = f"wanda_pack24_many, matrix {place}"
        check_scored(op, weight, norm)
        check_groups(op, weight)
        check_device(op, "weight", weight, "the first", weights[0])
    if not weights:
        return []
    values, meta = _wanda_pack24_many([w.detach() for w in weights], [n.detach() for n in column_norms])
    return list(zip(values, meta, strict=True))


def pack24(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a weight that has at most two non-zeros in every four consecutive inputs.

    A group with fewer is filled with its first zeros, so that two are always stored; a stored zero is
    +0.0. Differentiable in `weight`.

    Args:
        weight: [out, in], any floating dtype, in divisible by 4.

    Returns:
        values [out, in/2] in the weight's dtype and meta uint8 [out, ceil(in/8)]: 4 bits a group (two
        2-bit indices, low first, ascending), two groups a byte, low nibble first.

    Raises:
        ValueError: bad arguments, or a weight that is not 2:4; the first bad row and group are named.

    """
    check_matrix("pack24", "weight", weight)
    check_groups("pack24", weight)
    return (reference.pack24 if forward_mode() else _pack24)(weight)


def unpack24(values: Tensor, meta: Tensor) -> Tensor:
    """Write a packed weight out as dense [out, in] with zeros: the inverse of `pack24`, bit for bit.

    Args:
        values: [out, in/2] as of `pack24`; differentiable.
        meta: uint8 [out, ceil(in/8)] as of `pack24`.

    """
    check_packed("unpack24", values, meta)
    return (reference.unpack24 if forward_mode() else _unpack24)(values, meta)


def linear24(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str = "auto",
    residual: Tensor | None = None,
    norm: LayerNorm | None = None,
) -> Tensor:
    """``act(x @ W.T + bias) + residual`` with W packed 2:4; differentiable in all but meta.

    On a CUDA device the first call of a kind (number of tokens, sizes, dtype, epilogue) measures which
    kernel is fastest there, and remembers it, also for other processes (`tune24` does so ahead of time);
    later calls do not wait for the device. A CUDA graph can be captured once the weight is prepared
    (`prepare24`), which the first call does too.

    Args:
        x: [..., in], any number of leading dimensions.
        values: [out, in/2] of x's dtype; float16 and float64 have no native form on the CPU.
        meta: uint8 [out, ceil(in/8)], as `pack24` makes it.
        bias: [out] of x's dtype, or None.
        activation: None, "gelu" (exact) or "quick_gelu" (x * sigmoid(1.702 x)).
        backend: "auto", or one of `backends()`.
        residual: [..., out] of x's dtype, added last, or None.
        norm: weight [in], bias [in] (of x's dtype) and epsilon of a layer norm that x goes through before,
            or None. The native form for float32 without gradients makes it while it reads x; everywhere
            else it is PyTorch's own.

    Returns:
        [..., out] of x's dtype.

    Raises:
        ValueError: bad arguments, or a backend asked for by name that cannot do this; it says why.

    """
    at_once = x.is_cuda and not torch.compiler.is_compiling() and not forward_mode()
    if at_once and norm is None:
        y = entry.OUTSIDE.again(x, values, meta, bias, activation, backend, residual)
        if y is not None:
            return y
    check_linear24(x, values, meta, bias, residual)
    if activation is not None:
        check_activation("linear24", activation)
    if backend != "auto":
        check_backend(backend)
    if norm is not None:
        check_norm("linear24", norm, x)
        if native.normalizes(x, *norm[:2], values, bias, residual) and not forward_mode():
            return _norm_linear24(x, *norm, values, meta, bias, activation, backend, residual)
        # autocast may widen it
        x = F.layer_norm(x, x.shape[-1:], *norm).to(x.dtype)
        if at_once:
            y = entry.OUTSIDE.again(x, values, meta, bias, activation, backend, residual)
            if y is not None:
                return y
    if forward_mode():
        return reference.linear24(x, values, meta, bias, activation, residual)
    y = _linear24(x, values, meta, bias, activation, backend, residual)
    if at_once:
        entry.OUTSIDE.remember(x, values, meta, bias, activation, backend, residual)
    return y


def head_attention(qkv: Tensor, num_heads: int, causal: bool = False, scale: float | None = None) -> Tensor:
    """Softmax attention of every head, from the packed projection to the input of the output projection.

    Args:
        qkv: [B, S, 3*H*d], ordered q, k, v, heads outermost in each; any floating dtype.
        num_heads: H.
        causal: whether a token sees only itself and those before it.
        scale: of the products q.k; None means 1/sqrt(d).

    Returns:
        [B, S, H*d]; differentiable.

    Raises:
        ValueError: a shape, dtype or number of heads that does not fit.

    """
    check_float("head_attention", "qkv", qkv)
    if qkv.dim() != 3:
        raise ValueError(f"head_attention: expected qkv of shape [B, S, 3*H*d], got {tuple(qkv.shape)}")
    if not hasattr(num_heads, "__index__"):
        raise ValueError(f"head_attention: expected num_heads an integer of at least 1, got {num_heads!r}")
    if scale is not None and not hasattr(scale, "__float__"):
        raise ValueError(f"head_attention: expected scale a number or None, got {scale!r}")
    if num_heads < 1 or qkv.shape[2] == 0 or qkv.shape[2] % (3 * num_heads):
        raise ValueError(
            f"head_attention: expected num_heads such that qkv's width {qkv.shape[2]} is a positive "
            f"multiple of 3*num_heads, got {num_heads}"
        )
    return (reference.head_attention if forward_mode() else _head_attention)(qkv, num_heads, causal, scale)


def masked_update(
    weight: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, keep: Tensor | None = None
) -> Tensor:
    """``(weight + scale * b a) * keep`` in one pass: the effective weight of SparseLoRA.

    Summed in float32 and rounded once (in float64 where the weight is that). What is not kept is +0.0 also
    where the weight or the product is infinite or NaN, which a multiplication by zero would make NaN. Gives
    no gradients: `vlprune.recovery.masked_linear` does.

    Args:
        weight: W [out, in], any floating dtype.
        a: A [rank, in], any floating dtype.
        b: B [out, rank], any floating dtype.
        scale: factor of the product (He et al. 2024, arXiv 2404.02424: alpha / rank).
        keep: M, bool [out, in], True = stays, or None: all stay.

    Returns:
        [out, in] of the weight's dtype.

    Raises:
        ValueError: a shape, dtype or device that does not fit.

    """
    op = "masked_update"
    check_matrix(op, "weight", weight)
    rows, cols = weight.shape
    if a.dim() != 2 or a.shape[1] != cols:
        raise ValueError(f"{op}: expected a of shape [rank, {cols}], got {tuple(a.shape)}")
    if b.shape != (rows, a.shape[0]):
        raise ValueError(f"{op}: expected b of shape {(rows, a.shape[0])}, got {tuple(b.shape)}")
    for name, factor in (("a", a), ("b", b)):
        check_float(op, name, factor)
        check_device(op, name, factor, "weight", weight)
    if keep is not None:
        if keep.dtype is not torch.bool or keep.shape != weight.shape:
            raise ValueError(
                f"{op}: expected keep of shape {(rows, cols)}, dtype bool, "
                f"got {tuple(keep.shape)}, {name_of(keep)}"
            )
        check_device(op, "keep", keep, "weight", weight)
    return _masked_update(weight.detach(), a.detach(), b.detach(), scale, keep)
