"""`ops.linear24` called again, with the operator's CPU tensors on a pretended GPU."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from vlprune import ops
from vlprune.ops import functional, reference
from vlprune.ops.cuda24 import entry, forms

from .again_calls import DTYPE, Call
from .cases import packed


class Another:
    """A form that is not compiled."""

    name, dtypes, ran = "cusparselt", frozenset({DTYPE}), 0

    def why_not_here(self, index):
        return None

    def why_not(self, problem):
        return None

    def able(self, problem):
        return ["only"]

    def runs(self, config, problem):
        return config == "only"

    def candidates(self, problem, x, values, weight, bias):
        return ["only"]

    def weight(self, values, meta, anew=False):
        return meta

    def run(self, config, x, values, weight, bias, residual, activation, y=None, scales=None, fresh=False):
        self.ran += 1
        assert x.dim() == 2
        return reference.linear24(x, values, weight, bias, activation, residual)


@pytest.fixture(autouse=True)
def registered(kernels, times, monkeypatch):
    library = torch.library.Library("vlprune", "IMPL")
    library.impl("linear24", entry.linear24, "CPU", allow_override=True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    yield
    library._destroy()


@pytest.fixture
def through(monkeypatch):
    """How often the dispatcher was asked."""
    seen, op = [], functional._linear24

    def dispatched(*arguments):
        seen.append(arguments)
        return op(*arguments)

    monkeypatch.setattr(functional, "_linear24", dispatched)
    return seen


def run(call):
    return ops.linear24(call.x, call.values, call.meta, call.bias, call.activation, residual=call.residual)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_asked_twice(kernels, through, mode):
    call = Call()
    with mode():
        for _ in range(4):
            call.x = torch.randn(2, 5, 48).to(DTYPE)
            call.check(run(call))
    assert len(through) == 2
    assert len(kernels["sm90"].calls) >= 4
    # not twice
    assert not entry._INSIDE._metas[id(call.meta)].calls


def test_what_comes_by_the_operator_alone_as_from_compiled_code(kernels, monkeypatch):
    call = Call()
    for _ in range(3):
        functional._linear24(*call.arguments())
    monkeypatch.setattr(entry, "_choose", None)
    monkeypatch.setattr(entry, "_chosen", {})
    call.check(functional._linear24(*call.arguments()))


def test_after_a_layer_norm_too(through):
    call = Call()
    norm = torch.ones(48, dtype=DTYPE), torch.zeros(48, dtype=DTYPE), 1e-5
    for _ in range(4):
        x = torch.randn(2, 5, 48).to(DTYPE)
        y = ops.linear24(
            x, call.values, call.meta, call.bias, call.activation, residual=call.residual, norm=norm
        )
        call.x = torch.nn.functional.layer_norm(x, (48,), *norm)
        call.check(y)
    assert len(through) == 2


def test_other_forms_too(kernels, through, monkeypatch):
    form = Another()
    monkeypatch.setitem(forms.FORMS, "linear24", {form.name: form})
    call = Call()
    for _ in range(4):
        call.x = torch.randn(2, 5, 48).to(DTYPE)
        call.values.data.mul_(-1)
        call.check(run(call))
    assert len(through) == 2
    assert form.ran >= 4
    assert not kernels["sm90"].calls


def test_with_a_gradient_every_time(through):
    call = Call()
    call.x.requires_grad_()
    for _ in range(2):
        run(call).sum().backward()
    assert len(through) == 2
    assert not entry.OUTSIDE._metas


def test_a_mode_that_comes_later_sees_it(through):
    call = Call()
    for _ in range(3):
        run(call)
    for watcher in (FlopCounterMode(display=False), torch.profiler.profile()):
        with watcher:
            run(call)
    assert len(through) == 4
    run(call)
    assert len(through) == 4


def test_what_a_mode_saw_first_is_not_remembered_with_it(through):
    call = Call()
    for _ in range(3):
        with FlopCounterMode(display=False):
            run(call)
    assert len(through) == 3
    assert not entry.OUTSIDE._metas


def test_tangents_go_the_long_way(through):
    call = Call(activation=None)
    for _ in range(3):
        run(call)
    with forward_ad.dual_level():
        tangent = torch.ones_like(call.x)
        call.x = forward_ad.make_dual(call.x, tangent)
        found = forward_ad.unpack_dual(run(call)).tangent
    dense = ops.unpack24(call.values, call.meta)
    torch.testing.assert_close(found.float(), tangent.float() @ dense.float().T, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_write_that_nobody_counts(through, forgotten):
    call = Call()
    for _ in range(3):
        before = run(call)
    call.meta.data.copy_(packed(24, 48, DTYPE, seed=5)[1])
    if forgotten:
        entry.prepare24_cuda(call.values, call.meta)
        call.check(run(call))
    else:
        assert torch.equal(run(call), before)
    assert len(through) == 2 + forgotten
