"""The scoring kernels' cases, on a GPU (`test_cuda.py`) or the CPU (`../kernels/interpreted.py`).

Every output is made full of 0xFF and is followed by a guard, so that an entry that is not written and one
that is written too many are seen; and which kernels were launched is compared with what the case is to try.
"""

from unittest import mock

import pytest
import torch

from vlprune.ops import reference, triton_ops

from .kernel_watch import guards_stand, on_cpu, same, watched

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def packs(weight, norm):
    """Compare one packing, bit for bit."""
    for pair in zip(triton_ops.wanda_pack24(weight, norm), on_cpu("wanda_pack24", weight, norm), strict=True):
        same(*pair)


def masks(weight, norm, *how):
    """Compare one mask, bit for bit."""
    same(triton_ops.wanda_mask(weight, norm, *how), on_cpu("wanda_mask", weight, norm, *how))


def matrix(kind, rows, cols, dtype, device="cpu"):
    """Give ``(weight, norm)``; but for "normal" there are ties, zeros of both signs and few non-zeros."""
    generator = torch.Generator().manual_seed(rows * 1000 + cols)
    weight = torch.randn(rows, cols, generator=generator)
    norm = torch.rand(cols, generator=generator) + 0.1
    if kind != "normal":
        weight, norm = (weight * 1.5).round(), (norm * 2).round()
        weight[weight == 1] = -0.0
    if kind == "signed":
        # No norm is negative, but what the definition says of such is defined.
        norm -= 1
    if kind == "tiny":
        # Products below the smallest normal float, which must not be flushed; and an infinity, a NaN.
        weight, norm = weight * 2.0**-8, norm * 2.0**-135
    return weight.to(device, dtype), norm.to(device)


KINDS = ("normal", "ties", "signed", "tiny")
PACKED = ((1, 4), (1, 8), (3, 12), (5, 20), (33, 64), (2, 272), (3, 300))
PATTERNS = ("2:4", "1:4", "3:4")
GROUPED = (("1:2", 5, 14), ("1:3", 3, 9), ("4:8", 3, 64), ("3:8", 300, 8), ("2:16", 2, 48), ("31:32", 2, 64))
GROUPED += (("10:40", 2, 80), ("5:6", 7, 6))
ROWS = ((1, 1, 1.0), (3, 7, 0.5), (2, 8, 0.0), (2, 8, 0.99), (3, 100, 0.3), (2, 1000, 0.7), (2, 1500, 0.5))


def _pack(dtype, kind, device):
    for rows, cols in PACKED:
        packs(*matrix(kind, rows, cols, dtype, device))


def _mask(dtype, kind, device, *calls):
    for pattern, rows, cols, sparsity, scope in calls:
        masks(*matrix(kind, rows, cols, dtype, device), pattern, sparsity, scope)


def _groups4(dtype, kind, device):
    calls = ((pattern, *shape, None, "row") for pattern in PATTERNS for shape in ((5, 20), (2, 64), (1, 8)))
    _mask(dtype, kind, device, *calls, ("2:4", 33, 272, None, "row"))


def _groups(dtype, kind, device):
    _mask(dtype, kind, device, *((*call, None, "row") for call in GROUPED))


def _rows(dtype, kind, device):
    _mask(dtype, kind, device, *(("unstructured", *call, "row") for call in ROWS))


def _layer(dtype, kind, device):
    from vlprune.kernels import wanda_layer

    # Small blocks, so that a row has several and the matrix several programs, without a large matrix.
    calls = [("unstructured", 5, 300, share, "layer") for share in (0.0, 0.001, 0.5, 0.9, 1.0)]
    with mock.patch.multiple(wanda_layer, BLOCK=128, ENTRIES=600):
        _mask(dtype, kind, device, *calls)
        _mask(dtype, kind, device, ("unstructured", 1, 1, 1.0, "layer"), ("unstructured", 7, 3, 0.4, "layer"))


def _many(dtype, kind, device):
    matrices = [matrix(kind, *shape, dtype, device) for shape in (*PACKED, (40, 528), (1, 256))]
    other = torch.bfloat16 if dtype is torch.float32 else torch.float32
    matrices.append(matrix(kind, 3, 24, other, device))
    matrices.append(matrix(kind, 3, 24, torch.float64, device))
    weights, norms = [list(each) for each in zip(*matrices, strict=True)]
    packed = zip(*triton_ops.wanda_pack24_many(weights, norms), strict=True)
    for got, (weight, norm) in zip(packed, matrices, strict=True):
        for actual, expected in zip(got, on_cpu("wanda_pack24", weight, norm), strict=True):
            same(actual, expected)


