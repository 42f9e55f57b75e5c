"""The C++ scoring and packing loops against the PyTorch definitions: bit for bit, every instruction set.

Outputs are filled with another pattern first, so an element that is not written shows; a guard beyond the
end shows what is written too far.
"""

import pytest
import torch

from vlprune.ops import reference

from .cases import every_float, every_isa, native, needs_native, normal

pytestmark = needs_native

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
GUARD = 64
# Rows of whole vectors, of one group more, shorter than a vector, and a layer's.
SHAPES = {
    "1x4": (1, 4),
    "3x12": (3, 12),
    "5x8": (5, 8),
    "7x36": (7, 36),
    "33x100": (33, 100),
    "96x768": (96, 768),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_threads = pytest.mark.parametrize("threads", [1, 3])


def poisoned(count, dtype):
    """A buffer of `count` and a guard after it, every byte 0xA5."""
    return torch.full(((count + GUARD) * dtype.itemsize,), 0xA5, dtype=torch.uint8).view(dtype)


def unguarded(buffer, *shape):
    guard = buffer[-GUARD:].view(torch.uint8)
    assert (guard == 0xA5).all(), "written beyond the end"
    return buffer[:-GUARD].view(shape)


def tied(shape, dtype, seed=0):
    """Weights of which many have equal magnitudes, some are zero of either sign."""
    weight = (normal(*shape, seed=seed) * 2).round() / 2
    return weight.to(dtype)


def mask(weight, norm, group, prune, isa, threads=1):
    rows, cols = weight.shape
    keep = poisoned(rows * cols, torch.uint8)
    bad = native.wanda_mask(
        weight.data_ptr(), CODES[weight.dtype], rows, cols, norm.data_ptr(), group, prune, keep.data_ptr(),
        threads, isa,
    )  # fmt: skip
    return bad, unguarded(keep, rows, cols)


def packed_by(call, weight, norm, isa, threads=1):
    rows, cols = weight.shape
    values, meta = poisoned(rows * cols // 2, weight.dtype), poisoned(rows * ((cols + 7) // 8), torch.uint8)
    norms = () if norm is None else (norm.data_ptr(),)
    bad = call(
        weight.data_ptr(), CODES[weight.dtype], rows, cols, *norms, values.data_ptr(), meta.data_ptr(),
        threads, isa,
    )  # fmt: skip
    return bad, unguarded(values, rows, cols // 2), unguarded(meta, rows, (cols + 7) // 8)


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@every_isa
@every_float
@every_shape
@every_threads
@pytest.mark.parametrize("weights", [normal, tied], ids=["normal", "tied"])
def test_masks(isa, dtype, shape, threads, weights):
    weight = weights(shape, dtype=dtype) if weights is tied else normal(*shape, dtype=dtype)
    norm = normal(shape[1], seed=1).abs()
    cols = shape[1]
    cases = [("unstructured", s, scope) for s in (0.0, 0.01, 0.5, 0.83, 1.0) for scope in ("row", "layer")]
    cases += [("1:4", None, "row"), ("2:4", None, "row"), ("3:4", None, "row")]
    cases += [
        (f"{n}:{m}", None, "row") for n, m in ((4, 8), (2, 8), (7, 16), (1, 3), (5, 12)) if cols % m == 0
    ]
    for pattern, sparsity, scope in cases:
        unit, prune = reference.prune_counts(weight.shape, pattern, sparsity, scope)
        expected = reference.wanda_mask(weight, norm, pattern, sparsity, scope)
        bad, keep = mask(weight, norm, 0 if scope == "layer" else unit, prune, isa, threads)
        assert bad == -1
        assert torch.equal(keep, expected.to(torch.uint8)), (pattern, sparsity, scope)


@every_isa
@every_float
@every_shape
@every_threads
def test_wanda_pack24(isa, dtype, shape, threads):
    for weight in (normal(*shape, dtype=dtype), tied(shape, dtype)):
        norm = normal(shape[1], seed=1).abs()
        values, meta = reference.wanda_pack24(weight, norm)
        bad, got_values, got_meta = packed_by(native.wanda_pack24, weight, norm, isa, threads)
        assert bad == -1
        assert same_bits(got_values, values)
        assert torch.equal(got_meta, meta)


@every_isa
@every_float
@every_shape
@every_threads
def test_pack24_and_unpack24(isa, dtype, shape, threads):
    weight = tied(shape, dtype)
    weight = weight.masked_fill(~reference.wanda_mask(weight, torch.ones(shape[1])), -0.0)
    values, meta = reference.pack24(weight)
    bad, got_values, got_meta = packed_by(native.pack24, weight, None, isa, threads)
    assert bad == -1
    assert same_bits(got_values, values)
    assert torch.equal(got_meta, meta)

    rows, cols = shape
    dense = poisoned(rows * cols, dtype)
    native.unpack24(
        values.data_ptr(), meta.data_ptr(), CODES[dtype], rows, cols, dense.data_ptr(), threads, isa
    )
    assert same_bits(unguarded(dense, rows, cols), reference.unpack24(values, meta))


@every_isa
@pytest.mark.parametrize("norms", ["negative", "zero", "subnormal"])
def test_unusual_norms_are_ranked_alike(isa, norms):
    weight = tied((9, 24), torch.float32)
    norm = {"negative": normal(24), "zero": torch.zeros(24), "subnormal": torch.full((24,), 1e-40)}[norms]
    if norms == "negative":
        norm[::3] = -0.0
    for group, pattern, sparsity, scope in (
        (4, "2:4", None, "row"),
        (24, "unstructured", 0.4, "row"),
        (0, "unstructured", 0.4, "layer"),
    ):
        _, prune = reference.prune_counts(weight.shape, pattern, sparsity, scope)
        _, keep = mask(weight, norm, group, prune, isa)
        assert torch.equal(keep, reference.wanda_mask(weight, norm, pattern, sparsity, scope).to(torch.uint8))


@every_isa
def test_every_float16_is_read_right(isa):
    weight = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    weight = weight[weight.isfinite()].view(-1, 512)
    expected = reference.wanda_mask(weight, torch.ones(512), "unstructured", 0.5)
    assert torch.equal(mask(weight, torch.ones(512), 512, 256, isa)[1], expected.to(torch.uint8))
    bad, values, _ = packed_by(native.wanda_pack24, weight, torch.ones(512), isa)
    assert bad == -1
    assert same_bits(values, reference.wanda_pack24(weight, torch.ones(512))[0])


@every_isa
@every_float
@pytest.mark.parametrize("bad_weight", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("at", [(0, 0), (2, 17), (4, 19)], ids=str)
def test_the_first_score_that_is_not_finite_is_named(isa, dtype, bad_weight, at):
    weight, norm = normal(5, 20, dtype=dtype), torch.ones(20)
    weight[at] = bad_weight
    weight[4, 19] = bad_weight
    flat = at[0] * 20 + at[1]
    for group in (0, 4, 5, 20):
        assert mask(weight, norm, group, 2, isa, threads=2)[0] == flat
    assert packed_by(native.wanda_pack24, weight, norm, isa)[0] == flat


@every_isa
@every_float
@pytest.mark.parametrize("at", [(0, 0), (2, 4), (4, 3)], ids=str)
def test_the_first_crowded_group_is_named(isa, dtype, at):
    weight = torch.zeros(5, 20, dtype=dtype)
    weight[at[0], 4 * at[1] + 1 : 4 * at[1] + 4] = 1
    weight[4, 16:] = 1
    assert packed_by(native.pack24, weight, None, isa, threads=2)[0] == at[0] * 5 + at[1]


@every_isa
@every_float
@every_threads
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("rows", [0, 1, 6, 255, 257, 1029])
def test_column_sumsq(isa, dtype, threads, weighted, rows):
    cols, ld = 37, 41
    x = normal(rows, ld, dtype=dtype)
    weight = normal(rows, seed=1).abs() if weighted else None
    out = poisoned(cols, torch.float32)
    weights = 0 if weight is None else weight.data_ptr()
    native.column_sumsq(x.data_ptr(), CODES[dtype], rows, cols, ld, weights, out.data_ptr(), threads, isa)
    squares = x[:, :cols].double().square()
    expected = (squares if weight is None else squares * weight.double()[:, None]).sum(0)
    # At most 64 float32 additions of non-negative terms in a row: 64 half-ulps at the very worst.
    torch.testing.assert_close(unguarded(out, cols).double(), expected, rtol=4e-6, atol=0)
