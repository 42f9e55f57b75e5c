"""run with modules taken out: alone, before weights are pruned, killed and started again."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from structured.clock import Clock

from vlprune import (
    Keep,
    MagnitudeConfig,
    StructuredConfig,
    compact_,
    evaluate,
    from_pretrained,
    measure,
    pipeline,
    prune_,
)
from vlprune.models.tree import tensors
from vlprune.nn import Linear24
from vlprune.pipeline import Variant
from vlprune.structured import ablated, mask_modules

OPTIONS = pipeline.RunOptions("tiny", "pairs", "others", batch=2, rounds=5)
SMALLER = StructuredConfig(
    visual=Keep(heads=0.5, neurons=0.25, layers=2), text=Keep(heads=1), samples=6, batch_size=3, groups=4
)
NARROW = StructuredConfig(visual=Keep(neurons=64), criterion="magnitude")
BOTH = [Variant(None, SMALLER), Variant(MagnitudeConfig(), SMALLER)]
NAME = "mope visual heads 50% neurons 25% layers 2 text heads 1"


def go(model, pairs, variants, out, options=OPTIONS):
    return pipeline.run(model, pairs, pairs, variants, options, out, say=lambda line: None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Times are not looked at here: a clock that counts parameters is one that no neighbour disturbs."""
    monkeypatch.setattr(measure, "compare", Clock())


@pytest.fixture
def record(clip, pairs, tmp_path):
    return go(clip, pairs, BOTH, tmp_path / "out")


def outputs(model):
    generator = torch.Generator().manual_seed(5)
    images, texts = (
        torch.randn(4, 3, 32, 32, generator=generator),
        torch.randint(1, 50, (4, 12), generator=generator),
    )
    with torch.inference_mode():
        return torch.cat([model.encode_image(images), model.encode_text(texts)])


def numbers(lists):
    """Keep lists of a record, whose layers are text once it has been a file."""
    return {
        tower: {
            kind: kept if kind == "layers" else {int(layer): own for layer, own in kept.items()}
            for kind, kept in own.items()
        }
        for tower, own in lists.items()
    }


def test_record_says_what_went_and_why(record, clip, pairs, tmp_path):
    assert [v["name"] for v in record["variants"]] == [NAME, f"{NAME} + magnitude 2:4"]
    assert [v["structured"] for v in record["variants"]] == [NAME, NAME]
    part = record["structured"][NAME]
    found = {(e["tower"], e["layer"], e["kind"], e["index"]): e["error"] for e in part["errors"]}
    heads = {("visual", n, "heads", i) for n in range(3) for i in range(4)}
    heads |= {("text", n, "heads", i) for n in range(2) for i in range(3)}
    groups = {("visual", n, "neurons", i) for n in range(3) for i in range(4)}
    assert found.keys() == heads | groups | {("visual", n, "layers", n) for n in range(3)}
    small = copy.deepcopy(clip)
    report = compact_(small, SMALLER, pairs)
    assert list(part["errors"]) == [dataclasses.asdict(error) for error in report.errors]
    for tower, layers, count in (("visual", 3, 2), ("text", 2, 1)):
        for layer in range(layers):
            own = sorted((e, key[3]) for key, e in found.items() if key[:3] == (tower, layer, "heads"))
            kept = sorted(index for _, index in own[len(own) - count :])
            assert part["keep_lists"][tower]["heads"][layer] == kept
    sizes = [sum(p.numel() for p in model.parameters()) for model in (clip, small)]
    assert list(part["parameters"]) == sizes
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(record))


