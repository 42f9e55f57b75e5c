"""RIA's scores against the definition written as loops, and its channel permutation against brute force."""

import math
from itertools import combinations, permutations

import pytest
import torch

from vlprune import ops
from vlprune.patterns import Pattern, PatternError
from vlprune.scoring import channel_permutation, magnitude_mask, ria_mask, ria_scores, wanda_mask
from vlprune.scoring.ria import _deal, _reassign


def by_definition(weight, norm, a):
    """Python floats, one entry at a time."""
    magnitude = [[abs(entry) for entry in row] for row in weight.tolist()]
    columns = [math.fsum(column) for column in zip(*magnitude, strict=True)]
    scores = []
    for row in magnitude:
        total = math.fsum(row)
        scores.append(
            [
                ((entry / columns[j] if entry else 0) + (entry / total if entry else 0)) * norm[j].item() ** a
                for j, entry in enumerate(row)
            ]
        )
    return torch.tensor(scores)


def retained(scores, order, n, m):
    """What n:m keeps of the scores once the channels stand in this order."""
    groups = scores[:, list(order)].double().view(len(scores), -1, m)
    return float(groups.sort(dim=2, descending=True).values[..., :n].sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("a", [0, 0.5, 1.0])
def test_scores_follow_the_definition(dtype, a):
    weight, norm = torch.randn(7, 13).to(dtype), torch.rand(13) * 10
    scores = ria_scores(weight, norm, a)
    assert scores.dtype is torch.float32
    # Seven or thirteen terms and a handful of operations, each rounded to float32.
    torch.testing.assert_close(scores, by_definition(weight, norm, a), rtol=2e-6, atol=0)


def test_zeros_score_zero():
    weight, norm = torch.randn(5, 6), torch.rand(6) + 0.1
    weight[2] = 0
    weight[:, 4] = -0.0
    norm[1] = 0
    scores = ria_scores(weight, norm)
    torch.testing.assert_close(scores, by_definition(weight, norm, 0.5), rtol=2e-6, atol=0)  # as above
    assert not scores[2].any()
    assert not scores[:, [1, 4]].any()
    assert (scores[:2, [0, 2, 3, 5]] > 0).all()
    assert not ria_scores(torch.zeros(3, 4), torch.ones(4)).any()


@pytest.mark.parametrize(
    ("pattern", "sparsity", "scope"),
    [("2:4", 0.5, "row"), ("1:4", 0.75, "row"), ("unstructured", 0.3, "row"), ("unstructured", 0.3, "layer")],
)
def test_mask_is_the_selection_of_the_scores(pattern, sparsity, scope):
    weight, norm = torch.randn(9, 20), torch.rand(20)
    for a in (0.5, 2):
        keep = ria_mask(weight, norm, Pattern.parse(pattern), sparsity, scope, a)
        assert torch.equal(keep, ops.select(ria_scores(weight, norm, a), pattern, sparsity, scope))


@pytest.mark.parametrize(
    ("weight", "norm", "a", "message"),
    [
        (torch.ones(4), torch.ones(4), 0.5, r"expected weight of shape \[out, in\].*got \(4,\)"),
        (torch.ones(2, 4, dtype=torch.int32), torch.ones(4), 0.5, "floating dtype, got.*int32"),
        (torch.ones(2, 4), torch.ones(5), 0.5, r"expected column_norm of shape \(4,\).*got \(5,\)"),
        (torch.ones(2, 4), torch.ones(4), -1, "expected a finite and at least 0, got -1"),
        (torch.ones(2, 4), torch.ones(4), math.inf, "expected a finite and at least 0, got inf"),
        (torch.ones(2, 2), torch.tensor([1, -2.0]), 2, "expected column_norm of at least 0, got -2.0"),
        (torch.ones(2, 2), torch.tensor([1, math.nan]), 0, "expected column_norm of at least 0, got nan"),
    ],
    ids=["1-d", "integer", "norm-shape", "a-negative", "a-infinite", "norm-negative", "norm-nan"],
)
def test_refusals(weight, norm, a, message):
    with pytest.raises(ValueError, match=message):
        ria_scores(weight, norm, a)
    with pytest.raises(ValueError, match=message):
        ria_mask(weight, norm, Pattern(2, 4), 0.5, a=a)


@pytest.mark.parametrize("text", ["2:4", "1:8", "unstructured"])
def test_pattern_as_text(text):
    weight, norm, pattern = torch.randn(5, 16), torch.rand(16), Pattern.parse(text)
    share = pattern.resolve_sparsity(0.4 if pattern.m is None else None)
    for mask in (ria_mask, wanda_mask, lambda w, _, *rest: magnitude_mask(w, *rest)):
        keep = mask(weight, norm, text, share)
        assert torch.equal(keep, mask(weight, norm, pattern, share))
        assert int((~keep).sum()) == 5 * int(16 * share)
        with pytest.raises(PatternError, match=r"pattern: expected .* got '4:2'"):
            mask(weight, norm, "4:2", share)
    if pattern.m:
        scores = weight.abs()
        assert torch.equal(channel_permutation(scores, text), channel_permutation(scores, pattern))


def test_channels_are_dealt_in_a_snake():
    # By total score: 4, 0, 2 to the three groups, then 5, 1, 3 from the last group back.
    totals = torch.tensor([8.0, 5.0, 7.0, 4.0, 9.0, 6.0])
    assert _deal(totals[:, None].expand(6, 3) / 3, 2).tolist() == [[4, 3], [0, 1], [2, 5]]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4)])
