"""Run with `pytest benchmarks`; these are measurements, and no part of the tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
