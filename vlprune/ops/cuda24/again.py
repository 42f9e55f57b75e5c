"""Calls of `linear24` on a CUDA device that were made before: launched at once.

The first call of a kind passes the checks and the dispatcher, and chooses its kernel, which takes the host
longer than a small product takes the device. A call is made again if it has the same weight, unchanged where
it matters, and all else that a check or the choice depends on. Whoever watches the operators, wants a
gradient or gives something unusual goes the long way.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import gpu
from ..seen import Seen
from ..watched import is_watched
from .problem import aligned

__all__ = ["Launch", "forget", "launched", "remember"]

_PLAIN = (Tensor, torch.nn.Parameter)
# An address as kernels read it: see `problem.aligned`.
_ALIGNMENT = 16


class Launch(Protocol):
    """Runs a kernel on the current stream that has all but the addresses of x, the residual and y."""

    def __call__(self, x: int, residual: int, y: int) -> None:
        """Addresses of contiguous tensors, multiples of 16 bytes; 0 for no residual."""


class _Weight:
    """A weight as calls read it, and these: what else one depends on -> launch, shape and strides of y."""

    __slots__ = ("_addresses", "_dtype", "_meta", "_shape", "calls", "reference")

    def __init__(self, values: Tensor, meta: Tensor, bias: Tensor | None) -> None:
        self.reference = weakref.ref(values, functools.partial(_forget, id(values)))
        # values and bias are read where they are, whatever was written there; of meta a copy is
        self._addresses = _addresses(values, bias)
        self._shape, self._dtype = values.shape, values.dtype
        self._meta = Seen(meta)
        self.calls: dict[tuple[Any, ...], tuple[Launch, torch.Size, tuple[int, ...]]] = {}

    def is_still(self, values: Tensor, meta: Tensor, bias: Tensor | None) -> bool:
        """Whether it can be read as before."""
        return (
            self._addresses == _addresses(values, bias)
            and self._shape == values.shape
            and self._dtype is values.dtype
            and self._meta.is_still(meta)
        )


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
    if weight is None or not weight.is_still(values, meta, bias):
        return None
    found = weight.calls.get(_kind(x, activation, backend, residual))
    if found is None or not _is_plain(x) or is_watched() or not gpu.is_current(x.device):
        return None
    if residual is not None and not (_is_plain(residual) and residual.device == x.device):
        return None
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, values, bias, residual)
    ):
        return None
    launch, shape, strides = found
    # takes the host half as long as `new_empty`
    y = x.new_empty_strided(shape, strides)
    launch(x.data_ptr(), 0 if residual is None else residual.data_ptr(), y.data_ptr())
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
    """Keep how a call is launched, for the next one of its kind, if that is not known."""
    kind, weight = _kind(x, activation, backend, residual), _weights.get(id(values))
    if weight is not None and kind in weight.calls and weight.is_still(values, meta, bias):
        return
    if any(t is not None and (type(t) not in _PLAIN or aligned(t) is not t) for t in (values, meta, bias)):
        return
    if meta.is_inference():
        return  # counts no versions
    if weight is None or not weight.is_still(values, meta, bias):
        weight = _weights[id(values)] = _Weight(values, meta, bias)
    y = x.new_empty(*x.shape[:-1], values.shape[0], device="meta")
    weight.calls[kind] = launch(), y.shape, y.stride()


def forget() -> None:
    """Drop all of them, because a choice may change, or a weight was written to and nobody counted it."""
    _weights.clear()


def _kind(x: Tensor, activation: str | None, backend: str, residual: Tensor | None) -> tuple[Any, ...]:
    added = None if residual is None else (residual.shape, residual.dtype)
    return x.shape, x.dtype, x.device, activation, backend, added


def _addresses(values: Tensor, bias: Tensor | None) -> tuple[int, int]:
    return values.data_ptr(), 0 if bias is None else bias.data_ptr()


def _is_plain(x: Tensor) -> bool:
    return type(x) in _PLAIN and x.is_contiguous() and x.data_ptr() % _ALIGNMENT == 0


def _forget(key: int, reference: weakref.ref[Tensor]) -> None:
    # Runs at any moment, so it takes no lock; a newer tensor may already live under the same identity.
    weight = _weights.get(key)
    if weight is not None and weight.reference is reference:
        _weights.pop(key, None)
