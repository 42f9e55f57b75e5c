"""linear24_scaled's way down to the CUDA kernels, on CPU tensors with `fake_cuda` instead of a GPU."""

import pytest
import torch

from vlprune import ops
from vlprune.ops import backend, gpu, reference
from vlprune.ops.cuda24 import dense8, entry, measure
from vlprune.ops.cuda24.problem import Problem

from . import fake_cuda
from .cases import normal, packed
from .fake_cuda import pretend_times
from .test_linear24 import ACTIVATIONS
from .test_linear24_scaled import every_dtype

CPU = torch.device("cpu")


def operands(dtype, *leading, out=24, inputs=64):
    values, meta = packed(out, inputs)
    x, x_scale = ops.quantize_rows(normal(*leading, inputs, seed=1), dtype)
    values, weight_scale = ops.quantize_rows(values, dtype)
    return x, x_scale, values, meta, weight_scale


def check(given, out_dtype=torch.bfloat16, bias=None, activation=None, residual=None, asked="auto"):
    got = entry.linear24_scaled(*given, out_dtype, bias, activation, asked, residual)
    right = reference.linear24_scaled(*given, out_dtype, bias, activation, residual)
    assert (got.dtype, got.shape) == (out_dtype, right.shape)
    # The pretended kernel sums in float32, so a result may be rounded to the neighbour.
    eps = torch.finfo(out_dtype).eps
    torch.testing.assert_close(got.float(), right.float(), rtol=eps, atol=eps / 16)


@every_dtype
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("ends", [(), ("bias", "residual")], ids="+".join)
def test_arguments_reach_the_kernel(kernels, monkeypatch, dtype, out_dtype, activation, ends):
    pretend_times(monkeypatch, sm90_64x32=1.0)
    given = operands(dtype, 2, 7)
    bias = normal(24, seed=2) if ends else None
    residual = normal(2, 7, 24, dtype=out_dtype, seed=3) if ends else None
    check(given, out_dtype, bias, activation, residual)
    call = kernels["sm90_scaled"].calls[-1]
    assert (call.config, call.tokens, call.out, call.in_, call.sms, call.stream) == (1, 14, 24, 64, 132, 77)
    assert (call.x, call.ldx, call.ldy) == (given[0].data_ptr(), 64, 24)
    assert (call.x_scale, call.w_scale) == (given[1].data_ptr(), given[4].data_ptr())
    assert (call.bias, call.residual) == tuple(0 if t is None else t.data_ptr() for t in (bias, residual))
    assert fake_cuda.DTYPES[call.dtype] is dtype
    assert fake_cuda.DTYPES[call.y_dtype] is out_dtype
    assert not kernels["sm90"].calls


@every_dtype
def test_memory_that_a_kernel_cannot_read_is_copied(kernels, monkeypatch, dtype):
    pretend_times(monkeypatch)
    x, x_scale, values, meta, weight_scale = operands(dtype, 9)
    wide = torch.zeros(9, 200, dtype=torch.int8).view(dtype)
    wide[:, 1:65] = x
    scales = torch.ones(2, 9)
    scales[0] = x_scale
    check((wide[:, 1:65], scales.t()[:, 0], values, meta, weight_scale))
    assert kernels["sm90_scaled"].calls[-1].ldx == 64
    padded = torch.zeros(9, 80, dtype=torch.int8).view(dtype)
    padded[:, :64] = x
    check((padded[:, :64], x_scale, values.t().contiguous().t(), meta, weight_scale))
    call = kernels["sm90_scaled"].calls[-1]
    assert (call.x, call.ldx) == (padded.data_ptr(), 80)


@every_dtype
def test_dense_rivals_are_two_and_the_choice_is_remembered(kernels, monkeypatch, dtype, tmp_path):
    timed = pretend_times(monkeypatch, sm90_64x32=1.0, dense=3.0, **{"dense in 16 bits": 2.0})
    given = operands(dtype, 50)
    for _ in range(2):
        check(given)
    names = [f"sm90, config {config}" for config in ("128x128", "64x32", "64x32 split")]
    assert timed == [["dense", "dense in 16 bits", *names]]
    monkeypatch.setattr(gpu, "why_none", lambda device: None)
    choice = ops.tune24(50, 24, 64, dtype, bias=False)
    assert (choice.backend, choice.config, choice.seconds, choice.dense) == ("sm90", "64x32", 1.0, 2.0)
    # another dtype of results is another kind of call
    ops.tune24(50, 24, 64, dtype, bias=False, out_dtype=torch.float16)
    assert len(timed) == 2
    check(given, torch.float16)
    assert len(timed) == 2
    (file,) = tmp_path.iterdir()
    assert f"auto {str(dtype)[6:]} bfloat16 56x64x24 none" in file.read_text()


@every_dtype
@pytest.mark.parametrize("tokens", [1, 16, 17, 50])
def test_what_no_kernel_takes_goes_to_pytorch(kernels, monkeypatch, dtype, tokens):
    for inputs, out in ((24, 24), (40, 20), (16, 16)):
        given = operands(dtype, tokens, out=out, inputs=inputs)
        monkeypatch.setattr(backend, "_override", lambda: "torch" if inputs == 16 else "auto")  # noqa: B023
        check(given, bias=normal(out), activation="gelu", residual=normal(tokens, out).bfloat16())
    assert not kernels["sm90_scaled"].calls


@pytest.mark.parametrize("leading", [(), (0,), (2, 0, 3), (2, 3, 5)], ids=str)
def test_leading_dimensions(kernels, monkeypatch, leading):
    pretend_times(monkeypatch)
    check(operands(torch.int8, *leading), residual=normal(*leading, 24).bfloat16())
    assert bool(kernels["sm90_scaled"].calls) == (0 not in leading)


