"""Calls of `linear24` on a CUDA device that were made before: launched at once.

The first call of a kind passes the checks and the dispatcher, and chooses its kernel, which takes the host
longer than a small product takes the device. A call is made again if it has the same weight and bias,
unchanged where it matters, and all else that a check or the choice depends on. Whoever watches the operators,
wants a gradient or gives something unusual goes the long way.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import gpu
from ..seen import Seen
from ..watched import is_watched
from .problem import Launch, is_aligned

__all__ = ["forget", "launched", "remember"]

_PLAIN = (Tensor, torch.nn.Parameter)
# Kinds of calls that are kept of a weight: lengths of texts may vary for ever.
_MOST = 256


class _Read:
    """A tensor that kernels read where it is, whatever was written there since."""

    __slots__ = ("_address", "_dtype", "_shape", "reference")

    def __init__(self, tensor: Tensor, forget: Callable[[weakref.ref[Tensor]], None] | None = None) -> None:
        self.reference = weakref.ref(tensor, forget)
        self._address, self._shape, self._dtype = tensor.data_ptr(), tensor.shape, tensor.dtype

    def is_still(self, tensor: Tensor | None) -> bool:
        """Whether it is that tensor, in the same place and form."""
        return (
            tensor is not None
            and self.reference() is tensor
            and self._address == tensor.data_ptr()
            and self._shape == tensor.shape
            and self._dtype is tensor.dtype
            and tensor.is_contiguous()
            and not tensor.is_neg()
        )


class _Call(NamedTuple):
    launch: Launch
    bias: _Read | None
    shape: torch.Size  # of the result
    strides: tuple[int, ...]


class _Weight:
    """A weight, and the calls with it by what else they depend on."""

    __slots__ = ("__weakref__", "_meta_shape", "_values", "calls", "meta")

    def __init__(self, values: Tensor, meta: Tensor) -> None:
        # What is made of meta goes with it, or with the values.
        forget = functools.partial(_forget, id(values), weakref.ref(self))
        self._values, self.meta, self._meta_shape = _Read(values, forget), Seen(meta, forget), meta.shape
        self.calls: dict[tuple[Any, ...], _Call] = {}

    def is_still(self, values: Tensor, meta: Tensor) -> bool:
        """Whether it can be read as before."""
        return self._values.is_still(values) and self.meta.is_still(meta) and self._meta_shape == meta.shape

    def make_room(self) -> None:
        """Drop calls where there are too many: those whose bias is gone, or else all."""
        if len(self.calls) >= _MOST:
            alive = {k: c for k, c in self.calls.items() if c.bias is None or c.bias.reference() is not None}
            self.calls = alive if len(alive) < _MOST else {}


_weights: dict[int, _Weight] = {}


def launched(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    activation: str | None,
    backend: str,
    residual: Tensor | None,
) -> Tensor | None:
    """The result, if such a call was remembered."""
    weight = _weights.get(id(values))
    # Asked before anything else: wrappers of transforms and tracers have no addresses, and odd shapes.
    if weight is None or is_watched() or torch._C._autograd._profiler_enabled():
        return None
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, values, bias, residual)
    ):
        return None
    if not (weight.is_still(values, meta) and _is_plain(x) and (residual is None or _is_plain(residual))):
        return None
    call = weight.calls.get(_kind(x, bias, activation, backend, residual))
    if call is None or not (bias is None if call.bias is None else call.bias.is_still(bias)):
        return None
    if not gpu.is_current(x.device):
        return None
    # takes the host half as long as `new_empty`
    y = x.new_empty_strided(call.shape, call.strides)
    call.launch(x.data_ptr(), 0 if residual is None else residual.data_ptr(), y.data_ptr())
    return y


def remember(
    launch: Callable[[], Launch],
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    activation: str | None,
    backend: str,
    residual: Tensor | None,
) -> None:
    """Keep how a call is launched, for the next one of its kind, if its tensors are such as come again."""
    if values._is_view() or not all(t is None or _is_plain(t) for t in (x, values, meta, bias, residual)):
        return
    if meta.is_inference():
        return  # counts no versions
    weight = _weights.get(id(values))
    if weight is None or not weight.is_still(values, meta):
        weight = _weights[id(values)] = _Weight(values, meta)
    kind = _kind(x, bias, activation, backend, residual)
    known = weight.calls.get(kind)
    if known is None or not (known.bias is None or known.bias.is_still(bias)):
        weight.make_room()
        y = torch.empty(*x.shape[:-1], values.shape[0], device="meta")
        bias_read = None if bias is None else _Read(bias)
        weight.calls[kind] = _Call(launch(), bias_read, y.shape, y.stride())


def forget(meta: Tensor | None = None) -> None:
    """Drop the calls with this meta, or all, because a choice or a weight changes and nobody counts it."""
    for key, weight in list(_weights.items()):
        if meta is None or weight.meta.reference() is meta:
            _weights.pop(key, None)


def _kind(
    x: Tensor, bias: Tensor | None, activation: str | None, backend: str, residual: Tensor | None
) -> tuple[Any, ...]:
    added = None if residual is None else (residual.shape, residual.dtype, residual.device)
    return x.shape, x.dtype, x.device, id(bias), activation, backend, added


def _is_plain(x: Tensor) -> bool:
    return type(x) in _PLAIN and is_aligned(x) and not x.is_neg()


def _forget(key: int, made: weakref.ref[_Weight], _: weakref.ref[Tensor]) -> None:
    # Runs at any moment, so it takes no lock; a newer tensor may already live under the same identity.
    weight = _weights.get(key)
    if weight is not None and weight is made():
        _weights.pop(key, None)
