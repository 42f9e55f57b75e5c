"""The Triton kernels under Triton's interpreter, on CPU tensors: run as a script, in a process of its own.

Prints one JSON object: case -> null or what was wrong. Every output is made full of 0xFF and is followed by
a guard, so that an entry that is not written and one that is written too many are seen.
"""

import json
import os
import sys
import traceback

if __name__ == "__main__":
    # Read by triton when a kernel is decorated.
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from vlprune.ops import backend, reference, triton_ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GUARD = 64
_made = []


def poisoned(shape, dtype):
    size = torch.Size(shape).numel() * dtype.itemsize
    memory = torch.full((size + GUARD,), 0xFF, dtype=torch.uint8)
    _made.append(memory)
    return memory[:size].view(dtype).view(shape)


def poison():
    """Make the launchers allocate poisoned memory, and the operators take CPU tensors."""

    def empty(*shape, dtype=torch.float32, device=None):
        return poisoned(shape[0] if isinstance(shape[0], (tuple, list, torch.Size)) else shape, dtype)

    of_torch = torch.Tensor.new_empty

    def new_empty(self, *shape, dtype=None, device=None):
        # The interpreter's own ones name a device.
        if device is not None:
            return of_torch(self, *shape, dtype=dtype, device=device)
        return empty(*shape, dtype=dtype or self.dtype)

    torch.empty, torch.Tensor.new_empty = empty, new_empty
    backend._why_not_triton = lambda op, device: None


def guards_stand():
    whole = all(bool((memory[-GUARD:] == 0xFF).all()) for memory in _made)
    _made.clear()
    return whole


def same(actual, expected):
    """Bit for bit."""
    assert actual.dtype is expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def matrix(kind, rows, cols, dtype):
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
    return weight.to(dtype), norm


KINDS = ("normal", "ties", "signed", "tiny")
PACKED = ((1, 4), (1, 8), (3, 12), (5, 20), (33, 64), (2, 272), (3, 300))
PATTERNS = ("2:4", "1:4", "3:4")
GROUPED = (("1:2", 5, 14), ("1:3", 3, 9), ("4:8", 3, 64), ("3:8", 300, 8), ("2:16", 2, 48), ("31:32", 2, 64))
GROUPED += (("10:40", 2, 80), ("5:6", 7, 6))
ROWS = ((1, 1, 1.0), (3, 7, 0.5), (2, 8, 0.0), (2, 8, 0.99), (3, 100, 0.3), (2, 1000, 0.7), (2, 1500, 0.5))


def _pack(dtype, kind):
    for rows, cols in PACKED:
        weight, norm = matrix(kind, rows, cols, dtype)
        for actual, expected in zip(
            triton_ops.wanda_pack24(weight, norm), reference.wanda_pack24(weight, norm), strict=True
        ):
            same(actual, expected)


def _mask(dtype, kind, *calls):
    for pattern, rows, cols, sparsity, scope in calls:
        weight, norm = matrix(kind, rows, cols, dtype)
        expected = reference.wanda_mask(weight, norm, pattern, sparsity, scope)
        same(triton_ops.wanda_mask(weight, norm, pattern, sparsity, scope), expected)


def _groups4(dtype, kind):
    calls = ((pattern, *shape, None, "row") for pattern in PATTERNS for shape in ((5, 20), (2, 64), (1, 8)))
    _mask(dtype, kind, *calls, ("2:4", 33, 272, None, "row"))


def _groups(dtype, kind):
    _mask(dtype, kind, *((*call, None, "row") for call in GROUPED))


def _rows(dtype, kind):
    _mask(dtype, kind, *(("unstructured", *call, "row") for call in ROWS))


def _layer(dtype, kind):
    from vlprune.kernels import wanda_layer

    # Small blocks, so that a row has several and the matrix several programs, without a large matrix.
    wanda_layer.BLOCK, wanda_layer.ENTRIES = 128, 600
    calls = (("unstructured", 5, 300, share, "layer") for share in (0.0, 0.001, 0.5, 0.9, 1.0))
    _mask(dtype, kind, *calls)
    _mask(dtype, kind, ("unstructured", 1, 1, 1.0, "layer"), ("unstructured", 7, 3, 0.4, "layer"))


def _many(dtype, kind):
    matrices = [matrix(kind, rows, cols, dtype) for rows, cols in (*PACKED, (40, 528), (1, 256))]
    other = torch.bfloat16 if dtype is torch.float32 else torch.float32
    matrices.append(matrix(kind, 3, 24, other))
    matrices.append(matrix(kind, 3, 24, torch.float64))
    weights, norms = [list(each) for each in zip(*matrices, strict=True)]
    packed = zip(*triton_ops.wanda_pack24_many(weights, norms), strict=True)
    for got, (weight, norm) in zip(packed, matrices, strict=True):
        for actual, expected in zip(got, reference.wanda_pack24(weight, norm), strict=True):
            same(actual, expected)


def _tower_again(dtype, kind):
    from vlprune.kernels.wanda_pack24 import Tower

    matrices = [matrix(kind, rows, cols, dtype) for rows, cols in ((40, 272), (3, 64), (1, 528))]
    weights, norms = [list(each) for each in zip(*matrices, strict=True)]
    tower = Tower(weights, norms)
    tower.pack()
    for weight in weights:
        weight.neg_()
        weight[:, ::3] = 0
    for got, weight, norm in zip(tower.pack(), weights, norms, strict=True):
        for actual, expected in zip(got, reference.wanda_pack24(weight, norm), strict=True):
            same(actual, expected)