@every_dtype
def test_what_is_wrong_is_dropped(kernels, monkeypatch, dtype):
    pretend_times(monkeypatch, sm90_128x128=1.0, sm90_64x32=2.0)
    kernels["sm90_scaled"].wrong.add(0)
    with pytest.warns(UserWarning, match="linear24_scaled: sm90, config 128x128 is not used for 50 tokens"):
        check(operands(dtype, 50))
    assert kernels["sm90_scaled"].calls[-1].config == 1


def test_a_backend_by_name(kernels, monkeypatch):
    pretend_times(monkeypatch)
    check(operands(torch.int8, 5), asked="sm90")
    said = r'linear24_scaled: backend "sm90" was asked for, but sm90\w* needs in_features divisible by 16'
    with pytest.raises(ValueError, match=said):
        check(operands(torch.int8, 5, inputs=24), asked="sm90")
    with pytest.raises(ValueError, match="linear24_scaled has no form on the sm80 backend"):
        check(operands(torch.int8, 5), asked="sm80")
    # The environment speaks of the operators that have such a form.
    monkeypatch.setattr(backend, "_override", lambda: "sm80")
    check(operands(torch.int8, 7))


def test_reasons(kernels, monkeypatch):
    def why_not(**asked):
        return ops.why_not("sm90", "linear24_scaled", device="cuda:0", **asked)

    assert why_not(dtype=torch.int8) is None
    assert why_not(dtype=torch.bfloat16) == (
        "linear24_scaled on the sm90 backend takes float8_e4m3fn or int8, not bfloat16"
    )
    sizes = {"in_features": 24, "out_features": 24, "tokens": 5}
    assert why_not(**sizes) == "sm90_scaled needs in_features divisible by 16"
    monkeypatch.setattr(gpu, "capability", lambda index: (10, 0))
    assert why_not() == "its instructions are those of compute capability 9.0 alone, cuda:0 has 10.0"


@every_dtype
def test_preparing(kernels, monkeypatch, dtype):
    values, meta = packed(24, 64)
    values, _ = ops.quantize_rows(values, dtype)
    entry.prepare24_cuda(values, meta)
    assert kernels["sm90_scaled"].reordered == [(24, 64)]
    # The same meta in the order of 16 bits is another thing.
    entry.prepare24_cuda(packed(24, 64, torch.bfloat16)[0], meta)
    assert kernels["sm90"].reordered == [(24, 64)]


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16], ids=str)
@every_dtype
def test_trust(dtype, out_dtype):
    problem = Problem(60, 24, 64, dtype, "gelu", True, True, out_dtype)
    given = measure.Operands(problem, CPU, 1)
    right = given.product()
    assert measure.trusted(given, lambda y: y.copy_(right))
    scales = given.scales[0]
    for wrong in (scales.x.flip(0), scales.x * 1.01):
        result = dense8.linear8(
            given.x[0], wrong, given.dense[0], scales.weight, out_dtype, given.bias, "gelu", given.residual
        )
        assert not measure.trusted(given, lambda y, result=result: result)
    for calls in given.rivals().values():
        error = measure.error_of(calls[0](), right.double())
        assert error < 0.1  # roundings of 16 bits, of the operands too


@pytest.fixture
def strict(monkeypatch):
    """PyTorch's product of int8, as particular as it is on a GPU."""
    product = torch._int_mm

    def checked(a, b):
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert a.data_ptr() % 16 == b.data_ptr() % 16 == 0
        assert a.shape[0] > 16
        assert a.shape[1] % 8 == b.shape[1] % 8 == 0 < a.shape[1] * b.shape[1]
        return product(a, b)

    monkeypatch.setattr(torch, "_int_mm", checked)


INT8_SIZES = {
    "few tokens": (3, 4096, 16), "many tokens": (40, 4096, 16), "odd": (3, 4100, 10),
    "no token": (0, 64, 8), "no output": (3, 64, 0), "no input": (3, 0, 8), "nothing": (0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize(("tokens", "inputs", "out"), INT8_SIZES.values(), ids=INT8_SIZES)
def test_the_fallback_sums_int8_exactly(strict, tokens, inputs, out):
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randint(128, shape, dtype=torch.int8, generator=generator)
        for shape in ((tokens, inputs), (out, inputs))
    )
    exact = x.double() @ weight.double().T
    assert inputs < 4096 or exact.max() > 2**24
    assert torch.equal(dense8.sums8(x, weight).double(), exact)


def test_what_the_fallback_need_not_pad_is_not_copied(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "_int_mm", lambda *given: seen.extend(t.data_ptr() for t in given) or given[0])
    x, weight = torch.ones(17, 64, dtype=torch.int8), torch.ones(16, 64, dtype=torch.int8)
    dense8.sums8(x, weight)
    assert seen == [x.data_ptr(), weight.data_ptr()]


def test_the_fallback_takes_any_view(strict):
    x, x_scale = ops.quantize_rows(torch.randn(20, 64))
    weight, weight_scale = ops.quantize_rows(torch.randn(16, 64))
    given = weight, weight_scale, torch.bfloat16
    right = dense8.linear8(x, x_scale, *given)
    wide = torch.zeros(21, 67, dtype=torch.int8)
    wide[1:, 3:] = x
    spread = torch.stack((x_scale, x_scale), dim=1)[:, 0]
    for view in (wide[1:, 3:], x.t().contiguous().t()):
        assert torch.equal(dense8.linear8(view, spread, *given), right)
