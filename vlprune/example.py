"""Inputs of the shapes that a model is going to be run on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .models.running import image_dtype, model_device

__all__ = ["example_inputs"]

DEFAULT_BATCH = 8


def example_inputs(model: nn.Module, example: Any = None) -> tuple[Tensor, Tensor | None]:
    """Images [B, 3, H, W] and texts [B, L] (or None) on the model's device and in its dtype.

    Args:
        model: an open_clip model.
        example: None (a batch of 8 made up), a batch size, a tensor of images, ``(images, texts)``, or
            a batch of `load_data`'s data.

    """
    device = model_device(model)
    if example is None or isinstance(example, int):
        images, texts = _made_up(model, DEFAULT_BATCH if example is None else example)
    elif isinstance(example, Tensor):
        images, texts = example, None
    elif hasattr(example, "images"):
        images, texts = example.images, example.texts
    elif isinstance(example, tuple | list) and len(example) == 2:
        images, texts = example
    else:
        raise ValueError(
            "example: expected None, a batch size, images, (images, texts) or a batch of load_data, "
            f"got {type(example).__name__}"
        )
    images = images.to(device, image_dtype(model))
    return images, None if texts is None else texts.to(device)


def _made_up(model: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
    if batch < 1:
        raise ValueError(f"example: expected a batch size of at least 1, got {batch}")
    visual = model.visual
    size = getattr(visual, "image_size", None)
    if size is None:
        raise ValueError("example: this model does not tell its image size; give images or (images, texts)")
    height, width = size if isinstance(size, tuple | list) else (size, size)
    text = getattr(model, "text", model)
    length: int = getattr(text, "context_length", None) or getattr(model, "context_length", None) or 77
    words = next(m for m in text.modules() if isinstance(m, nn.Embedding)).num_embeddings
    return torch.randn(batch, 3, height, width), torch.randint(1, words, (batch, length))