def _tower_again(dtype, kind, device):
    from vlprune.kernels.wanda_pack24 import Tower

    matrices = [matrix(kind, *shape, dtype, device) for shape in ((40, 272), (3, 64), (1, 528))]
    weights, norms = [list(each) for each in zip(*matrices, strict=True)]
    tower = Tower(weights, norms)
    tower.pack()
    for weight in weights:
        weight.neg_()
        weight[:, ::3] = 0
    for got, weight, norm in zip(tower.pack(), weights, norms, strict=True):
        for actual, expected in zip(got, on_cpu("wanda_pack24", weight, norm), strict=True):
            same(actual, expected)


def _memory(dtype, kind, device):
    """Weights that are no whole rows next to each other, or that start between 16-byte addresses."""
    weight, norm = matrix(kind, 24, 32, dtype, device)
    flat = torch.zeros(24 * 32 + 1, dtype=dtype, device=device)
    flat[1:] = weight.flatten()
    for view, scale in (
        (weight.t(), norm[:24]),
        (weight[:, 4:16], norm[4:16].double()),
        (flat[1:].view(24, 32), torch.cat((norm[:1], norm))[1:]),
    ):
        packs(view, scale)
        for pattern in ("2:4", "4:8", "unstructured"):
            sparsity = 0.5 if pattern == "unstructured" else None
            if view.shape[1] % 8 == 0 or pattern != "4:8":
                masks(view, scale, pattern, sparsity)
    for empty in (weight[:0], weight[:, :0]):
        scale = norm[: empty.shape[1]]
        assert triton_ops.wanda_pack24(empty, scale)[0].shape == (empty.shape[0], empty.shape[1] // 2)
        assert triton_ops.wanda_mask(empty, scale).shape == empty.shape
        assert triton_ops.column_sumsq(empty).tolist() == [0.0] * empty.shape[1]


def _not_finite(dtype, kind, device):
    """Counts stay exact, infinity ranks above the numbers and NaN above infinity."""
    weight, norm = matrix(kind, 4, 64, dtype, device)
    weight[1, 4:8] = torch.tensor([torch.nan, 1.0, torch.inf, 2.0], device=device)
    weight[2, ::3] = -torch.nan
    weight[3, :40] = torch.inf
    keep = triton_ops.wanda_mask(weight, norm + 1)
    assert keep[1, 4:8].tolist() == [True, False, True, False]
    assert keep.view(4, 16, 4).sum(-1).eq(2).all()
    values, meta = triton_ops.wanda_pack24(weight, norm + 1)
    masked = weight.masked_fill(~keep, 0)
    same(on_cpu("unpack24", values, meta).nan_to_num(9), masked.nan_to_num(9) + 0.0)
    for pattern, per_row in (("4:8", 32), ("unstructured", 33)):
        keep = triton_ops.wanda_mask(weight, norm + 1, pattern, 31 / 64 if per_row == 33 else None)
        assert keep.sum(1).tolist() == [per_row] * 4
    keep = triton_ops.wanda_mask(weight, norm + 1, "unstructured", 0.25, "layer")
    assert keep.sum() == 192
    assert keep[2, ::3].all()


# NaN without and with the sign bit: 0 / 0 gives the second on an x86 processor.
NANS = (0x7FC00000, -0x00400000)


def _nan_norms(dtype, kind, device):
    """A norm that is NaN, of either sign, ranks above infinity; -0.0 does not turn an order round."""
    for bits in NANS:
        norm = torch.ones(8)
        norm[1] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        assert norm.view(torch.int32)[1] == bits
        weight = torch.ones(1, 8, dtype=dtype, device=device)
        weight[0, 2], norm = torch.inf, norm.to(device)
        for how, kept in (
            (("1:4",), [1, 7]),
            (("2:4",), [1, 2, 6, 7]),
            (("1:8",), [1]),
            (("2:8",), [1, 2]),
            (("unstructured", 0.875), [1]),
            (("unstructured", 0.75), [1, 2]),
            (("unstructured", 0.875, "layer"), [1]),
            (("unstructured", 0.75, "layer"), [1, 2]),
        ):
            assert triton_ops.wanda_mask(weight, norm, *how)[0].nonzero().flatten().tolist() == kept
        values, meta = triton_ops.wanda_pack24(weight, norm)
        wide, norms = torch.cat([weight] * 5, 1), torch.cat([norm] * 5)
        for share, kept in ((0.875, [1, 9, 17, 25, 33]), (0.975, [33])):
            keep = triton_ops.wanda_mask(wide, norms, "unstructured", share)
            assert keep[0].nonzero().flatten().tolist() == kept
        assert (values.tolist(), meta.tolist()) == ([[1.0, torch.inf, 1.0, 1.0]], [[0b11101001]])
    # Infinity times -0.0 is NaN.
    weight[0, 2], norm[1], norm[2] = torch.inf, torch.inf, -0.0
    assert triton_ops.wanda_mask(weight, norm, "1:4")[0, :4].tolist() == [False, False, True, False]


def _sumsq(dtype, kind, device):
    from vlprune.kernels import column_sumsq

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 131, 70, generator=generator).to(device, dtype)
    share = torch.rand(2, 131, generator=generator).to(device)
    for seen, weight in (
        (x, None),
        (x, share),
        (x[:, :, 3:60], share[:, :1]),
        (x[:, ::2], share[0, 0] > 0.1),
        (x.transpose(0, 2)[..., :1], None),
        (x[:1, :1], None),
    ):
        double = seen.double().square()
        if weight is not None:
            double = double * weight.double().expand(seen.shape[:-1])[..., None]
        # Small chunks, so that a few tokens make several; 70 columns leave part of a block unused.
        with mock.patch.multiple(column_sumsq, CHUNK=32, CHUNKS=3):
            actual, again = (triton_ops.column_sumsq(seen, weight) for _ in range(2))
        # Float32 sums of at most 262 terms of one sign in a tree of depth under 20: 20 half-units of 2^-24.
        torch.testing.assert_close(
            actual.double(), reference.rows_of(double).sum(0), rtol=20 * 2.0**-24, atol=0
        )
        assert torch.equal(actual, again)


