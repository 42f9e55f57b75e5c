"""ECoFLaP's coarse stage: blocks whose weights move the loss more keep more of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, TypeVar, overload

from ..patterns import Pattern, PatternError
from .base import Allocation, LayerInfo, as_list, check_size, is_finite

__all__ = ["LOSSES", "ECoFLaP", "ecoflap_sparsities"]

LOSSES = ("auto", "contrastive", "captioning", "cross_entropy")

_GROUPS: dict[str, Callable[[str, LayerInfo], str]] = {
    "block": lambda _, layer: layer.block,
    "layer": lambda name, _: name,
    "tower": lambda _, layer: layer.tower,
}
_MARGIN = Fraction(1, 10)  # published: the cap lies 0.1 above the sparsity in every script

K = TypeVar("K", bound=Hashable)


@overload
def ecoflap_sparsities(
    scores: Mapping[K, float], sizes: Mapping[K, int], sparsity: float, max_sparsity: float | None = None
) -> dict[K, float]: ...


@overload
def ecoflap_sparsities(
    scores: Sequence[float], sizes: Sequence[int], sparsity: float, max_sparsity: float | None = None
) -> list[float]: ...


def ecoflap_sparsities(
    scores: Any, sizes: Any, sparsity: float, max_sparsity: float | None = None
) -> dict[Any, float] | list[float]:
    """Share one budget of weights out between groups, by score: Sung et al. 2023, arXiv 2310.02998.

    Of N weights, ``K = int(N * (1 - sparsity))`` are kept. Every group keeps at least the share that
    `max_sparsity` leaves it; the rest goes to the groups in proportion to their scores, and what a full
    group cannot take goes to the others. Groups without any score share by size, so that scores that
    are all zero give the same sparsity everywhere.

    The arithmetic is exact, on the decimal numbers that the sparsities are written as (0.9 of 1000 keeps
    100, where floats would keep 99), and fractions of a weight go to the largest remainders, lowest index
    first: the kept weights are K, to the weight. A returned s means ``round(size * s)`` zeros.

    Args:
        scores: importance of each group, finite and not negative; a list, or a dict by name.
        sizes: weights in each group, in the same form.
        sparsity: fraction of zeros over all groups together.
        max_sparsity: largest fraction of zeros of one group, at least `sparsity`; None is sparsity +
            0.1. Where it lies so close to `sparsity` that the budget demands it, a group loses one weight
            more.

    Returns:
        The sparsity of each group, in the form of `scores`.

    Raises:
        ValueError: a score is negative or not finite (the group is named), scores and sizes do not
            match, a size is not a positive whole number, `max_sparsity` is below `sparsity`.

    """
    if isinstance(scores, Mapping) != isinstance(sizes, Mapping):
        raise ValueError("ecoflap_sparsities: expected scores and sizes both as dicts or both as lists")
    if isinstance(scores, Mapping):
        if different := sorted(map(str, scores.keys() ^ sizes.keys())):
            raise ValueError(f"ecoflap_sparsities: {different[0]} is in only one of scores and sizes")
        names = list(scores)
        shares = _shares(names, [scores[n] for n in names], [sizes[n] for n in names], sparsity, max_sparsity)
        return dict(zip(names, shares, strict=True))
    scores, sizes = as_list("scores", scores), as_list("sizes", sizes)
    if len(scores) != len(sizes):
        raise ValueError(f"ecoflap_sparsities: {len(scores)} scores but {len(sizes)} sizes")
    return _shares(list(range(len(scores))), scores, sizes, sparsity, max_sparsity)


def _shares(
    names: list[Any], scores: list[float], sizes: list[int], sparsity: float, max_sparsity: float | None
) -> list[float]:
    for name, score, size in zip(names, scores, sizes, strict=True):
        if not is_finite(score) or score < 0:
            raise ValueError(f"score of {name}: expected a finite number of at least 0, got {score!r}")
        check_size(name, size)
    wanted, cap = _limits(sparsity, max_sparsity)
    sizes = [int(size) for size in sizes]
    budget = math.floor(sum(sizes) * (1 - wanted))
    least = [size * (1 - cap) for size in sizes]
    keep = [math.ceil(amount) for amount in least]
    if sum(keep) >= budget:
        keep = _rounded(least, budget)
    else:
        weights = [Fraction(float(score)) for score in scores]
        keep = _rounded(_filled(keep, sizes, weights, budget), budget)
    # not 1 - keep / size: that is 0.43999999999999995 for 560 of 1000, and one weight less of 100
    return [(size - kept) / size for size, kept in zip(sizes, keep, strict=True)]


def _limits(sparsity: float, max_sparsity: float | None) -> tuple[Fraction, Fraction]:
    wanted = Fraction(repr(Pattern().resolve_sparsity(sparsity)))
    if max_sparsity is None:
        return wanted, min(wanted + _MARGIN, Fraction(1))
    cap = Fraction(repr(_fraction("max_sparsity", max_sparsity)))
    if cap < wanted:
        raise ValueError(f"max_sparsity: expected at least the sparsity {sparsity:g}, got {max_sparsity!r}")
    return wanted, cap


def _fraction(name: str, value: float) -> float:
    try:
        return Pattern().resolve_sparsity(value)
    except PatternError:
        raise ValueError(f"{name}: expected a fraction in [0, 1], got {value!r}") from None


def _filled(keep: list[int], sizes: list[int], scores: list[Fraction], budget: int) -> list[Fraction]:
    """Raise `keep` to the budget in proportion to the scores, no group above its size."""
    amounts = [Fraction(kept) for kept in keep]
    left = Fraction(budget - sum(keep))
    not_full = list(range(len(sizes)))
    while not_full:
        weights = scores if any(scores[i] for i in not_full) else [Fraction(size) for size in sizes]
        total = sum((weights[i] for i in not_full), Fraction(0))
        full = [i for i in not_full if weights[i] * left >= (sizes[i] - keep[i]) * total]
        if not full:
            for i in not_full:
                amounts[i] += weights[i] * left / total
            break
        for i in full:
            amounts[i] = Fraction(sizes[i])
            left -= sizes[i] - keep[i]
        not_full = [i for i in not_full if i not in full]
    return amounts


def _rounded(amounts: list[Fraction], total: int) -> list[int]:
    """Whole numbers that add up to `total`, which lies less than one an amount above their floors."""
    whole = [math.floor(amount) for amount in amounts]
    by_remainder = sorted(range(len(amounts)), key=lambda i: whole[i] - amounts[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


@dataclass(frozen=True)
class ECoFLaP(Allocation):
    """Sparsity by zeroth-order importance, one budget over both towers: Sung et al. 2023, arXiv 2310.02998.

    The importance of a matrix is how much the loss changes when noise is added to it; see
    `vlprune.zeroth_order.zeroth_order_scores`.

    Args:
        max_sparsity: largest fraction of zeros of one group; None is the sparsity asked for + 0.1.
        epsilon: standard deviation of the noise.
        draws: noise draws a matrix and batch.
        samples: calibration images (or pairs) that the loss is measured on.
        group: what shares one sparsity: "block", "layer" (a matrix on its own) or "tower".
        loss: "contrastive", "captioning", "cross_entropy" or "auto" (captioning for CoCa, cross_entropy
            for labelled images, else contrastive); or a function of model and batch that returns a scalar
            tensor, such as a batch is in `vlprune.losses`.
        batch_size: how many samples at once; a contrastive loss compares within a batch.
        seed: of the noise.

    """

    max_sparsity: float | None = None
    epsilon: float = 1e-3
    draws: int = 1
    samples: int = 32
    group: str = "block"
    loss: str | Callable[..., Any] = "auto"
    batch_size: int = 8
    seed: int = 0
    kind: ClassVar[str] = "ecoflap"
    exact_budget: ClassVar[bool] = True
    importance: ClassVar[str | None] = "zeroth_order"

    def __post_init__(self) -> None:
        """Check every field, so that a bad one fails before any work is done."""
        if self.max_sparsity is not None:
            _fraction("max_sparsity", self.max_sparsity)
        for name, least in (("draws", 1), ("samples", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        if not is_finite(self.epsilon) or self.epsilon <= 0:
            raise ValueError(f"epsilon: expected a number above 0, got {self.epsilon!r}")
        if not isinstance(self.group, str) or self.group not in _GROUPS:
            raise ValueError(f"group: expected one of {', '.join(_GROUPS)}, got {self.group!r}")
        if not callable(self.loss) and self.loss not in LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(LOSSES)} or a function, got {self.loss!r}")

    def sparsities(
        self,
        layers: Mapping[str, LayerInfo],
        pattern: Pattern,
        sparsity: float | None,
        importance: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """See `Allocation.sparsities`; `importance` holds the zeroth-order score of every layer."""
        self._refuse_groups(pattern)
        wanted = pattern.resolve_sparsity(sparsity)
        importance = importance or {}
        scores: dict[str, float] = {}
        sizes: dict[str, int] = {}
        group_of = {name: _GROUPS[self.group](name, layer) for name, layer in layers.items()}
        for name, group in group_of.items():
            if name not in importance:
                raise ValueError(f"{name}: ECoFLaP needs its zeroth-order score, none was given")
            scores[group] = scores.get(group, 0.0) + importance[name]
            sizes[group] = sizes.get(group, 0) + layers[name].size
        shares = ecoflap_sparsities(scores, sizes, wanted, self.max_sparsity)
        return {name: shares[group] for name, group in group_of.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a `loss` function cannot be written and is refused."""
        if callable(self.loss):
            raise ValueError("loss: a function cannot be written to a file; name one of the built-in losses")
        return {"kind": self.kind, **dataclasses.asdict(self)}
