"""`linear24_scaled` and `quantize_rows` against numpy, with E4M3 from its definition."""

import math

import numpy as np
import pytest
import torch

from vlprune import ops

from .cases import normal, packed
from .test_linear24 import ACTIVATIONS

DTYPES = {"int8": torch.int8, "e4m3": torch.float8_e4m3fn}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
ENDS = [(), ("bias",), ("residual",), ("bias", "residual")]


def e4m3(code):
    """The number that a byte stands for (OCP 8-bit floating point specification, section 5.1)."""
    sign, exponent, mantissa = (-1 if code & 128 else 1), code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


TABLE = np.array([e4m3(code) for code in range(256)])


def numbers(tensor):
    """What the bytes of an 8-bit tensor stand for, in float64."""
    raw = tensor.contiguous().view(torch.uint8).numpy()
    return TABLE[raw] if tensor.dtype is torch.float8_e4m3fn else raw.view(np.int8).astype(np.float64)


def dense(values, meta):
    """The packed weight written out group by group."""
    kept, meta = numbers(values), meta.numpy()
    weight = np.zeros((len(kept), 2 * kept.shape[1]))
    for row in range(len(kept)):
        for group in range(kept.shape[1] // 2):
            nibble = meta[row, group // 2] >> (4 * (group % 2)) & 15
            weight[row, 4 * group + (nibble & 3)] = kept[row, 2 * group]
            weight[row, 4 * group + (nibble >> 2)] = kept[row, 2 * group + 1]
    return weight


def activated(z, activation):
    if activation is None:
        return z
    gelu = np.vectorize(lambda v: 0.5 * v * math.erfc(-v / math.sqrt(2)))
    return gelu(z) if activation == "gelu" else z / (1 + np.exp(-1.702 * z))


@every_dtype
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("ends", ENDS, ids="+".join)
def test_against_brute_force(dtype, out_dtype, activation, ends):
    values, meta = packed(10, 20)  # five groups: half a byte of the last is empty
    values, weight_scale = ops.quantize_rows(values, dtype)
    x, x_scale = ops.quantize_rows(normal(2, 7, 20, seed=1), dtype)
    bias = normal(10, seed=2) if "bias" in ends else None
    residual = normal(2, 7, 10, dtype=out_dtype, seed=3) if "residual" in ends else None
    got = ops.linear24_scaled(
        x, x_scale, values, meta, weight_scale, bias, activation, out_dtype=out_dtype, residual=residual
    )
    assert got.dtype is out_dtype
    right = numbers(x) @ dense(values, meta).T * x_scale.double().numpy()[..., None]
    right = right * weight_scale.double().numpy()
    right = activated(right if bias is None else right + bias.double().numpy(), activation)
    right = right if residual is None else right + residual.double().numpy()
    # Rounded once to out_dtype, after a few roundings of float32.
    eps = torch.finfo(out_dtype).eps
    np.testing.assert_allclose(got.double().numpy(), right, rtol=eps * 0.502, atol=1e-6)


@every_dtype
def test_sums_are_exact(dtype):
    """A large number and its negative far apart leave the smallest one, in any order of adding."""
    inputs = 4096
    values, meta = ops.pack24(torch.tensor([[1.0, 1.0, 0, 0]]).repeat(1, inputs // 4))
    values = values.to(dtype)
    largest, least = (127, 1) if dtype is torch.int8 else (448.0, 2.0**-9)
    row = torch.zeros(inputs)
    row[0], row[1], row[inputs - 4] = largest, least, -largest
    one = torch.ones(1)
    got = ops.linear24_scaled(row[None].to(dtype), one, values, meta, one)
    assert got.item() == least
    # And the sum of all the largest, beyond what float16 and 16 bits hold, and exactly a bfloat16.
    full = torch.full((1, inputs), 64.0).to(dtype)
    scaled = ops.linear24_scaled(full, one, (values.float() * 64).to(dtype), meta, one)
    assert scaled.item() == 64 * 64 * inputs / 2


@every_dtype
@pytest.mark.parametrize("leading", [(), (3,), (0,), (2, 0, 3)], ids=str)
def test_leading_dimensions(dtype, leading):
    values, meta = packed(6, 8)
    values, scale = ops.quantize_rows(values, dtype)
    x, x_scale = ops.quantize_rows(normal(*leading, 8), dtype)
    y = ops.linear24_scaled(x, x_scale, values, meta, scale)
    assert (y.shape, y.dtype) == ((*leading, 6), torch.bfloat16)
    right = (numbers(x) @ dense(values, meta).T) * x_scale.numpy()[..., None] * scale.numpy()
    np.testing.assert_allclose(y.double().numpy(), right, rtol=2**-8, atol=1e-6)


@every_dtype
@pytest.mark.parametrize("bad", [math.inf, math.nan], ids=str)
def test_a_token_that_is_not_finite_spoils_itself_alone(dtype, bad):
    values, meta = packed(6, 8)
    values, scale = ops.quantize_rows(values, dtype)
    x = normal(3, 8)
    x[1, 2] = bad
    y = ops.linear24_scaled(*ops.quantize_rows(x, dtype), values, meta, scale)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


def nearest(scaled, dtype):
    """The nearest number of the dtype by search, among equals the one whose code is even."""
    if dtype is torch.int8:
        return np.clip(np.rint(scaled), -127, 127)
    codes = np.array([code for code in range(256) if math.isfinite(TABLE[code])])
    distance = np.abs(TABLE[codes] - scaled[..., None]) + (codes % 2) * 1e-12
    return TABLE[codes[distance.argmin(-1)]]


@every_dtype
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_quantized_rows(dtype, of):
    x = normal(3, 5, 33, dtype=of)
    q, scale = ops.quantize_rows(x, dtype)
    largest = 127 if dtype is torch.int8 else 448
    wide = x.float().numpy()
    expected = np.abs(wide).max(-1) / np.float32(largest)
    assert (q.dtype, scale.dtype) == (dtype, torch.float32)
    np.testing.assert_array_equal(scale.numpy(), expected)
    np.testing.assert_array_equal(numbers(q), nearest((wide / expected[..., None]).astype(np.float64), dtype))
    assert (np.abs(numbers(q)).max(-1) == largest).all()


def test_ties_go_to_even():
    row = torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert ops.quantize_rows(row)[0].tolist() == [[127, 0, 2, 2, 0, -2]]
    # E4M3 has steps of 1/8 between 1 and 2.
    row = torch.tensor([[448, 1.0625, 1.1875, -1.0625]])
    assert ops.quantize_rows(row, torch.float8_e4m3fn)[0].float().tolist() == [[448, 1, 1.25, -1]]


@every_dtype
def test_special_rows(dtype):
    smallest = 2.0**-149
    rows = torch.tensor(
        [[0.0, -0.0, 0.0], [smallest, 0, -smallest], [1, math.inf, -1], [1, math.nan, 2], [3e38, 1, 0]]
    )
    q, scale = ops.quantize_rows(rows, dtype)
    assert (scale[[0, 1, 4]] > 0).all()
    assert scale[[0, 1, 4]].isfinite().all()
    assert not scale[2:4].isfinite().any()
    assert (numbers(q)[:2] == 0).all()
    assert numbers(q)[4].tolist() == [127.0 if dtype is torch.int8 else 448.0, 0, 0]


@every_dtype
def test_what_is_2_of_4_stays_so(dtype):
    weight = normal(16, 64).unflatten(1, (16, 4))
    weight[..., 2:] = 0
    q, scale = ops.quantize_rows(weight.flatten(1), dtype)
    dense_first = q.float() * scale[:, None]
    values, meta = ops.pack24(weight.flatten(1))
    packed_q, packed_scale = ops.quantize_rows(values, dtype)
    assert torch.equal(packed_scale, scale)
    assert torch.equal(ops.unpack24(packed_q.float(), meta) * scale[:, None], dense_first)


@every_dtype
def test_both_compile_into_one_graph(dtype):
    values, meta = packed(6, 8)
    values, weight_scale = ops.quantize_rows(values, dtype)

    def layer(x):
        q, scale = ops.quantize_rows(x, dtype)
        return ops.linear24_scaled(q, scale, values, meta, weight_scale, out_dtype=torch.float16)

    x = normal(3, 8)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_opcheck_of_e4m3():
    values, meta = packed(6, 8)
    (values, scale), (x, x_scale) = (ops.quantize_rows(t, DTYPES["e4m3"]) for t in (values, normal(3, 8)))
    # All but the check of the schema, which multiplies its arguments: PyTorch has no such product for E4M3.
    checks = ("test_faketensor", "test_aot_dispatch_dynamic", "test_autograd_registration")
    arguments = (x, x_scale, values, meta, scale, torch.float16)
    torch.library.opcheck(torch.ops.vlprune.linear24_scaled.default, arguments, test_utils=checks)


@every_dtype
def test_error_is_that_of_eight_bits(dtype):
    """Relative to float64's product of what was not quantised: 1/127 and E4M3's half step, averaged out."""
    values, meta = packed(64, 768)
    x = normal(50, 768, seed=5)
    right = x.double() @ ops.unpack24(values, meta).double().T
    (q, x_scale), (qv, weight_scale) = ops.quantize_rows(x, dtype), ops.quantize_rows(values, dtype)
    got = ops.linear24_scaled(q, x_scale, qv, meta, weight_scale).double()
    error = (got - right).norm() / right.norm()
    # int8: steps of 3.5/127 of the deviation in both, uniform: 2^0.5 * 3.5/127/12^0.5 = 1.1 %; E4M3: relative
    # steps of 1/8 at most, about 2.6 % each.
    assert 0.004 < error < (0.02 if dtype is torch.int8 else 0.05)
