"""The calibration statistic: every layout and weight, and precision over many rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlprune import ops

from .cases import FLOATS, normal


def exact(x, token_weight=None):
    squares = x.double().square()
    if token_weight is not None:
        squares = squares * token_weight.double().expand(x.shape[:-1])[..., None]
    return squares.flatten(0, -2).sum(0)


@settings(max_examples=60, deadline=None)
@given(
    leading=st.lists(st.integers(0, 5), min_size=0, max_size=3),
    inputs=st.integers(0, 40),
    dtype=st.sampled_from([*FLOATS.values(), torch.float64]),
)
def test_any_shape(leading, inputs, dtype):
    x = normal(*leading, inputs, dtype=dtype)
    got = ops.column_sumsq(x)
    assert got.dtype is torch.float32
    # Up to 125 rows: a few half-ulps of float32 a sum.
    torch.testing.assert_close(got.double(), exact(x[None]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (1, 7), (3, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=["float", "bool"])
def test_token_weights_broadcast(shape, dtype):
    x = normal(3, 7, 13)
    weight = normal(*shape, seed=1) if dtype is torch.float32 else normal(*shape, seed=1) > 0
    # Signed weights cancel, so an absolute bound: a few ulps of the sum of magnitudes (below 40).
    torch.testing.assert_close(ops.column_sumsq(x, weight).double(), exact(x, weight), rtol=1e-6, atol=4e-6)


def test_memory_layouts():
    x = normal(6, 10, 14)
    for view in (x.transpose(0, 1), x.permute(2, 0, 1), x[::2, 1:, 3:9], x[:1].expand(4, 10, 14)):
        torch.testing.assert_close(
            ops.column_sumsq(view).double(), exact(view), rtol=1e-6, atol=0, msg="a strided view"
        )


@pytest.mark.parametrize(
    "implementation", [ops.column_sumsq, ops.reference.column_sumsq], ids=["chosen", "reference"]
)
def test_a_million_rows_stay_exact(implementation):
    x = normal(1_000_000, 8)
    torch.testing.assert_close(implementation(x).double(), exact(x), rtol=1e-6, atol=0)


def test_half_precision_sums_beyond_its_range():
    x = torch.full((4, 2), 60000.0, dtype=torch.float16)
    torch.testing.assert_close(ops.column_sumsq(x).double(), exact(x), rtol=1e-6, atol=0)
