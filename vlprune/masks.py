"""Keep masks read off a model and laid over one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from . import models
from .nn import Linear24, QuantizedLinear24

__all__ = ["apply_masks_", "masks"]

# Parameters that unsplit attention keeps outside of any nn.Linear.
_PACKED_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Keep masks (bool, True = non-zero) of every block weight that has zeros, by parameter name.

    Works on dense models with zeros and on packed layers, whose mask goes by the name "....weight" of the
    dense weight that they replaced; of one in 8 bits, what was rounded to zero counts as zero.
    """
    found = ((name, weight != 0) for name, weight in _block_weights(model))
    return {name: keep for name, keep in found if not bool(keep.all())}


@torch.no_grad()
def apply_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights to zero where their keep mask is False; nothing is changed if any mask is bad.

    The masks of a model whose attention is split fit one where it is not, and the other way round.

    Raises:
        ValueError: a name that is no dense block weight of this model, or a mask of another shape or dtype.

    """
    weights = dict(_block_weights(model))
    chosen: dict[str, nn.Parameter] = {}
    for name, keep in masks.items():
        weight = weights.get(name, weights.get(_other_name(name)))
        if not isinstance(weight, nn.Parameter):
            raise ValueError(f"masks: {name!r} is no dense weight in this model's blocks")
        if not isinstance(keep, Tensor):
            raise ValueError(f"masks: {name} expects a bool tensor, got {keep!r}")
        chosen[name] = weight
        if keep.dtype != torch.bool or keep.shape != weight.shape:
            raise ValueError(
                f"masks: {name} expects bool {tuple(weight.shape)}, got {keep.dtype} {tuple(keep.shape)}"
            )
    for name, weight in chosen.items():
        weight.masked_fill_(~masks[name].to(weight.device), 0.0)


def _other_name(name: str) -> str:
    """Name of a packed attention projection when it is split, if `name` is that of it whole; and back."""
    split, whole = ".qkv.weight", ".in_proj_weight"
    if name.endswith(split):
        return name.removesuffix(split) + whole
    return name.removesuffix(whole) + split


def _block_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for tower in models.view(model).towers.values():
        for block in tower.blocks:
            for name, module in block.module.named_modules(prefix=block.name):
                if isinstance(module, nn.Linear | Linear24 | QuantizedLinear24):
                    yield f"{name}.weight", module.weight
                for attribute in _PACKED_PROJECTIONS:
                    if isinstance(weight := getattr(module, attribute, None), nn.Parameter):
                        yield f"{name}.{attribute}", weight
