"""Wanda on two rows of eight weights, against masks worked out by hand in float64."""

import pytest
import torch

from vlprune import ops

W = torch.tensor(
    [[0.5, -1, 2, 0.25, -0.75, 1.5, -0.1, 3], [-2, 0.3, -0.6, 1.2, 0.05, -0.9, 0.8, -0.4]],
    dtype=torch.float64,
)
# Two sequences of two tokens.
X = torch.tensor(
    [
        [[1, 2, 0, -1, 3, 0.5, -2, 1], [0, 1, 1, 2, -1, 1.5, 0, 0.5]],
        [[2, 0, -1, 1, 1, -0.5, 1, 0], [1, -1, 2, 0, 0, 1, -1, 2]],
    ],
    dtype=torch.float64,
)
SCORES = torch.tensor(
    [
        [
            0.8660254038, 1.7320508076, 3.4641016151, 0.4330127019,
            1.7589059099, 2.0539595906, 0.1732050808, 4.8605555238,
        ],
        [
            3.4641016151, 0.5196152423, 1.0392304845, 2.0784609691,
            0.117260394, 1.2323757544, 1.3856406461, 0.6480740698,
        ],
    ],
    dtype=torch.float64,
)  # fmt: skip

# Pattern (n = kept), sparsity, scope -> which weights go.
PRUNED = {
    "row-25%": ("unstructured", 0.25, "row", [[0, 0, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0, 0, 0]]),
    "row-50%": ("unstructured", 0.5, "row", [[1, 1, 0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0, 0, 1]]),
    "row-60%-is-4-of-8": ("unstructured", 0.6, "row", [[1, 1, 0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0, 0, 1]]),
    "2:4": ("2:4", None, "row", [[1, 0, 0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 1, 0, 0, 1]]),
    "3:4-prunes-1-of-4": ("3:4", None, "row", [[0, 0, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0, 0, 0]]),
    "1:4-prunes-3-of-4": ("1:4", None, "row", [[1, 1, 0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0, 1]]),
    "4:8-is-row-50%": ("4:8", None, "row", [[1, 1, 0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0, 0, 1]]),
    "layer-50%": ("unstructured", 0.5, "layer", [[1, 0, 0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 1, 0, 1]]),
}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def column_norm(dtype):
    return (ops.column_sumsq(X.to(dtype)) / len(X)).sqrt()


@dtypes
def test_column_sumsq_gives_the_statistic(dtype):
    expected = torch.tensor([3, 3, 3, 3, 5.5, 1.875, 3, 2.625])
    # Sums of four multiples of 1/4: exact.
    assert torch.equal(ops.column_sumsq(X.to(dtype)) / 2, expected)


@dtypes
def test_scores(dtype):
    scores = ops.wanda_scores(W.to(dtype), column_norm(dtype))
    assert scores.dtype is torch.float32
    torch.testing.assert_close(scores.double(), SCORES, rtol=2e-7, atol=0)  # two roundings to float32


@dtypes
@pytest.mark.parametrize(("pattern", "sparsity", "scope", "pruned"), PRUNED.values(), ids=PRUNED)
def test_masks(dtype, pattern, sparsity, scope, pruned):
    expected = ~torch.tensor(pruned, dtype=torch.bool)
    assert torch.equal(ops.select(SCORES.to(dtype), pattern, sparsity, scope), expected)
    assert torch.equal(ops.wanda_mask(W.to(dtype), column_norm(dtype), pattern, sparsity, scope), expected)


def test_magnitude_of_the_whole_layer():
    # The published rule prunes nine (threshold 0.8 and all below); the exact count leaves the 0.8.
    pruned = torch.tensor([[1, 0, 0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 1, 0, 0, 1]], dtype=torch.bool)
    assert torch.equal(ops.select(W.abs(), "unstructured", 0.5, "layer"), ~pruned)


@pytest.mark.parametrize("scope", ["row", "layer"])
def test_equal_scores_go_lowest_index_first(scope):
    assert ops.select(torch.ones(1, 8), "unstructured", 0.5, scope).tolist() == [[False] * 4 + [True] * 4]


def test_packed_form():
    values, meta = ops.wanda_pack24(W.float(), column_norm(torch.float32))
    assert torch.equal(values, torch.tensor([[-1, 2, 1.5, 3], [-2, 1.2, -0.9, 0.8]]))
    # Row 0 keeps inputs 1, 2 | 1, 3; row 1 keeps 0, 3 | 1, 2. Two bits each, low first, low nibble first.
    assert meta.tolist() == [[0b1101_1001], [0b1001_1100]]
    dense = torch.tensor([[0, -1, 2, 0, 0, 1.5, 0, 3], [-2, 0, 0, 1.2, 0, -0.9, 0.8, 0]])
    assert torch.equal(ops.unpack24(values, meta), dense)
