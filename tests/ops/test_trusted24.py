"""When a GPU's result is trusted: as its sums are, in whatever order and precision; not one place off."""

import pytest
import torch

from vlprune.ops import reference
from vlprune.ops.cuda24 import measure
from vlprune.ops.cuda24.problem import Problem

CPU = torch.device("cpu")


def summed_in_13_bits(x, weight):
    """E4M3 products as Hopper adds them: 32 at a time, cut off 13 bits below the largest addend."""
    sums = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64)
    for k in range(0, x.shape[1], 32):
        addends = [
            sums,
            *(x[:, k : k + 32].T.double()[:, :, None] * weight[:, k : k + 32].T.double()[:, None]),
        ]
        addends = torch.stack(addends)
        _, exponent = torch.frexp(addends.abs().amax(0))
        unit = torch.ldexp(torch.ones_like(sums), exponent - 14)
        sums = (addends / unit).trunc().sum(0) * unit
    return sums


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(50, 200, 1024), (13, 200, 704), (9, 64, 4096)], ids=str)
def test_e4m3_summed_by_tensor_cores(sizes, out_dtype):
    torch.manual_seed(0)
    operands = measure.Operands(Problem(*sizes, torch.float8_e4m3fn, None, True, False, out_dtype), CPU, 1)
    scales, bias = operands.scales[0], operands.bias
    sums = summed_in_13_bits(operands.x[0].float(), operands.dense[0].float())
    y = reference.scaled(sums.float(), scales.x, scales.weight, bias, None, None, out_dtype)
    assert measure.trusted(operands, lambda _: y)
    # a tenth of what results are
    y[3, 5] += 0.1 * y.float().std()
    assert not measure.trusted(operands, lambda _: y)


@pytest.mark.parametrize("sizes", [(1, 768, 3072), (7, 200, 704)], ids=str)
def test_float32_summed_one_after_the_other(sizes):
    torch.manual_seed(0)
    operands = measure.Operands(Problem(*sizes, torch.float32), CPU, 1)
    x, weight = operands.x[0], operands.dense[0]
    y = torch.zeros(sizes[0], sizes[1])
    for k in range(sizes[2]):
        y += x[:, k, None] * weight[:, k]
    assert measure.trusted(operands, lambda _: y)
    # one product is missing
    y[0, 3] -= x[0, -4:] @ weight[3, -4:] / 2
    assert not measure.trusted(operands, lambda _: y)
