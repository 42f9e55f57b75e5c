"""Derivatives in forward mode, and functions that torch.func transforms."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlprune import ops

from .cases import normal, packed

STEP = 1e-6


def slope(function, at, along):
    return (function(at + STEP * along) - function(at - STEP * along)) / (2 * STEP)


def functions():
    values, meta = packed(12, 24, torch.float64)
    dense, added = ops.unpack24(values, meta), normal(3, 12, dtype=torch.float64, seed=7)
    return {
        "linear24 in x": (lambda x: ops.linear24(x, values, meta, activation="gelu"), normal(3, 24)),
        "linear24 in residual": (
            lambda r: ops.linear24(normal(3, 24).double(), values, meta, residual=r),
            added,
        ),
        "linear24 in values": (lambda v: ops.linear24(normal(3, 24).double(), v, meta), values),
        "unpack24": (lambda v: ops.unpack24(v, meta), values),
        "pack24": (lambda w: ops.pack24(w)[0], dense),
        "head_attention": (lambda qkv: ops.head_attention(qkv, 2, causal=True), normal(2, 7, 24)),
    }


@pytest.mark.parametrize("name", functions())
def test_forward_mode(name):
    function, at = functions()[name]
    at = at.detach().double()
    # what is not kept by 2:4 stays zero
    along = torch.where(at == 0, 0.0, normal(*at.shape, seed=5).double())
    with sdpa_kernel(SDPBackend.MATH):
        _, tangent = torch.func.jvp(function, (at,), (along,))
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.unpack_dual(function(forward_ad.make_dual(at, along))).tangent
        expected = slope(function, at, along)
    # central differences: the step squared, and rounding by the step
    torch.testing.assert_close(tangent, expected, rtol=1e-7, atol=1e-7)
    assert torch.equal(dual, tangent)


# PyTorch says that it calls an operator without a rule once for each of a batch.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("where", [0, 2])
def test_attention_of_a_batch_more(where):
    qkv = normal(3, 2, 7, 24)
    got = torch.func.vmap(lambda own: ops.head_attention(own, 2), where)(qkv.movedim(0, where).contiguous())
    assert torch.equal(got, torch.stack([ops.head_attention(own, 2) for own in qkv]))


def test_gradients_by_torch_func():
    qkv = normal(2, 7, 24)
    got = torch.func.grad(lambda own: ops.head_attention(own, 2).square().sum())(qkv)
    qkv.requires_grad_()
    ops.head_attention(qkv, 2).square().sum().backward()
    assert torch.equal(got, qkv.grad)
