"""The check that `benchmarks/gpu_scoring.py` makes on a GPU before it measures, made on the CPU."""

import importlib.util
from pathlib import Path

import pytest
import torch

from vlprune import ops


@pytest.fixture(scope="module")
def benchmark_script():
    path = Path(__file__).parents[2] / "benchmarks" / "gpu_scoring.py"
    spec = importlib.util.spec_from_file_location("gpu_scoring", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operators_have_the_bits_of_the_definition(benchmark_script):
    shapes = benchmark_script.SHAPES[:3]
    # Of each of 3 shapes, 3 dtypes, with and without ties: 9 masks, 2 packings, both ways again; 2 sums.
    assert benchmark_script.check("cpu", shapes) == 3 * 3 * 2 * (9 + 4) + 2


def test_every_selection_fits_every_shape(benchmark_script):
    for shape in benchmark_script.SHAPES:
        for pattern, sparsity, scope in benchmark_script.SELECTIONS:
            weight = torch.empty(shape, device="meta")
            assert ops.wanda_mask(weight, weight[0], pattern, sparsity, scope).shape == shape


def test_another_bit_ends_it(benchmark_script, monkeypatch):
    monkeypatch.setattr(ops, "wanda_mask", lambda weight, *_: torch.ones(weight.shape, dtype=torch.bool))
    with pytest.raises(SystemExit, match=r"wanda_mask \('2:4', None, 'row'\) \(1, 48\) bf16"):
        benchmark_script.check("cpu", benchmark_script.SHAPES[:1])
