"""The masked low-rank update: every instruction-set variant and the public function against float64."""

import pytest
import torch

from vlprune import ops
from vlprune.ops import reference

from .cases import built_variant, built_variants, every_float, normal

CODES = {torch.float32: 0, torch.bfloat16: 1}
GUARD = 64
# Single entries, fewer than a vector, than a panel of two, whole panels, and one of them begun.
SHAPES = [(1, 1), (3, 5), (6, 16), (5, 31), (33, 77), (4, 64), (130, 257)]
RANKS = [0, 1, 4, 8, 16, 17, 64]


@pytest.fixture(params=built_variants("avx512"))
def variant(request):
    return built_variant(*request.param)


def case(rows, cols, rank, dtype=torch.float32, factors=torch.float32):
    """``(weight, a, b, keep)``."""
    keep = normal(rows, cols, seed=3) > 0
    a, b = normal(rank, cols, seed=1, dtype=factors), normal(rows, rank, seed=2, dtype=factors)
    return normal(rows, cols, dtype=dtype), a, b, keep


def check(found, weight, a, b, scale, keep):
    """Hold a result against float64: the rounding of its dtype, and a float32 sum's beside it."""
    product = scale * (b.double() @ a.double())
    exact = weight.double() + product
    # rank products and the weight, each rounded to 2^-24 of what there is in all, and the scale of B
    bound = (
        (a.shape[0] + 3)
        * 2.0**-24
        * (abs(scale) * b.double().abs() @ a.double().abs() + weight.double().abs())
    )
    if keep is not None:
        exact = torch.where(keep, exact, 0.0)
        zeros = found[~keep]
        assert torch.equal(zeros.view(torch.uint8), torch.zeros_like(zeros).view(torch.uint8))
    assert found.dtype is weight.dtype
    assert ((found.double() - exact).abs() <= bound + exact.abs() * torch.finfo(found.dtype).eps / 2).all()


def updated_by(variant, weight, a, b, keep, threads=1, out=None):
    """The native result; unwritten entries are NaN, and writing around its own raises."""
    native, isa = variant
    count = weight.numel()
    buffer = torch.full((count + 2 * GUARD,), torch.nan, dtype=weight.dtype)
    out = buffer[GUARD : GUARD + count].view(weight.shape) if out is None else out
    native.masked_update(
        weight.data_ptr(), CODES[weight.dtype], *weight.shape, a.data_ptr(), b.data_ptr(), a.shape[0],
        0 if keep is None else keep.data_ptr(), out.data_ptr(), threads, isa,
    )  # fmt: skip
    assert buffer[:GUARD].isnan().all(), "wrote before its output"
    assert buffer[GUARD + count :].isnan().all(), "wrote after its output"
    return out


def at_every_size(test):
    """The test for every dtype, rank and shape."""
    for mark in (
        pytest.mark.parametrize("dtype", CODES, ids=lambda dtype: str(dtype)[6:]),
        pytest.mark.parametrize("rank", RANKS),
        pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape))),
    ):
        test = mark(test)
    return test


@at_every_size
def test_every_variant(variant, shape, rank, dtype):
    weight, a, b, keep = case(*shape, rank, dtype)
    for mask in (keep, None):
        check(updated_by(variant, weight, a, b, mask), weight, a, b, 1.0, mask)


def test_a_factor_wider_than_the_cache(variant):
    # 400 ranks of 257 columns: four strips
    weight, a, b, keep = case(9, 257, 400)
    check(updated_by(variant, weight, a, b, keep), weight, a, b, 1.0, keep)


@pytest.mark.parametrize("threads", [2, 3, 40])
def test_threads_change_no_bit(variant, threads):
    weight, a, b, keep = case(301, 333, 8)
    found = updated_by(variant, weight, a, b, keep, threads)
    assert torch.equal(found, updated_by(variant, weight, a, b, keep))


def test_in_place(variant):
    weight, a, b, keep = case(37, 70, 8)
    expected = updated_by(variant, weight, a, b, keep)
    assert torch.equal(updated_by(variant, weight, a, b, keep, out=weight), expected)


def test_without_ranks_the_weight_keeps_its_bits(variant):
    weight, a, b, keep = case(5, 40, 0)
    weight[0, :4] = torch.tensor([-0.0, torch.inf, -torch.inf, 1e-42])
    keep[0, :4] = True
    found = updated_by(variant, weight, a, b, keep)
    assert torch.equal(found[keep].view(torch.int32), weight[keep].view(torch.int32))


