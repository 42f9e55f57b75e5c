"""linear24: the product, its gradients, and every form of input; against float64 arithmetic."""

import pytest
import torch

from vlprune import ops

from .cases import FLOATS, TOLERANCE, every_float, exact, needs_native, normal, packed

ACTIVATIONS = {"none": None, "gelu": "gelu", "quick_gelu": "quick_gelu"}
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
every_bias = pytest.mark.parametrize("biased", [False, True], ids=["no-bias", "bias"])


# The result is rounded to its dtype once by the native form and up to three times by the reference (product,
# bias, activation), half an ulp each: 1.5 ulp of 2^-7 in bfloat16, 2^-10 in float16; in float32 the sum of
# 70 products adds the rest. Absolute: the same relative to terms of size one, which may cancel.
def close(got, expected, dtype):
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [*FLOATS.values(), torch.float64], ids=[*FLOATS, "float64"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@every_activation
@every_bias
def test_equals_the_dense_product(dtype, backend, activation, biased):
    for out, inputs, tokens in ((1, 4, 1), (37, 68, 5), (48, 140, 33)):
        values, meta = packed(out, inputs, dtype)
        x, bias = normal(tokens, inputs, dtype=dtype), normal(out, dtype=dtype, seed=2) if biased else None
        got = ops.linear24(x, values, meta, bias, activation, backend=backend)
        assert got.dtype is dtype
        close(got, exact(x, values, meta, bias, activation), dtype)


@every_float
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_autocast_leaves_it_as_it_is(dtype, backend):
    values, meta = packed(10, 12, dtype)
    x, bias = normal(3, 12, dtype=dtype), normal(10, dtype=dtype)
    right = ops.linear24(x, values, meta, bias, "gelu", backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype is not torch.bfloat16 else torch.float16):
        got = ops.linear24(x, values, meta, bias, "gelu", backend=backend)
    assert got.dtype is dtype
    assert torch.equal(got, right)


@every_float
@pytest.mark.parametrize("leading", [(), (3,), (0,), (2, 0, 3), (2, 3, 5)], ids=str)
def test_leading_dimensions(dtype, leading):
    values, meta = packed(10, 12, dtype)
    x = normal(*leading, 12, dtype=dtype)
    got = ops.linear24(x, values, meta)
    assert got.shape == (*leading, 10)
    close(got, exact(x, values, meta, None, None), dtype)


@pytest.mark.parametrize(("out", "inputs"), [(0, 8), (6, 0)], ids=["no-outputs", "no-inputs"])
def test_empty_weights(out, inputs):
    values, meta = ops.pack24(torch.zeros(out, inputs))
    x, bias = normal(2, 3, inputs).requires_grad_(), normal(out).requires_grad_()
    y = ops.linear24(x, values, meta, bias)
    assert torch.equal(y, bias.expand(2, 3, out))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3, inputs))


@every_float
def test_memory_layouts(dtype):
    values, meta = packed(10, 12, dtype)
    bias = normal(20, dtype=dtype)[::2]
    base = normal(6, 12, 24, dtype=dtype)
    views = {
        "tokens apart": base[0, :, :12],
        "inputs apart": base[..., ::2],
        "transposed": base[..., :12].transpose(0, 1),
        "inputs outermost": base.permute(2, 0, 1)[::2].movedim(0, -1)[:, :12],
        "one token repeated": base[0, :1, :12].expand(5, 12),
    }
    for name, x in views.items():
        got = ops.linear24(x, values, meta, bias)
        assert got.is_contiguous(), name
        close(got, exact(x, values, meta, bias, None), dtype)
    wide = torch.stack((values, values), -1).flatten(1)[:, ::2]
    close(
        ops.linear24(views["tokens apart"], wide, meta),
        exact(views["tokens apart"], values, meta, None, None),
        dtype,
    )


@every_activation
@every_bias
def test_gradients_are_exact(activation, biased):
    values, meta = packed(5, 12, torch.float64)
    x = normal(2, 3, 12, dtype=torch.float64).requires_grad_()
    values.requires_grad_()
    bias = normal(5, dtype=torch.float64, seed=2).requires_grad_() if biased else None
    residual = normal(2, 3, 5, dtype=torch.float64, seed=4).requires_grad_() if biased else None
    inputs = (x, values) if bias is None else (x, values, bias, residual)

    def call(x, values, bias=None, residual=None):
        return ops.linear24(x, values, meta, bias, activation, residual=residual)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@needs_native
@every_float
@every_activation
def test_gradients_of_the_native_form(dtype, activation):
    values, meta = packed(40, 68, dtype)
    x, bias, weight = normal(3, 7, 68, dtype=dtype), normal(40, dtype=dtype, seed=2), normal(3, 7, 40, seed=3)
    grads = []
    for convert in (dtype, torch.float64):
        leaves = [t.to(convert).detach().requires_grad_() for t in (x, values, bias)]
        y = ops.linear24(leaves[0], leaves[1], meta, leaves[2], activation)
        (y.double() * weight).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for got, expected in zip(*grads, strict=True):
        assert got.dtype is dtype
        # Sums of up to 40 terms of size one; the gradient of the output is rounded too.
        bound = 4 * TOLERANCE[dtype]
        torch.testing.assert_close(got.double(), expected, rtol=bound, atol=bound)


def test_only_wanted_gradients_are_made():
    values, meta = packed(8, 16)
    x = normal(3, 16)
    y = ops.linear24(x, values.requires_grad_(), meta, normal(8))
    y.sum().backward()
    expected = x.sum(0).expand(8, 16)
    pairs = torch.stack((meta & 3, meta >> 2 & 3, meta >> 4 & 3, meta >> 6), -1).flatten(1).long()
    columns = pairs + torch.arange(4).repeat_interleave(2) * 4
    # Three float32 additions in either order.
    torch.testing.assert_close(values.grad, expected.gather(1, columns), rtol=1e-6, atol=1e-6)
    assert x.grad is None


def test_no_graph_without_need():
    values, meta = packed(8, 16)
    with torch.no_grad():
        assert not ops.linear24(normal(3, 16).requires_grad_(), values, meta).requires_grad
    with torch.inference_mode():
        assert ops.linear24(normal(3, 16), values, meta).is_inference()


@pytest.mark.parametrize("dtype", [*FLOATS.values(), torch.float64], ids=[*FLOATS, "float64"])
@every_activation
@every_bias
def test_residual_is_added_last(dtype, activation, biased):
    values, meta = packed(37, 68, dtype)
    x, bias = normal(2, 5, 68, dtype=dtype), normal(37, dtype=dtype, seed=2) if biased else None
    for residual in (
        normal(2, 5, 37, dtype=dtype, seed=3),
        normal(2, 37, 5, dtype=dtype, seed=3).transpose(1, 2),
        normal(1, 1, 37, dtype=dtype, seed=3).expand(2, 5, 37),
    ):
        before = residual.clone()
        got = ops.linear24(x, values, meta, bias, activation, residual=residual)
        assert got.is_contiguous()
        close(got, exact(x, values, meta, bias, activation) + residual.double(), dtype)
        assert torch.equal(residual, before)


def test_a_residual_alone_takes_the_gradient():
    values, meta = packed(8, 16)
    residual = normal(3, 8, seed=5).requires_grad_()
    slope = normal(3, 8, seed=6)
    ops.linear24(normal(3, 16), values, meta, residual=residual).backward(slope)
    assert torch.equal(residual.grad, slope)
