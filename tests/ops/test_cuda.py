"""The operators on a GPU: the interpreter's cases, and what only a device has, such as streams and graphs."""

import pytest
import torch

from vlprune import ops
from vlprune.ops import backend

from .kernel_cases import CASES, matrix, run
from .kernel_watch import on_cpu, same

_reason = None if torch.cuda.is_available() else "there is no CUDA device"
_reason = _reason or backend.why_not("triton", "wanda_pack24")
pytestmark = pytest.mark.skipif(_reason is not None, reason=f"needs the kernels on a GPU: {_reason}")

HOWS = {
    "2:4": ("2:4",),
    "4:8": ("4:8",),
    "rows": ("unstructured", 0.5),
    "layer": ("unstructured", 0.5, "layer"),
}
every_how = pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)


@pytest.fixture(autouse=True)
def _chosen(monkeypatch):
    # Whatever the environment asks for.
    monkeypatch.setattr(backend, "_override", lambda: "auto")


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_definition(case):
    run(case, "cuda")


@every_how
def test_large(how):
    weight, norm = matrix("ties", 3000, 4096, torch.bfloat16, "cuda")
    same(ops.wanda_mask(weight, norm, *how), on_cpu("wanda_mask", weight, norm, *how))


def everything(weight, norm):
    """Results of every operator but the one that keeps a table."""
    masks = [ops.wanda_mask(weight, norm, *how) for how in HOWS.values()]
    return [*masks, *ops.wanda_pack24(weight, norm), ops.column_sumsq(weight)]


def expected(weight, norm):
    """What the definition makes of them, and of the sums what the kernel does, called alone."""
    masks = [on_cpu("wanda_mask", weight, norm, *how) for how in HOWS.values()]
    return [*masks, *on_cpu("wanda_pack24", weight, norm), ops.column_sumsq(weight)]


def test_host_does_not_wait():
    weight, norm = matrix("ties", 64, 512, torch.bfloat16, "cuda")
    everything(weight, norm)
    ops.wanda_pack24_many([weight, weight], [norm, norm])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = everything(weight, norm)
        many = ops.wanda_pack24_many([weight, weight], [norm, norm])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(results, expected(weight, norm), strict=True):
        same(one, other)
    for pair in many:
        for one, other in zip(pair, on_cpu("wanda_pack24", weight, norm), strict=True):
            same(one, other)


def captured(call):
    """Result of `call` in a CUDA graph, and the graph, not replayed yet."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return results, graph


def test_graph():
    weight, norm = matrix("ties", 64, 512, torch.bfloat16, "cuda")
    results, graph = captured(lambda: everything(weight, norm))
    for seed in range(3):
        generator = torch.Generator("cuda").manual_seed(seed)
        weight.normal_(generator=generator)
        graph.replay()
        for one, other in zip(results, expected(weight, norm), strict=True):
            same(one, other)


def test_graph_of_a_tower():
    from vlprune.kernels.wanda_pack24 import Tower

    matrices = [matrix("normal", rows, 256, torch.bfloat16, "cuda") for rows in (8, 40, 1)]
    weights, norms = zip(*matrices, strict=True)
    tower = Tower(weights, norms)
    packed, graph = captured(tower.pack)
    for weight in weights:
        weight.neg_().mul_(torch.rand_like(weight))
    graph.replay()
    for pair, weight, norm in zip(packed, weights, norms, strict=True):
        for one, other in zip(pair, on_cpu("wanda_pack24", weight, norm), strict=True):
            same(one, other)


def test_many_is_refused_in_a_graph():
    weight, norm = matrix("normal", 8, 64, torch.bfloat16, "cuda")
    graph = torch.cuda.CUDAGraph()
    with (
        torch.cuda.graph(graph),
        pytest.raises(ValueError, match="wanda_pack24_many: expected no CUDA graph"),
    ):
        ops.wanda_pack24_many([weight], [norm])
    assert len(ops.wanda_pack24_many([weight], [norm])) == 1


def late(stream):
    """Keep a stream busy, so that what does not wait for it comes too early."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)


def test_side_stream():
    weight, norm = matrix("ties", 64, 512, torch.bfloat16, "cuda")
    side = torch.cuda.Stream()
    late(torch.cuda.current_stream())
    weight.neg_()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results = everything(weight, norm)
    side.synchronize()
    for one, other in zip(results, expected(weight, norm), strict=True):
        same(one, other)


def test_tower_made_on_one_stream_and_packed_on_another():
    from vlprune.kernels.wanda_pack24 import Tower

    weight, norm = matrix("ties", 64, 512, torch.bfloat16, "cuda")
    torch.cuda.synchronize()
    made, packing = torch.cuda.Stream(), torch.cuda.Stream()
    late(made)
    with torch.cuda.stream(made):
        tower = Tower([weight], [norm])
    with torch.cuda.stream(packing):
        packed = tower.pack()
    packing.synchronize()
    for one, other in zip(packed[0], on_cpu("wanda_pack24", weight, norm), strict=True):
        same(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
def test_second_device():
    weight, norm = matrix("ties", 64, 512, torch.bfloat16, "cuda:1")
    assert torch.cuda.current_device() == 0
    for one, other in zip(everything(weight, norm), expected(weight, norm), strict=True):
        assert one.device == weight.device
        same(one, other)
    both = [matrix("ties", 8, 64, torch.bfloat16, device) for device in ("cuda:0", "cuda:1")]
    many = ops.wanda_pack24_many(*map(list, zip(*both, strict=True)))
    for pair, (weight, norm) in zip(many, both, strict=True):
        for one, other in zip(pair, on_cpu("wanda_pack24", weight, norm), strict=True):
            same(one, other)
