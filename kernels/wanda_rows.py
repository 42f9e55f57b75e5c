"""Exact selection from rows: each row is read once and stays on chip, nothing is sorted.

The threshold is searched among the keys (see `scores`): a pass counts how many lie at or below a guess, over
keys that never leave the registers. A guess is interpolated between the counts on both sides of it, which on
normal weights takes 7 passes on average for rows of 768 to 4096 where bisection takes 11 to 14; after
`INTERPOLATED` of them bisection takes over, so that no row takes more than 32 passes more. A guess that
separates exactly as many entries as go ends the search; only where there are ties does it go on to the
threshold itself, and then the ties of the lowest indices go, told by a running count.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .scores import LAST, key_of, sign_of

__all__ = ["keep_of_units"]

# 32 keys a thread: with what a pass needs beside them that is 72 registers for rows of 1024 and 98 for those
# of 16384, 28 or 16 warps to a multiprocessor; where 16 does not divide the width, up to 115 for 1024 and 147
# for 8192. Up to 1024 entries a row is one warp's: a pass has no barrier.
KEYS_PER_WARP = 1024
INTERPOLATED = tl.constexpr(12)


@triton.jit
def _mask_units(weight, norm, keep, units, width, prune, BLOCK: tl.constexpr):
    unit = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    inside = lane < width
    place = unit.to(tl.int64) * width + lane
    scale = tl.load(norm + (unit % units) * width + lane, inside, other=0)
    value = tl.load(weight + place, inside, other=0).to(tl.float32)
    key = tl.where(inside, key_of(value, scale, sign_of(scale)), LAST)
    # Always: count of keys <= low is `below` < prune, count of keys <= high is `above` >= prune.
    low, below = tl.min(key).to(tl.int64) - 1, 0
    high, above = tl.max(tl.where(inside, key, -LAST)).to(tl.int64), width
    passes = 0
    while low + 1 < high:
        share = (prune - below).to(tl.float32) / (above - below).to(tl.float32)
        share = tl.where(passes < INTERPOLATED, share, 0.5)
        guess = low + ((high - low).to(tl.float32) * share).to(tl.int64)
        guess = tl.minimum(tl.maximum(guess, low + 1), high - 1)
        found = tl.sum((key <= guess.to(tl.int32)).to(tl.int32))
        if found == prune:
            # No ties are left over: the threshold is whatever comes next.
            low, below = guess, found
            high = guess + 1
        elif found < prune:
            low, below = guess, found
        else:
            high, above = guess, found
        passes += 1
    threshold = high.to(tl.int32)
    ties = prune - below
    stays = key >= threshold
    if ties > 0:
        equal = key == threshold
        stays &= (key > threshold) | (tl.cumsum(equal.to(tl.int32)) > ties)
    tl.store(keep + place, stays.to(tl.uint8), inside)


def keep_of_units(weight: Tensor, norm: Tensor, keep: Tensor, width: int, prune: int) -> None:
    """Fill `keep` (uint8) for units of `width` consecutive entries, of which 0 < `prune` < `width` go.

    `width` divides in and is at most `limits.max_unit(width)`; `weight` [out, in] and `norm` float32 [in] are
    contiguous.
    """
    block = triton.next_power_of_2(width)
    launch(
        _mask_units, (weight.numel() // width,), max(1, block // KEYS_PER_WARP),
        weight, norm, keep, weight.shape[1] // width, width, prune, BLOCK=block,
    )  # fmt: skip
