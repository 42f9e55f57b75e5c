"""linear24's way down to the CUDA kernels, on CPU tensors: `fake_cuda` stands in for kernels and GPU."""

import copy
import warnings

import pytest
import torch

from vlprune import ops
from vlprune.ops import backend, extensions, gpu
from vlprune.ops.cuda24 import chooser, entry, forms
from vlprune.ops.cuda24.problem import Problem

from .cases import native, normal, packed
from .fake_cuda import check, pretend_times
from .test_linear24 import ACTIVATIONS

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("ends", [(), ("bias",), ("residual",), ("bias", "residual")], ids="+".join)
def test_arguments_reach_the_kernel(kernels, monkeypatch, dtype, activation, ends):
    pretend_times(monkeypatch, sm90_64x32=1.0)
    values, meta = packed(24, 48, dtype)
    x = normal(2, 7, 48, dtype=dtype)
    bias = normal(24, dtype=dtype, seed=2) if "bias" in ends else None
    residual = normal(2, 7, 24, dtype=dtype, seed=3) if "residual" in ends else None
    check(x, values, meta, bias, activation, residual)
    call = kernels["sm90"].calls[-1]
    assert (call.config, call.tokens, call.out, call.in_, call.sms, call.stream) == (1, 14, 24, 48, 132, 77)
    assert (call.x, call.ldx, call.ldy, call.values) == (x.data_ptr(), 48, 24, values.data_ptr())
    assert call.bias == (0 if bias is None else bias.data_ptr())
    assert (call.residual, call.ldr) == ((0, 0) if residual is None else (residual.data_ptr(), 24))


def test_memory_that_a_kernel_cannot_read_is_copied(kernels, monkeypatch):
    pretend_times(monkeypatch)
    dtype = torch.bfloat16
    values, meta = packed(24, 48, dtype)
    wide = normal(9, 120, dtype=dtype)
    flat = normal(5000, dtype=dtype)
    inputs = {
        "tokens apart": wide[:, :48],
        "tokens apart, at a wrong address": wide[:, 1:49],
        "tokens at a wrong distance": normal(9, 49, dtype=dtype)[:, :48],
        "one token, of any stride": wide[:1, 8:56].t().t(),
        "one token repeated": wide[:1, :48].expand(9, 48),
        "inputs apart": wide[:, ::2][:, :48],
        "transposed": normal(48, 9, dtype=dtype).t(),
        "rows that overlap": flat.as_strided((9, 48), (8, 1)),
        "off by an element": flat[1 : 1 + 9 * 48].view(9, 48),
    }
    kept = {"tokens apart", "one token, of any stride"}
    bias, residual = flat[3:27], normal(9, 25, dtype=dtype, seed=4)[:, :24]
    for name, x in inputs.items():
        check(x, values, meta, bias, None, residual[: len(x)])
        assert (kernels["sm90"].calls[-1].x == x.data_ptr()) == (name in kept), name
    odd = flat[1 : 1 + 24 * 24].view(24, 24)
    check(inputs["tokens apart"], odd, meta)
    check(inputs["tokens apart"], values.t().contiguous().t(), meta)


@pytest.mark.parametrize("leading", [(), (3,), (0,), (2, 0, 3), (2, 3, 5)], ids=str)
def test_leading_dimensions(kernels, monkeypatch, leading):
    pretend_times(monkeypatch)
    values, meta = packed(24, 48, torch.float16)
    x = normal(*leading, 48, dtype=torch.float16)
    check(x, values, meta, residual=normal(*leading, 24, dtype=torch.float16))
    assert bool(kernels["sm90"].calls) == (0 not in leading)


def test_odd_numbers_of_groups(kernels, monkeypatch):
    # 16 inputs are two bytes of meta and 48 six; a byte that is half empty would be 4 inputs modulo 8.
    pretend_times(monkeypatch)
    for inputs in (16, 48, 80):
        values, meta = packed(8, inputs, torch.bfloat16)
        check(normal(3, inputs, dtype=torch.bfloat16), values, meta)


