"""Give attention projections linear layers of their own, and take them back."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..nn.attention import PackedAttention, SplitAttention, is_splittable
from .view import view

__all__ = ["merge_attention_", "replace", "split_attention_", "split_one"]


def split_attention_(model: nn.Module) -> list[str]:
    """Replace every packed attention inside the towers' blocks by one made of linear layers, in place.

    Self-attention becomes `PackedAttention` (children ``qkv``, ``out_proj``); cross-attention, and
    attention whose keys have another width, becomes `SplitAttention` (``q_proj``, ``k_proj``,
    ``v_proj``, ``out_proj``). Outputs, parameter values, ``requires_grad`` and training mode stay.
    Attention that already consists of linear layers (timm, transformers) and the poolers outside of
    the blocks are left alone.

    Returns:
        Qualified names of what was split now: none on a second call.

    Raises:
        ValueError: the model has no recognizable tower.

    """
    names: list[str] = []
    for tower in view(model).towers.values():
        for block in tower.blocks:
            for name, module in list(block.module.named_modules(prefix=block.name)):
                if is_splittable(module):
                    replace(model, name, split_one(module, cross=_is_cross(model, name)))
                    names.append(name)
    return names


def merge_attention_(model: nn.Module, names: Iterable[str] | None = None) -> list[str]:
    """Undo `split_attention_`: the original modules come back, with the present values bit for bit.

    What the original cannot hold stays as it is: attention with heads removed, or with a projection
    that is packed or carries an adapter.

    Args:
        model: what was split.
        names: qualified names to merge; all by default.

    Returns:
        Qualified names of what was merged.

    """
    wanted = None if names is None else set(names)
    merged: list[str] = []
    for name, module in list(model.named_modules()):
        chosen = wanted is None or name in wanted
        if chosen and isinstance(module, PackedAttention | SplitAttention) and module.can_merge():
            replace(model, name, module.to_attention())
            merged.append(name)
    return merged


def split_one(module: nn.Module, cross: bool) -> PackedAttention | SplitAttention:
    """Return the stand-in for one attention module, which is emptied."""
    if cross or module.in_proj_weight is None:
        return SplitAttention.from_attention(module)
    return PackedAttention.from_attention(module)


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place called `name`, and wherever else the same module is used."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def _is_cross(model: nn.Module, name: str) -> bool:
    # open_clip's blocks have a norm of their own for keys and values exactly where these come from elsewhere
    return hasattr(model.get_submodule(name.rpartition(".")[0]), "ln_1_kv")
