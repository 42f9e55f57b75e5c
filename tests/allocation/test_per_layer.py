"""PerLayer: sparsities that were found before, for exactly the layers that are pruned."""

import pytest

from vlprune import PatternError
from vlprune.allocation import LayerInfo, PerLayer, allocation_from_dict
from vlprune.patterns import Pattern

LAYERS = {name: LayerInfo(8, "visual", "b0") for name in ("a", "b", "c")}


def test_every_layer_gets_its_own():
    given = {"c": 0.25, "a": 0.5, "b": 1}
    shares = PerLayer(given).sparsities(LAYERS, Pattern(), None)
    assert shares == {"a": 0.5, "b": 1.0, "c": 0.25}
    assert list(shares) == ["a", "b", "c"]


def test_later_changes_of_the_dict_do_not_reach_it():
    given = {"a": 0.5}
    allocation = PerLayer(given)
    given["a"] = 0.9
    assert allocation.layers == {"a": 0.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 0.1}, r"allocation: b is to be pruned, but PerLayer gives it no sparsity \(and 1 more\)$"),
        (
            {"a": 0.1, "b": 0.1, "c": 0.1, "d": 0.1},
            "allocation: d is given a sparsity by PerLayer, but it is no layer to be pruned$",
        ),
    ],
    ids=["missing", "unknown"],
)
def test_names_must_be_those_of_the_layers(given, message):
    with pytest.raises(ValueError, match=message):
        PerLayer(given).sparsities(LAYERS, Pattern(), 0.5)


@pytest.mark.parametrize("value", [1.5, -0.1, "0.5", None, True, float("nan")])
def test_bad_fraction_is_named(value):
    with pytest.raises(ValueError, match="b: expected a fraction of zeros"):
        PerLayer({"a": 0.5, "b": value})


def test_no_dict():
    with pytest.raises(ValueError, match="layers: expected a dict"):
        PerLayer(0.5)


def test_n_of_m_is_refused():
    with pytest.raises(PatternError, match='"1:4" fixes every sparsity, PerLayer cannot'):
        PerLayer({"a": 0.75}).check(Pattern(1, 4), None)


def test_round_trip():
    allocation = PerLayer({"a": 0.5, "b": 0.25})
    assert allocation_from_dict(allocation.to_dict()) == allocation
    with pytest.raises(ValueError, match="field 'layers' is missing for kind 'per_layer'"):
        allocation_from_dict({"kind": "per_layer"})


def test_equal_ones_have_one_hash():
    first, second = PerLayer({"a": 0.5, "b": 1}), PerLayer({"b": 1.0, "a": 0.5})
    assert hash(first) == hash(second)
    assert {first, second, PerLayer({"a": 0.5})} == {first, PerLayer({"a": 0.5})}
