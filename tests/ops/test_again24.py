"""Calls of linear24 that are made again, on CPU tensors with `fake_cuda` instead of a GPU."""

import gc
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vlprune.ops import gpu
from vlprune.ops.cuda24 import again, entry, forms

from .again_calls import DTYPE, Call
from .cases import normal, packed
from .fake_cuda import pretend_times


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


def bias_elsewhere(call):
    call.bias.data = call.bias.data.clone()


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


def residual_unaligned(call):
    call.residual = torch.zeros(2 * 5 * 24 + 1, dtype=DTYPE)[1:].view(2, 5, 24)


def residual_of_another_dtype(call):
    call.residual = call.residual.half()


def gradient(call):
    call.x.requires_grad_()


CHANGES = [
    other_meta, another_shape_of_meta, other_values, other_dtype, other_strides_of_values, other_bias,
    bias_elsewhere,
    bias_in_strides, bias_with_another_sign, no_bias, input_with_another_sign, another_shape, another_dtype,
    in_strides, unaligned,
    subclass, another_backend, another_activation, no_residual, another_residual, residual_in_strides,
    residual_unaligned,
    residual_of_another_dtype, gradient,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_another_call_goes_the_long_way(call, change):
    assert call.again() is not None
    change(call)
    assert call.again() is None


FIRST = [
    other_strides_of_values, bias_in_strides, bias_with_another_sign, input_with_another_sign, in_strides,
    unaligned, subclass, residual_in_strides, residual_unaligned, gradient,
]  # fmt: skip


@pytest.mark.parametrize("change", FIRST, ids=lambda change: change.__name__)
def test_what_kernels_cannot_read_as_it_is_is_not_remembered(kernels, times, change):
    call = Call()
    change(call)
    call.first()
    assert call.again() is None


def test_nor_what_was_run_on_another_device(kernels, times, monkeypatch):
    call = Call()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(gpu, "is_current", lambda device: False)
        call.first()
    assert call.again() is None


def test_one_tensor_as_input_and_bias(kernels, times):
    call = Call(48, residual=False)
    call.values, call.meta = packed(48, 48, DTYPE)
    call.x = call.bias = normal(48, dtype=DTYPE)
    call.first()
    assert call.again() is None
    call.x = normal(48, dtype=DTYPE)
    call.check(call.first())
    call.check(call.again())
    # remembered with another input, of which guards want to be told apart
    call.x = call.bias
    assert call.again() is None
    call.residual = call.bias
    call.check(call.first())
    assert call.again() is None


@pytest.mark.parametrize("step", [48, 96, 480])
def test_the_stride_of_a_single_token_says_nothing(call, step):
    call.residual = None
    call.x = normal(1, 48, dtype=DTYPE)
    call.first()
    call.x = normal(step, dtype=DTYPE).as_strided((1, 48), (step, 1))
    call.check(call.again())


def test_variants_of_a_call_do_not_drive_each_other_out(call):
    with torch.inference_mode():
        call.first()
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad) * 2:
        with mode():
            call.check(call.again())


def test_variants_are_no_more_than_so_many(call, monkeypatch):
    for bits in range(2, 12):
        call.x.data = call.x.data.clone().as_strided(call.x.shape, call.x.stride())
        with torch.autocast("cpu", enabled=bits % 2 == 0, dtype=(DTYPE, torch.float16)[bits % 3 == 0]):
            call.first()
    assert all(len(each) <= again._VARIANTS for each in entry._INSIDE._metas[id(call.meta)].calls.values())


def test_what_is_seen_once_or_twice_is_not_remembered_yet(kernels, times):
    call = Call()
    for _ in range(2):
        entry.linear24(*call.arguments())
        assert call.again() is None
    entry.linear24(*call.arguments())
    call.check(call.again())


def test_without_pytorchs_guards_nothing_is_remembered(kernels, times, monkeypatch):
    monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    call = Call()
    call.check(call.first())
    assert call.again() is None


def test_what_is_no_name_is_left_to_the_checks(call):
    call.activation = ["gelu"]
    assert call.again() is None


def test_without_pytorchs_fast_allocation_there_is_the_slow_one(kernels, times, monkeypatch):
    monkeypatch.delattr(torch._C._dynamo.guards, "_empty_strided_cpu")
    call = Call()
    call.first()
    call.check(call.again())


def test_the_end_of_a_tensor_leaves_its_successor(call):
    key, gone = id(call.meta), weakref.ref(call.x)
    entry._INSIDE._gone(key, gone)
    call.check(call.again())


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


@pytest.mark.parametrize("anew", [True, False])
def test_forgotten_where_the_weight_is_prepared(call, anew):
    entry.prepare24_cuda(call.values, call.meta, anew=anew)
    assert call.again() is None


def test_forgotten_where_the_choice_may_change(call, monkeypatch):
    monkeypatch.setattr(gpu, "why_none", lambda device: None)
    entry.tune24(7, 24, 48, DTYPE, device="cuda")
    assert call.again() is None


def test_what_was_made_of_an_older_meta_goes_at_the_next_call(call):
    other_meta(call)
    call.x.requires_grad_()
    assert call.again() is None
    assert not entry._INSIDE._metas