UPDATED = (
    (1, 1, 1),
    (3, 5, 4),
    (70, 130, 8),
    (33, 77, 15),
    (64, 128, 16),
    (65, 20, 17),
    (2, 300, 64),
    (9, 24, 70),
)


def _update(dtype, kind, device):
    generator = torch.Generator().manual_seed(4)
    for rows, cols, rank in UPDATED:
        weight = torch.randn(rows, cols, generator=generator).to(device, dtype)
        keep = torch.rand(rows, cols, generator=generator).to(device) < 0.5
        factors = [
            torch.randn(shape, generator=generator).to(device) for shape in ((rank, cols), (rows, rank))
        ]
        lost = weight.masked_fill(~keep, torch.nan)
        for (a, b), w, mask in (
            (factors, weight, keep),
            (factors, lost, keep),
            (factors, weight, None),
            ([each.to(dtype) for each in factors], weight, keep),
            ((factors[0].double(), factors[1].to(dtype)), weight.t().contiguous().t(), keep),
            ((factors[0].t().contiguous().t(), factors[1]), weight, keep.t().contiguous().t()),
        ):
            found = triton_ops.masked_update(w, a, b, -0.7, mask)
            assert found.dtype is dtype
            exact = -0.7 * b.double() @ a.double()
            exact = weight.double() + exact if mask is None else (weight.double() + exact) * mask
            # float32 sums of `rank` products of some size each, and the rounding to the dtype
            size = 0.7 * b.double().abs() @ a.double().abs() + weight.double().abs()
            bound = (rank + 3) * 2.0**-24 * size + exact.abs() * torch.finfo(dtype).eps / 2
            assert ((found.double() - exact).abs() <= bound).all(), (rows, cols, rank)
            if mask is not None:
                same(found[~mask], torch.zeros_like(found[~mask]))
    same(triton_ops.masked_update(weight[:0], a, b[:0], 1.0, None), weight[:0])


def _quantized(dtype, kind, device):
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(6, 7, 300, generator=generator) * 3).to(device, dtype)
    x[0, :2], x[0, 2, :299], x[0, 3], x[0, 4] = 0, -0.0, x[0, 3] * 2.0**-14, x[0, 3] * 2.0**11
    x[5, 0, 5], x[5, 1, 5], x[5, 2] = torch.inf, torch.nan, -torch.inf
    ties = torch.arange(-127, 128, device=device).to(dtype) + 0.5
    ties[-1] = 127
    for seen in (x, x[:, ::2, 3:260], x.transpose(0, 2), x[:1, :1, :1], x[:0], ties, x[..., 7]):
        for to in reference.LARGEST:
            q, scale = triton_ops.quantize_rows(seen, to)
            right_q, right = reference.quantize_rows(seen.cpu(), to)
            finite = right.isfinite()
            same(scale[finite.to(device)], right[finite])
            same(scale.isnan(), right.isnan())
            same(scale.isinf(), right.isinf())
            same(q[finite.to(device)], right_q[finite])


