"""Calls of `linear24` on a CUDA device that were made before: made again at once.

The first call of a kind passes the checks and the dispatcher, and chooses its kernel, which takes the host
longer than a small product takes the device. A call is made again if its tensors are as they were, but for
what kernels read where it is: that is compared by the guards of compiled models, in one step of 0.2 us where
Python's spelling takes 1 us. Whoever watches the operators, wants a gradient or gives something unusual goes
the long way.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

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

# Calls that are kept of a kind: with and without inference mode or autocast, say.
_VARIANTS = 4

_Kind: TypeAlias = tuple[torch.Size, int, int, str | None, str, bool | None]
_profiles: Callable[[], bool] = torch._C._autograd._profiler_enabled


class _Call(NamedTuple):
    again: Again
    guard: Any  # knows type, dtype, device, shape, strides and requires_grad of every tensor
    may_have_gradient: bool
    device: torch.device


class _Meta:
    """A weight's meta, of which kernels may have made something of their own, and the calls with it."""

    __slots__ = ("calls", "seen", "sights")

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        # By all that decides which tensors a guard is asked about, the newest first.
        self.calls: dict[_Kind, tuple[_Call, ...]] = {}
        self.sights: dict[_Kind, int] = {}


class Calls:
    """The calls that come by one place: outside and inside an operator other things are active.

    Args:
        again_of: gives how a call of these arguments, which was just made, is made again, or None.
        sights: calls of a kind after which it is remembered, since that takes longer than the call.

    """

    def __init__(self, again_of: Callable[..., Again | None], sights: int) -> None:
        self._again_of, self._sights = again_of, sights
        self._metas: dict[int, _Meta] = {}
        self._lock = threading.Lock()

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
        # Before anything of a tensor is read: modes would see it, and sizes of other types may be no numbers.
        if known is None or type(x) not in _PLAIN or is_watched() or _profiles():
            return None
        if not known.seen.is_still(meta):
            self._metas.pop(id(meta), None)
            return None
        try:
            calls = known.calls.get(_kind(x, values, bias, activation, backend, residual))
        except TypeError:  # no name of an activation or a backend
            return None
        if calls is None:
            return None
        given = _given(x, values, meta, bias, residual)
        for call in calls:
            # Before any address is asked for: not every tensor has one.
            if call.guard.check(*given):
                if (call.may_have_gradient and torch.is_grad_enabled()) or not gpu.is_current(call.device):
                    return None
                return call.again(x, values, meta, bias, residual)
        return None

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
        # An inference tensor counts no versions. Views are made anew for every call.
        if values._is_view() or meta.is_inference() or is_watched() or not gpu.is_current(x.device):
            return
        given = _given(x, values, meta, bias, residual)
        if not all(type(each) in _PLAIN and is_aligned(each) and not each.is_neg() for each in given):
            return
        may_have_gradient = any(each.requires_grad for each in given)
        if (may_have_gradient and torch.is_grad_enabled()) or len(set(map(id, given))) < len(given):
            return
        kind = _kind(x, values, bias, activation, backend, residual)
        with self._lock:
            known = self._metas.get(id(meta))
            if known is None or not known.seen.is_still(meta):
                known = self._metas[id(meta)] = _Meta(Seen(meta, functools.partial(self._gone, id(meta))))
            sights = known.sights[kind] = known.sights.pop(kind, 0) + 1
            _make_room(known.sights)
            if sights < self._sights:
                return
            again = self._again_of(x, values, meta, bias, activation, backend, residual)
            guard = None if again is None else _guard(given)
            if again is not None and guard is not None:
                call = _Call(again, guard, may_have_gradient, x.device)
                known.calls[kind] = (call, *known.calls.pop(kind, ())[: _VARIANTS - 1])
                _make_room(known.calls)

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


def _kind(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    activation: str | None,
    backend: str,
    residual: Tensor | None,
) -> _Kind:
    added = None if residual is None else residual is x
    return x.shape, id(values), id(bias), activation, backend, added


def _given(
    x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, ...]:
    """The tensors to guard: as many for each kind, and x only once where it is the residual too."""
    given = (x, values, meta) if bias is None else (x, values, meta, bias)
    return given if residual is None or residual is x else (*given, residual)


def _guard(tensors: tuple[Tensor, ...]) -> Any:
    """What tells whether tensors are like these, or None where PyTorch has it no more."""
    sizes = [list(each.shape) for each in tensors]
    # the stride along a single one says nothing
    strides = [
        [stride if size != 1 else None for size, stride in zip(each.shape, each.stride(), strict=True)]
        for each in tensors
    ]
    try:
        guards: Any = torch._C._dynamo.guards
        return guards.TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    except (AttributeError, TypeError):
        return None


def _make_room(kinds: dict[_Kind, Any]) -> None:
    if len(kinds) > _MOST:
        del kinds[next(iter(kinds))]
