"""Calls of linear24 that are made again, on CPU tensors with `fake_cuda` instead of a GPU."""

import gc
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vlprune import ops
from vlprune.ops import functional, gpu, reference
from vlprune.ops.cuda24 import again, entry, forms

from .cases import TOLERANCE, exact, normal, packed
from .fake_cuda import pretend_times

DTYPE = torch.bfloat16


class Call:
    """One call and its tensors, each of which can be another."""

    def __init__(self, *leading, activation="gelu", residual=True):
        values, self.meta = packed(24, 48, DTYPE)
        self.values = torch.nn.Parameter(values, requires_grad=False)
        self.bias = normal(24, dtype=DTYPE)
        self.x = normal(*(leading or (2, 5)), 48, dtype=DTYPE)
        self.residual = normal(*self.x.shape[:-1], 24, dtype=DTYPE) if residual else None
        self.activation, self.backend = activation, "auto"

    def arguments(self):
        return self.x, self.values, self.meta, self.bias, self.activation, self.backend, self.residual

    def first(self):
        return entry.linear24(*self.arguments())

    def again(self):
        return entry._INSIDE.again(*self.arguments())

    def check(self, y):
        right = exact(self.x, self.values.detach(), self.meta, self.bias, self.activation)
        right = right if self.residual is None else right + self.residual.double()
        assert y.shape == right.shape
        assert y.is_contiguous()
        torch.testing.assert_close(y.double(), right, rtol=TOLERANCE[DTYPE], atol=TOLERANCE[DTYPE])


@pytest.fixture
def times(monkeypatch):
    return pretend_times(monkeypatch, sm90_64x32=1.0)


@pytest.fixture
def call(kernels, times):
    made = Call()
    assert made.again() is None
    made.first()
    return made


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("leading", [(5,), (2, 5), (3, 1, 2)], ids=str)
def test_the_same_result_whatever_the_numbers_are_by_then(kernels, times, leading, residual):
    call = Call(*leading, residual=residual)
    call.first()
    before = len(kernels["sm90"].calls)
    for _ in range(2):
        call.check(call.again())
        call.x = torch.randn(*leading, 48).to(DTYPE)
        # read where they are
        call.values.mul_(-1)
        call.bias.add_(1)
    assert len(kernels["sm90"].calls) == before + 2
    assert len(times) == 1


def test_a_layer_without_bias_or_activation(kernels, times):
    call = Call(activation=None, residual=False)
    call.bias = None
    call.first()
    call.check(call.again())


def test_inputs_shared_out_get_their_workspace(kernels, monkeypatch):
    pretend_times(monkeypatch, sm90_64x32_split=1.0)
    call = Call()
    call.first()
    call.check(call.again())
    assert kernels["sm90"].calls[-1].workspace


def other_meta(call):
    call.meta.copy_(packed(24, 48, DTYPE, seed=5)[1])


def another_shape_of_meta(call):
    call.meta.data = call.meta.data.view(-1)


def other_values(call):
    call.values.data = call.values.data.clone()


def other_dtype(call):
    call.values.data = call.values.data.view(torch.float16)


def other_strides_of_values(call):
    call.values.data = torch.as_strided(call.values.data, call.values.shape, (1, 24))


def other_bias(call):
    call.bias = call.bias.clone()


def bias_in_strides(call):
    call.bias.data = torch.stack([call.bias, call.bias], 1).view(48)[:24].as_strided((24,), (2,))


def bias_with_another_sign(call):
    call.bias = torch._neg_view(call.bias)


def no_bias(call):
    call.bias = None


def input_with_another_sign(call):
    call.x = torch._neg_view(call.x)


def another_shape(call):
    call.x = call.x[:1].clone()


def another_dtype(call):
    call.x = call.x.half()


def in_strides(call):
    call.x = torch.stack([call.x, call.x], 1)[:, 0]


def unaligned(call):
    call.x = torch.empty(2 * 5 * 48 + 1, dtype=DTYPE)[1:].view(2, 5, 48)


