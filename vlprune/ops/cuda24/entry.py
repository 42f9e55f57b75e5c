"""`linear24` and `linear24_scaled` on CUDA tensors: a form and config, looked up or chosen, and launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import gpu, reference
from ..backend import asked, check_backend
from ..checks import SCALED_DTYPES
from ..codes import check_activation
from .again import Calls
from .choice import Choice
from .chooser import able_forms, choice_of, form_for
from .compiled import Compiled
from .dense8 import linear8, unpack8
from .problem import Again, Form, Problem, Scales

__all__ = ["OUTSIDE", "forget", "linear24", "linear24_scaled", "prepare24_cuda", "tune24"]

# The form (None: the reference) and its config, by all that a choice depends on.
_chosen: dict[tuple[Any, ...], tuple[Form | None, str]] = {}


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
    # Every microsecond here is one of the host's a call, of compiled code too, which comes straight here.
    y = _INSIDE.again(x, values, meta, bias, activation, backend, residual)
    if y is not None:
        return y
    tokens, kind = _kind(x, values, bias, activation, backend, residual)
    form, config = _chosen.get(kind) or _choose(kind)
    if form is None:
        return reference.linear24(x, values, meta, bias, activation, residual)
    y = _launched(form, config, x, tokens, values, meta, bias, activation, residual)
    if isinstance(form, Compiled):
        # Of the others it would spare nothing more.
        _INSIDE.remember(x, values, meta, bias, activation, backend, residual)
    return y


def _again_of(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    activation: str | None,
    backend: str,
    residual: Tensor | None,
) -> Again | None:
    tokens, kind = _kind(x, values, bias, activation, backend, residual)
    form, config = _chosen.get(kind, (None, ""))
    if form is None:
        return None
    if isinstance(form, Compiled):
        return form.again(config, x, values, form.weight(values, meta), bias, activation)
    other = form

    def again(
        x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor | None:
        return _launched(other, config, x, tokens, values, meta, bias, activation, residual)

    return again


def _kind(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    activation: str | None,
    backend: str,
    residual: Tensor | None,
) -> tuple[int, tuple[Any, ...]]:
    out, inputs = values.shape[0], x.shape[-1]
    tokens = x.numel() // inputs if inputs else 0
    unbiased, alone = bias is None, residual is None
    return tokens, (x.device, x.dtype, tokens, out, inputs, activation, unbiased, alone, backend, None)


# The calls that came before, as `ops.linear24` sees them and as the operator does. What comes by both is for
# the first to remember: the second waits for one sight more, which compiled code brings.
OUTSIDE, _INSIDE = Calls(_again_of, sights=2), Calls(_again_of, sights=3)


def linear24_scaled(
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
    """See `reference.linear24_scaled`."""
    out, inputs = values.shape[0], x.shape[-1]
    tokens = x_scale.numel()
    kind = (
        x.device, x.dtype, tokens, out, inputs, activation, bias is None, residual is None, backend,
        out_dtype,
    )  # fmt: skip
    form, config = _chosen.get(kind) or _choose(kind)
    scales = Scales(x_scale.reshape(tokens), weight_scale, out_dtype)
    if form is not None:
        return _launched(form, config, x, tokens, values, meta, bias, activation, residual, scales)
    added = None if residual is None else residual.reshape(tokens, out)
    y = linear8(
        x.reshape(tokens, inputs), scales.x, unpack8(values, meta), weight_scale, out_dtype, bias, activation,
        added,
    )  # fmt: skip
    return y.reshape(*x.shape[:-1], out)


def _launched(
    form: Form,
    config: str,
    x: Tensor,
    tokens: int,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    scales: Scales | None = None,
) -> Tensor:
    flat, out = x.dim() == 2, values.shape[0]
    rows = x if flat else x.reshape(tokens, x.shape[-1])
    added = residual if flat or residual is None else residual.reshape(tokens, out)
    if gpu.is_current(x.device):
        weight = form.weight(values, meta)
        y = form.run(config, rows, values, weight, bias, added, activation, None, scales)
    else:
        with torch.cuda.device(x.device):
            weight = form.weight(values, meta)
            y = form.run(config, rows, values, weight, bias, added, activation, None, scales)
    return y if flat else y.view(*x.shape[:-1], out)


def _choose(kind: tuple[Any, ...]) -> tuple[Form | None, str]:
    device, dtype, tokens, out, inputs, activation, unbiased, alone, backend, out_dtype = kind
    form, config, stays = None, "", True
    if tokens and out and asked(backend) != "torch":
        problem = Problem(tokens, out, inputs, dtype, activation, not unbiased, not alone, out_dtype)
        form, config, stays = form_for(problem, backend, device)
    if stays:
        _chosen[kind] = form, config
    return form, config


def prepare24_cuda(values: Tensor, meta: Tensor, backend: str = "auto", anew: bool = True) -> None:
    """Make what the forms that `linear24` may choose here read beside `values`."""
    out, half = values.shape
    if out == 0 or half == 0 or asked(backend) == "torch":
        return
    with torch.cuda.device(values.device):
        problem = Problem(1, out, 2 * half, values.dtype, out_dtype=_out_dtype(values.dtype))
        for form in able_forms(problem, backend, values.device).values():
            form.weight(values, meta, anew)
    # Also what a call made meanwhile has remembered of before.
    forget(meta)


def forget(meta: Tensor | None = None) -> None:
    """Drop what is known of calls made before, with this meta or all."""
    for calls in (OUTSIDE, _INSIDE):
        calls.forget(meta)


def _out_dtype(dtype: torch.dtype) -> torch.dtype | None:
    return torch.bfloat16 if dtype in SCALED_DTYPES else None


def tune24(
    tokens: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype = torch.bfloat16,
    activation: str | None = None,
    *,
    bias: bool = True,
    residual: bool = False,
    out_dtype: torch.dtype | None = None,
    device: torch.device | str = "cuda",
    backend: str = "auto",
) -> Choice | None:
    """Measure on a CUDA device what `linear24` of these sizes shall run by, or tell what was measured before.

    Of int8 and float8_e4m3fn it is `linear24_scaled`. The dense product is then the faster of that in 8 bits,
    with all that follows it, and that in `out_dtype`; the pass of `quantize_rows`, which the latter does not
    need, is in no time.

    Every config that can is compared with the dense product and dropped if its result is further than twice
    as far from float64; then both are timed, as a CUDA graph would run them. The outcome is remembered, also
    for other processes, in a file under VLPRUNE_CACHE (by default ~/.cache/vlprune) for as long as GPU and
    versions are the same.

    Args:
        tokens: rows of the input; numbers that differ by little share what was measured.
        out_features: outputs.
        in_features: inputs, a multiple of 4.
        dtype: of everything, or int8 or float8_e4m3fn.
        activation: None, "gelu" or "quick_gelu".
        bias: whether there is one.
        residual: whether one is added.
        out_dtype: of the results of int8 and float8_e4m3fn: None, which is bfloat16, or float16.
        device: a CUDA device.
        backend: "auto" or one of `backends()`.

    Returns:
        backend, config, and seconds of a call beside the dense product's, or None where nothing but PyTorch
        can run it.

    Raises:
        ValueError: bad sizes or names, no CUDA device, or a backend asked for by name that cannot do this.
        RuntimeError: a backend asked for by name gives wrong results.

    """
    for name, size in (("tokens", tokens), ("out_features", out_features)):
        if size < 1:
            raise ValueError(f"tune24: expected {name} of at least 1, got {size}")
    if in_features < 4 or in_features % 4:
        raise ValueError(f"tune24: expected in_features divisible by 4, got {in_features}")
    check_activation("tune24", activation)
    check_backend(backend)
    if out_dtype is None:
        out_dtype = _out_dtype(dtype)
    elif dtype not in SCALED_DTYPES or out_dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            "tune24: expected out_dtype bfloat16 or float16, and only of 8 bits, got "
            f"{str(out_dtype)[6:]} of {str(dtype)[6:]}"
        )
    where = torch.device(device)
    if where.type != "cuda":
        raise ValueError(f"tune24: expected a CUDA device, got {where}")
    if (reason := gpu.why_none(where)) is not None:
        raise ValueError(f"tune24: {reason}")
    if asked(backend) == "torch":
        return None
    problem = Problem(tokens, out_features, in_features, dtype, activation, bias, residual, out_dtype)
    choice = choice_of(problem, backend, torch.device("cuda", gpu.index_of(where)))
    # What was chosen before by counting, say for want of memory, is to be looked up anew.
    _chosen.clear()
    forget()
    return choice