def test_workspaces_are_kept_a_stream_and_made_anew_in_a_graph(kernels, monkeypatch):
    pretend_times(monkeypatch, sm90_64x32_split=1.0)
    values, meta = packed(24, 48, torch.bfloat16)
    addresses = []
    for stream, tokens in ((1, 50), (1, 50), (1, 20), (2, 50), (1, 500), (1, 50)):
        monkeypatch.setattr(gpu, "stream_of", lambda index, stream=stream: stream)
        check(normal(tokens, 48, dtype=torch.bfloat16), values, meta)
        addresses.append(kernels["sm90"].calls[-1].workspace)
    first, same, smaller, other, larger, again = addresses
    assert first == same == smaller
    assert other != first
    assert larger == again != first
    monkeypatch.setattr(gpu, "capturing", lambda: True)
    assert not kernels["sm90"].calls[-1].fresh
    empty, nan = torch.empty, torch.tensor(255, dtype=torch.uint8)
    monkeypatch.setattr(torch, "empty", lambda *sizes, **how: empty(*sizes, **how).copy_(nan))
    check(normal(50, 48, dtype=torch.bfloat16), values, meta)
    assert kernels["sm90"].calls[-1].fresh
    assert kernels["sm90"].calls[-1].workspace not in (other, again)


@pytest.mark.parametrize("wanted", ["sm80", "sm90"])
def test_a_backend_by_name(kernels, monkeypatch, wanted):
    pretend_times(monkeypatch)
    values, meta = packed(24, 48, torch.bfloat16)
    x = normal(5, 48, dtype=torch.bfloat16)
    check(x, values, meta, asked=wanted)
    assert [name for name in kernels if kernels[name].calls] == [wanted]
    monkeypatch.setattr(backend, "_override", lambda: wanted)
    check(x[:1], values, meta)
    assert [name for name in kernels if kernels[name].calls] == [wanted]
    narrow, places = packed(24, 24, torch.bfloat16)
    with pytest.raises(
        ValueError, match=f'"{wanted}" was asked for, but {wanted} needs in_features divisible by 16'
    ):
        entry.linear24(normal(5, 24, dtype=torch.bfloat16), narrow, places, backend=wanted)


@pytest.mark.parametrize("override", ["torch", "cpu"])
def test_the_environment(kernels, monkeypatch, override):
    pretend_times(monkeypatch)
    monkeypatch.setattr(backend, "_override", lambda: override)
    values, meta = packed(24, 48, torch.bfloat16)
    check(normal(5, 48, dtype=torch.bfloat16), values, meta)
    # "cpu" is about tensors on the CPU, and says nothing of these.
    assert bool(kernels["sm90"].calls) == (override == "cpu")


@pytest.mark.parametrize(
    ("dtype", "inputs"), [(torch.float32, 48), (torch.float64, 48), (torch.bfloat16, 24)], ids=str
)
def test_what_no_kernel_takes_runs_by_the_reference(kernels, dtype, inputs):
    values, meta = packed(24, inputs, dtype)
    check(normal(5, inputs, dtype=dtype), values, meta)
    entry.prepare24_cuda(values, meta)
    assert not kernels["sm90"].calls
    assert not kernels["sm90"].reordered


def test_many_tokens_are_for_the_newest_kernels_alone(kernels):
    names = [list(chooser.able_forms(Problem(t, 64, 64, torch.bfloat16), "auto", CPU)) for t in (1024, 1025)]
    assert names == [["sm90", "sm80"], ["sm90"]]


def test_reasons(kernels, monkeypatch):
    def why_not(name, **asked):
        return ops.why_not(name, "linear24", device="cuda:0", **asked)

    assert why_not("sm90", dtype=torch.bfloat16) is None
    assert (
        why_not("sm90", dtype=torch.float32)
        == "linear24 on the sm90 backend takes bfloat16 or float16, not float32"
    )
    sizes = {"in_features": 24, "out_features": 24, "tokens": 5}
    assert why_not("sm80", **sizes) == "sm80 needs in_features divisible by 16"
    assert why_not("cusparselt") == "this PyTorch was built without cuSPARSELt"
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    assert why_not("cusparselt") is None
    assert why_not("cusparselt", **sizes) == "cuSPARSELt takes multiples of 16 inputs, not 24"
    monkeypatch.setattr(gpu, "capability", lambda index: (12, 0))
    assert why_not("sm90") == "its instructions are those of compute capability 9.0 alone, cuda:0 has 12.0"
    assert why_not("sm80") is None
    monkeypatch.setattr(gpu, "capability", lambda index: (7, 5))
    for name in ("sm90", "sm80", "cusparselt"):
        wanted = "9.0" if name == "sm90" else "8.0"
        assert why_not(name) == f"the kernels need a GPU of compute capability {wanted}, cuda:0 has 7.5"
    monkeypatch.setattr(gpu, "capability", lambda index: (9, 0))
    without, _ = extensions.cuda_extension()
    del without.sm80_launcher
    assert why_not("sm80") == "the CUDA extension was built without sm80"
    del extensions.extension().sm90_reorder_meta
    assert why_not("sm90") == "the native extension is older than the CUDA extension"
    monkeypatch.setattr(extensions, "cuda_extension", lambda: (None, "the CUDA extension is not built"))
    assert why_not("sm90") == "the CUDA extension is not built"


