"""Costs of layers from measured points."""

import random

import pytest
from scipy.optimize import isotonic_regression

from vlprune.structured.speedup.costs import Curve, LayerCost, TowerCost, fit_curve, rising


@pytest.mark.parametrize("seed", range(6))
def test_rising_is_the_nearest_rising_sequence(seed):
    draw = random.Random(seed)
    values = [i / 4 + draw.gauss(0, 1) for i in range(12)]
    assert rising(values) == pytest.approx(isotonic_regression(values).x)


def test_rising_leaves_what_rises():
    assert rising([1.0, 1.0, 2.5]) == [1.0, 1.0, 2.5]
    assert rising([]) == []
    assert rising([3.0, 1.0]) == [2.0, 2.0]


def test_a_curve_is_linear_between_its_points():
    curve = Curve(((0, -4.0), (64, -3.0), (256, 0.0)))
    assert [curve.at(n) for n in (0, 32, 64, 160, 256)] == pytest.approx([-4.0, -3.5, -3.0, -1.5, 0.0])
    assert (curve.least, curve.total) == (0, 256)
    for count in (-1, 257):
        with pytest.raises(ValueError, match=f"count: expected 0 to 256, got {count}"):
            curve.at(count)


@pytest.mark.parametrize("points", [(), ((2, 0.0), (1, 0.0)), ((1, 0.0), (1, 1.0)), ((0, float("nan")),)])
def test_bad_points(points):
    with pytest.raises(ValueError, match="points: expected finite seconds by rising count"):
        Curve(points)


def test_fitted_points_are_seconds_beside_the_whole_layer():
    # 0.7 and 0.6 are in the wrong order; three heads of another attention cost more than all four
    curve = fit_curve(10.0, 4, {0: 0.5, 1: 0.7, 2: 0.6, 3: 1.1})
    assert [curve.at(n) for n in range(5)] == pytest.approx([-5.0, -3.5, -3.5, 1.0, 0.0])
    assert not any(curve.packed_at(n) for n in range(5))


def test_the_faster_of_dense_and_packed_counts():
    curve = fit_curve(1.0, 128, {0: 0.5, 64: 0.7}, {64: 0.8, 128: 0.85})
    assert [curve.at(n) for n in (0, 64, 128)] == pytest.approx([-0.5, -0.3, -0.15])
    assert curve.packed == (128,)
    # as at the nearest measured count
    assert [curve.packed_at(n) for n in (0, 80, 112, 128)] == [False, False, True, True]


def test_what_heads_and_neurons_save_adds_up():
    cost = LayerCost(10.0, Curve(((0, -4.0), (4, 0.0))), Curve(((0, -6.0), (8, -1.0))))
    assert cost.seconds() == 9.0
    assert cost.seconds(heads=1) == 6.0
    assert cost.seconds(heads=0, neurons=0) == 0.0
    assert cost.seconds(heads=2, neurons=4) == pytest.approx(10.0 - 2.0 - 3.5)
    assert LayerCost(3.0).seconds() == 3.0
    # noise on both sides does not make a layer give time back
    assert LayerCost(1.0, Curve(((0, -0.7), (4, 0.0))), Curve(((0, -0.6), (8, 0.0)))).seconds(0, 0) == 0.0


def test_a_tower_is_its_layers_and_the_rest():
    assert TowerCost("text", 1.5, (LayerCost(2.0), None, LayerCost(4.0))).whole == 7.5
    # as it is, dense, though 2:4 would be faster
    packed = LayerCost(2.0, Curve(((0, -1.0), (4, -0.5)), (4,)))
    assert TowerCost("text", 1.5, (packed,)).whole == 3.5
