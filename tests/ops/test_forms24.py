"""What linear24's forms by Triton and by cuSPARSELt are handed, on CPU tensors; when a result is trusted."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from vlprune.ops import backend, extensions, gpu, reference
from vlprune.ops.cuda24 import entry, measure
from vlprune.ops.cuda24 import few as few_tokens
from vlprune.ops.cuda24.problem import Problem

from . import fake_cuda
from .cases import normal, packed
from .fake_cuda import check, pretend_times
from .test_linear24 import ACTIVATIONS


class Config(NamedTuple):
    rows: int
    depth: int
    split: int
    warps: int
    stages: int


CONFIGS = tuple(Config(128, 64, split, 4, 5) for split in (2, 1, 4, 8, 16))


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """As if a GPU were here, without the compiled kernels."""
    kernels = fake_cuda.install(monkeypatch, tmp_path)
    monkeypatch.setattr(extensions, "cuda_extension", lambda: (None, "the CUDA extension is not built"))
    return kernels


@pytest.fixture
def few(alone, monkeypatch):
    """The Triton kernels, played by PyTorch; what they were called with."""
    calls = []

    def linear24_few(x, values, meta, bias, residual, activation, y, config=None, workspace=None):
        assert x.stride(1) == 1
        assert residual is None or residual.stride(1) == 1
        assert bias is None or bias.is_contiguous()
        y.copy_(
            reference.linear24(
                x.float(), values.float(), meta, None if bias is None else bias.float(), activation
            )
        )
        if residual is not None:
            y += residual
        calls.append((x, values, meta, config))

    module = SimpleNamespace(configs=lambda *sizes: CONFIGS, linear24_few=linear24_few)
    monkeypatch.setattr(few_tokens, "_kernels", lambda: module)
    monkeypatch.setattr(backend, "_why_not_triton", lambda op, device: None)
    few_tokens._by_name.cache_clear()
    yield calls
    few_tokens._by_name.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_few_tokens(few, monkeypatch, dtype, activation):
    timed = pretend_times(monkeypatch, **{"triton_128x64 split 4 warps 4 stages 5": 1.0})
    values, meta = packed(24, 44, dtype)
    bias, residual = normal(48, dtype=dtype)[::2], normal(24, 7, dtype=dtype, seed=3).t()
    for x in (normal(7, 44, dtype=dtype), normal(44, 7, dtype=dtype).t()):
        check(x, values, meta, bias, activation, residual)
        handed, kept, places, config = few[-1]
        assert config == CONFIGS[2]
        assert (kept is values, places is meta) == (True, True)
        assert (handed.data_ptr() == x.data_ptr()) == x.is_contiguous()
    assert [len(names) for names in timed] == [1 + few_tokens._TRIED]


def test_few_is_one_of_several(few, monkeypatch, tmp_path):
    kernels = fake_cuda.install(monkeypatch, tmp_path)
    monkeypatch.setattr(backend, "_why_not_triton", lambda op, device: None)
    timed = pretend_times(monkeypatch)
    values, meta = packed(24, 48, torch.bfloat16)
    check(normal(7, 48, dtype=torch.bfloat16), values, meta)
    assert {name.partition(",")[0] for name in timed[0]} == {"dense", "sm90", "sm80", "triton"}
    assert kernels["sm90"].calls


@pytest.fixture
def library(alone, monkeypatch):
    """PyTorch's functions for cuSPARSELt, played by PyTorch's dense product; what was asked of them."""
    calls = []

    def sparse_mm(weight, dense, bias=None, transpose_result=False, alg_id=0):
        assert transpose_result
        assert dense.shape[1] % 8 == 0
        assert dense.t().is_contiguous()
        calls.append((alg_id, tuple(dense.shape)))
        y = torch.nn.functional.linear(
            dense.t().float(), weight.float(), None if bias is None else bias.float()
        )
        return (y + (alg_id == 5)).to(weight.dtype)

    def search(weight, dense, bias=None, transpose_result=False):
        calls.append(("search", tuple(dense.shape)))
        return 3

    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: weight.clone())
    monkeypatch.setattr(torch, "_cslt_sparse_mm", sparse_mm)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", search)
    return calls


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("tokens", [1, 8, 13])
def test_cusparselt_where_nothing_else_can(library, monkeypatch, activation, tokens):
    timed = pretend_times(monkeypatch, **{"cusparselt_alg 3": 1.0})
    values, meta = packed(32, 48, torch.bfloat16)
    x = normal(tokens, 48, dtype=torch.bfloat16)
    bias, residual = normal(32, dtype=torch.bfloat16), normal(tokens, 32, dtype=torch.bfloat16, seed=3)
    # Three roundings (product, activation, sum) where the other forms have one.
    monkeypatch.setitem(check.__globals__["TOLERANCE"], torch.bfloat16, 3e-2)
    check(x, values, meta, bias, activation, residual)
    assert timed == [["dense", "cusparselt, config alg 0", "cusparselt, config alg 3"]]
    assert library[0] == ("search", (48, -(-tokens // 8) * 8))
    assert library[-1] == (3, (48, -(-tokens // 8) * 8))


def test_cusparselts_wrong_algorithms_are_dropped(library, monkeypatch):
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *_, **__: 5)
    pretend_times(monkeypatch, **{"cusparselt_alg 5": 1.0, "cusparselt_alg 0": 2.0})
    values, meta = packed(32, 48, torch.bfloat16)
    with pytest.warns(
        UserWarning, match="cusparselt, config alg 5 is not used for 8 tokens, .* its result is wrong"
    ):
        check(normal(8, 48, dtype=torch.bfloat16), values, meta)
    assert library[-1][0] == 0


def test_a_library_that_fails_is_left_alone(library, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: architecture mismatch\nwhen calling")

    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", fail)
    pretend_times(monkeypatch)
    values, meta = packed(32, 48, torch.bfloat16)
    with pytest.warns(UserWarning, match="cusparselt is not used for 8 tokens, .* architecture mismatch$"):
        check(normal(8, 48, dtype=torch.bfloat16), values, meta)
    assert not library


def test_cusparselt_is_not_searched_in_float16_on_hopper(library, monkeypatch):
    pretend_times(monkeypatch)
    values, meta = packed(32, 48, torch.float16)
    check(normal(8, 48, dtype=torch.float16), values, meta)
    assert {call[0] for call in library} == {0}


def test_cusparselt_is_started_in_no_other_thread(library, monkeypatch):
    inside = []

    def lasting(make, device):
        inside.append(1)
        made = make()
        inside.pop()
        return made

    monkeypatch.setattr(gpu, "lasting", lasting)
    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: [weight.clone()][len(inside)])
    pretend_times(monkeypatch)
    values, meta = packed(32, 48, torch.bfloat16)
    check(normal(8, 48, dtype=torch.bfloat16), values, meta)


def test_float32_by_tensor_cores_is_another_measurement(few, monkeypatch):
    timed = pretend_times(monkeypatch)
    values, meta = packed(24, 44)
    for precision in ("ieee", "tf32", "ieee", "tf32"):
        monkeypatch.setattr(entry, "_chosen", {})
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=precision))
        check(normal(7, 44), values, meta)
    assert len(timed) == 2


def test_cusparselt_makes_its_weight_anew_when_values_change(library, monkeypatch):
    pretend_times(monkeypatch)
    values, meta = packed(32, 48, torch.bfloat16)
    x = normal(8, 48, dtype=torch.bfloat16)
    check(x, values, meta)
    values.mul_(-2)
    check(x, values, meta)
    meta.copy_(packed(32, 48, torch.bfloat16, seed=7)[1])
    check(x, values, meta)
    monkeypatch.setattr(gpu, "capturing", lambda: True)
    check(x, values, meta)
    monkeypatch.setattr(gpu, "capturing", lambda: False)
    values.data.mul_(3)  # which PyTorch does not count
    entry.prepare24_cuda(values, meta)
    monkeypatch.setattr(gpu, "capturing", lambda: True)
    check(x, values, meta)
    values.mul_(2)
    with pytest.raises(RuntimeError, match="no form for the cusparselt backend yet"):
        entry.linear24(x, values, meta)


def test_random_weights_are_packed():
    for inputs in (4, 12, 64):
        values, meta = measure.random_packed(40, inputs, torch.bfloat16, "cpu")
        dense = reference.unpack24(values, meta)
        assert torch.equal(torch.stack(reference.pack24(dense)[1:]), meta[None])
        assert (dense.view(40, -1, 4) != 0).sum(-1).eq(2).all()


def test_trust():
    operands = measure.Operands(
        Problem(700, 24, 48, torch.bfloat16, "gelu", True, True), torch.device("cpu"), 1
    )
    right = operands.product()
    assert measure.trusted(operands, lambda y: right)
    assert measure.trusted(operands, lambda y: y.copy_(right))
    exact = F.linear(*(t.double() for t in (operands.x[0], operands.dense[0], operands.bias)))
    exact = F.gelu(exact) + operands.residual.double()
    assert measure.trusted(operands, lambda y: exact.bfloat16())
    for place in ((0, 0), (699, 23), (350, 7)):
        for wrong in (float("nan"), float("inf")):
            result = right.clone()
            result[place] = wrong
            assert not measure.trusted(operands, lambda y, result=result: result)
    # 512 of the 700 tokens are compared, the first and the last among them.
    for token in (0, 699):
        result = right.clone()
        result[token, 3] += 0.1
        assert not measure.trusted(operands, lambda y, result=result: result)
    assert not measure.trusted(operands, lambda y: y)
    assert not measure.trusted(operands, lambda y: right[:-1])
    assert not measure.trusted(operands, lambda y: right + 0.1)


def test_a_time_is_the_devices_a_call(monkeypatch):
    log, clock = [], [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    def call(name, milliseconds):
        def run():
            log.append(name)
            clock[0] += milliseconds

        return run

    host = iter([t for took in (1e-5, 1.0) * 5 for t in (0.0, took)])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append(cycles))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(host))
    times = measure.seconds_a_call({"a": [call("a", 1), call("a", 3)], "b": [call("b", 5)]}, rounds=3)
    monkeypatch.undo()
    assert times == {"a": 2e-3, "b": 5e-3}
    # Two rounds before the three. The device waits for twice what the host took before, 10 us at 2 GHz, and
    # at most for a fixed time a call.
    most = measure._CYCLES_A_CALL
    assert log == [2 * most, "a", "a", most, "b"] + [40_000, "a", "a", most, "b"] * 4


@pytest.mark.parametrize(("out", "inputs", "copies"), [(64, 64, 96), (512, 1024, 2), (2048, 1024, 1)])
def test_copies_leave_the_cache(monkeypatch, out, inputs, copies):
    about = SimpleNamespace(L2_cache_size=2**19)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    operands = measure.Operands(Problem(8, out, inputs, torch.bfloat16), torch.device("cpu"))
    assert operands.copies == len(operands.x) == len(operands.values) == len(operands.dense) == copies
    assert len({t.data_ptr() for t in operands.dense}) == copies
    read = sum(t.nbytes for t in (*operands.x, *operands.values)) + copies * operands.meta.nbytes
    assert read >= 2**20 or copies == measure._MOST_COPIES
