"""Rows of all ranks in one tensor, so that a loss can compare every image with every text of a step."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..distributed import rank, sum_over_ranks, world_size

__all__ = ["gather_rows", "mean_over_ranks"]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [N, ...] of all ranks, one after the other: [ranks * N, ...]; N must be the same on all.

    Its gradient is right where every rank computes the same loss of the result and gradients are averaged
    over ranks afterwards, as DistributedDataParallel does. A rank then knows the gradient of its own rows
    without asking the others: `world_size` times its part, which the average takes back.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks."""
    return sum_over_ranks(values) / world_size()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rank, ctx.count, ctx.length = rank(), world_size(), len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ctx.count)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        first = ctx.rank * ctx.length
        own: Tensor = grad[first : first + ctx.length] * ctx.count
        return own