def test_dealing_one_place_anew_is_the_best_there_is(n, m):
    scores = torch.rand(5, 4 * m)
    channels = scores.t().contiguous()
    groups = torch.randperm(4 * m).view(4, m)
    for place in range(m):
        best = 0.0
        for dealt in permutations(groups[:, place].tolist()):
            trial = groups.clone()
            trial[:, place] = torch.tensor(dealt)
            best = max(best, retained(scores, trial.flatten().tolist(), n, m))
        found = _reassign(channels, groups, n, place)
        assert retained(scores, found.flatten().tolist(), n, m) == pytest.approx(best, rel=1e-6)  # float32
        assert sorted(found[:, place].tolist()) == sorted(groups[:, place].tolist())


@pytest.mark.parametrize("seed", range(8))
def test_permutation_comes_close_to_the_best_grouping(seed):
    """Two groups of four: all 35 ways to fill them can be tried."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(6, 8, generator=generator) * torch.rand(8, generator=generator).exp()
    order = channel_permutation(scores, Pattern(2, 4)).tolist()
    ways = [(0, *three) for three in combinations(range(1, 8), 3)]
    values = [retained(scores, (*way, *set(range(8)).difference(way)), 2, 4) for way in ways]
    found = retained(scores, order, 2, 4)
    assert found >= max(values) * 0.98
    assert found > sorted(values)[len(values) // 2]


def test_permutation_separates_the_strong_channels():
    scores = torch.ones(10, 16) * 0.01 + torch.rand(10, 16) * 0.001
    scores[:, :4] += 5
    scores[:, 4:8] += 3
    order = channel_permutation(scores, Pattern(2, 4))
    # As they stand, the first two groups lose half of their strong channels; none need be lost.
    assert ((order.view(4, 4) < 8).sum(1) == 2).all()
    keep = ops.select(scores[:, order], "2:4")
    assert (keep == (order < 8)).all()


def test_permutation_beats_the_given_order_and_the_deal():
    scores = torch.rand(48, 64) * torch.rand(64)
    by_total = scores.sum(0).argsort(descending=True).view(4, 16)
    by_total[1::2] = by_total[1::2].flip(1)
    order = channel_permutation(scores, Pattern(2, 4)).tolist()
    dealt = retained(scores, by_total.t().flatten().tolist(), 2, 4)
    assert dealt > retained(scores, range(64), 2, 4)
    assert retained(scores, order, 2, 4) > 1.01 * dealt


def test_order_that_cannot_be_beaten_comes_back():
    scores = torch.rand(8, 16) * ops.select(torch.rand(8, 16), "2:4")
    assert channel_permutation(scores, Pattern(2, 4)).tolist() == list(range(16))
    assert channel_permutation(torch.ones(3, 8), Pattern(1, 4)).tolist() == list(range(8))
    assert channel_permutation(torch.empty(0, 8), Pattern(1, 4)).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("scores", "pattern", "message"),
    [
        (torch.ones(2, 8), Pattern(), 'expected an n:m pattern, got "unstructured"'),
        (torch.ones(2, 8), "8", "pattern: expected .* got '8'"),
        (torch.ones(2, 6), Pattern(2, 4), "in_features divisible by 4, got 6"),
        (torch.ones(8), Pattern(2, 4), r"expected finite scores \[out, in\], got \(8,\)"),
        (torch.full((2, 8), math.nan), Pattern(2, 4), "expected finite scores"),
    ],
    ids=["unstructured", "text", "width", "1-d", "nan"],
)
def test_permutation_refuses(scores, pattern, message):
    with pytest.raises(ValueError, match=message):
        channel_permutation(scores, pattern)