def test_errors_of_a_killed_choice_are_kept(clip, pairs, tmp_path, monkeypatch):
    go(clip, pairs, BOTH[:1], tmp_path)
    for name in ("structured", "progress.json"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    scored = []
    real = ablated.embeddings_without
    monkeypatch.setattr(ablated, "embeddings_without", lambda *a: scored.extend(a[3]) or real(*a))
    record = go(clip, pairs, BOTH[:1], tmp_path)
    assert len(record["structured"][NAME]["errors"]) == 12 + 12 + 3 + 6
    assert scored == []


def test_saved_model_is_the_masked_one(record, clip, tmp_path):
    """Sums over fewer terms in another order: 1e-4 of values near one is far above float32's rounding."""
    small = from_pretrained(tmp_path / "out" / "structured")
    with mask_modules(clip, numbers(record["structured"][NAME]["keep_lists"])):
        expected = outputs(clip)
    torch.testing.assert_close(outputs(small), expected, rtol=1e-4, atol=1e-4)


def test_weights_are_pruned_in_what_is_left(record, pairs, tmp_path):
    small, final = (from_pretrained(tmp_path / "out" / name) for name in ("structured", "model"))
    variant = record["variants"][1]
    report = prune_(small, MagnitudeConfig())
    assert variant["prune"]["layers"] == report.to_dict()["layers"]
    # packed and dense: the same products, added up in another order
    torch.testing.assert_close(outputs(final), outputs(small), rtol=1e-4, atol=1e-4)
    assert evaluate(final, pairs).to_dict() == variant["packed_metrics"]
    assert sum(isinstance(m, Linear24) for m in final.modules()) == variant["sparsify"]["packed"]


def test_towers_are_timed_in_one_run(record):
    alone, both = (variant["timing"]["image"] for variant in record["variants"])
    assert list(alone) == ["dense", "variant", "speedup"]
    assert list(both) == ["dense", "structured", "variant", "speedup"]
    # the clock counts parameters: what is gone is gone, and packed ones are fewer
    assert alone["variant"]["median"] == both["structured"]["median"] < both["dense"]["median"]
    assert both["variant"]["median"] <= both["structured"]["median"]
    assert both["speedup"] == both["dense"]["median"] / both["variant"]["median"]


@pytest.mark.parametrize("step", ["prune_", "time_towers"])
def test_killed_run_takes_nothing_out_twice(clip, pairs, tmp_path, monkeypatch, step):
    whole = go(clip, pairs, BOTH, tmp_path / "whole")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.make, step, killed)
        with pytest.raises(KeyboardInterrupt):
            go(clip, pairs, BOTH, tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
    monkeypatch.setattr(pipeline.structure, "compact_", lambda *_: pytest.fail("chosen again"))
    again = go(clip, pairs, BOTH, tmp_path / "out")
    for record in (whole, again):
        record["structured"][NAME].pop("seconds")
        record["variants"][1]["prune"].pop("seconds")
        for layer in record["variants"][1]["sparsify"]["layers"]:
            layer.pop("sparse")
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(whole))


@pytest.mark.parametrize("change", ["another config", "folder gone"])
def test_folder_holds_what_the_report_says(clip, pairs, tmp_path, change):
    go(clip, pairs, BOTH[:1], tmp_path)
    expected = outputs(from_pretrained(tmp_path / "structured"))
    if change == "folder gone":
        shutil.rmtree(tmp_path / "structured")
    else:
        go(clip, pairs, [Variant(None, NARROW)], tmp_path)
        assert not torch.equal(outputs(from_pretrained(tmp_path / "structured")), expected)
    go(clip, pairs, BOTH[:1], tmp_path)
    assert torch.equal(outputs(from_pretrained(tmp_path / "structured")), expected)


def test_several_ways_of_taking_out(clip, pairs, tmp_path):
    """A share of all and a count of one are equal numbers, and not the same thing."""
    configs = [
        StructuredConfig(visual=Keep(heads=heads, neurons=64), criterion="random") for heads in (1.0, 1)
    ]
    record = go(clip, pairs, [Variant(None, config) for config in configs], tmp_path)
    assert [part["saved"]["folder"] for part in record["structured"].values()] == [
        "structured",
        "structured-2",
    ]
    left = [from_pretrained(tmp_path / name) for name in ("structured", "structured-2")]
    blocks = [model.visual.transformer.resblocks[0] for model in left]
    assert [tensors(block.attn)["out_proj.weight"].shape[1] for block in blocks] == [64, 16]
    # neurons judged one by one are too many to read
    assert {e["kind"] for part in record["structured"].values() for e in part["errors"]} == {"heads"}


def test_target_speedup(clip, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path / "cache"))
    config = StructuredConfig(
        target_speedup=1.5, tower="visual", samples=6, batch_size=3, groups=4, timed_batch=2
    )
    record = go(clip, pairs, [Variant(None, config)], tmp_path)
    speedup = record["structured"]["mope visual 1.5x speed"]["speedup"]
    # the run's own measurement is of the model as saved, by the same clock
    assert record["variants"][0]["timing"]["image"]["speedup"] == pytest.approx(speedup["measured"], rel=0.02)
    assert speedup["target"] == 1.5


def test_chosen_on_what_it_is_evaluated_with(clip, pairs, tmp_path):
    options = pipeline.RunOptions("tiny", "pairs", "pairs", batch=2, rounds=5)
    record = go(clip, pairs, BOTH[:1], tmp_path, options)
    note = "modules were chosen on the images that they are evaluated with"
    assert note in record["structured"][NAME]["notes"]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant(None, StructuredConfig(visual=Keep(layers=9))), "layers: 9 cannot be kept of 3"),
        (Variant(MagnitudeConfig(targets=("*resblocks.2*",)), BOTH[0].structured), "matches no layer"),
    ],
    ids=["count", "target"],
)
def test_faults_show_before_any_work(clip, pairs, tmp_path, monkeypatch, variant, message):
    monkeypatch.setattr(pipeline.job, "evaluate", lambda *_: pytest.fail("evaluated first"))
    with pytest.raises(ValueError, match=message):
        go(clip, pairs, [variant], tmp_path)


def test_dense_model_is_not_changed(clip, pairs, tmp_path):
    before = copy.deepcopy(clip.state_dict())
    go(clip, pairs, BOTH, tmp_path)
    after = clip.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_nothing_to_do_is_no_variant():
    with pytest.raises(ValueError, match="got neither"):
        Variant()
