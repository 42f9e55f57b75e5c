"""`linear24` and the dense layer at the linear shapes of CLIP towers, each pair in one group.

The ratios that are published come from `vlprune bench`, which interleaves each pair in one run.
"""

import pytest
import torch
import torch.nn.functional as F

from vlprune import measure, ops
from vlprune.bench import BENCH_SHAPES, BENCH_TOKENS


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("tokens", BENCH_TOKENS)
@pytest.mark.parametrize("shape", BENCH_SHAPES, ids=lambda shape: f"{shape[0]}->{shape[1]}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_linear24(benchmark, dtype, shape, tokens, form):
    inputs, outputs = shape
    values, meta = ops.wanda_pack24(torch.randn(outputs, inputs).to(dtype), torch.ones(inputs))
    dense, bias = ops.unpack24(values, meta), torch.randn(outputs).to(dtype)
    x = torch.randn(tokens, inputs).to(dtype)
    exact = F.linear(x.double(), dense.double(), bias.double())
    measure.check_close("linear24", ops.linear24(x, values, meta, bias), exact)
    benchmark.group = f"{dtype} {inputs}->{outputs} {tokens} tokens"
    benchmark.extra_info.update(measure.machine_info())
    if form == "dense":
        benchmark.pedantic(F.linear, (x, dense, bias), rounds=10, warmup_rounds=3)
    else:
        benchmark.pedantic(ops.linear24, (x, values, meta, bias), rounds=10, warmup_rounds=3)
