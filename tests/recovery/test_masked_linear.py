"""The masked product and its gradients against the definition in float64."""

import pytest
import torch

from vlprune.recovery.masked_linear import effective_weight, masked_linear

W = torch.tensor([[1, 0.2, -3, 0.1], [0.3, 2, -0.1, 4]], dtype=torch.float64)
A = torch.tensor([[1.0, -1, 2, 0]], dtype=torch.float64)
B = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
M = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]).bool()


def case(out=300, inputs=7, rank=3, dtype=torch.float64, lead=(2, 5)):
    """Random x, W, A, B, M, bias."""
    keep = torch.rand(out, inputs) < 0.5
    shapes = (*lead, inputs), (out, inputs), (rank, inputs), (out, rank), (out,)
    x, w, a, b, bias = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return x, w, a, b, keep, bias


def test_effective_weight_golden():
    expected = torch.tensor([[2, 0, -1, 0], [0, 4, 0, 4]], dtype=torch.float64)
    assert torch.equal(effective_weight(W, A, B, 2.0, M), expected)
    plain = torch.tensor([[2, -1, -1, 0], [-2, 4, -4, 4]], dtype=torch.float64)
    assert torch.equal(effective_weight(W * M, A, B, 2.0, None), plain)


def test_half_precision_weight_is_rounded_once():
    _, w, a, b, keep, _ = case(dtype=torch.float32)
    half = w.bfloat16()
    exact = (half.double() + 0.5 * b.double() @ a.double()) * keep
    found = effective_weight(half, a, b, 0.5, keep)
    assert found.dtype == torch.bfloat16
    # half a unit in the last of 8 bits, and float32's own rounding beside it
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()
    assert ((found != 0) == keep).all()


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (2, 1, 3)], ids=["1-D", "2-D", "3-D", "4-D"])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_forward_and_gradients_equal_the_definition(lead, masked):
    x, w, a, b, keep, bias = case(lead=lead)
    keep = keep if masked else None
    given = [t.clone().requires_grad_() for t in (x, a, b, bias)]
    plain = [t.clone().requires_grad_() for t in (x, a, b, bias)]
    found = masked_linear(given[0], w, given[1], given[2], 0.7, keep, given[3])
    summed = w + 0.7 * plain[2] @ plain[1]
    expected = plain[0] @ (summed if keep is None else summed * keep).T + plain[3]
    towards = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (found * towards).sum().backward()
    (expected * towards).sum().backward()
    for own, other in zip(given, plain, strict=True):
        # sums of up to 300 products in float64
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-10, atol=1e-11)


def test_gradients_against_finite_differences():
    x, w, a, b, keep, bias = case(out=5, inputs=4, rank=2, lead=(3,))
    for t in (x, a, b, bias):
        t.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *t: masked_linear(t[0], w, t[1], t[2], 1.5, keep, t[3]), (x, a, b, bias)
    )


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_compiled_whole(autocast):
    x, w, a, b, keep, bias = case(out=33, inputs=20, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (x, a, b, bias)]

    def loss(x, a, b, bias):
        return masked_linear(x, w, a, b, 0.7, keep, bias).float().square().sum()

    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), loss(*leaves)
    torch.testing.assert_close(found, expected)
    for own, other in zip(*(torch.autograd.grad(each, leaves) for each in (found, expected)), strict=True):
        torch.testing.assert_close(own, other)


def test_first_step_gradients():
    # B = 0: nothing reaches A, and dB = s (G * M) A^T
    x, w, a, b, keep, _ = case(out=6, inputs=4, rank=2, lead=(3,))
    b.zero_()
    a.requires_grad_()
    b.requires_grad_()
    g = torch.randn(3, 6, dtype=torch.float64)
    masked_linear(x, w, a, b, 2.0, keep).backward(g)
    assert torch.equal(a.grad, torch.zeros_like(a))
    torch.testing.assert_close(b.grad, 2.0 * ((g.T @ x) * keep) @ a.detach().T, rtol=1e-12, atol=1e-12)


def test_only_the_arguments_are_held_for_backward():
    x, w, a, b, keep, bias = case(out=64, inputs=64, lead=(8,), dtype=torch.float32)
    a.requires_grad_()
    b.requires_grad_()
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.data_ptr()) or t, lambda t: t):
        masked_linear(x, w, a, b, 1.0, keep, bias)
    assert set(held) <= {t.data_ptr() for t in (x, w, a, b, keep)}


def test_autocast_takes_the_sum_in_float32_and_the_product_in_bf16():
    x, w, a, b, keep, bias = case(dtype=torch.float32)
    x.requires_grad_()
    a.requires_grad_()
    b.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = masked_linear(x, w, a, b, 0.7, keep, bias)
    assert found.dtype == torch.bfloat16
    weight = ((w + 0.7 * b @ a) * keep).detach().bfloat16().double()
    exact = x.detach().bfloat16().double() @ weight.T + bias.bfloat16().double()
    # a bf16 result of seven products
    assert (found.double() - exact).abs().max() <= exact.abs().max() * 2**-7
    found.float().sum().backward()
    assert (x.grad.dtype, a.grad.dtype, b.grad.dtype) == (torch.float32,) * 3
    g = torch.ones(10, 300, dtype=torch.float64)
    masked = (g.T @ x.detach().double().flatten(0, 1)) * keep
    exact_b = 0.7 * masked @ a.detach().double().T
    # G, A and dB are each rounded to bf16, over seven products that may cancel
    assert (b.grad.double() - exact_b).abs().max() <= exact_b.abs().max() * 2**-6