def gradients_by(variant, grad, a, b, keep, threads=1):
    """The native gradients; unwritten entries are NaN, and writing behind them raises."""
    native, isa = variant
    rank = a.shape[0]
    buffers = [torch.full((count + GUARD,), torch.nan) for count in (a.numel(), b.numel())]
    native.masked_update_backward(
        grad.data_ptr(), CODES[grad.dtype], *grad.shape, a.data_ptr(), b.data_ptr(), rank,
        0 if keep is None else keep.data_ptr(), *(each.data_ptr() for each in buffers), threads, isa,
    )  # fmt: skip
    assert all(each[-GUARD:].isnan().all() for each in buffers), "wrote after its output"
    return buffers[0][:-GUARD].view(a.shape), buffers[1][:-GUARD].view(b.shape)


def check_gradients(found, grad, a, b, scale, keep, run=100):
    """Hold gradients against float64: sums of float32 in runs of so many, and the rounding of their dtype."""
    masked = grad.double() if keep is None else torch.where(keep, grad.double(), 0.0)
    exact = scale * b.double().T @ masked, scale * masked @ a.double().T
    sizes = b.double().abs().T @ masked.abs(), masked.abs() @ a.double().abs().T
    for own, other, size in zip(found, exact, sizes, strict=True):
        # products and sums are each rounded to 2^-24 of what there is in all, 16-bit results once more
        rounding = 0.0 if own.dtype.itemsize > 2 else torch.finfo(own.dtype).eps / 2 * other.abs()
        assert ((own.double() - other).abs() <= run * 2.0**-24 * abs(scale) * size + rounding).all()


@at_every_size
def test_gradients_of_every_variant(variant, shape, rank, dtype):
    grad, a, b, keep = case(*shape, rank, dtype)
    for mask in (keep, None):
        check_gradients(gradients_by(variant, grad, a, b, mask), grad, a, b, 1.0, mask)


@pytest.mark.parametrize("threads", [1, 2, 40])
def test_gradients_of_strips_and_threads(variant, threads):
    # 400 ranks of 257 columns: four strips
    for sizes in ((9, 257, 400), (301, 333, 8), (0, 7, 3), (7, 0, 3)):
        grad, a, b, keep = case(*sizes)
        check_gradients(gradients_by(variant, grad, a, b, keep, threads), grad, a, b, 1.0, keep)


@pytest.mark.parametrize("threads", [2, 8, 40])
@pytest.mark.parametrize(
    "sizes",
    [(60, 3001, 5), (130, 3001, 5), (700, 1501, 5), (1300, 30, 3)],
    ids=["one part", "fewer parts than threads", "a part a thread", "fewer panels than parts"],
)
def test_gradients_of_many_parts(variant, sizes, threads):
    grad, a, b, keep = case(*sizes)
    found = gradients_by(variant, grad, a, b, keep, threads)
    check_gradients(found, grad, a, b, 1.0, keep, run=max(sizes))
    again = gradients_by(variant, grad, a, b, keep, threads)
    assert all(torch.equal(*each) for each in zip(found, again, strict=True))


@pytest.mark.parametrize("dtype", CODES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("rank", [64, 65, 129, 192, 193, 200])
def test_high_ranks(rank, dtype):
    weight, a, b, keep = case(70, 90, rank, dtype)
    for mask in (keep, None):
        check(ops.masked_update(weight, a, b, 0.5, mask), weight, a, b, 0.5, mask)
        found = torch.ops.vlprune._masked_update_backward(weight, a, b, 0.5, mask)
        check_gradients(found, weight, a, b, 0.5, mask)
    weight[~keep] = torch.nan
    assert not ops.masked_update(weight, a, b, 0.5, keep)[~keep].any()
    found = torch.ops.vlprune._masked_update_backward(weight, a, b, 0.5, keep)
    check_gradients(found, weight.nan_to_num(), a, b, 0.5, keep)


def test_the_gradient_of_what_is_not_kept_goes_nowhere(variant):
    grad, a, b, keep = case(21, 70, 4)
    grad[~keep] = torch.nan
    check_gradients(gradients_by(variant, grad, a, b, keep), grad.nan_to_num(), a, b, 1.0, keep)


@every_float
@pytest.mark.parametrize(
    "factors",
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
    ],
    ids=lambda pair: "a {}, b {}".format(*(str(each)[6:] for each in pair)),
)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_gradients_have_the_dtypes_of_the_factors(dtype, factors, masked):
    grad, a, b, keep = case(33, 77, 8, dtype)
    a, b, keep = a.to(factors[0]), b.to(factors[1]), keep if masked else None
    for gradients in (torch.ops.vlprune._masked_update_backward, reference.masked_update_backward):
        found = gradients(grad.t().contiguous().t(), a, b, -0.5, keep)
        assert tuple(each.dtype for each in found) == factors
        check_gradients(found, grad, a, b, -0.5, keep)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_gradients_of_float16_may_be_beyond_its_range(masked):
    grad = torch.full((4, 6), 1000.0, dtype=torch.float16)
    keep = torch.ones(4, 6, dtype=torch.bool) if masked else None
    a, b = torch.full((2, 6), 100.0), torch.full((4, 2), 100.0)
    found = torch.ops.vlprune._masked_update_backward(grad, a, b, 1.0, keep)
    # sums of four and of six times 1e5: whole numbers, exact in float32
    assert torch.equal(found[0], torch.full((2, 6), 4e5))
    assert torch.equal(found[1], torch.full((4, 2), 6e5))


