"""Calls of `linear24` on a CUDA device that were made before: made again at once.

The first call of a kind passes the checks and the dispatcher, and chooses its kernel, which takes the host
longer than a small product takes the device. A call is made again if its tensors are as they were, but for
what kernels read where it is. Whoever watches the operators, wants a gradient or gives something unusual goes
the long way.
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
from .problem import Again, is_aligned

__all__ = ["Calls"]

_PLAIN = (Tensor, torch.nn.Parameter)
# Kinds of calls that are kept of a weight: lengths of texts may vary for ever.
_MOST = 256

# What compiled models are guarded by: one step of 0.2 us where Python's spelling takes 1 us.
_guards: Any = torch._C._dynamo.guards
_profiles: Callable[[], bool] = torch._C._autograd._profiler_enabled


class _Call(NamedTuple):
    again: Again
    guard: Any  # knows type, dtype, device, shape, strides and requires_grad of every tensor
    may_have_gradient: bool
    device: torch.device


class _Meta(NamedTuple):
    """A weight's meta, of which kernels may have made something of their own, and the calls with it."""

    seen: Seen
    calls: dict[tuple[Any, ...], _Call]


class Calls:
    """The calls that come by one place: outside and inside an operator other things are active.

    Args:
        again_of: gives how a call of these arguments, which was just made, is made again, or None.

    """

    def __init__(self, again_of: Callable[..., Again | None]) -> None:
        self._again_of = again_of
        self._metas: dict[int, _Meta] = {}

    def again(
        self,
        x: Tensor,
        values: Tensor,
        meta: Tensor,
        bias: Tensor | None,
        activation: str | None,
        backend: str,
        residual: Tensor | None,
    ) -> Tensor | None:
        """The result, if such a call was remembered."""
        known = self._metas.get(id(meta))
        # Tensors of other types may have sizes that are no numbers.
        if known is None or type(x) not in _PLAIN or is_watched() or _profiles():
            return None
        added = None if residual is None else residual is x
        call = known.calls.get((x.shape, id(values), id(bias), activation, backend, added))
        given = (x, values, meta) if bias is None else (x, values, meta, bias)
        if residual is not None and not added:
            given = (*given, residual)
        # Before any address is asked for: not every tensor has one.
        if call is None or not call.guard.check(*given):
            return None
        if (
            (call.may_have_gradient and torch.is_grad_enabled())
            or not known.seen.is_still(meta)
            or not gpu.is_current(call.device)
        ):
            return None
        return call.again(x, values, meta, bias, residual)

    def remember(
        self,
        x: Tensor,
        values: Tensor,
        meta: Tensor,
        bias: Tensor | None,
        activation: str | None,
        backend: str,
        residual: Tensor | None,
    ) -> None:
        """Keep how a call just made is made again, if its tensors are such as come again."""
        added = None if residual is None else residual is x
        given = [x, values, meta]
        given += [each for each in (bias, residual) if each is not None and each is not x]
        may_have_gradient = any(each.requires_grad for each in given)
        if (may_have_gradient and torch.is_grad_enabled()) or is_watched() or values._is_view():
            return
        if not all(type(each) in _PLAIN and is_aligned(each) and not each.is_neg() for each in given):
            return
        # an inference tensor counts no versions
        if meta.is_inference() or not gpu.is_current(x.device):
            return
        again = self._again_of(x, values, meta, bias, activation, backend, residual)
        if again is None:
            return
        call = _Call(again, _guard(given), may_have_gradient, x.device)
        known = self._metas.get(id(meta))
        if known is None or not known.seen.is_still(meta):
            known = _Meta(Seen(meta, functools.partial(self._gone, id(meta))), {})
            self._metas[id(meta)] = known
        elif len(known.calls) >= _MOST:
            known.calls.pop(next(iter(known.calls)), None)
        known.calls[x.shape, id(values), id(bias), activation, backend, added] = call

    def forget(self, meta: Tensor | None = None) -> None:
        """Drop the calls with this meta, or all: a choice or a weight changes, and nobody counts it."""
        if meta is None:
            self._metas.clear()
        else:
            self._metas.pop(id(meta), None)

    def _gone(self, key: int, reference: weakref.ref[Tensor]) -> None:
        # Runs at any moment, so it takes no lock; a newer tensor may already live under the same identity.
        known = self._metas.get(key)
        if known is not None and known.seen.reference is reference:
            self._metas.pop(key, None)


def _guard(tensors: list[Tensor]) -> Any:
    return _guards.TensorGuards(
        *tensors,
        dynamic_dims_sizes=[list(each.shape) for each in tensors],
        dynamic_dims_strides=[list(each.stride()) for each in tensors],
    )
