"""ECoFLaP's allocation: golden rows, an exact budget, and what is refused."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlprune.allocation.base import LayerInfo
from vlprune.allocation.ecoflap import ECoFLaP, ecoflap_sparsities
from vlprune.patterns import Pattern, PatternError

UNSTRUCTURED = Pattern()


def kept(sizes, sparsities):
    return [n - round(n * s) for n, s in zip(sizes, sparsities, strict=True)]


# Worked by hand from the definition, in exact arithmetic.
GOLDEN = [
    ("in proportion", [1000] * 4, [1, 2, 3, 4], 0.5, 0.6, [440, 480, 520, 560]),
    ("sizes differ", [1000, 1000, 2000], [1, 1, 8], 0.5, 0.6, [440, 440, 1120]),
    ("equal scores", [1000, 3000], [1, 1], 0.5, 0.6, [600, 1400]),
    ("saturated", [1000] * 3, [100, 1, 1], 0.5, 0.9, [1000, 250, 250]),
    ("a score of zero", [1000] * 2, [0, 1], 0.5, 0.6, [400, 600]),
    ("all zero is uniform", [1000, 3000], [0, 0], 0.5, 0.6, [500, 1500]),
    ("unsaturated are zero", [1000, 1000, 2000], [1, 0, 0], 0.5, 1.0, [1000, 333, 667]),
    ("decimals", [1000], [1], 0.9, 0.9, [100]),
    ("remainder to the first", [10, 10, 10], [1, 1, 1], 0.5, 1.0, [5, 5, 5]),
    ("remainder to the first of equals", [10, 10, 10], [1, 1, 1], 16 / 30, 1.0, [5, 5, 4]),
    ("cap at the sparsity", [7, 9, 5], [5, 1, 1], 0.5, 0.5, [4, 4, 2]),
]


@pytest.mark.parametrize(
    ("sizes", "scores", "p", "cap", "keep"), [g[1:] for g in GOLDEN], ids=[g[0] for g in GOLDEN]
)
def test_golden(sizes, scores, p, cap, keep):
    sparsities = ecoflap_sparsities(scores, sizes, p, cap)
    assert sparsities == [(n - k) / n for n, k in zip(sizes, keep, strict=True)]
    names = [f"group {i}" for i in range(len(sizes))]
    by_name = ecoflap_sparsities(
        dict(zip(names, scores, strict=True)),
        dict(zip(reversed(names), reversed(sizes), strict=True)),
        p,
        cap,
    )
    assert by_name == dict(zip(names, sparsities, strict=True))
    assert list(by_name) == names


def test_published_closed_form_without_saturation():
    sizes, scores, p, cap = [590_000, 2_360_000, 1_770_000], [0.3, 1.1, 0.9], 0.4, 0.5
    total, weight = sum(sizes), sum(scores)
    expected = [cap - s / weight * (cap - p) * total / n for n, s in zip(sizes, scores, strict=True)]
    # one weight of the smallest group is what rounding to whole weights may move
    assert ecoflap_sparsities(scores, sizes, p, cap) == pytest.approx(expected, abs=1 / min(sizes))


def test_exact_beyond_what_float32_counts():
    # above 2^24 a float32 count skips odd numbers, which is what the published code counts in
    sizes = [2**24 + 1, 2**24 + 3, 2**25 + 1]
    sparsities = ecoflap_sparsities([1.0, 2.0, 4.0], sizes, 0.5, 0.6)
    assert sum(kept(sizes, sparsities)) == sum(sizes) // 2


groups = st.lists(
    st.tuples(
        st.integers(1, 5000),
        st.one_of(st.just(0.0), st.floats(0, 10), st.floats(0, 1e308), st.floats(0, 1e-300)),
    ),
    min_size=1,
    max_size=12,
)
fractions = st.integers(0, 1000).map(lambda i: i / 1000)


@settings(max_examples=300, deadline=None)
@given(groups, fractions, fractions)
def test_budget_is_met_and_no_cap_is_passed(groups, p, cap):
    p, cap = min(p, cap), max(p, cap)
    sizes, scores = [n for n, _ in groups], [s for _, s in groups]
    sparsities = ecoflap_sparsities(scores, sizes, p, cap)
    keep = kept(sizes, sparsities)
    decimal = Fraction(round(p * 1000), 1000)
    assert sum(keep) == math.floor(sum(sizes) * (1 - decimal))
    least = [math.ceil(n * (1 - Fraction(round(cap * 1000), 1000))) for n in sizes]
    # one weight less than the cap demands is allowed only where the caps' own rounding passes the budget
    slack = int(sum(least) > sum(keep))
    assert all(low - slack <= k <= n for low, k, n in zip(least, keep, sizes, strict=True))
    if p == cap or not any(scores):
        # what the caps leave is rounded up in every group, which the others are short of
        off = max(abs(k - n * (1 - decimal)) for k, n in zip(keep, sizes, strict=True))
        assert off < len(sizes) + 2 + slack


def test_what_small_groups_keep_by_their_rounding_a_large_one_is_short_of():
    sparsities = ecoflap_sparsities([0.0] * 4, [1, 1, 13, 1638], 0.072, 0.074)
    assert kept([1, 1, 13, 1638], sparsities) == [1, 1, 13, 1518]  # of 1638 * 0.928 = 1520.06


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=2, max_size=8), fractions, st.integers(-40, 40))
def test_order_follows_scores_and_scale_does_not_matter(scores, p, power):
    sizes = [1000] * len(scores)
    sparsities = ecoflap_sparsities(scores, sizes, p, 1.0)
    keep = kept(sizes, sparsities)
    by_score = sorted(zip(scores, keep, strict=True))
    assert all(a[1] <= b[1] + 1 for a, b in itertools.pairwise(by_score))
    scaled = [s * 2.0**power for s in scores]
    if all(s == 0 or s > 1e-200 for s in scores):  # a power of two is exact, but for underflow
        assert ecoflap_sparsities(scaled, sizes, p, 1.0) == sparsities


def test_default_cap_is_a_tenth_above():
    scores, sizes = [0, 1], [1000, 1000]
    assert ecoflap_sparsities(scores, sizes, 0.3) == ecoflap_sparsities(scores, sizes, 0.3, 0.4) == [0.4, 0.2]
    assert ecoflap_sparsities(scores, sizes, 0.95) == ecoflap_sparsities(scores, sizes, 0.95, 1.0)


@pytest.mark.parametrize(
    ("scores", "sizes", "p", "cap", "message"),
    [
        ({"a": 1.0, "b": math.nan}, {"a": 1, "b": 1}, 0.5, 0.6, "score of b: expected a finite .* got nan"),
        ([1.0, -0.5], [4, 4], 0.5, 0.6, "score of 1: .* at least 0, got -0.5"),
        ([math.inf], [4], 0.5, 0.6, "score of 0: .* got inf"),
        ([1.0], [0], 0.5, 0.6, "size of 0: expected a whole number of at least 1, got 0"),
        ([1.0], [2.5], 0.5, 0.6, "size of 0: .* got 2.5"),
        (["a"], [1], 0.5, None, "score of 0: expected a finite .* got 'a'"),
        ([True], [1], 0.5, None, "score of 0: expected a finite .* got True"),
        ([1.0], [None], 0.5, None, "size of 0: .* got None"),
        ([1.0], [math.nan], 0.5, None, "size of 0: .* got nan"),
        (1.0, [1], 0.5, None, "scores: expected a list of numbers or a dict by name, got 1.0"),
        ([1.0], [4, 4], 0.5, 0.6, "1 scores but 2 sizes"),
        ({"a": 1.0}, {"b": 1}, 0.5, 0.6, "a is in only one of scores and sizes"),
        ({"a": 1.0}, [1], 0.5, 0.6, "both as dicts or both as lists"),
        ([1.0], [4], 0.5, 0.4, "max_sparsity: expected at least the sparsity 0.5, got 0.4"),
        ([1.0], [4], 0.5, 1.5, r"max_sparsity: expected a fraction in \[0, 1\], got 1.5"),
        ([1.0], [4], -0.1, 0.5, "sparsity: expected a fraction"),
    ],
)
def test_bad_input_is_named(scores, sizes, p, cap, message):
    with pytest.raises(ValueError, match=message):
        ecoflap_sparsities(scores, sizes, p, cap)


LAYERS = {
    "visual.0.qkv": LayerInfo(1000, "visual", "visual.0"),
    "visual.0.fc": LayerInfo(1000, "visual", "visual.0"),
    "visual.1.qkv": LayerInfo(2000, "visual", "visual.1"),
    "text.0.qkv": LayerInfo(4000, "text", "text.0"),
}
SCORES = {"visual.0.qkv": 1.0, "visual.0.fc": 3.0, "visual.1.qkv": 4.0, "text.0.qkv": 0.0}


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        # K 4000; least 800 + 800 + 1600; the 800 left are shared as 4 : 4 : 0
        ("block", [0.4, 0.4, 0.4, 0.6]),
        # as 1 : 3 : 4 : 0, over two groups of 1000
        ("layer", [0.5, 0.3, 0.4, 0.6]),
        # least 1600 each, all 800 left to the image tower
        ("tower", [0.4, 0.4, 0.4, 0.6]),
    ],
)
def test_groups_share_one_budget_over_both_towers(group, expected):
    shares = ECoFLaP(group=group).sparsities(LAYERS, UNSTRUCTURED, 0.5, SCORES)
    assert shares == dict(zip(LAYERS, expected, strict=True))


def test_a_block_gets_the_sum_of_its_members():
    layers = {f"{b}.{i}": LayerInfo(1000, "visual", b) for b in "ab" for i in range(2)}
    shares = ECoFLaP(max_sparsity=0.7).sparsities(
        layers, UNSTRUCTURED, 0.5, {"a.0": 1.0, "a.1": 0.0, "b.0": 2.0, "b.1": 1.0}
    )
    # 2000 kept; least 600 a block; 800 as 1 : 3
    assert shares == {"a.0": 0.6, "a.1": 0.6, "b.0": 0.4, "b.1": 0.4}


def test_checked_before_any_work():
    ECoFLaP().check(UNSTRUCTURED, 0.5)
    with pytest.raises(ValueError, match=r"max_sparsity: expected at least the sparsity 0\.5, got 0\.3"):
        ECoFLaP(max_sparsity=0.3).check(UNSTRUCTURED, 0.5)
    with pytest.raises(PatternError, match='"2:4" fixes every sparsity'):
        ECoFLaP().check(Pattern.parse("2:4"), None)
    with pytest.raises(PatternError, match="required"):
        ECoFLaP().check(UNSTRUCTURED, None)


def test_missing_score_is_named():
    with pytest.raises(ValueError, match=r"text.0.qkv: ECoFLaP needs its zeroth-order score"):
        ECoFLaP().sparsities(LAYERS, UNSTRUCTURED, 0.5, dict.fromkeys(list(LAYERS)[:3], 1.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_sparsity": 2}, "max_sparsity: expected a fraction"),
        ({"epsilon": 0}, "epsilon: expected a number above 0, got 0"),
        ({"epsilon": math.nan}, "epsilon: .* got nan"),
        ({"epsilon": True}, "epsilon: .* got True"),
        ({"epsilon": "1"}, "epsilon: .* got '1'"),
        ({"group": [1]}, r"group: expected one of block, layer, tower, got \[1\]"),
        ({"draws": 0}, "draws: expected a whole number of at least 1, got 0"),
        ({"samples": True}, "samples: .* got True"),
        ({"batch_size": 2.0}, "batch_size: .* got 2.0"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"group": "head"}, "group: expected one of block, layer, tower, got 'head'"),
        ({"loss": "lm"}, "loss: expected one of auto, .* or a function, got 'lm'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ECoFLaP(**fields)


def test_to_json_and_back():
    allocation = ECoFLaP(max_sparsity=0.7, group="tower", loss="contrastive")
    data = allocation.to_dict()
    assert data.pop("kind") == "ecoflap"
    assert ECoFLaP(**data) == allocation
    with pytest.raises(ValueError, match="loss: a function cannot be written"):
        ECoFLaP(loss=lambda model, batch: None).to_dict()
