"""Run with `pytest benchmarks`; these are measurements, and no part of the tests.

The cases are those of `vlprune bench`, whose interleaved ratios are what is published; here every call is a
benchmark of its own, so that pytest-benchmark can store and compare them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from vlprune import measure
from vlprune.bench import OURS, Case, Selection, Work, cases
from vlprune.bench.device import timed_calls


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-full", action="store_true", help="every shape, dtype and tower")
    parser.addoption("--bench-device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.addoption("--bench-rounds", type=int, default=7, help="of every call (default: 7)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each call of each case whose operator the module's `OPS` names."""
    if {"case", "name"} <= set(metafunc.fixturenames):
        config = metafunc.config
        chosen = cases(Selection(config.getoption("--bench-full")), config.getoption("--bench-device"))
        pairs = [
            (case, name) for case in chosen if case.op in metafunc.module.OPS for name in (OURS, *case.peers)
        ]
        ids = [f"{case.name}-{name}".replace(" ", "_") for case, name in pairs]
        metafunc.parametrize(("case", "name"), pairs, ids=ids)


@lru_cache(maxsize=1)
def _ready(case: Case, device: torch.device) -> tuple[Work, dict[str, Any]]:
    """A case that was made, checked, and is the same for its next call."""
    with torch.no_grad():
        work = case.make(device)
        work.check()
    return work, timed_calls(work, device)


@pytest.fixture
def run_case(benchmark, request):
    """Time one call of a case."""
    device = torch.device(request.config.getoption("--bench-device"))

    def run(case: Case, name: str) -> None:
        work, calls = _ready(case, device)

        def call() -> None:
            calls[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.group = case.name
        benchmark.extra_info.update(measure.machine_info(), operations=work.operations, **case.sizes)
        with torch.inference_mode():
            benchmark.pedantic(call, rounds=request.config.getoption("--bench-rounds"), warmup_rounds=2)

    return run