def test_gradients_are_traced():
    grad, a, b, keep = case(12, 24, 3)
    for mask in (keep, None):
        torch.library.opcheck(torch.ops.vlprune._masked_update_backward.default, (grad, a, b, 0.5, mask))


UNUSUAL = [torch.nan, -torch.nan, torch.inf, -torch.inf, -0.0, 1e-42]


@every_float
@pytest.mark.parametrize(
    "implementation", [ops.masked_update, reference.masked_update], ids=["chosen", "reference"]
)
def test_what_is_not_kept_is_zero_whatever_it_was(implementation, dtype):
    weight, a, b, keep = case(7, 40, 4, dtype)
    weight[2, : len(UNUSUAL)] = torch.tensor(UNUSUAL).to(dtype)
    weight[3, : len(UNUSUAL)] = torch.tensor(UNUSUAL).to(dtype)
    keep[2, : len(UNUSUAL)], keep[3, : len(UNUSUAL)] = False, True
    b[5] = torch.nan
    found = implementation(weight, a, b, 2.0, keep)
    zeros = found[~keep].view(torch.int16)
    assert torch.equal(zeros, torch.zeros_like(zeros))
    assert found[3, :2].isnan().all()
    assert found[3, 2:4].tolist() == [torch.inf, -torch.inf]
    assert found[5][keep[5]].isnan().all()
    untouched = torch.tensor([True] * 5 + [False, True])
    untouched[3] = False
    check(found[untouched], weight[untouched].nan_to_num(), a, b[untouched], 2.0, keep[untouched])


@every_float
@pytest.mark.parametrize(
    "factors", [None, torch.float32, torch.float64], ids=["as weight", "float32", "float64"]
)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_dtypes(dtype, factors, masked):
    weight, a, b, keep = case(33, 77, 8, dtype, factors or dtype)
    keep = keep if masked else None
    check(ops.masked_update(weight, a, b, -0.3, keep), weight, a, b, -0.3, keep)


def test_float64_is_summed_in_float64():
    weight, a, b, keep = case(33, 77, 8, torch.float64, torch.float64)
    expected = torch.where(keep, weight + 0.3 * b @ a, 0.0)
    torch.testing.assert_close(ops.masked_update(weight, a, b, 0.3, keep), expected, rtol=1e-14, atol=1e-14)


@every_float
def test_memory_layouts(dtype):
    wide, a, b, keep = case(40, 60, 4, dtype)
    for weight, left, right, mask in (
        (wide.t(), b.t(), a.t(), keep.t()),
        (wide[::2, 3:50], a[:, 3:50], b[::2], keep[::2, 3:50]),
        (wide[:1].expand(40, 60), a[:1].expand(4, 60), b[:, :1].expand(40, 4), keep[:1].expand(40, 60)),
    ):
        check(ops.masked_update(weight, left, right, 1.5, mask), weight, left, right, 1.5, mask)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 7, 0), (0, 0, 0)], ids=str)
def test_nothing_to_do(shape):
    weight, a, b, keep = case(*shape)
    assert torch.equal(ops.masked_update(weight, a, b, 1.0, keep), weight * keep)


def test_a_product_of_zeros_changes_nothing():
    weight, a, b, keep = case(33, 77, 8)
    assert torch.equal(ops.masked_update(weight, a, b * 0, 2.0, keep), weight * keep)


def test_autocast_changes_nothing():
    weight, a, b, keep = case(33, 77, 8, torch.float16)
    for given in (weight, weight.float()):
        expected = ops.masked_update(given, a, b, 2.0, keep)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ops.masked_update(given, a, b, 2.0, keep), expected)
