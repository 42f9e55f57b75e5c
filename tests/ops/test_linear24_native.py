"""Every instruction-set variant of the native linear24 against the dense product in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vlprune.ops import _threads

from .cases import built_variant, built_variants

DTYPE = {torch.float32: 0, torch.bfloat16: 1}
ACTIVATION = {None: 0, "gelu": 1, "quick_gelu": 2}
# float32: error of a sum of at most a few thousand products of size one, plus the activation's 4e-7.
# bfloat16: one rounding of the result, 2^-8 relative.
TOLERANCE = {torch.float32: (2e-6, 5e-6), torch.bfloat16: (8e-3, 2e-3)}


@pytest.fixture(params=built_variants("avx512", "avx512_bf16"))
def variant(request):
    return built_variant(*request.param)


def random_weight(out, inputs, dtype, seed=0):
    """A packed 2:4 weight and the dense matrix it stands for."""
    rng = np.random.default_rng(seed)
    groups = inputs // 4
    pairs = np.array(list(itertools.combinations(range(4), 2)))[rng.integers(6, size=(out, groups))]
    values = torch.from_numpy(rng.standard_normal((out, groups, 2), dtype=np.float32)).to(dtype)
    dense = torch.zeros(out, groups, 4, dtype=dtype).scatter_(2, torch.from_numpy(pairs), values)
    nibbles = (pairs[..., 0] | pairs[..., 1] << 2).astype(np.uint8)
    nibbles = np.pad(nibbles, ((0, 0), (0, groups % 2)))
    meta = torch.from_numpy(nibbles[:, ::2] | nibbles[:, 1::2] << 4).contiguous()
    return values.reshape(out, -1).contiguous(), meta, dense.reshape(out, inputs)


def aligned(size):
    buffer = torch.empty(size + 63, dtype=torch.uint8)
    return buffer, -(-buffer.data_ptr() // 64) * 64


def address_of(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def linear24(
    variant, x, values, meta, bias=None, activation=None, threads=2, residual=None, few=None, norm=None
):
    """The product with the form of the weight for so many tokens, or with the one that `few` says."""
    native, isa = variant
    out, inputs = values.shape[0], 2 * values.shape[1]
    dtype = DTYPE[x.dtype]
    if few is None:
        few = x.shape[0] < native.linear24_few_below(dtype, isa)
    # Poison catches reads of what prepare left out, and the guard rows catch writes past the end of y.
    prepared, address = aligned(native.linear24_prepared_bytes(dtype, out, inputs, few, isa))
    prepared.fill_(0xFF)
    native.linear24_prepare(values.data_ptr(), meta.data_ptr(), dtype, out, inputs, few, address, isa)
    scale, shift, eps = (None, None, 0.0) if norm is None else norm
    y = torch.full((x.shape[0] + 2, out), float("nan"), dtype=x.dtype)
    native.linear24(
        x.data_ptr(), x.stride(0), address_of(scale), address_of(shift), eps, address, few, address_of(bias),
        address_of(residual), dtype, x.shape[0], out, inputs, ACTIVATION[activation], y[1:].data_ptr(),
        threads, isa,
    )  # fmt: skip
    assert y[0].isnan().all(), "wrote before y"
    assert y[-1].isnan().all(), "wrote after y"
    return y[1:-1]


def dense_linear(x, weight, bias=None, activation=None):
    y = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if activation == "gelu":
        return torch.nn.functional.gelu(y)
    return y * torch.sigmoid(1.702 * y) if activation == "quick_gelu" else y


def assert_close(actual, expected):
    relative, absolute = TOLERANCE[actual.dtype]
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=relative, atol=absolute * max(scale, 1.0))


SHAPES = [(4, 1), (8, 17), (64, 16), (68, 33), (100, 40), (256, 96), (772, 50), (1600, 130)]
TOKENS = [1, 2, 3, 7, 8, 12, 13, 31, 40, 49, 50, 77, 128, 197, 261]


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("inputs", "out"), SHAPES, ids=[f"{i}to{o}" for i, o in SHAPES])
def test_equals_the_dense_product(variant, dtype, inputs, out):
    values, meta, dense = random_weight(out, inputs, dtype)
    bias = torch.randn(out, generator=torch.Generator().manual_seed(1)).to(dtype)
    for tokens in TOKENS:
        x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens)).to(dtype)
        assert_close(linear24(variant, x, values, meta, bias), dense_linear(x, dense, bias))


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("inputs", "out"), [(8, 17), (64, 16), (772, 50)], ids=["8to17", "64to16", "772to50"]
)
def test_residual_is_added_after_the_activation(variant, dtype, inputs, out):
    values, meta, dense = random_weight(out, inputs, dtype)
    for tokens in TOKENS:
        generator = torch.Generator().manual_seed(tokens)
        x = torch.randn(tokens, inputs, generator=generator).to(dtype)
        residual = torch.randn(tokens, out, generator=generator).to(dtype)
        got = linear24(variant, x, values, meta, None, "gelu", residual=residual)
        assert_close(got, dense_linear(x, dense, None, "gelu") + residual.double())


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("tokens", [5, 70])
def test_activation_is_applied_last(variant, dtype, activation, tokens):
    values, meta, dense = random_weight(24, 64, dtype)
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert_close(
        linear24(variant, x, values, meta, None, activation), dense_linear(x, dense, None, activation)
    )


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_activation_over_its_whole_range(variant, activation):
    # A weight that copies input 0, so y is act(x): the error is the activation's alone.
    x = torch.linspace(-30, 30, 60001)[:, None].repeat(1, 4).contiguous()
    values, meta = torch.tensor([[1.0, 0.0]]), torch.tensor([[0b0100]], dtype=torch.uint8)
    y = linear24(variant, x, values, meta, None, activation)[:, 0].double()
    expected = dense_linear(x[:, :1], torch.ones(1, 1), None, activation)[:, 0]
    torch.testing.assert_close(y, expected, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("activation", [None, "gelu", "quick_gelu"])
@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [3, 64])
def test_nan_and_infinity_reach_the_output(variant, activation, dtype, tokens):
    values, meta = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([[0b0100]], dtype=torch.uint8)
    x = torch.zeros(tokens, 4, dtype=dtype)
    x[0, 0], x[1, 0] = float("nan"), float("inf")
    y = linear24(variant, x, values, meta, None, activation)[:, 0]
    assert y[0].isnan()
    assert y[1] == float("inf")
    assert (y[2:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 9, 75])
def test_any_row_stride_and_alignment(variant, dtype, tokens):
    values, meta, dense = random_weight(40, 92, dtype)
    wide = torch.randn(tokens, 131, generator=torch.Generator().manual_seed(4)).to(dtype)
    x = wide[:, 5:97]
    assert_close(linear24(variant, x, values, meta), dense_linear(x, dense))


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 50, 197])
def test_thread_count_changes_no_bit(variant, dtype, tokens):
    values, meta, _ = random_weight(200, 132, dtype)
    x = torch.randn(tokens, 132, generator=torch.Generator().manual_seed(5)).to(dtype)
    alone = linear24(variant, x, values, meta, threads=1)
    for threads in (2, 3, 16, 64):
        assert torch.equal(linear24(variant, x, values, meta, threads=threads), alone), f"{threads} threads"


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
def test_a_token_does_not_depend_on_its_neighbours(variant, dtype):
    # With one form sums run in the same order whatever the register block, so a batch changes no bit.
    values, meta, _ = random_weight(48, 1000, dtype)
    x = torch.randn(200, 1000, generator=torch.Generator().manual_seed(6)).to(dtype)
    for few in (False, True):
        together = linear24(variant, x, values, meta, activation="gelu", few=few)
        for first, last in [(0, 1), (3, 14), (20, 70), (100, 200)]:
            part = linear24(variant, x[first:last], values, meta, activation="gelu", few=few)
            assert torch.equal(part, together[first:last]), f"tokens {first}:{last}, few: {few}"


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("few", [False, True], ids=["form for many", "form for few"])
@pytest.mark.parametrize("tokens", [1, 5, 17, 33, 60, 100])
def test_either_form_serves_any_number_of_tokens(variant, tokens, few, dtype):
    values, meta, dense = random_weight(50, 772, dtype)
    x = torch.randn(tokens, 772, generator=torch.Generator().manual_seed(10)).to(dtype)
    assert_close(linear24(variant, x, values, meta, few=few), dense_linear(x, dense))


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("few", [False, True], ids=["form for many", "form for few"])
def test_the_two_of_a_group_may_come_in_either_order(variant, few, dtype):
    values, meta, _ = random_weight(18, 200, dtype)
    x = torch.randn(20, 200, generator=torch.Generator().manual_seed(11)).to(dtype)
    turned = (meta & 0b0011_0011) << 2 | meta >> 2 & 0b0011_0011
    other = values.view(18, -1, 2).flip(-1).reshape(18, -1)
    got, expected = (linear24(variant, x, *weight, few=few) for weight in ((other, turned), (values, meta)))
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype][0], atol=TOLERANCE[dtype][1])


# The kept inputs of a group by row. Partners are chosen in tiles of 8 or 16 rows.
PICKS = {
    "all rows keep the same": lambda row: (0, 1),
    "every second row the others": lambda row: (0, 1) if row % 2 else (2, 3),
    "one row shares nothing": lambda row: (0, 1) if row == 3 else (2, 3),
    "one row shares half": lambda row: (0, 2) if row == 20 else (2, 3),
}


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("inputs", [128, 132, 260])
@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS)
def test_rows_may_keep_any_inputs_in_common(variant, dtype, pick, inputs):
    out, tokens = 37, 70
    values, meta, _ = random_weight(out, inputs, dtype)
    kept = torch.tensor([pick(row) for row in range(out)])
    nibbles = (kept[:, 0] | kept[:, 1] << 2).to(torch.uint8)
    meta[:] = (nibbles | nibbles << 4)[:, None]
    columns = kept[:, None, :].expand(-1, inputs // 4, -1)
    dense = torch.zeros(out, inputs // 4, 4, dtype=dtype).scatter_(2, columns, values.view(out, -1, 2))
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(8)).to(dtype)
    assert_close(linear24(variant, x, values, meta), dense_linear(x, dense.reshape(out, inputs)))


@pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("few", [False, True], ids=["form for many", "form for few"])
@pytest.mark.parametrize(
    "kept", list(itertools.combinations(range(4), 2)), ids=lambda kept: f"{kept[0]} and {kept[1]}"
)
@pytest.mark.parametrize(("inputs", "tokens"), [(68, 3), (68, 50), (228, 70)])
def test_infinity_at_an_input_stays_out_of_rows_without_it(variant, inputs, tokens, kept, few, dtype):
    # also where kept weights are padded to whole vectors
    values, meta, _ = random_weight(21, inputs, dtype)
    meta[:] = (kept[0] | kept[1] << 2) * 0b0001_0001
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(9)).to(dtype)
    expected = linear24(variant, x, values, meta, few=few)
    for other in {0, 1, 2, 3} - set(kept):
        x[:, other::4] = float("inf")
    assert torch.equal(linear24(variant, x, values, meta, few=few), expected)


def test_no_tokens_is_no_work(variant):
    values, meta, _ = random_weight(8, 8, torch.float32)
    assert linear24(variant, torch.empty(0, 8), values, meta).shape == (0, 8)


def test_own_pool_computes_the_same(variant):
    native, _ = variant
    values, meta, _ = random_weight(200, 132, torch.float32)
    x = torch.randn(64, 132, generator=torch.Generator().manual_seed(7))
    on_openmp = linear24(variant, x, values, meta, threads=4)
    native.set_openmp(0, 0, 0)
    try:
        for threads in (3, 4, 2):
            assert torch.equal(linear24(variant, x, values, meta, threads=threads), on_openmp)
    finally:
        _threads.install(native)


def test_float16_is_refused(variant):
    native, isa = variant
    with pytest.raises(ValueError, match="float16"):
        native.linear24_prepared_bytes(2, 8, 8, False, isa)
