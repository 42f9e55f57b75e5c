"""The CPU form of packed weights that `linear24` computes with: made once, kept while it is valid.

An entry belongs to one `values` tensor object, which the dispatcher hands through unchanged (also from
compiled code). It is used again only if nothing that could change the weight has happened since:

* the same `values` and `meta` objects, on the same storage and address (`.to()`, `.data = ...`);
* the same version counters (optimizer steps, `load_state_dict`, any in-place operation);
* the same sampled bytes, because a write through `.data` moves no version counter. 64 samples see every
  write that touches much of the weight; one that changes a few entries through `.data` they can miss, so
  such code calls `prepare24` afterwards.

Inference tensors count no versions, so nothing is kept for them: a model to run fast is to be loaded or
pruned outside `torch.inference_mode()` (running it inside is fine).
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .backend import extension, runs_natively

__all__ = ["ACTIVATION_CODE", "DTYPE_CODE", "Prepared", "best_isa", "prepare24", "prepared24"]

DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ACTIVATION_CODE = {None: 0, "gelu": 1, "quick_gelu": 2}

_ALIGNMENT = 64
_SAMPLES = 64


@functools.cache
def best_isa() -> int:
    """Return the best instruction set of this machine, as `csrc/cpu/ops.h` numbers them."""
    return int(extension().best_isa())


class Prepared:
    """The re-ordered weight at `pointer`, and what it was made from."""

    __slots__ = (
        "_address",
        "_buffer",
        "_meta",
        "_meta_version",
        "_sampled",
        "_samples",
        "_storage",
        "_values",
        "_version",
        "pointer",
    )

    def __init__(self, values: Tensor, meta: Tensor) -> None:
        rows, half = values.shape
        dtype = DTYPE_CODE[values.dtype]
        size = extension().linear24_prepared_bytes(dtype, rows, 2 * half, best_isa())
        self._buffer = torch.empty(size + _ALIGNMENT - 1, dtype=torch.uint8)
        self.pointer = -(-self._buffer.data_ptr() // _ALIGNMENT) * _ALIGNMENT
        source, source_meta = values.detach().contiguous(), meta.contiguous()
        extension().linear24_prepare(
            source.data_ptr(), source_meta.data_ptr(), dtype, rows, 2 * half, self.pointer, best_isa()
        )
        if values.is_inference() or meta.is_inference():
            return
        self._values = weakref.ref(values, functools.partial(_forget, id(values)))
        self._meta = weakref.ref(meta)
        self._version = values._version
        self._meta_version = meta._version
        self._address = values.data_ptr()
        # A weak reference keeps the storage's identity from being given to another.
        self._storage = StorageWeakRef(values.untyped_storage())  # type: ignore[no-untyped-call]
        self._sampled = _sampled_words(values)
        self._samples = self._sampled.tobytes()

    def is_for(self, values: Tensor, meta: Tensor) -> bool:
        """Whether it still is the weight of (values, meta)."""
        return (
            self._values() is values
            and self._meta() is meta
            and self._version == values._version
            and self._meta_version == meta._version
            and self._address == values.data_ptr()
            and self._storage.cdata == values.untyped_storage()._cdata
            and self._samples == self._sampled.tobytes()
        )


_cache: dict[int, Prepared] = {}
_lock = threading.Lock()


def prepared24(values: Tensor, meta: Tensor) -> Prepared:
    """Return the prepared weight of (values, meta), from the cache if it is still valid."""
    entry = _cache.get(id(values))
    if entry is not None and entry.is_for(values, meta):
        return entry
    return _prepare(values, meta)


def prepare24(values: Tensor, meta: Tensor) -> None:
    """Make the CPU form of a packed weight now instead of at the first `linear24`.

    `linear24` finds it again by the `values` object itself, so pass the very tensor (the parameter) that
    will be passed there. Also to be called after changing single entries through ``values.data``, a write
    that PyTorch does not count. Does nothing where `linear24` would not run natively.

    Args:
        values: [out, in/2] as of `pack24`.
        meta: [out, ceil(in/8)] as of `pack24`.

    """
    if values.device.type == "cpu" and runs_natively("linear24", values.dtype):
        _prepare(values, meta)


def _prepare(values: Tensor, meta: Tensor) -> Prepared:
    entry = Prepared(values, meta)
    if not (values.is_inference() or meta.is_inference()):
        with _lock:
            _cache[id(values)] = entry
    return entry


def _sampled_words(values: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """View 64 words or more spread over the bytes of `values`, without keeping them alive."""
    left = values.untyped_storage().nbytes() - values.storage_offset() * values.itemsize
    count = int(min(values.numel() * values.itemsize, left)) // 8
    # About 0.38 rows short of an even spread, so that the samples also spread over the columns.
    row = values.shape[1] * values.itemsize // 8
    stride = max(1, count // _SAMPLES - int(0.382 * row)) | 1
    words = (ctypes.c_uint64 * count).from_address(values.data_ptr())
    return np.ctypeslib.as_array(words)[::stride][: 2 * _SAMPLES]


def _forget(key: int, reference: weakref.ref[Tensor]) -> None:
    # Runs at any moment, so it takes no lock; a newer tensor may already live under the same identity.
    entry = _cache.get(key)
    if entry is not None and entry._values is reference:
        _cache.pop(key, None)
