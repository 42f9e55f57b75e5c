"""run: what the record holds, that it survives a kill, and the pages made of it."""

import json
import shutil

import pytest
import torch

from vlprune import MagnitudeConfig, WandaConfig, from_pretrained, pipeline, report
from vlprune.nn import Linear24

VARIANTS = [
    pipeline.Variant(MagnitudeConfig()),
    pipeline.Variant(WandaConfig(samples=6, batch_size=3)),
    pipeline.Variant(WandaConfig(pattern="unstructured", sparsity=0.7, samples=6)),
]
OPTIONS = pipeline.RunOptions("tiny", "pairs", "pairs", batch=2, rounds=5)


@pytest.fixture
def record(clip, pairs, tmp_path):
    return pipeline.run(clip, pairs, pairs, VARIANTS, OPTIONS, tmp_path / "out", say=lambda line: None)


def test_record_holds_every_variant(record, tmp_path):
    assert [v["name"] for v in record["variants"]] == ["magnitude 2:4", "wanda 2:4", "wanda 70%"]
    for variant in record["variants"]:
        for tower in ("image", "text"):
            timing = variant["timing"][tower]
            assert timing["speedup"] == timing["dense"]["median"] / timing["variant"]["median"]
            assert timing["dense"]["samples"] >= 5
    packed = record["variants"][0]
    assert packed["metrics"].keys() == packed["packed_metrics"].keys()
    assert max(packed["packed_error"].values()) < 1e-4
    assert "sparsify" not in record["variants"][2]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(record))


def test_dense_model_is_not_changed(clip, pairs, tmp_path):
    before = {n: p.clone() for n, p in clip.named_parameters()}
    pipeline.run(clip, pairs, pairs, VARIANTS[:1], OPTIONS, tmp_path / "out", say=lambda line: None)
    assert all(torch.equal(p, before[n]) for n, p in clip.named_parameters())


def test_last_24_variant_is_saved(record, tmp_path):
    model = from_pretrained(tmp_path / "out" / "model")
    packed = sum(isinstance(m, Linear24) for m in model.modules())
    assert packed == record["variants"][1]["sparsify"]["packed"]
    assert "saved" not in record["variants"][0]


def test_killed_run_continues(clip, pairs, tmp_path, monkeypatch):
    """The second variant dies; the next run redoes that one and none before it."""
    real, done = pipeline.make.prune_, []

    def dying(model, config, calib):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(config)
        return real(model, config, calib)

    monkeypatch.setattr(pipeline.make, "prune_", dying)
    arguments = (clip, pairs, pairs, VARIANTS, OPTIONS, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(*arguments, say=lambda line: None)
    assert not (tmp_path / "out" / "report.json").exists()
    again = []
    monkeypatch.setattr(pipeline.make, "prune_", lambda m, c, d: again.append(c) or real(m, c, d))
    record = pipeline.run(*arguments, say=lambda line: None)
    assert (done, again) == ([VARIANTS[0].weights], [v.weights for v in VARIANTS[1:]])
    assert len(record["variants"]) == 3


@pytest.mark.parametrize("change", ["weights", "options", "data", "calibration", "saved model"])
def test_other_arguments_start_anew(clip, pairs, tmp_path, monkeypatch, change):
    options, calib = OPTIONS, pairs
    pairs.captions[2].append("another")
    pipeline.run(clip, pairs, pairs, VARIANTS[:1], options, tmp_path, say=lambda line: None)
    if change == "weights":
        with torch.no_grad():
            clip.text_projection.neg_()
    elif change == "options":
        options = pipeline.RunOptions("tiny", "pairs", "pairs", batch=3, rounds=5)
    elif change == "data":
        # every caption is evaluated, not only those that stand for an image in a batch
        pairs.captions[2][1] += "!"
    elif change == "calibration":
        calib = pairs.subset([0, 1])
    else:
        shutil.rmtree(tmp_path / "model")
    calls, real = [], pipeline.make.prune_
    monkeypatch.setattr(pipeline.make, "prune_", lambda m, c, d: calls.append(c) or real(m, c, d))
    pipeline.run(clip, pairs, calib, VARIANTS[:1], options, tmp_path, say=lambda line: None)
    assert calls == [VARIANTS[0].weights]


def test_table_shows_the_records_numbers(record):
    text = report.table(record)
    lines = text.splitlines()
    assert max(map(len, lines[:5])) <= 80
    wanda = record["variants"][1]
    line = next(line for line in lines if line.startswith("wanda 2:4"))
    assert f"{wanda['packed_metrics']['mean_recall']:.1f}" in line
    assert f"{wanda['timing']['image']['speedup']:.2f}x" in line
    assert "50 %" in line
    assert record["machine"]["cpu"] in text


def test_page_is_whole_and_self_contained(record, tmp_path):
    path = tmp_path / "report.html"
    record["model"] = "<b>tiny"
    report.write_html(record, path)
    text = path.read_text()
    assert text.count("<svg") == 3  # accuracy against speed, and the layers of two 2:4 variants
    assert "<b>tiny" not in text
    assert "&lt;b&gt;tiny" in text
    for outside in ("<script", "<link", "src=", "@import"):
        assert outside not in text
    assert "magnitude 2:4" in text


def test_variants_of_one_name_stay_apart(clip, pairs, tmp_path):
    variants = [
        pipeline.Variant(MagnitudeConfig(pattern="unstructured", sparsity=0.5, targets=targets))
        for targets in (("visual",), ("text",))
    ]
    record = pipeline.run(clip, pairs, pairs, variants, OPTIONS, tmp_path, say=lambda line: None)
    assert [v["name"] for v in record["variants"]] == ["magnitude 50%", "magnitude 50% (2)"]
    names = [{layer["name"].split(".")[0] for layer in v["prune"]["layers"]} for v in record["variants"]]
    assert names == [{"visual"}, {"transformer"}]


@pytest.mark.parametrize("kept", ["[]", "{", '{"fingerprint": 1}'])
def test_useless_progress_is_left_aside(clip, pairs, tmp_path, kept):
    (tmp_path / "progress.json").write_text(kept)
    record = pipeline.run(clip, pairs, pairs, VARIANTS[:1], OPTIONS, tmp_path, say=lambda line: None)
    assert len(record["variants"]) == 1


@pytest.mark.parametrize("fault", ["target", "model folder", "out"])
def test_faults_show_before_any_work(clip, pairs, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(pipeline.job, "evaluate", lambda *_: pytest.fail("evaluated first"))
    config, out = MagnitudeConfig(), tmp_path / "out"
    if fault == "target":
        config = MagnitudeConfig(targets=("nope",))
    elif fault == "model folder":
        (out / "model").mkdir(parents=True)
        (out / "model" / "thesis.tex").write_text("years")
    else:
        out.write_text("a file")
    with pytest.raises((ValueError, OSError), match=r"nope|model|out"):
        pipeline.run(clip, pairs, pairs, [pipeline.Variant(config)], OPTIONS, out, say=lambda line: None)


def test_bf16_run(clip, pairs, tmp_path):
    """Packed and dense both round after each layer: compared through the float32 model."""
    record = pipeline.run(
        clip.bfloat16(), pairs, pairs, VARIANTS[:1], OPTIONS, tmp_path, say=lambda line: None
    )
    assert record["dtype"] == "bfloat16"
    assert 0 < max(record["variants"][0]["packed_error"].values()) < 0.2


def test_no_variants(clip, pairs, tmp_path):
    with pytest.raises(ValueError, match="at least one variant"):
        pipeline.run(clip, pairs, pairs, [], OPTIONS, tmp_path)
