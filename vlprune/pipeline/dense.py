"""A pruned model made trainable again, and compared with the dense one that it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .. import models
from ..masks import masks
from ..models.split import replace
from ..nn import Linear24

__all__ = ["holds_dense_weights", "retained_layers", "unpack_", "was_pruned"]

# A few weights of any model that was stored in half precision are zero.
_FEW = 100


def unpack_(model: nn.Module, dense: nn.Module) -> int:
    """Put the dense form of every packed layer back, in place; returns how many there were.

    An activation that had moved into a layer comes back as `dense` has it in that place.
    """
    from ..nn.blocks import unfuse_

    packed = {name: m for name, m in model.named_modules() if isinstance(m, Linear24)}
    for name, layer in packed.items():
        if layer.activation is not None:
            path, _, child = name.rpartition(".")
            parent, whole = model.get_submodule(path), dense.get_submodule(path)
            names = list(dict(parent.named_children()))
            later = names[names.index(child) + 1 :]
            moved = next(name for name in later if type(getattr(parent, name)) is nn.Identity)
            setattr(parent, moved, copy.deepcopy(getattr(whole, moved)))
        replace(model, name, layer.to_linear())
    unfuse_(model)
    return len(packed)


def was_pruned(model: nn.Module, dense: nn.Module) -> bool:
    """Whether anything was taken out of a model, or set to zero."""
    sizes = [sum(p.numel() for p in own.parameters()) for own in (model, dense)]
    keeps = masks(model).values()
    zeros = sum(int((~keep).sum()) for keep in keeps)
    return sizes[0] != sizes[1] or zeros * _FEW > sum(keep.numel() for keep in keeps)


def holds_dense_weights(model: nn.Module, dense: nn.Module) -> bool:
    """Whether a model is the dense one with some weights of its blocks zero, and the rest as it was."""
    own, other = model.state_dict(), dense.state_dict()
    if own.keys() != other.keys():
        return False
    zeros = {name: ~keep for name, keep in masks(model).items()}
    for name, tensor in own.items():
        whole = other[name]
        if tensor.shape != whole.shape or tensor.dtype != whole.dtype:
            return False
        expected = whole.masked_fill(zeros[name], 0.0) if name in zeros else whole
        if not torch.equal(tensor, expected):
            return False
    return True


def retained_layers(model: nn.Module, dense: nn.Module) -> dict[str, tuple[int, ...]]:
    """Tower -> numbers of the dense model's layers that are left, for towers that lost some.

    A layer is known by its norms and by the biases that removing heads and neurons leaves as they are.

    Raises:
        ValueError: they do not tell, because they were trained since.

    """
    found: dict[str, tuple[int, ...]] = {}
    towers = models.view(dense).towers
    for name, tower in models.view(model).towers.items():
        whole = towers[name].blocks if name in towers else []
        if len(tower.blocks) >= len(whole):
            continue
        left: list[int] = []
        for block in tower.blocks:
            after = left[-1] + 1 if left else 0
            same = (n for n in range(after, len(whole)) if _same(block.module, whole[n].module))
            if (number := next(same, None)) is None:
                raise ValueError(
                    f"retained: {block.name} is none of the dense model's {len(whole)} layers of the {name} "
                    f'tower; say which are left, e.g. {{"{name}": [0, 1]}}, or compare no layers (hidden 0)'
                )
            left.append(number)
        found[name] = tuple(left)
    return found


def _same(block: nn.Module, other: nn.Module) -> bool:
    own: dict[str, Any] = {name: p for name, p in block.named_parameters() if p.ndim == 1}
    whole = dict(other.named_parameters())
    shared = [n for n, p in own.items() if n in whole and whole[n].shape == p.shape]
    return bool(shared) and all(torch.equal(own[name], whole[name]) for name in shared)