def test_weights_are_made_once_and_never_stale(kernels, monkeypatch):
    pretend_times(monkeypatch, sm90_64x32=1.0)
    values, meta = packed(24, 48, torch.bfloat16)
    x = normal(50, 48, dtype=torch.bfloat16)
    check(x, values, meta)
    made = kernels["sm90"].reordered
    count = len(made)
    check(x, values, meta)
    values.mul_(2)  # values are read where they are
    check(x, values, meta)
    check(x, values.clone(), meta)
    assert len(made) == count
    other = packed(24, 48, torch.bfloat16, seed=7)[1]
    meta.copy_(other)
    check(x, values, meta)
    meta.data = packed(24, 48, torch.bfloat16, seed=8)[1]
    check(x, values, meta)
    check(x, values, meta.clone())
    assert len(made) == count + 3
    form = forms.FORMS["linear24"]["sm90"]
    kept = len(form._weights)
    del other
    twin = copy.deepcopy(meta)
    check(x, values, twin)
    del twin
    assert len(form._weights) == kept


def test_preparing_sees_what_pytorch_does_not_count(kernels, monkeypatch):
    pretend_times(monkeypatch, sm90_64x32=1.0)
    values, meta = packed(24, 48, torch.bfloat16)
    x = normal(50, 48, dtype=torch.bfloat16)
    entry.prepare24_cuda(values, meta)
    check(x, values, meta)
    made = kernels["sm90"].reordered
    meta.data.copy_(packed(24, 48, torch.bfloat16, seed=7)[1])
    before = len(made)
    entry.prepare24_cuda(values, meta, anew=False)
    assert len(made) == before
    entry.prepare24_cuda(values, meta)
    assert len(made) == before + 1
    check(x, values, meta)


def test_a_default_device_is_not_where_the_host_works(kernels, monkeypatch):
    pretend_times(monkeypatch, sm90_64x32=1.0)
    values, meta = packed(24, 48, torch.bfloat16)
    with torch.device("meta"):
        entry.prepare24_cuda(values, meta)
    check(normal(50, 48, dtype=torch.bfloat16), values, meta)


@pytest.mark.parametrize("name", ["sm90", "sm80"])
def test_the_native_order_has_the_same_indices(monkeypatch, name):
    if not hasattr(native, f"{name}_reorder_meta"):
        pytest.skip("the native extension is not built, or older")
    monkeypatch.setattr(gpu, "capturing", lambda: False)
    # A multiple of every block, so that nothing is padded.
    _, meta = packed(256, 512)
    order = forms.FORMS["linear24"][name].weight(packed(256, 512)[0], meta)
    assert order.dtype is torch.uint8
    for half in (order & 15, order >> 4):
        assert set(half.tolist()) <= {4, 8, 12, 9, 13, 14}
    assert len(order) == meta.numel()
    both = [torch.cat((each & 15, each >> 4)).sort().values for each in (order, meta.flatten())]
    assert torch.equal(*both)


def test_inference_tensors_are_not_kept(kernels, monkeypatch):
    pretend_times(monkeypatch, sm90_64x32=1.0)
    with torch.inference_mode():
        values, meta = packed(24, 48, torch.bfloat16)
        x = normal(50, 48, dtype=torch.bfloat16)
        check(x, values, meta)
        meta.copy_(packed(24, 48, torch.bfloat16, seed=7)[1])
        check(x, values, meta)


def test_no_warning_without_a_reason(kernels, monkeypatch):
    pretend_times(monkeypatch)
    values, meta = packed(40, 80, torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for activation in ACTIVATIONS.values():
            check(
                normal(100, 80, dtype=torch.float16),
                values,
                meta,
                normal(40, dtype=torch.float16),
                activation,
            )
