"""Wanda's score as an integer that can be compared, shared by every kernel that selects."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["LAST", "key_of", "sign_of"]

# Above the key of every finite score: what padding gets, so that it never goes before a real entry.
LAST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def sign_of(norm):
    """1, or -1 where the norm is below zero (which no NaN is): once a column."""
    return tl.where(norm < 0, -1, 1)


@triton.jit
def key_of(weight, norm, sign):
    """Integer in the order of the score |weight| * norm, which is rounded to float32 once.

    Rounding does not depend on signs, so the magnitude of weight * norm is that of the score, and the bits
    of non-negative floats order like integers. -0.0 becomes 0. NaN of either sign lies above infinity (a NaN
    of the weight under a negative norm below everything), so the order is total whatever the scores are.
    """
    return ((weight * norm).to(tl.int32, bitcast=True) & 0x7FFFFFFF) * sign
