"""The shapes of the packed form, known without importing triton: asked for before it is."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["empty_packed"]


def empty_packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``(values, meta)`` of the shapes that packing `weight` gives; not written to."""
    rows, cols = weight.shape
    return weight.new_empty(rows, cols // 2), weight.new_empty(rows, (cols + 7) // 8, dtype=torch.uint8)