def subclass(call):
    call.x = call.x.as_subclass(type("Own", (torch.Tensor,), {}))


def another_backend(call):
    call.backend = "sm90"


def another_activation(call):
    call.activation = None


def no_residual(call):
    call.residual = None


def another_residual(call):
    call.residual = call.residual[:1]


def residual_in_strides(call):
    call.residual = torch.stack([call.residual, call.residual], 1)[:, 0]


def residual_of_another_dtype(call):
    call.residual = call.residual.half()


def gradient(call):
    call.x.requires_grad_()


CHANGES = [
    other_meta, another_shape_of_meta, other_values, other_dtype, other_strides_of_values, other_bias,
    bias_in_strides, bias_with_another_sign, no_bias, input_with_another_sign, another_shape, another_dtype,
    in_strides, unaligned,
    subclass, another_backend, another_activation, no_residual, another_residual, residual_in_strides,
    residual_of_another_dtype, gradient,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_another_call_goes_the_long_way(call, change):
    assert call.again() is not None
    change(call)
    assert call.again() is None


def test_what_was_another_is_remembered_too(call):
    other_meta(call)
    call.check(call.first())
    call.check(call.again())


def test_without_gradients_a_tensor_that_could_have_one_is_as_any(call):
    call.values.requires_grad_()
    with torch.no_grad():
        call.first()
        call.check(call.again())
    assert call.again() is None
    with torch.no_grad():
        call.check(call.again())


def test_whoever_watches_sees_the_operator(call):
    for watcher in (FlopCounterMode(display=False), FakeTensorMode(), torch.profiler.profile()):
        with watcher:
            assert call.again() is None
    assert call.again() is not None


def test_a_transform_has_tensors_without_addresses(call):
    def wrapped(x, bias):
        call.x, call.bias = x, bias
        assert call.again() is None
        return x

    x, bias = call.x, call.bias
    torch.vmap(wrapped)(torch.stack([x, x]), torch.stack([bias, bias]))
    torch.func.grad(lambda bias: wrapped(bias, x).sum())(bias)


def test_two_biases_in_turn(call):
    first, second = call.bias, call.bias + 1
    call.bias = second
    call.first()
    for bias in (first, second, first):
        call.bias = bias
        call.check(call.again())


def test_a_meta_of_several_weights_that_was_written_to_uncounted(call):
    other = Call()
    other.meta = call.meta
    other.values = torch.nn.Parameter(call.values.detach().clone(), requires_grad=False)
    other.first()
    call.meta.data.copy_(packed(24, 48, DTYPE, seed=5)[1])
    entry.prepare24_cuda(call.values, call.meta)
    for each in (call, other):
        each.check(each.first())
        each.check(each.again())


def test_kinds_are_no_more_than_so_many(call, monkeypatch):
    monkeypatch.setattr(again, "_MOST", 3)
    for tokens in range(1, 9):
        call.x, call.residual = normal(tokens, 48, dtype=DTYPE), normal(tokens, 24, dtype=DTYPE)
        call.first()
        call.check(call.again())
    assert len(entry._INSIDE._metas[id(call.meta)].calls) == 3


def test_what_comes_once_is_not_remembered(call):
    call.values = call.values[:]
    call.first()
    assert call.again() is None


def test_gone_with_the_weight(call):
    key, order = id(call.meta), weakref.ref(forms.FORMS["linear24"]["sm90"].weight(call.values, call.meta))
    assert key in entry._INSIDE._metas
    del call.meta
    gc.collect()
    assert key not in entry._INSIDE._metas
    assert order() is None


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


class TestThroughTheDispatcher:
    """`ops.linear24` as it is called, with the operator's CPU tensors on a pretended GPU."""

    @pytest.fixture(autouse=True)
    def registered(self, kernels, times, monkeypatch):
        library = torch.library.Library("vlprune", "IMPL")
        library.impl("linear24", entry.linear24, "CPU", allow_override=True)
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        yield
        library._destroy()

    @pytest.fixture
    def through(self, monkeypatch):
        """How often the dispatcher was asked."""
        seen, op = [], functional._linear24

        def dispatched(*arguments):
            seen.append(arguments)
            return op(*arguments)

        monkeypatch.setattr(functional, "_linear24", dispatched)
        return seen

    @staticmethod
    def run(call):
        return ops.linear24(
            call.x, call.values, call.meta, call.bias, call.activation, residual=call.residual
        )

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
    def test_asked_once(self, kernels, through, mode):
        call = Call()
        with mode():
            for _ in range(3):
                call.x = torch.randn(2, 5, 48).to(DTYPE)
                call.check(self.run(call))
        assert len(through) == 1
        assert len(kernels["sm90"].calls) >= 3

    def test_what_comes_by_the_operator_alone_as_from_compiled_code(self, kernels, monkeypatch):
        call = Call()
        functional._linear24(*call.arguments())
        monkeypatch.setattr(entry, "_choose", None)
        monkeypatch.setattr(entry, "_chosen", {})
        call.check(functional._linear24(*call.arguments()))

    def test_after_a_layer_norm_too(self, through):
        call = Call()
        norm = torch.ones(48, dtype=DTYPE), torch.zeros(48, dtype=DTYPE), 1e-5
        for _ in range(3):
            x = torch.randn(2, 5, 48).to(DTYPE)
            y = ops.linear24(
                x, call.values, call.meta, call.bias, call.activation, residual=call.residual, norm=norm
            )
            call.x = torch.nn.functional.layer_norm(x, (48,), *norm)
            call.check(y)
        assert len(through) == 1

    def test_other_forms_too(self, kernels, through, monkeypatch):
        form = Another()
        monkeypatch.setitem(forms.FORMS, "linear24", {form.name: form})
        call = Call()
        for _ in range(3):
            call.x = torch.randn(2, 5, 48).to(DTYPE)
            call.values.data.mul_(-1)
            call.check(self.run(call))
        assert len(through) == 1
        assert form.ran >= 3
        assert not kernels["sm90"].calls

    def test_with_a_gradient_every_time(self, through):
        call = Call()
        call.x.requires_grad_()
        for _ in range(2):
            self.run(call).sum().backward()
        assert len(through) == 2
        assert not entry.OUTSIDE._metas

    def test_a_mode_that_comes_later_sees_it(self, through):
        call = Call()
        self.run(call)
        for watcher in (FlopCounterMode(display=False), torch.profiler.profile()):
            with watcher:
                self.run(call)
        assert len(through) == 3
        self.run(call)
        assert len(through) == 3

    def test_what_a_mode_saw_first_is_not_remembered_with_it(self, through):
        call = Call()
        for _ in range(2):
            with FlopCounterMode(display=False):
                self.run(call)
        assert len(through) == 2
        assert not entry.OUTSIDE._metas


def test_another_current_device(call, monkeypatch):
    monkeypatch.setattr(gpu, "is_current", lambda device: False)
    assert call.again() is None


def test_inference_tensors_are_not_remembered(kernels, times):
    with torch.inference_mode():
        call = Call()
        call.first()
        assert call.again() is None


def test_an_error_is_told(call, kernels):
    kernels["sm90"].failing.add(1)
    with pytest.raises(RuntimeError, match="linear24: config 64x32 of the sm90 backend failed for 10 tokens"):
        call.again()


def test_the_input_added_to_its_own_result(kernels, times):
    values, meta = packed(48, 48, DTYPE)
    call = Call()
    call.values, call.meta, call.bias, call.residual = values, meta, normal(48, dtype=DTYPE), call.x
    call.first()
    call.check(call.again())
    call.residual = call.x.clone()
    assert call.again() is None


def test_a_bias_of_the_same_address_is_the_same(call):
    call.bias = call.bias.view(24)
    call.first()
    call.check(call.again())


def test_forgotten_where_the_choice_may_change(call):
    entry.forget()
    assert call.again() is None
