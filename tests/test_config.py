"""Configs go to JSON and back; patterns mean what they say."""

import json

import pytest
import torch

from vlprune import MagnitudeConfig, PatternError, PerTower, Uniform, WandaConfig
from vlprune.allocation import LayerInfo
from vlprune.config import config_from_dict
from vlprune.patterns import Pattern


@pytest.mark.parametrize(
    "config",
    [
        WandaConfig(),
        WandaConfig(pattern="1:4", targets=("visual",), ignore=("*.c_proj",), activations="dense"),
        MagnitudeConfig(pattern="unstructured", sparsity=0.7, scope="layer", samples=5),
        WandaConfig(pattern="unstructured", allocation=PerTower(visual=0.4, text=0.6)),
    ],
    ids=["default", "wanda 1:4", "magnitude 70 %", "per tower"],
)
def test_round_trip_through_json(config):
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "wander"}, "expected method to be one of magnitude, wanda, sparsegpt, ria, got 'wander'"),
        ({"version": 2}, "expected version 1, got 2"),
        ({"sparsty": 0.5}, "unknown field 'sparsty'"),
        ({"allocation": 5}, "expected kind to be one of"),
        ({"allocation": {"kind": "uniform", "p": 1}}, "unknown field 'p'"),
        ({"allocation": {"kind": "own"}}, "expected kind to be one of uniform, per_tower, .*, got .*'own'"),
    ],
    ids=["method", "version", "field", "no allocation", "field of it", "allocation"],
)
def test_broken_file(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict({**WandaConfig().to_dict(), **change})


def test_token_weight_is_not_written():
    with pytest.raises(ValueError, match="token_weight: a function cannot be written"):
        WandaConfig(token_weight=lambda name, x: x).to_dict()


def test_configs_are_frozen():
    with pytest.raises(AttributeError):
        WandaConfig().pattern = "1:4"


@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "7:16", "unstructured"])
def test_pattern_names(text):
    assert Pattern.parse(text).name == text


@pytest.mark.parametrize("text", ["4:2", "0:4", "4:4", "2-4", "", "2:4:8", None, 24])
def test_bad_pattern(text):
    with pytest.raises(PatternError, match='expected "unstructured" or "n:m"'):
        Pattern.parse(text)


def test_n_counts_the_kept():
    assert Pattern.parse("1:4").resolve_sparsity(None) == 0.75
    assert Pattern.parse("3:4").resolve_sparsity(0.25) == 0.25


def test_pattern_holds():
    weight = torch.tensor([[0.0, 1, 2, 0, 0, 0, 0, 5], [1, 0, -0.0, 1, 0, 0, 0, 0]])
    assert Pattern.parse("2:4").holds(weight)
    assert not Pattern.parse("1:4").holds(weight)
    assert not Pattern.parse("2:4").holds(torch.ones(2, 8))
    assert not Pattern.parse("2:4").holds(torch.zeros(2, 6))
    assert Pattern.parse("unstructured").holds(torch.ones(2, 6))


def test_uniform_gives_each_layer_the_same():
    layers = {"a": LayerInfo(10, "visual", "block 0"), "b": LayerInfo(1, "text", "block 1")}
    assert Uniform().sparsities(layers, Pattern(), 0.3) == {"a": 0.3, "b": 0.3}