def _memory(dtype, kind):
    """Weights that are no whole rows next to each other, or that start between 16-byte addresses."""
    weight, norm = matrix(kind, 24, 32, dtype)
    flat = torch.zeros(24 * 32 + 1, dtype=dtype)
    flat[1:] = weight.flatten()
    for view, scale in (
        (weight.t(), norm[:24]),
        (weight[:, 4:16], norm[4:16].double()),
        (flat[1:].view(24, 32), torch.cat((norm[:1], norm))[1:]),
    ):
        for actual, expected in zip(
            triton_ops.wanda_pack24(view, scale), reference.wanda_pack24(view, scale), strict=True
        ):
            same(actual, expected)
        for pattern in ("2:4", "4:8", "unstructured"):
            sparsity = 0.5 if pattern == "unstructured" else None
            if view.shape[1] % 8 == 0 or pattern != "4:8":
                expected = reference.wanda_mask(view, scale, pattern, sparsity)
                same(triton_ops.wanda_mask(view, scale, pattern, sparsity), expected)
    for empty in (weight[:0], weight[:, :0]):
        scale = norm[: empty.shape[1]]
        assert triton_ops.wanda_pack24(empty, scale)[0].shape == (empty.shape[0], empty.shape[1] // 2)
        assert triton_ops.wanda_mask(empty, scale).shape == empty.shape
        assert triton_ops.column_sumsq(empty).tolist() == [0.0] * empty.shape[1]


def _not_finite(dtype, kind):
    """Counts stay exact, infinity ranks above the numbers and NaN above infinity."""
    weight, norm = matrix(kind, 4, 64, dtype)
    weight[1, 4:8] = torch.tensor([torch.nan, 1.0, torch.inf, 2.0])
    weight[2, ::3] = -torch.nan
    weight[3, :40] = torch.inf
    keep = triton_ops.wanda_mask(weight, norm + 1)
    assert keep[1, 4:8].tolist() == [True, False, True, False]
    assert keep.view(4, 16, 4).sum(-1).eq(2).all()
    values, meta = triton_ops.wanda_pack24(weight, norm + 1)
    masked = weight.masked_fill(~keep, 0)
    same(reference.unpack24(values, meta).nan_to_num(9), masked.nan_to_num(9) + 0.0)
    for pattern, per_row in (("4:8", 32), ("unstructured", 33)):
        keep = triton_ops.wanda_mask(weight, norm + 1, pattern, 31 / 64 if per_row == 33 else None)
        assert keep.sum(1).tolist() == [per_row] * 4
    keep = triton_ops.wanda_mask(weight, norm + 1, "unstructured", 0.25, "layer")
    assert keep.sum() == 192
    assert keep[2, ::3].all()


def _sumsq(dtype, kind):
    from vlprune.kernels import column_sumsq

    # Small chunks, so that a few tokens make several; 70 columns leave part of a block unused.
    column_sumsq.CHUNK, column_sumsq.CHUNKS = 32, 3
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 131, 70, generator=generator).to(dtype)
    share = torch.rand(2, 131, generator=generator)
    for seen, weight in (
        (x, None),
        (x, share),
        (x[:, :, 3:60], share[:, :1]),
        (x[:, ::2], share[0, 0] > 0.1),
        (x.transpose(0, 2)[..., :1], None),
        (x[:1, :1], None),
    ):
        actual = triton_ops.column_sumsq(seen, weight)
        double = seen.double().square()
        if weight is not None:
            double = double * weight.double().expand(seen.shape[:-1])[..., None]
        # Float32 sums of at most 262 terms of one sign in a tree of depth under 20: 20 half-units of 2^-24.
        torch.testing.assert_close(
            actual.double(), reference.rows_of(double).sum(0), rtol=20 * 2.0**-24, atol=0
        )
        assert torch.equal(actual, triton_ops.column_sumsq(seen, weight))


def _elsewhere(dtype, kind):
    """What no kernel takes goes to the definition."""
    weight, norm = matrix(kind, 2, 16385, dtype)
    same(
        triton_ops.wanda_mask(weight, norm, "unstructured", 0.5),
        reference.wanda_mask(weight, norm, "unstructured", 0.5),
    )
    double, norm = matrix(kind, 3, 8, torch.float64)
    same(triton_ops.wanda_mask(double, norm), reference.wanda_mask(double, norm))
    same(triton_ops.wanda_pack24(double, norm)[0], reference.wanda_pack24(double, norm)[0])
    same(triton_ops.column_sumsq(double), reference.column_sumsq(double))


CHECKS = {
    "pack": (_pack, KINDS),
    "groups of 4": (_groups4, KINDS),
    "other groups": (_groups, ("normal", "signed")),
    "rows": (_rows, KINDS),
    "layer": (_layer, ("normal", "signed")),
    "many": (_many, ("normal", "ties")),
    "tower again": (_tower_again, ("ties",)),
    "memory": (_memory, ("ties",)),
    "not finite": (_not_finite, ("normal",)),
    "column_sumsq": (_sumsq, ("normal",)),
    "elsewhere": (_elsewhere, ("normal",)),
}
# What does not depend on the dtype but for a conversion is tried with two of them.
CASES = {
    f"{check}, {kind}, {name}": (function, dtype, kind)
    for check, (function, kinds) in CHECKS.items()
    for kind in kinds
    for name, dtype in DTYPES.items()
    if name != "float16" or (check in ("pack", "groups of 4", "many") and kind in ("normal", "ties"))
}


def main():
    poison()
    results = {}
    for name, (function, dtype, kind) in CASES.items():
        try:
            function(dtype, kind)
            assert guards_stand(), "wrote past the end of an output"
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
