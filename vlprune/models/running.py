"""How to run a model without leaving a trace: its image dtype, its device, and eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "image_dtype", "model_device"]


def model_device(model: nn.Module) -> torch.device:
    """Device of the model's first parameter, the CPU if it has none."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def image_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of the patch embedding: open_clip's fp16 models keep other parameters in float32."""
    visual = getattr(model, "visual", model)
    floating = [p for p in visual.parameters() if p.is_floating_point()]
    patches = [p for p in floating if p.dim() >= 4]
    return (patches or floating)[0].dtype if floating else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is in the mode it was in, each on its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
