"""Configs go to JSON and back; patterns mean what they say."""

import json

import pytest
import torch

from vlprune import MagnitudeConfig, PatternError, PerTower, Uniform, WandaConfig
from vlprune.allocation import OWL, ECoFLaP, LayerInfo, PerLayer
from vlprune.config import RIAConfig, SparseGPTConfig, config_from_dict
from vlprune.patterns import Pattern
from vlprune.token_weights import ATV, Modality


@pytest.mark.parametrize(
    "config",
    [
        WandaConfig(),
        WandaConfig(pattern="1:4", targets=("visual",), ignore=("*.c_proj",), activations="dense"),
        MagnitudeConfig(pattern="unstructured", sparsity=0.7, scope="layer", samples=5),
        WandaConfig(pattern="unstructured", allocation=PerTower(visual=0.4, text=0.6)),
        WandaConfig(pattern="unstructured", allocation=PerLayer({"a": 0.4, "b": 1}), offload=True),
        SparseGPTConfig(pattern="unstructured", sparsity=0.5, allocation=OWL(lam=0.1, m=3)),
        SparseGPTConfig(pattern="2:4", blocksize=64, damping=0.1, token_weight=ATV(alpha=0.5)),
        RIAConfig(pattern="4:8", a=1, permute=True, token_weight=Modality(visual=2, text=0.5)),
        RIAConfig(pattern="unstructured", sparsity=0.5, allocation=ECoFLaP(max_sparsity=0.6, draws=2)),
        WandaConfig(token_weight="attention_mask"),
    ],
    ids=[
        "default",
        "wanda 1:4",
        "magnitude 70 %",
        "per tower",
        "per layer",
        "sparsegpt owl",
        "sparsegpt 2:4",
        "ria permuted",
        "ria ecoflap",
        "attention mask",
    ],
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
        ({"allocation": {"kind": ["owl"]}}, r"expected kind to be one of .*, got {'kind': \['owl'\]}"),
        ({"allocation": "own"}, "expected kind to be one of .*, got 'own'"),
        ({"allocation": "per_layer"}, "field 'layers' is missing for kind 'per_layer'"),
        ({"method": ["wanda"]}, r"expected method to be one of .*, got \['wanda'\]"),
        ({1: 2, "x": 3}, "unknown field 1 for method 'wanda'"),
    ],
    ids=[
        "method",
        "version",
        "field",
        "no allocation",
        "field of it",
        "allocation",
        "list as allocation",
        "name of allocation",
        "name alone",
        "list as method",
        "fields of two types",
    ],
)
def test_broken_file(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict({**WandaConfig().to_dict(), **change})


def test_file_that_holds_no_dict():
    with pytest.raises(ValueError, match=r"config: expected a dict as PruneConfig.to_dict writes, got \[1\]"):
        config_from_dict([1])


@pytest.mark.parametrize(("name", "allocation"), [("ecoflap", ECoFLaP()), ("owl", OWL())])
def test_allocation_by_name_in_a_file(name, allocation):
    data = {"method": "wanda", "pattern": "unstructured", "sparsity": 0.5, "allocation": name}
    assert config_from_dict(data).allocation == allocation


def test_targets_may_come_from_a_generator():
    assert WandaConfig(targets=(name for name in ("visual", "*.fc1"))).targets == ("visual", "*.fc1")


def test_token_weight_is_not_written():
    with pytest.raises(ValueError, match="token_weight: a function cannot be written"):
        WandaConfig(token_weight=lambda name, x: x).to_dict()


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (SparseGPTConfig, {"blocksize": 0}, "blocksize: expected a whole number of at least 1, got 0"),
        (SparseGPTConfig, {"blocksize": 8.0}, "blocksize: expected a whole number of at least 1, got 8.0"),
        (
            SparseGPTConfig,
            {"pattern": "2:5"},
            'blocksize: pattern "2:5" needs a multiple of its group, got 128',
        ),
        (SparseGPTConfig, {"damping": 0}, "damping: expected a number above 0, got 0"),
        (SparseGPTConfig, {"damping": float("nan")}, "damping: expected a number above 0, got nan"),
        (SparseGPTConfig, {"damping": "0.1"}, "damping: expected a number above 0, got '0.1'"),
        (WandaConfig, {"scope": "layer"}, 'scope: pattern "2:4" compares .* of a group, .* got "layer"'),
        (SparseGPTConfig, {"scope": "layer"}, "scope: sparsegpt compares .* leave it out; got 'layer'"),
        (RIAConfig, {"a": -1}, "a: expected a number of at least 0, got -1"),
        (RIAConfig, {"a": True}, "a: expected a number of at least 0, got True"),
        (RIAConfig, {"permute": 1}, "permute: expected True or False, got 1"),
        (
            RIAConfig,
            {"permute": True, "pattern": "unstructured", "sparsity": 0.5},
            'permute: only an n:m pattern has groups to permute for, got "unstructured"',
        ),
        (WandaConfig, {"offload": "no"}, "offload: expected True or False, got 'no'"),
        (WandaConfig, {"targets": None}, "targets: expected a sequence of name patterns, got None"),
        (WandaConfig, {"ignore": 3}, "ignore: expected a sequence of name patterns, got 3"),
        (WandaConfig, {"ignore": "text"}, "ignore: expected a sequence of name patterns, got 'text'"),
        (WandaConfig, {"samples": True}, "samples: expected a whole number of at least 1, got True"),
    ],
)
def test_bad_fields_fail_at_once(config, fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_block_of_columns_that_tiles_an_odd_group():
    assert SparseGPTConfig(pattern="2:5", blocksize=125).blocksize == 125


@pytest.mark.parametrize("field", ["blocksize", "permute"])
def test_field_of_another_method_is_unknown(field):
    with pytest.raises(ValueError, match=f"unknown field '{field}' for method 'wanda'"):
        config_from_dict({**WandaConfig().to_dict(), field: 1})


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


@pytest.mark.parametrize(
    ("published", "ours"), [("1:4", "3:4"), ("2:4", "2:4"), ("3:8", "5:8"), ("unstructured", "unstructured")]
)
def test_published_patterns_count_the_pruned(published, ours):
    assert Pattern.parse_pruned(published) == Pattern.parse(ours)


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
