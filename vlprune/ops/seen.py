"""Things made of tensors, kept for as long as nothing that could change these tensors has happened."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Kept", "Seen"]

T = TypeVar("T")


class Seen:
    """A tensor as it was: which object, on which storage, where, and which version."""

    __slots__ = ("_address", "_storage", "_version", "reference")

    def __init__(self, tensor: Tensor, forget: Callable[[weakref.ref[Tensor]], None] | None = None) -> None:
        self.reference = weakref.ref(tensor, forget)
        self._version = tensor._version
        self._address = tensor.data_ptr()
        # A weak reference keeps the storage's identity from being given to another.
        self._storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]

    def is_still(self, tensor: Tensor) -> bool:
        """Whether it is that tensor, unchanged as far as can be told without reading its memory."""
        return (
            self.reference() is tensor
            and self._version == tensor._version
            and self._address == tensor.data_ptr()
            and self._storage.cdata == tensor.untyped_storage()._cdata
        )


class Kept(Generic[T]):
    """What was made of some tensors, found again by the first of them and gone with it.

    Nothing is kept of inference tensors, which count no versions.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[tuple[Seen, ...], T]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, *tensors: Tensor) -> T | None:
        """What was made of these very tensors, if all are as they were; else None."""
        entry = self._entries.get(id(tensors[0]))
        if entry is None:
            return None
        seen, made = entry
        # Spelled out: a generator would take as long as what it goes through.
        for was, now in zip(seen, tensors, strict=True):
            if not was.is_still(now):
                return None
        return made

    def keep(self, made: T, *tensors: Tensor) -> None:
        """Remember what was made of these tensors, in place of what was before."""
        if any(tensor.is_inference() for tensor in tensors):
            return
        first, *others = tensors
        seen = (Seen(first, functools.partial(self._forget, id(first))), *map(Seen, others))
        with self._lock:
            self._entries[id(first)] = (seen, made)

    def _forget(self, key: int, reference: weakref.ref[Tensor]) -> None:
        # Runs at any moment, so it takes no lock; a newer tensor may already live under the same identity.
        entry = self._entries.get(key)
        if entry is not None and entry[0][0].reference is reference:
            self._entries.pop(key, None)
