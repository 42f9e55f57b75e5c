"""Every instruction-set variant of the native attention against its formula in float64."""

import math

import pytest
import torch

from vlprune import ops

from .cases import built_variant, built_variants, normal
from .test_head_attention import formula

DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# Sums of at most some hundred products, e^x to 2e-7: like PyTorch's own float32 attention. In bfloat16 the
# result is rounded once, by 2^-9 of it at most, and twice that is allowed.
TOLERANCE = 5e-6
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8}

# Odd numbers of queries, keys and inputs: below and above six queries, one and two vectors of 8 or 16.
SIZES = [
    (1, 1, 1, 1), (1, 5, 2, 3), (2, 7, 1, 8), (1, 8, 3, 16), (3, 9, 2, 20), (2, 17, 3, 33), (1, 33, 2, 88),
    (2, 50, 6, 64), (1, 77, 2, 64), (1, 197, 2, 40), (1, 12, 1, 130),
]  # fmt: skip


@pytest.fixture(params=built_variants("avx512"))
def variant(request):
    return built_variant(*request.param)


def attention(variant, qkv, heads, causal=False, scale=None, threads=2):
    """The native result; what it leaves unwritten is NaN, and what it writes around its own raises."""
    native, isa = variant
    batch, length, width = qkv.shape
    dim = width // 3 // heads
    out = torch.full((batch + 2, length, heads * dim), math.nan, dtype=qkv.dtype)
    native.head_attention(
        qkv.data_ptr(), DTYPE[qkv.dtype], qkv.stride(0), qkv.stride(1), batch, length, heads, dim, causal,
        1 / math.sqrt(dim) if scale is None else scale, out[1:].data_ptr(), threads, isa,
    )  # fmt: skip
    assert out[0].isnan().all(), "wrote before its output"
    assert out[-1].isnan().all(), "wrote after its output"
    return out[1:-1]


@pytest.mark.parametrize("dtype", ROUNDING, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("sizes", SIZES, ids=["x".join(map(str, s)) for s in SIZES])
def test_equals_the_formula(variant, sizes, causal, dtype):
    batch, length, heads, dim = sizes
    qkv = normal(batch, length, 3 * heads * dim, seed=length).to(dtype)
    got = attention(variant, qkv, heads, causal)
    expected = formula(qkv, heads, causal, None)
    torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE + ROUNDING[dtype], atol=TOLERANCE)


def test_float16_is_refused(variant):
    with pytest.raises(ValueError, match="float16 is not computed natively"):
        attention(variant, normal(1, 3, 24).half(), 1)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 3.0])
def test_any_scale(variant, scale):
    qkv = normal(1, 19, 3 * 2 * 12)
    got = attention(variant, qkv, 2, scale=scale).double()
    torch.testing.assert_close(got, formula(qkv, 2, False, scale), rtol=1e-5, atol=1e-5)


def test_scores_far_apart(variant):
    # e^-1000 is zero in any float, and e^1000 must not be made on the way.
    qkv = torch.zeros(1, 9, 24)
    qkv[0, :, 0], qkv[0, :, 8], qkv[0, :, 16:] = 100.0, torch.arange(9.0) * 28.3 - 100, normal(9, 8)
    got = attention(variant, qkv, 1)
    torch.testing.assert_close(got, qkv[:, 8:, 16:].expand(1, 9, 8), rtol=1e-6, atol=1e-6)


def test_a_query_that_is_not_a_number_spoils_its_own_row_only(variant):
    qkv = normal(2, 20, 3 * 2 * 8)
    expected = attention(variant, qkv, 2)
    qkv[1, 3, 2] = math.nan
    got = attention(variant, qkv, 2)
    assert got[1, 3, :8].isnan().all()
    got[1, 3, :8] = expected[1, 3, :8]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", ROUNDING, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 3, 40])
def test_threads_change_no_bit(variant, threads, dtype):
    qkv = normal(3, 23, 3 * 3 * 16).to(dtype)
    assert torch.equal(attention(variant, qkv, 3, True, threads=threads), attention(variant, qkv, 3, True))


@pytest.mark.parametrize("dtype", ROUNDING, ids=["float32", "bfloat16"])
def test_strides_of_sequences_and_tokens(variant, dtype):
    wide = normal(11, 4, 101).to(dtype)
    qkv = wide[:, :, 3:75].transpose(0, 1)
    got, close = attention(variant, qkv, 3).double(), TOLERANCE + ROUNDING[dtype]
    torch.testing.assert_close(got, formula(qkv, 3, False, None), rtol=close, atol=TOLERANCE)


def test_gradients_through_vmap():
    """A batched tensor does not say that the one inside it needs a gradient."""
    qkv = normal(3, 2, 9, 36)
    leaves = [qkv.clone().requires_grad_() for _ in range(2)]
    torch.vmap(lambda one: ops.head_attention(one, 3))(leaves[0]).square().sum().backward()
    torch.stack([ops.head_attention(one, 3) for one in leaves[1]]).square().sum().backward()
    assert leaves[0].grad.any()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
