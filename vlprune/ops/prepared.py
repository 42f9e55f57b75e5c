"""The CPU forms of packed weights that `linear24` computes with: made once, kept while they are valid.

There is one for many tokens and one for few, each made when it is first needed. An entry belongs to one
`values` tensor object, which the dispatcher hands through unchanged (also from compiled code). It is used
again only if nothing that could change the weight has happened since:

* the same `values` and `meta` objects, each on the same storage and address (`.to()`, `.data = ...`);
* the same version counters (optimizer steps, `load_state_dict`, any in-place operation);
* the same sampled bytes, because a write through `.data` moves no version counter.

The samples of `values` are a word (8 bytes, or 4 where rows are no multiple of 8) of every row and of
every column, those of `meta` 64 words spread over it; tensors of up to 4 KiB are compared whole. So
through `.data` a write to whole rows or columns of `values`, or to most of `meta`, is seen; one to a part
of a row, or to a few rows of `meta` alone, can be missed, and such code calls `prepare24` afterwards.

Inference tensors count no versions, so nothing is kept for them: a model to run fast is to be loaded or
pruned outside `torch.inference_mode()` (running it inside is fine).
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backend import runs_natively
from .checks import SCALED_DTYPES
from .codes import DTYPE_CODE
from .cuda24.entry import prepare24_cuda
from .extensions import extension
from .seen import Seen

__all__ = ["Prepared", "best_isa", "few_below", "prepare24", "prepared24"]

_ALIGNMENT = 64
_META_SAMPLES = 64
_WHOLE = 4096
_WORDS = {1: ctypes.c_uint8, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


@functools.cache
def best_isa() -> int:
    """Return the best instruction set of this machine, as `csrc/cpu/ops.h` numbers them."""
    return int(extension().best_isa())


class _Seen(Seen):
    """A tensor as it was, and some of its bytes."""

    __slots__ = ("_bytes", "_words")

    def __init__(
        self,
        tensor: Tensor,
        words: np.ndarray[Any, Any],
        forget: Callable[[weakref.ref[Tensor]], None] | None = None,
    ) -> None:
        super().__init__(tensor, forget)
        self._words = words
        self._bytes = words.tobytes()

    def is_still(self, tensor: Tensor) -> bool:
        """Whether it is that tensor, unchanged as far as can be told."""
        return super().is_still(tensor) and self._bytes == self._words.tobytes()


@functools.cache
def few_below(dtype: torch.dtype) -> int:
    """Return the number of tokens below which the form for few of them is the faster one."""
    return int(extension().linear24_few_below(DTYPE_CODE[dtype], best_isa()))


def _reordered(values: Tensor, meta: Tensor, few: bool) -> tuple[Tensor, int]:
    """Make a form of a weight: the memory and the address in it."""
    rows, half = values.shape
    dtype = DTYPE_CODE[values.dtype]
    size = extension().linear24_prepared_bytes(dtype, rows, 2 * half, few, best_isa())
    # Said, since PyTorch may have been told another device for tensors that name none.
    buffer = torch.empty(size + _ALIGNMENT - 1, dtype=torch.uint8, device="cpu")
    pointer = -(-buffer.data_ptr() // _ALIGNMENT) * _ALIGNMENT
    source, source_meta = values.detach().contiguous(), meta.contiguous()
    extension().linear24_prepare(
        source.data_ptr(), source_meta.data_ptr(), dtype, rows, 2 * half, few, pointer, best_isa()
    )
    return buffer, pointer


class Prepared:
    """The re-ordered forms of a weight that were needed so far, and what they were made from."""

    __slots__ = ("_forms", "_meta", "_values")

    def __init__(self, values: Tensor, meta: Tensor) -> None:
        self._forms: dict[bool, tuple[Tensor, int]] = {}
        if values.is_inference() or meta.is_inference():
            return
        self._values = _Seen(values, _sampled_values(values), functools.partial(_forget, id(values)))
        self._meta = _Seen(meta, _sampled_meta(meta))

    def is_for(self, values: Tensor, meta: Tensor) -> bool:
        """Whether it still is the weight of (values, meta)."""
        return self._values.is_still(values) and self._meta.is_still(meta)

    def pointer(self, values: Tensor, meta: Tensor, few: bool) -> int:
        """Return the address of the form of (values, meta), of which this is, for few or many tokens."""
        form = self._forms.get(few)
        if form is None:
            # of two threads that come here at once, both use the one that stays
            form = self._forms.setdefault(few, _reordered(values, meta, few))
        return form[1]


_cache: dict[int, Prepared] = {}
_lock = threading.Lock()


def prepared24(values: Tensor, meta: Tensor) -> Prepared:
    """Return the prepared weight of (values, meta), from the cache if it is still valid."""
    entry = _cache.get(id(values))
    if entry is not None and entry.is_for(values, meta):
        return entry
    return _prepare(values, meta)


def prepare24(values: Tensor, meta: Tensor, backend: str = "auto", *, anew: bool = True) -> None:
    """Make the form of a packed weight that `linear24` computes with now, instead of at its first call.

    Or `linear24_scaled`, where values are int8 or float8_e4m3fn.

    On the CPU that is the form for many tokens; the one for few (fewer than 14 with AVX2, 21 with AVX-512, 52
    of bfloat16 with AVX512-BF16) is made at the first call that has so few.

    `linear24` finds it again by the `values` object itself, so pass the very tensor (the parameter) that
    will be passed there. Also to be called after changing single entries through ``values.data`` or
    ``meta.data``: PyTorch does not count such writes, and only those to whole rows or columns of `values`
    or to most of `meta` are seen, on a CUDA device none. Does nothing where `linear24` would run by the
    reference.

    Args:
        values: [out, in/2] as of `pack24`.
        meta: [out, ceil(in/8)] as of `pack24`.
        backend: that `linear24` will be called with.
        anew: whether also where there is one that seems to be of these tensors as they are.

    """
    if values.is_cuda and values.dtype in (torch.bfloat16, torch.float16, torch.float32, *SCALED_DTYPES):
        prepare24_cuda(values, meta, backend, anew)
    here = values.device.type == "cpu" and (
        backend == "cpu" or (backend == "auto" and values.dtype not in SCALED_DTYPES)
    )
    if here and runs_natively("linear24", values.dtype, backend):
        entry = _prepare(values, meta) if anew else prepared24(values, meta)
        entry.pointer(values, meta, few=False)


def _prepare(values: Tensor, meta: Tensor) -> Prepared:
    entry = Prepared(values, meta)
    if not (values.is_inference() or meta.is_inference()):
        with _lock:
            _cache[id(values)] = entry
    return entry


def _sampled_values(values: Tensor) -> np.ndarray[Any, Any]:
    """View at least one word of every row and of every column."""
    rows, row = values.shape[0], values.shape[1] * values.itemsize
    if values.numel() * values.itemsize <= _WHOLE or not values.is_contiguous():
        return _memory(values, 1)
    word = 4 if row % 8 else 8
    row //= word
    # Not above `row`: no row is stepped over. Not above `rows`: at least `row` samples, and with no
    # factor in common with `row` these lie in `row` different columns.
    stride = max(1, min(rows, row - 1))
    while math.gcd(stride, row) != 1:
        stride -= 1
    return _memory(values, word)[::stride]


def _sampled_meta(meta: Tensor) -> np.ndarray[Any, Any]:
    """View 64 words, evenly spread."""
    if meta.numel() <= _WHOLE:
        return _memory(meta, 1)
    words = _memory(meta, 8)
    return words[:: words.size // _META_SAMPLES]


def _memory(tensor: Tensor, word: int) -> np.ndarray[Any, Any]:
    """View the memory that `tensor` spans as words of 1, 4 or 8 bytes, without keeping it alive."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    count = (last + 1) * tensor.itemsize // word if tensor.numel() else 0
    return np.ctypeslib.as_array((_WORDS[word] * count).from_address(tensor.data_ptr()))


def _forget(key: int, reference: weakref.ref[Tensor]) -> None:
    # Runs at any moment, so it takes no lock; a newer tensor may already live under the same identity.
    entry = _cache.get(key)
    if entry is not None and entry._values.reference is reference:
        _cache.pop(key, None)
