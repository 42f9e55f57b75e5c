"""Shares and counts of what stays."""

import json

import pytest

from vlprune.structured import Keep, StructuredConfig
from vlprune.structured.keep import KeepCounts, round_keep


# count, multiple, total, rounded: nearest, up in the middle, never 0, never above the total
@pytest.mark.parametrize(
    ("count", "multiple", "total", "rounded"),
    [
        (100, 16, 256, 96),
        (103, 16, 256, 96),
        (104, 16, 256, 112),
        (105, 16, 256, 112),
        (3, 16, 256, 16),
        (0, 16, 256, 0),
        (255, 16, 256, 256),
        (256, 16, 256, 256),
        (95, 16, 100, 96),
        (99, 64, 100, 100),
        (90, 100, 95, 95),
        (7, 1, 9, 7),
        (2048, 64, 4096, 2048),
    ],
)
def test_rounding(count, multiple, total, rounded):
    found, note = round_keep(count, multiple, total)
    assert found == rounded
    assert bool(note) == (found != count)


def test_rounding_says_why():
    assert round_keep(100, 16, 256)[1] == "100 of 256 rounded to 96, a multiple of 16, which runs faster"
    assert round_keep(99, 64, 100)[1] == "99 of 100 rounded to 100, all there are"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 16, 4), "count: expected 0 to 4, got 5"),
        ((-1, 16, 4), "count: expected 0 to 4, got -1"),
        ((1, 0, 4), "multiple: expected a whole number of at least 1, got 0"),
    ],
)
def test_rounding_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        round_keep(*arguments)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(), KeepCounts(16, 4096, 24)),
        (Keep(heads=0.5, neurons=0.5), KeepCounts(8, 2048, 24)),
        (Keep(heads=0.375, neurons=0.375, layers=12), KeepCounts(6, 1536, 12)),
        (Keep(heads=1.0, neurons=1.0, layers=1.0), KeepCounts(16, 4096, 24)),
        (Keep(heads=1, neurons=1, layers=1), KeepCounts(1, 1, 1)),
        (Keep(heads=0, neurons=0), KeepCounts(0, 0, 24)),
        # 2.5 heads are 3, 0.1 layers are still 1
        (Keep(heads=0.15625, layers=0.004), KeepCounts(3, 4096, 1)),
    ],
)
def test_counts(keep, expected):
    assert keep.counts(heads=16, neurons=4096, layers=24) == expected


def test_a_rounded_share_is_noted_and_a_count_is_not_rounded():
    counts = Keep(neurons=0.3).counts(heads=4, neurons=256, layers=3)
    assert counts.neurons == 80
    assert counts.notes == ("neurons: 77 of 256 rounded to 80, a multiple of 16, which runs faster",)
    assert Keep(neurons=77).counts(heads=4, neurons=256, layers=3) == KeepCounts(4, 77, 3)


def test_a_count_above_what_there_is():
    with pytest.raises(ValueError, match="heads: 17 cannot be kept of 16"):
        Keep(heads=17).counts(heads=16, neurons=4096, layers=24)


@pytest.mark.parametrize("name", ["heads", "neurons", "layers"])
@pytest.mark.parametrize("value", [0.0, 1.5, -1, -0.5, True, "half", float("nan")])
def test_bad_shares(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected a share in \(0, 1\]"):
        Keep(**{name: value})


def test_no_layers_at_all():
    with pytest.raises(ValueError, match=r"layers: .* a count of at least 1"):
        Keep(layers=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"visual": 0.5}, r"visual: expected Keep\(heads=.., neurons=.., layers=..\), got 0.5"),
        ({"stage": "both"}, "stage: expected one of finetune, pretrain, got 'both'"),
        ({"criterion": "wanda"}, "criterion: expected one of mope, magnitude, gradient, random, got 'wanda'"),
        ({"scope": "model"}, "scope: expected one of layer, tower, got 'model'"),
        ({"groups": 0}, "groups: expected a whole number of at least 1, got 0"),
        ({"samples": 1.0}, "samples: expected a whole number of at least 1, got 1.0"),
        ({"batch_size": True}, "batch_size: expected a whole number of at least 1, got True"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"tower": "image"}, "tower: expected one of visual, text, both, got 'image'"),
        ({"timed_batch": 0}, "timed_batch: expected a whole number of at least 1, got 0"),
        ({"target_speedup": 2.0, "sparse": 1}, "sparse: expected True or False, got 1"),
        ({"tower": "text"}, "tower: says something about target_speedup only, got 'text' alone"),
        ({"sparse": True}, "sparse: says something about target_speedup only, got True alone"),
        ({"timed_batch": 4}, "timed_batch: says something about target_speedup only, got 4 alone"),
        (
            {"target_speedup": 2.0, "visual": Keep(heads=1)},
            r"visual: expected None, target_speedup chooses what stays, got Keep\(heads=1",
        ),
        (
            {"target_speedup": 2.0, "text": Keep()},
            r"text: expected None, target_speedup chooses what stays, got Keep\(",
        ),
        (
            {"target_speedup": 2.0, "criterion": "magnitude"},
            "criterion: target_speedup weighs .* only mope does in one unit, got 'magnitude'",
        ),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        StructuredConfig(**fields)


@pytest.mark.parametrize("target", [1, 1.0, 0.5, -2.0, float("nan"), float("inf"), True, "2", [2.0]])
def test_bad_targets(target):
    with pytest.raises(ValueError, match="target_speedup: expected a number above 1 or None, got "):
        StructuredConfig(target_speedup=target)


@pytest.mark.parametrize(
    ("config", "towers"),
    [
        (StructuredConfig(), ()),
        (StructuredConfig(text=Keep(heads=1)), ("text",)),
        (StructuredConfig(target_speedup=2), ("visual", "text")),
        (StructuredConfig(target_speedup=1.5, tower="text", sparse=True, timed_batch=1), ("text",)),
    ],
)
def test_towers_that_shrink(config, towers):
    assert config.towers == towers
    assert StructuredConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_config_through_json():
    config = StructuredConfig(visual=Keep(heads=0.5, layers=12), stage="pretrain", criterion="random", seed=3)
    assert StructuredConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="structured config: unknown field 'speed'"):
        StructuredConfig.from_dict({"speed": 2})
    with pytest.raises(ValueError, match="visual: unknown field 'head'"):
        StructuredConfig.from_dict({"visual": {"head": 2}})
