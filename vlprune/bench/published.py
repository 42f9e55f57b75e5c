"""Scoring and selection in plain PyTorch: as published with Wanda, and without loops.

arXiv 2306.11695, section 3: rows are sorted and the indices of the lowest scores scattered; for n:m there is
a loop over the groups of columns. That loop is slow for no good reason, so there are two forms of the same
that have none: all groups at once, by `topk` or by comparing each score with the others of its group.
Results are those of the operators bit for bit where scores do not tie.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "column_sumsq",
    "group_mask",
    "pack24",
    "packed_by_topk",
    "packed_zeros",
    "ranked_mask",
    "row_mask",
    "topk_mask",
    "unpacked",
    "untied_weight",
]

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


def topk_mask(weight: Tensor, norm: Tensor, kept: int, group: int) -> Tensor:
    """Keep mask [out, in] of all groups at once, by `topk`."""
    scores = (weight.float().abs() * norm).view(-1, group)
    highest = scores.topk(kept, dim=1, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, highest, True).view(weight.shape)


def ranked_mask(weight: Tensor, norm: Tensor, kept: int, group: int) -> Tensor:
    """Keep mask [out, in] of all groups at once: a score stays that fewer than `kept` of its group exceed."""
    scores = (weight.float().abs() * norm).view(-1, group)
    higher = torch.zeros_like(scores, dtype=torch.uint8)
    for other in range(group):
        higher += scores[:, other : other + 1] > scores
    return (higher < kept).view(weight.shape)


def pack24(weight: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Packed values and meta: the mask of 2:4, the weight with zeros, its kept entries and their places."""
    keep = group_mask(weight, norm, 2, 4)
    pruned = weight.clone()
    pruned[~keep] = 0
    groups, places = pruned.view(len(weight), -1, 4), keep.view(len(weight), -1, 4).nonzero()[:, 2]
    places = places.view(len(weight), -1, 2)
    values = groups.gather(2, places).view(len(weight), -1)
    return values, _meta(places)


def packed_by_topk(weight: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Packed values and meta of all groups at once, without the mask."""
    scores = (weight.float().abs() * norm).view(len(weight), -1, 4)
    places = scores.topk(2, dim=-1, sorted=False).indices.sort(dim=-1).values
    return weight.view(len(weight), -1, 4).gather(2, places).view(len(weight), -1), _meta(places)


def packed_zeros(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Packed values and meta of a weight with two zeros in each group, from where the zeros are."""
    groups = weight.view(len(weight), -1, 4)
    a, b, c, d = (groups != 0).unbind(-1)
    first = torch.where(a, 0, torch.where(b, 1, 2))
    second = torch.where(d, 3, torch.where(c, 2, 1))
    places = torch.stack((first, second), -1)
    return groups.gather(2, places).view(len(weight), -1), _meta(places)


def unpacked(values: Tensor, meta: Tensor) -> Tensor:
    """Dense [out, in] by one comparison for each place of a group, in the place of a scatter."""
    rows = len(values)
    nibbles = torch.stack((meta & 15, meta >> 4), -1).view(rows, -1, 1)
    pairs = values.view(rows, -1, 2)
    first, second = nibbles & 3, nibbles >> 2
    places = torch.arange(4, dtype=torch.uint8, device=meta.device)
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    others = torch.where(places == second, pairs[..., 1:], zero)
    return torch.where(places == first, pairs[..., :1], others).view(rows, -1)


def _meta(places: Tensor) -> Tensor:
    """Of places [out, groups, 2], an even number of groups in each row."""
    nibbles = (places[..., 0] | places[..., 1] << 2).to(torch.uint8)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


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
