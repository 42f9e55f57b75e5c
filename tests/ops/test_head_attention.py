"""Attention from the packed projection, against its formula in float64."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from vlprune import ops
from vlprune.measure import flops_of
from vlprune.ops import backend

from .cases import every_float, needs_native, normal

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


def traced_on_cuda(dtype, gradient=False, dim=16, **how):
    """Nodes of the graph that is made of a call on a CUDA tensor which is not there."""
    with FakeTensorMode():
        qkv = torch.empty(2, 50, 3 * 3 * dim, dtype=dtype, device="cuda", requires_grad=gradient)
        graph = make_fx(lambda x: ops.head_attention(x, 3, **how))(qkv).graph
    (end,) = (node for node in graph.nodes if node.op == "output")
    value = end.args[0].meta["val"]
    assert (value.dtype, value.device.type, value.shape) == (dtype, "cuda", (2, 50, 3 * dim))
    return {str(node.target): node.args[1:] for node in graph.nodes}


@pytest.fixture
def gpu(monkeypatch):
    """As if triton and a CUDA device were here."""
    monkeypatch.setattr(backend, "_why_not_triton", lambda op, device: None)
    monkeypatch.setattr(backend, "_override", lambda: "auto")


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_traces_to_the_kernel_on_cuda(gpu, dtype, gradient):
    nodes = traced_on_cuda(dtype, gradient, causal=True)
    assert nodes["vlprune._head_attention.default"] == (3, True, 0.25, gradient)


@pytest.mark.parametrize(
    ("dtype", "how"),
    [
        (torch.float64, {}),
        (torch.bfloat16, {"dim": 130}),
        (torch.bfloat16, {"scale": -0.5}),
    ],
    ids=["float64", "wide", "negative scale"],
)
def test_traces_to_pytorch_on_cuda_where_no_kernel_can(gpu, dtype, how):
    assert not [target for target in traced_on_cuda(dtype, **how) if "vlprune" in target]


@needs_native
def test_runs_natively_on_the_cpu_without_a_gradient(monkeypatch):
    called = []
    qkv = normal(2, 50, 3 * 3 * 16)
    native = ops.native.extension().head_attention
    monkeypatch.setattr(ops.native, "extension", lambda: Recorder(native, called))
    got = ops.head_attention(qkv, 3)
    assert called == [(2, 50, 3, 16)]
    wanting = qkv.clone().requires_grad_()
    assert ops.head_attention(wanting, 3).requires_grad
    ops.head_attention(qkv.to(torch.float16), 3)
    assert flops_of(lambda: ops.head_attention(qkv, 3))[0] == 2 * 2 * 2 * 3 * 50 * 50 * 16
    assert len(called) == 1
    with torch.no_grad():
        assert torch.equal(ops.head_attention(wanting, 3), got)
    assert len(called) == 2
    half = ops.head_attention(qkv.to(torch.bfloat16), 3)
    assert len(called) == 3
    torch.testing.assert_close(half, ops.head_attention(qkv.to(torch.bfloat16).float(), 3).to(torch.bfloat16))


class Recorder:
    """Stands in for the extension, and notes the sizes of each call."""

    def __init__(self, native, called):
        self.native, self.called = native, called

    def head_attention(self, *arguments):
        self.called.append(arguments[4:8])
        self.native(*arguments)


@needs_native
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, 1:, 24:],
        lambda t: t.transpose(0, 1),
        lambda t: t[:1].expand(3, -1, -1),
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    ],
    ids=["part", "batch second", "one sequence three times", "channels first"],
)
def test_reads_any_strides(view):
    qkv = view(normal(4, 9, 72))
    torch.testing.assert_close(
        ops.head_attention(qkv, 2).double(), formula(qkv, 2, False, None), rtol=1e-5, atol=1e-5
    )


def test_no_sequences_and_no_tokens():
    assert ops.head_attention(torch.empty(0, 5, 24), 2).shape == (0, 5, 8)
    assert ops.head_attention(torch.empty(2, 0, 24), 2).shape == (2, 0, 8)


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
def test_autocast_leaves_it_as_it_is(gradient):
    qkv = normal(2, 9, 24).requires_grad_(gradient)
    right = ops.head_attention(qkv, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.head_attention(qkv, 2)
    assert got.dtype is torch.float32
    assert torch.equal(got, right)


def test_on_a_device_without_a_form_of_its_own_it_is_made_of_pytorch_s():
    qkv = torch.empty(2, 9, 24, device="meta")
    flops, y = flops_of(lambda: ops.head_attention(qkv, 2))
    assert y.shape == (2, 9, 8)
    assert flops
