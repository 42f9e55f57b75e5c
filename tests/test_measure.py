"""The timing harness: order, counts, statistics, and the gate before it."""

import pytest
import torch

from vlprune import measure


def test_candidates_are_interleaved():
    calls = []
    measure.compare({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, warmup=2, rounds=7)
    assert calls == ["a", "b"] * 9


def test_a_known_ratio_is_found(monkeypatch):
    """Under a clock of our own the ratio of the medians is exact, and drift hits both alike."""
    now = 0.0

    def work(seconds):
        nonlocal now
        now += seconds * (1 + now)  # the machine gets slower and slower

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    times = measure.compare({"slow": lambda: work(4e-3), "fast": lambda: work(1e-3)}, warmup=1, rounds=9)
    assert times["slow"].samples == times["fast"].samples == 9
    assert times["slow"].median / times["fast"].median == pytest.approx(4.0, rel=0.02)
    assert times["slow"].p20 <= times["slow"].median <= times["slow"].p80


def test_short_calls_get_more_rounds(monkeypatch):
    now = 0.0

    def work():
        nonlocal now
        now += 1e-3

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    times = measure.compare({"a": work}, warmup=0, rounds=5, min_seconds=0.05)
    assert times["a"].samples == pytest.approx(50, abs=1)


def test_budget_cuts_rounds_but_leaves_six():
    times = measure.compare({"a": lambda: None}, warmup=0, rounds=500, max_seconds=0.0)
    assert times["a"].samples == 6


def test_percentiles_of_known_samples():
    timing = measure.Timing.of([float(i) for i in range(10, -1, -1)])
    assert (timing.median, timing.p20, timing.p80, timing.samples) == (5.0, 2.0, 8.0, 11)


def test_cold_runs_flush_before_each_call(monkeypatch):
    monkeypatch.setattr(measure, "_FLUSH_BYTES", 16)
    flushed = []
    original = torch.Tensor.add_
    monkeypatch.setattr(torch.Tensor, "add_", lambda t, v: flushed.append(1) or original(t, v))
    measure.compare({"a": lambda: None, "b": lambda: None}, warmup=1, rounds=5, cold=True)
    assert len(flushed) == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gate_lets_the_dtypes_own_rounding_pass(dtype):
    x, w = torch.randn(40, 512).to(dtype), torch.randn(300, 512).to(dtype)
    measure.check_close("product", x @ w.T, x.double() @ w.double().T)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda y: y + 0.2 * y.std(), "largest error"),
        (lambda y: torch.full_like(y, float("nan")), "not finite"),
        (lambda y: y[1:], "expected shape"),
    ],
    ids=["off", "nan", "shape"],
)
def test_gate_stops_a_wrong_result(spoil, message):
    y = torch.randn(20, 30)
    with pytest.raises(ValueError, match=f"product: .*{message}"):
        measure.check_close("product", spoil(y), y)


def test_gate_grants_twice_the_peers_error():
    exact = torch.randn(50, 60)
    peer = exact + 0.1
    assert measure.check_close("tower", exact + 0.19, exact, peer) > 0.15
    with pytest.raises(ValueError, match="tower: largest error"):
        measure.check_close("tower", exact + 0.21, exact, peer)


def test_machine_info_names_everything_a_number_needs():
    info = measure.machine_info()
    assert info["torch"] == torch.__version__
    assert info["threads"] == torch.get_num_threads()
    assert info["cpu"]
    assert info["isa"]


@pytest.mark.parametrize("kwargs", [{"candidates": {}}, {"candidates": {"a": print}, "rounds": 0}])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match="compare: expected"):
        measure.compare(**kwargs)


@pytest.mark.parametrize("heads", [4, 2], ids=["as many", "fewer"])
def test_attention_on_a_cpu_is_counted_and_its_gradient(heads):
    q = torch.randn(2, 4, 50, 16, requires_grad=True)
    k, v = (torch.randn(2, heads, 50, 16, requires_grad=True) for _ in range(2))

    def forward():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=heads < 4)

    once = 2 * 2 * 4 * 50 * 50 * 16
    with torch.no_grad():
        flops, out = measure.flops_of(forward)
    assert (flops, out.shape) == (2 * once, q.shape)
    # five products in the gradient, two of which are made again
    assert measure.flops_of(lambda: forward().sum().backward())[0] == 7 * once
