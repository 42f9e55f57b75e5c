"""What the tokens of a layer's input are: of an image or of a text, real or only there to fill the row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .view import Block

__all__ = ["real_tokens", "sees_images"]


def real_tokens(model: nn.Module, texts: Tensor) -> Tensor:
    """Mask [B, L] of token ids [B, L], True where a token is none of the padding.

    By what the text tower does: one that masks its padding, or a transformers model, has an id for it;
    one that pools at the end-of-text token (the largest id, or `eos_id`) never looks behind it. Else what
    is not `pad_id` is real, and so is the token that is pooled. A row without the end-of-text token
    counts in full.

    Args:
        model: an open_clip model.
        texts: ids [B, L] as its text tower takes them.

    """
    text = getattr(model, "text", model)
    config = getattr(text, "config", None)
    if config is not None:
        return _unless(texts, getattr(config, "pad_token_id", None))
    pad = getattr(text, "pad_id", None)
    if getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
        return _unless(texts, pad)
    # CLIP keeps its text tower's settings under names of its own
    pool = getattr(text, "pool_type", getattr(text, "text_pool_type", "none"))
    place = torch.arange(texts.shape[1], device=texts.device)
    if pool == "argmax":
        return place <= texts.argmax(1, keepdim=True)
    if pool == "eos":
        ends = texts.eq(getattr(text, "eos_id", getattr(text, "text_eos_id", -1)))
        return (place <= ends.int().argmax(1, keepdim=True)) | ~ends.any(1, keepdim=True)
    real = _unless(texts, pad)
    pooled = {"first": 0, "last": texts.shape[1] - 1}.get(pool, -1)
    return real | (place == pooled)


def sees_images(block: Block, layer: str) -> bool:
    """Whether the inputs of a layer of this block are image tokens.

    They are in the image tower, and where cross-attention takes its keys and values from.
    """
    if block.tower == "visual":
        return True
    # open_clip's blocks have a norm of their own for keys and values exactly where these come from elsewhere
    cross = hasattr(block.module, "ln_1_kv")
    return cross and layer.rpartition(".")[2] in ("k_proj", "v_proj")


def _unless(texts: Tensor, pad: int | None) -> Tensor:
    return torch.ones_like(texts, dtype=torch.bool) if pad is None else texts != pad
