"""Masks of attention: those that say "causal" and nothing else, and all others as numbers to add."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["KnownMasks", "additive"]


def additive(mask: Tensor, true_blocks: bool, dtype: torch.dtype) -> Tensor:
    """The mask as numbers to add to the products; True in a boolean one means "blocked" or "seen"."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    blocked = mask if true_blocks else ~mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(blocked, float("-inf"))


class KnownMasks:
    """Tells which masks are exactly the causal one, from one look at the numbers of each.

    A mask is known by the tensor that owns its memory, its place in there and that tensor's version, so that
    the slices which a model takes anew in every forward are one mask, and one that was written to is another
    (a write through ``.data`` moves no version and is not seen). What was found is shared by all layers.

    Args:
        looks: how often `is_causal` looks at numbers of another device at most. Such a look stops the host
            for the device, so a model that makes a new mask for every forward is not to cost one each time;
            open_clip's blocks do, of a mask that is not of the model's dtype.

    """

    _found: MutableMapping[Tensor, dict[Any, bool]] = WeakTensorKeyDictionary()

    def __init__(self, looks: int = 8) -> None:
        self._looks = looks

    def is_causal(self, mask: Tensor, true_blocks: bool, length: int) -> bool:
        """Whether `mask` blocks for each of `length` tokens all that come after it, and does nothing else.

        False also where that is not known: while a graph is traced or captured, for tensors without a
        version (made in inference mode), for masks that are learned, and on a device after the last look.
        """
        if mask.shape != (length, length) or torch.compiler.is_compiling() or type(mask) is not Tensor:
            return False
        if mask.is_inference() or mask.requires_grad or mask.is_meta:
            return False
        owner = mask if mask._base is None else mask._base
        place = (mask._version, mask.dtype, mask.storage_offset(), length, mask.stride(), true_blocks)
        kept = self._found.get(owner)
        if kept is not None and place in kept:
            return kept[place]
        if _stops_the_host(mask):
            if not self._looks or (mask.is_cuda and torch.cuda.is_current_stream_capturing()):
                return False
            self._looks -= 1
        if kept is None:
            kept = self._found[owner] = {}
        else:
            for old in [known for known in kept if known[0] != mask._version]:
                del kept[old]
        kept[place] = _equals_causal(mask, true_blocks)
        return kept[place]


def _stops_the_host(mask: Tensor) -> bool:
    return mask.device.type != "cpu"


def _equals_causal(mask: Tensor, true_blocks: bool) -> bool:
    later = torch.ones(mask.shape, dtype=torch.bool, device=mask.device).triu(1)
    if mask.dtype == torch.bool:
        return torch.equal(mask, later if true_blocks else ~later)
    return mask.is_floating_point() and torch.equal(mask, additive(later, True, mask.dtype))
