"""Scoring and selection as published with Wanda, in plain PyTorch: what the fused operators stand beside.

arXiv 2306.11695, section 3: rows are sorted and the indices of the lowest scores scattered; for n:m there is
a loop over the groups of columns. Results are those of the operators bit for bit where scores do not tie.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["column_sumsq", "group_mask", "pack24", "row_mask", "untied_weight"]

# Groups of 2:4, 1:4 and 4:8 all lie inside groups of so many inputs.
LARGEST_GROUP = 8


def row_mask(weight: Tensor, norm: Tensor, sparsity: float) -> Tensor:
    """Keep mask [out, in]: sort each row stably and scatter the indices of its lowest scores."""
    order = torch.sort(weight.float().abs() * norm, dim=-1, stable=True).indices
    pruned = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    pruned.scatter_(1, order[:, : int(weight.shape[1] * sparsity)], True)
    return ~pruned


def group_mask(weight: Tensor, norm: Tensor, kept: int, group: int) -> Tensor:
    """Keep mask [out, in]: loop over the groups of columns, and of each scatter its lowest scores."""
    scores = weight.float().abs() * norm
    pruned = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    for first in range(0, weight.shape[1], group):
        lowest = scores[:, first : first + group].topk(group - kept, dim=1, largest=False).indices
        pruned.scatter_(1, first + lowest, True)
    return ~pruned


def pack24(weight: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Packed values and meta: the mask of 2:4, the weight with zeros, its kept entries and their places."""
    keep = group_mask(weight, norm, 2, 4)
    pruned = weight.clone()
    pruned[~keep] = 0
    groups, places = pruned.view(len(weight), -1, 4), keep.view(len(weight), -1, 4).nonzero()[:, 2]
    places = places.view(len(weight), -1, 2)
    values = groups.gather(2, places).view(len(weight), -1)
    nibbles = (places[..., 0] | places[..., 1] << 2).to(torch.uint8)
    return values, nibbles[:, ::2] | nibbles[:, 1::2] << 4


def column_sumsq(x: Tensor) -> Tensor:
    """Float32 [in]: the squared norm of each input column of x [tokens, in]."""
    norm: Tensor = torch.norm(x.float(), p=2, dim=0)
    return norm.square()


def untied_weight(
    shape: tuple[int, int], dtype: torch.dtype, norm: Tensor, generator: torch.Generator
) -> Tensor:
    """Random normal weight [out, in] without equal scores in a group, which `topk` orders as it likes."""
    rows, cols = shape

    def normal(count: int) -> Tensor:
        groups = torch.randn(count, LARGEST_GROUP, generator=generator, device=norm.device)
        return groups.to(dtype)

    weight = normal(rows * cols // LARGEST_GROUP).view(rows, -1, LARGEST_GROUP)
    while True:
        scores = weight.float().abs() * norm.view(-1, LARGEST_GROUP)
        tied = (scores.sort(dim=-1).values.diff(dim=-1) == 0).any(-1)
        if not tied.any():
            return weight.view(rows, cols)
        weight[tied] = normal(int(tied.sum()))