def _unpacked(dtype, kind, device):
    for rows, cols in (*PACKED, (17, 4), (35, 512), (2, 1032)):
        weight, norm = (each.cpu() for each in matrix(kind, rows, cols, dtype))
        dense = reference.unpack24(*reference.wanda_pack24(weight, norm))
        dense[dense == 0], dense[0, 0] = -0.0, -torch.inf
        dense[0, 1:4], dense[-1, -4:-2] = 0, torch.inf
        dense[-1, -2:] = 0
        right = reference.pack24(dense)
        for seen in (dense.to(device), dense.to(device).t().contiguous().t()):
            for pair in zip(triton_ops.pack24(seen), right, strict=True):
                same(*pair)
        values, meta = (each.to(device) for each in right)
        for v, m in ((values, meta), (values.t().contiguous().t(), meta.t().contiguous().t())):
            same(triton_ops.unpack24(v, m), reference.unpack24(*right))
    same(triton_ops.unpack24(values[:0], meta[:0]), dense[:0])
    dense[0, 0] = torch.nan
    assert triton_ops.pack24(dense.to(device))[0][0, 0].isnan()
    crowded = dense.clone()
    crowded[1, 4:7] = 1
    with pytest.raises(ValueError, match="in row 1, group 1 "):
        triton_ops.pack24(crowded.to(device))


def _elsewhere(dtype, kind, device):
    """What no kernel takes goes to the definition."""
    for width in (8193, 16400):
        masks(*matrix(kind, 2, width, dtype, device), "unstructured", 0.5)
    double, norm = matrix(kind, 3, 8, torch.float64, device)
    masks(double, norm)
    packs(double, norm)
    values, meta = reference.wanda_pack24(double, norm)
    same(triton_ops.unpack24(values, meta), on_cpu("unpack24", values, meta))
    same(triton_ops.pack24(triton_ops.unpack24(values, meta))[0], values)
    same(triton_ops.column_sumsq(double), on_cpu("column_sumsq", double))
    for large in (double, torch.ones(1, 16400, dtype=dtype, device=device)):
        for got, right in zip(
            triton_ops.quantize_rows(large, torch.int8),
            on_cpu("quantize_rows", large, torch.int8),
            strict=True,
        ):
            same(got, right)


LAYER = {"_count_digits", "_count_ties", "_write"}
MASKS = {"_mask4", "_mask_ranked", "_mask_units"}
# name -> (check, kinds of matrices, the kernels it launches)
CHECKS = {
    "pack": (_pack, KINDS, {"_pack_one"}),
    "groups of 4": (_groups4, KINDS, {"_mask4"}),
    "other groups": (_groups, ("normal", "signed"), {"_mask_ranked", "_mask_units"}),
    "rows": (_rows, KINDS, {"_mask_ranked", "_mask_units"}),
    "layer": (_layer, ("normal", "signed"), LAYER),
    "many": (_many, ("normal", "ties"), {"_pack_many"}),
    "tower again": (_tower_again, ("ties",), {"_pack_many"}),
    "memory": (_memory, ("ties",), {"_pack_one", "_mask4", "_mask_ranked"}),
    "not finite": (_not_finite, ("normal",), {"_pack_one", *MASKS, *LAYER}),
    "norms that are NaN": (_nan_norms, ("normal",), {"_pack_one", *MASKS, *LAYER}),
    "column_sumsq": (_sumsq, ("normal",), {"_partial", "_total"}),
    "masked_update": (_update, ("normal",), {"_update"}),
    "quantize_rows": (_quantized, ("normal",), {"_quantize"}),
    "pack24 and unpack24": (_unpacked, ("normal", "ties"), {"_pack_one", "_unpack"}),
    "elsewhere": (_elsewhere, ("normal",), set()),
}
# What does not depend on the dtype but for a conversion is tried with two of them.
CASES = {
    f"{check}, {kind}, {name}": (function, dtype, kind, kernels)
    for check, (function, kinds, kernels) in CHECKS.items()
    for kind in kinds
    for name, dtype in DTYPES.items()
    if name != "float16"
    or (
        check in ("pack", "groups of 4", "many", "masked_update", "quantize_rows", "pack24 and unpack24")
        and kind in ("normal", "ties")
    )
}


def run(name, device):
    """Run one case on a device."""
    function, dtype, kind, kernels = CASES[name]
    with watched() as launched:
        function(dtype, kind, device)
        assert guards_stand(), "wrote past the end of an output"
    assert launched == kernels, f"launched {launched}, to be tried were {kernels}"
