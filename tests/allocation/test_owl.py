"""OWL: published numbers, exact budgets over blocks of different sizes, clipping."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlprune import PatternError
from vlprune.allocation import OWL, LayerInfo, allocation_from_dict, owl_sparsities
from vlprune.patterns import Pattern


def test_golden_values():
    assert owl_sparsities([3, 1, 2, 6], 0.7, 0.08) == pytest.approx([0.700, 0.764, 0.732, 0.604], abs=1e-12)


def test_dict_in_dict_out():
    shares = owl_sparsities({"b": 3, "a": 1, "d": 2, "c": 6}, 0.7, 0.08)
    assert list(shares) == ["b", "a", "d", "c"]
    assert shares == pytest.approx({"b": 0.700, "a": 0.764, "d": 0.732, "c": 0.604}, abs=1e-12)


@pytest.mark.parametrize("ratios", [[2.0, 2.0, 2.0], [0.0], []], ids=["equal", "one", "none"])
def test_equal_ratios_are_uniform(ratios):
    assert owl_sparsities(ratios, 0.6, 0.08) == [0.6] * len(ratios)


def test_blocks_of_different_sizes_keep_the_budget_of_weights():
    """By hand: r = [0, .16], weighted mean .16 * 3 / 4 = .12."""
    assert owl_sparsities([1, 5], 0.5, 0.08, sizes=[100, 300]) == pytest.approx([0.62, 0.46], abs=1e-12)
    assert owl_sparsities({"v": 1, "t": 5}, 0.5, sizes={"t": 300, "v": 100}) == pytest.approx(
        {"v": 0.62, "t": 0.46}, abs=1e-12
    )


@pytest.mark.parametrize(
    ("ratios", "sizes", "sparsity", "lam", "expected"),
    [
        ([0, 1], [1, 1], 0.05, 0.08, [0.1, 0.0]),  # plain: .13, -.03
        ([0, 1], [1, 1], 0.95, 0.08, [1.0, 0.9]),
        ([0, 0.5, 1], [1, 1, 1], 0.5, 1.0, [1.0, 0.5, 0.0]),  # plain: 1.5, .5, -.5
        ([0, 1], [1, 3], 0.5, 0.8, [1.0, 1 / 3]),  # the small block is gone, the large one has the rest
        ([0, 1], [1, 1], 0.5, 2.0, [1.0, 0.0]),  # between the two nothing bends: any t will do
        ([0, 1], [1, 1], 0.0, 0.08, [0.0, 0.0]),
        ([0, 1], [1, 1], 1.0, 0.08, [1.0, 1.0]),
    ],
    ids=["low", "high", "both", "sizes", "apart", "nothing", "all"],
)
def test_clipping_keeps_the_budget(ratios, sizes, sparsity, lam, expected):
    assert owl_sparsities(ratios, sparsity, lam, sizes=sizes) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_and_everything_are_exact(sparsity):
    assert owl_sparsities([1.0, 2.0, 3.0], sparsity) == [sparsity] * 3
    assert owl_sparsities([1.0, 2.0, 3.0], sparsity, 0.3, sizes=[7, 300, 11]) == [sparsity] * 3


@settings(max_examples=300, deadline=None)
@given(
    blocks=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 10**8)), min_size=1, max_size=40),
    sparsity=st.floats(0, 1),
    lam=st.floats(0, 3),
)
def test_budget_order_and_range(blocks, sparsity, lam):
    ratios, sizes = zip(*blocks, strict=True)
    shares = np.array(owl_sparsities(ratios, sparsity, lam, sizes=sizes))
    assert ((shares >= 0) & (shares <= 1)).all()
    # 1e-9: float64 sums over forty blocks that differ by a factor of 1e8
    assert np.dot(shares, sizes) / sum(sizes) == pytest.approx(sparsity, abs=1e-9)
    order = np.argsort(ratios, kind="stable")
    assert (np.diff(shares[order]) <= 1e-12).all()  # more outliers never lose more
    assert shares.max() - shares.min() <= 2 * lam + 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, float("nan")], 0.5), "outlier ratio of 1: expected a finite number, got nan"),
        (({"a": 1.0, "b": float("inf")}, 0.5), "outlier ratio of b: expected a finite number, got inf"),
        (([1, 2], 1.5), "expected a fraction of zeros"),
        (([1, 2], 0.5, -0.1), "lam: expected a number of at least 0, got -0.1"),
        ((["a"], 0.5), "outlier ratio of 0: expected a finite number, got 'a'"),
        (([None], 0.5), "outlier ratio of 0: expected a finite number, got None"),
        ((3, 0.5), "outlier_ratios: expected a list of numbers or a dict by name, got 3"),
    ],
    ids=["nan", "inf", "sparsity", "lam", "text", "none", "no list"],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        owl_sparsities(*arguments)


@pytest.mark.parametrize(
    ("ratios", "sizes", "message"),
    [
        ([1, 2], [1], "2 outlier ratios but 1 sizes"),
        ([1, 2], [1, 0], "size of 1: expected a whole number of at least 1, got 0"),
        ({"a": 1}, {"b": 1}, "expected sizes of the very blocks"),
        ({"a": 1}, [1], "expected sizes of the very blocks"),
        ([1, 2], [float("nan"), 1.0], "size of 0: expected a whole number of at least 1, got nan"),
        ([1, 2], [1, 2.5], "size of 1: .* got 2.5"),
        ([1, 2], [1, "2"], "size of 1: .* got '2'"),
        ([1, 2], 5, "sizes: expected a list of numbers or a dict by name, got 5"),
    ],
    ids=["length", "zero", "names", "form", "nan", "fraction", "text", "no list"],
)
def test_sizes_that_do_not_match(ratios, sizes, message):
    with pytest.raises(ValueError, match=message):
        owl_sparsities(ratios, 0.5, sizes=sizes)


def test_layers_of_a_block_share_and_towers_share_one_budget():
    layers = {
        "v0.qkv": LayerInfo(60, "visual", "v0"),
        "v0.fc": LayerInfo(40, "visual", "v0"),
        "t0.fc": LayerInfo(300, "text", "t0"),
    }
    shares = OWL().sparsities(layers, Pattern(), 0.5, {"v0.qkv": 1.0, "v0.fc": 1.0, "t0.fc": 5.0})
    assert shares == pytest.approx({"v0.qkv": 0.62, "v0.fc": 0.62, "t0.fc": 0.46}, abs=1e-12)


def test_n_of_m_is_refused_and_missing_importance_named():
    layers = {"a": LayerInfo(4, "visual", "v0")}
    with pytest.raises(PatternError, match='"2:4" fixes every sparsity, OWL cannot'):
        OWL().check(Pattern(2, 4), None)
    with pytest.raises(ValueError, match="a: OWL needs the outlier ratio"):
        OWL().sparsities(layers, Pattern(), 0.5, {})


@pytest.mark.parametrize("fields", [{"lam": -1}, {"m": "5"}, {"lam": float("nan")}, {"m": True}])
def test_bad_fields(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}: expected a number of at least 0"):
        OWL(**fields)


def test_round_trip():
    assert allocation_from_dict(OWL(lam=0.1, m=3).to_dict()) == OWL(lam=0.1, m=3)
