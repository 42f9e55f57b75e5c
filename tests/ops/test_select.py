"""Selection: exact counts, exact order, for any shape, dtype and pattern."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlprune import ops

from .cases import FLOATS, normal

PATTERNS = {
    "2:4": (2, 4),
    "1:4": (1, 4),
    "3:4": (3, 4),
    "4:8": (4, 8),
    "2:8": (2, 8),
    "5:16": (5, 16),
    "1:3": (1, 3),
}

# Few distinct scores, so that most of them tie; both zeros; negative ones, which other methods may give.
SCORES = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.25, 1.0, 1.0, 3.0])


def lowest_first(scores, prune):
    """The definition in other words: sort (score, index) pairs; Python's -0.0 equals 0.0 as well."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    gone = set(order[:prune])
    return [i not in gone for i in range(len(scores))]


@st.composite
def matrices(draw, columns):
    rows = draw(st.integers(1, 4))
    cols = draw(columns)
    return torch.tensor(draw(st.lists(SCORES, min_size=rows * cols, max_size=rows * cols))).view(rows, cols)


@settings(max_examples=60, deadline=None)
@given(
    scores=matrices(st.integers(1, 37)),
    sparsity=st.floats(0, 1),
    dtype=st.sampled_from(list(FLOATS.values())),
)
def test_unstructured_row_prunes_exactly_the_lowest(scores, sparsity, dtype):
    keep = ops.select(scores.to(dtype), "unstructured", sparsity)
    prune = int(scores.shape[1] * sparsity)
    assert keep.tolist() == [lowest_first(row, prune) for row in scores.tolist()]


@settings(max_examples=60, deadline=None)
@given(
    scores=matrices(st.integers(1, 37)),
    sparsity=st.floats(0, 1),
    dtype=st.sampled_from(list(FLOATS.values())),
)
def test_unstructured_layer_prunes_exactly_the_lowest(scores, sparsity, dtype):
    keep = ops.select(scores.to(dtype), "unstructured", sparsity, "layer")
    assert keep.flatten().tolist() == lowest_first(scores.flatten().tolist(), int(scores.numel() * sparsity))


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_n_of_m_keeps_exactly_n_of_each_group(pattern, data):
    kept, group = PATTERNS[pattern]
    scores = data.draw(matrices(st.integers(1, 5).map(lambda groups: groups * group)))
    keep = ops.select(scores, pattern)
    expected = [lowest_first(part, group - kept) for part in scores.view(-1, group).tolist()]
    assert keep.view(-1, group).tolist() == expected


@pytest.mark.parametrize(
    ("inputs", "sparsity", "pruned"),
    # Truncation of a float product: 0.29 * 100 is 28.999..., 1000 * (1 - 0.9) is 99.999...
    [
        (100, 0.29, 28),
        (1000, 1 - 0.9, 99),
        (1024, 0.7, 716),
        (768, 0.6, 460),
        (1408, 0.5, 704),
        (7, 0.0, 0),
        (7, 1.0, 7),
    ],
)
def test_counts_truncate(inputs, sparsity, pruned):
    keep = ops.wanda_mask(normal(3, inputs), torch.ones(inputs), "unstructured", sparsity)
    assert (~keep).sum(1).tolist() == [pruned] * 3


def test_both_zeros_are_one_score():
    scores = torch.tensor([[0.0, -0.0, 0.0, -0.0]])
    assert ops.select(scores, "2:4").tolist() == [[False, False, True, True]]
    assert ops.select(-scores, "2:4").tolist() == [[False, False, True, True]]


def test_dead_columns_go_first():
    norm = torch.ones(12)
    norm[[2, 7, 11]] = 0
    keep = ops.wanda_mask(1 + normal(5, 12).abs(), norm, "unstructured", 0.25)
    assert (~keep).nonzero()[:, 1].view(5, 3).tolist() == [[2, 7, 11]] * 5


def test_selection_ignores_memory_layout():
    weight, norm = normal(24, 16), normal(32).abs()
    wide = torch.stack((weight, weight), dim=-1).flatten(1)
    for pattern, sparsity in (("2:4", None), ("unstructured", 0.4)):
        plain = ops.wanda_mask(weight.t().contiguous(), norm[:24], pattern, sparsity)
        assert torch.equal(ops.wanda_mask(weight.t(), norm[:24], pattern, sparsity), plain)
        plain = ops.wanda_mask(weight, norm[::2].contiguous(), pattern, sparsity)
        assert torch.equal(ops.wanda_mask(wide[:, ::2], norm[::2], pattern, sparsity), plain)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)], ids=["no-rows", "no-columns"])
@pytest.mark.parametrize("scope", ["row", "layer"])
def test_empty_matrices(shape, scope):
    weight = torch.empty(shape)
    assert ops.wanda_mask(weight, torch.empty(shape[1]), "unstructured", 0.5, scope).shape == shape
    assert ops.select(weight, "2:4").shape == shape


def test_a_million_scores_in_one_layer():
    scores = normal(1000, 1000)
    keep = ops.wanda_mask(scores, torch.ones(1000), "unstructured", 0.37, "layer").numpy().ravel()
    order = np.argsort(scores.abs().numpy().ravel(), kind="stable")
    expected = np.ones(1_000_000, bool)
    expected[order[:370_000]] = False
    assert (keep == expected).all()
