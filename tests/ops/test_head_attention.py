"""Attention from the packed projection, against its formula in float64."""

import math

import pytest
import torch

from vlprune import ops

from .cases import every_float, normal

# Products and softmax in the dtype or better; a few roundings of the result: as in the linear layers.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def formula(qkv, heads, causal, scale):
    batch, length, width = qkv.shape
    dim = width // 3 // heads
    q, k, v = (t.view(batch, length, heads, dim).transpose(1, 2) for t in qkv.double().split(width // 3, -1))
    logits = q @ k.transpose(-1, -2) * (1 / math.sqrt(dim) if scale is None else scale)
    if causal:
        logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width // 3)


@every_float
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("batch", "length", "heads", "dim"), [(1, 1, 1, 8), (2, 50, 3, 16), (3, 13, 5, 4)])
def test_equals_the_formula(dtype, causal, scale, batch, length, heads, dim):
    qkv = normal(batch, length, 3 * heads * dim, dtype=dtype)
    got = ops.head_attention(qkv, heads, causal, scale)
    bound = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), formula(qkv, heads, causal, scale), rtol=bound, atol=bound)


def test_strided_input_and_gradient():
    base = normal(2, 24, 5, dtype=torch.float64).requires_grad_()
    qkv = base.transpose(1, 2)
    torch.testing.assert_close(
        ops.head_attention(qkv, 2), formula(qkv, 2, False, None), rtol=1e-12, atol=1e-12
    )
    assert torch.autograd.gradcheck(lambda t: ops.head_attention(t.transpose(1, 2), 2, causal=True), base)
