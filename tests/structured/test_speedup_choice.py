"""One option a layer within a time: against every choice there is."""

import itertools
import math
import random

import pytest

from vlprune.structured.speedup.knapsack import TICKS, Option, fastest, least_error


def every_choice(towers):
    """All choices in which a layer of every tower stays: seconds, error and the numbers."""
    flat = [layer for tower in towers for layer in tower]
    for numbers in itertools.product(*(range(len(layer)) for layer in flat)):
        picked = [layer[number] for layer, number in zip(flat, numbers, strict=True)]
        owners = [number for number, tower in enumerate(towers) for _ in tower]
        if {owner for owner, o in zip(owners, picked, strict=True) if o.stays} == set(owners):
            yield sum(o.seconds for o in picked), sum(o.error for o in picked), list(numbers)


def problem(seed, sizes=(3, 2), options=3):
    """Random options, the last of each layer being its absence; some errors are equal, some zero."""
    draw = random.Random(seed)
    return [
        [
            [
                *(
                    Option(draw.uniform(0.1, 2.0), draw.choice([0.0, 0.5, draw.random()]))
                    for _ in range(options)
                ),
                Option(0.0, draw.uniform(0.0, 2.0), False),
            ]
            for _ in range(layers)
        ]
        for layers in sizes
    ]


def picked(towers, numbers):
    return [
        layer[number]
        for tower, own in zip(towers, numbers, strict=True)
        for layer, number in zip(tower, own, strict=True)
    ]


@pytest.mark.parametrize("share", [0.1, 0.35, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_least_error_within_the_bound(seed, share):
    towers = problem(seed)
    choices = list(every_choice(towers))
    low, high = min(c[0] for c in choices), max(c[0] for c in choices)
    limit = low + share * (high - low)
    found = picked(towers, least_error(towers, limit))
    assert sum(o.seconds for o in found) <= limit * (1 + 1e-9)
    # five layers round up by a step each
    bound = min(error for seconds, error, _ in choices if seconds <= limit * (1 - 5 / TICKS))
    assert sum(o.error for o in found) <= bound + 1e-9
    for tower, own in zip(towers, least_error(towers, limit), strict=True):
        assert any(layer[n].stays for layer, n in zip(tower, own, strict=True))


def test_what_fits_exactly_fits():
    towers = [[[Option(3.0, 0.0), Option(1.0, 1.0)], [Option(5.0, 0.0), Option(0.0, 4.0, False)]]]
    assert least_error(towers, 8.0) == [[0, 0]]
    assert least_error(towers, 7.99) == [[1, 0]]
    # 1/6 and 5/6 are rounded up by a step together
    assert least_error(towers, 6.001) == [[1, 0]]
    assert least_error(towers, 6.0) == [[0, 1]]


def test_of_equal_errors_the_slowest_choice():
    layer = [Option(1.0, 0.0), Option(2.0, 0.0), Option(0.5, 0.0), Option(3.0, 0.0)]
    assert least_error([[layer, layer]], 5.5) == [[3, 1]] or least_error([[layer, layer]], 5.5) == [[1, 3]]


def test_a_layer_of_each_tower_stays_even_if_it_costs():
    gone, kept = Option(0.0, 0.0, False), Option(1.0, 9.0)
    assert sorted(least_error([[[kept, gone], [kept, gone]], [[kept, gone]]], 2.0)[0]) == [0, 1]
    assert least_error([[[kept, gone]], [[kept, gone]]], 2.0) == [[0], [0]]
    assert least_error([[[kept, gone]], [[kept, gone]]], 1.9) is None


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_no_time_at_all(limit):
    assert least_error([[[Option(0.0, 0.0)]]], limit) is None


def test_a_looser_limit_is_never_worse():
    towers = problem(3, (4,))
    sums = [
        sum(o.error for o in picked(towers, least_error(towers, limit))) for limit in (1.0, 2.0, 4.0, 8.0)
    ]
    assert sums == sorted(sums, reverse=True)
    assert sums[0] > sums[-1]


@pytest.mark.parametrize("seed", range(8))
def test_fastest(seed):
    towers = problem(seed)
    found = sum(o.seconds for o in picked(towers, fastest(towers)))
    assert found == pytest.approx(min(c[0] for c in every_choice(towers)))


def test_the_fastest_of_equal_ones_has_the_least_error():
    layer = [Option(1.0, 3.0), Option(1.0, 2.0), Option(1.5, 0.0)]
    assert fastest([[layer]]) == [[1]]
