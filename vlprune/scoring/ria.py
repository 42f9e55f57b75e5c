"""RIA: relative importance and activations, Zhang et al. 2024 (ICLR), with its channel permutation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..patterns import Pattern, PatternError
from .wanda import wanda_mask

__all__ = ["channel_permutation", "ria_mask", "ria_scores"]

# Refinement ends with the first pass over the groups that gains less than this fraction of the total;
# each gains about a tenth of the one before, and costs seconds for a thousand groups.
_LEAST_GAIN = 1e-3


def ria_scores(weight: Tensor, column_norm: Tensor, a: float = 0.5) -> Tensor:
    """``S_ij = (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||x_j||^a``; 0 in rows and columns of zeros.

    Args:
        weight: [out, in], any floating dtype.
        column_norm: [in], `Calibration.column_norm`.
        a: how much the activations count; 0 leaves them out.

    Returns:
        float32 [out, in].

    Raises:
        ValueError: wrong shapes or dtypes, a norm that is negative or NaN, `a` negative or not finite.

    """
    return ops.wanda_scores(*_wanda_arguments(weight, column_norm, a))


def ria_mask(
    weight: Tensor,
    column_norm: Tensor,
    pattern: str | Pattern,
    sparsity: float,
    scope: str = "row",
    a: float = 0.5,
) -> Tensor:
    """Keep mask [out, in] of `ria_scores`.

    Args:
        weight: as of `ria_scores`.
        column_norm: as of `ria_scores`.
        pattern: as of `wanda_mask`.
        sparsity: as of `wanda_mask`.
        scope: as of `wanda_mask`.
        a: as of `ria_scores`.

    """
    return wanda_mask(*_wanda_arguments(weight, column_norm, a), pattern, sparsity, scope)


def channel_permutation(scores: Tensor, pattern: str | Pattern) -> Tensor:
    """Order of the input channels in which n:m keeps more of the total score than in the given order.

    Channels sorted by total score are dealt to the groups in a snake (first group to last and back), so
    that no group holds all the strong ones. Then, for each place in the groups in turn, the channels that
    hold it are dealt anew, the best way there is (a linear assignment), until nothing is gained.

    Args:
        scores: [out, in], any method's scores, finite.
        pattern: "n:m", with m dividing in.

    Returns:
        int64 [in]: ``scores[:, order]`` is the permuted matrix. Never worse than the order given, which
        comes back unchanged where nothing better was found.

    Raises:
        PatternError: a pattern other than n:m, or m that does not divide in.
        ValueError: scores that are not finite or of another shape.

    """
    kind = Pattern.parse(pattern)
    n, m = kind.n, kind.m
    if n is None or m is None:
        raise PatternError(f'channel_permutation: expected an n:m pattern, got "{kind.name}"')
    if scores.dim() != 2 or not bool(scores.isfinite().all()):
        raise ValueError(f"channel_permutation: expected finite scores [out, in], got {tuple(scores.shape)}")
    kind.check_inputs(scores.shape[1], "channel_permutation")
    channels = scores.detach().t().float().contiguous()
    given = torch.arange(len(channels), device=scores.device).view(-1, m)
    if scores.numel() == 0:
        return given.flatten()
    best, groups = _retained(channels, given, n), given
    dealt = _deal(channels, m)
    if (value := _retained(channels, dealt, n)) > best:
        best, groups = value, dealt
    before = -math.inf
    while best - before > _LEAST_GAIN * abs(best):
        before = best
        for place in range(m):
            trial = _reassign(channels, groups, n, place)
            if (value := _retained(channels, trial, n)) > best:
                best, groups = value, trial
    return groups.flatten()


def _deal(channels: Tensor, m: int) -> Tensor:
    # Groups [in/m, m] of channel numbers.
    rounds = channels.sum(1, dtype=torch.float64).argsort(descending=True, stable=True).view(m, -1)
    return torch.stack([row.flip(0) if turn % 2 else row for turn, row in enumerate(rounds)], dim=1)


def _retained(channels: Tensor, groups: Tensor, n: int) -> float:
    # What n:m keeps of the total score; channels [in, out].
    return float(channels[groups].topk(n, dim=1, sorted=False).values.sum(dtype=torch.float64))


def _reassign(channels: Tensor, groups: Tensor, n: int, place: int) -> Tensor:
    # The groups with the channels at one place dealt anew. To a group whose other channels have t as
    # n-th highest score of a row, a channel with score s adds max(s - t, 0) = (|s - t| + s - t) / 2.
    # Every channel and every group takes part once, so s and t alone change no comparison: the best
    # assignment is that of the largest total |s - t|, an L1 distance.
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    dealt = groups[:, place]
    others = torch.cat((groups[:, :place], groups[:, place + 1 :]), dim=1)
    threshold = channels[others].topk(n, dim=1).values[:, -1]
    distance = torch.cdist(channels[dealt], threshold, p=1)
    rows, takers = linear_sum_assignment(distance.cpu().numpy(), maximize=True)
    trial = groups.clone()
    trial[torch.from_numpy(takers).to(groups.device), place] = dealt[torch.from_numpy(rows).to(groups.device)]
    return trial


def _wanda_arguments(weight: Tensor, column_norm: Tensor, a: float) -> tuple[Tensor, Tensor]:
    # RIA is Wanda with the relative importance for the weight and ||x||^a for the norm.
    if weight.dim() != 2 or weight.dtype not in ops.FLOAT_DTYPES:
        raise ValueError(
            "ria_scores: expected weight of shape [out, in] and a floating dtype, "
            f"got {tuple(weight.shape)}, {weight.dtype}"
        )
    if isinstance(a, bool) or not isinstance(a, int | float) or not 0 <= a < math.inf:
        raise ValueError(f"ria_scores: expected a finite and at least 0, got {a!r}")
    norm = column_norm.detach().float()
    if not bool((norm >= 0).all()):
        raise ValueError(f"ria_scores: expected column_norm of at least 0, got {float(norm.min())}")
    magnitude = weight.detach().abs().float()
    by_column, by_row = (magnitude.sum(axis, keepdim=True) for axis in (0, 1))
    # Where a sum is zero so is all it divides.
    relative = magnitude / by_column.where(by_column > 0, 1) + magnitude / by_row.where(by_row > 0, 1)
    return relative, norm**a
