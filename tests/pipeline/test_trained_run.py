"""run with training: rows before and after, in the papers' order, killed in the middle and continued."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from structured.clock import Clock

from vlprune import MagnitudeConfig, StructuredConfig, from_pretrained, masks, measure, pipeline, report
from vlprune.nn import Linear24
from vlprune.pipeline import Recovery, Variant

from .conftest import write_images
from .run_child import DISTILL, OPTIONS, SMALLER, STEPS, VARIANTS, go

HERE = Path(__file__).parent
NAME = "mope visual heads 50% layers 2"
LORA = Recovery.from_dict({"method": "sparselora", "steps": 3, "batch_size": 3, "rank": 2})


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(measure, "compare", Clock())


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbs, on one thread: its folder and its record."""
    folder = tmp_path_factory.mktemp("whole")
    write_images(folder)
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(measure, "compare", Clock())
        return folder / "out", go(folder, folder / "out")


@contextmanager
def one_thread():
    """The same operations in the same order, every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def lines_of(folder):
    log = folder / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def same_weights(folder, other):
    own, whole = (from_pretrained(path).state_dict() for path in (folder, other))
    assert own.keys() == whole.keys()
    return all(torch.equal(tensor, whole[name]) for name, tensor in own.items())


def test_order_is_width_training_depth_training(images, tmp_path, monkeypatch):
    seen = []
    real = pipeline.job.recover_pruned_

    def watch(model, dense, data, recovery, folder, **more):
        blocks = model.visual.transformer.resblocks
        heads = getattr(blocks[0].attn, "num_heads", None)
        seen.append((folder.name, len(blocks), heads, len(masks(model)) > 20, more["retained"]))
        return real(model, dense, data, recovery, folder, **more)

    monkeypatch.setattr(pipeline.job, "recover_pruned_", watch)
    out = tmp_path / "out"
    said = []
    record = go(images, out, say=said.append)
    left = record["structured"][f"{NAME} + distill"]["keep_lists"]["visual"]["layers"]
    retained = {"visual": tuple(left)}
    # 3 layers of 4 heads; 2:4 makes zeros in all of its layers
    assert [one[:3] for one in seen] == [
        ("structured-2-width", 3, 2),
        ("structured-2", 2, 2),
        ("recovered", 2, 2),
    ]
    assert [one[4] for one in seen] == [None, retained, retained]
    assert [v["name"] for v in record["variants"]] == [
        NAME,
        f"{NAME} + distill",
        f"{NAME} + distill + magnitude 2:4",
        f"{NAME} + distill + magnitude 2:4 + distill",
    ]
    pruned, recovered = (from_pretrained(out / name) for name in ("pruned", "recovered"))
    before, after = masks(pruned), masks(recovered)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], keep) for name, keep in after.items())
    assert not same_weights(out / "structured", out / "structured-2")
    final = from_pretrained(out / "model")
    packed = sum(isinstance(m, Linear24) for m in final.modules())
    assert packed == record["variants"][3]["sparsify"]["packed"]
    # what is packed is what was trained
    norms = {n: p for n, p in final.named_parameters() if n.endswith("ln_1.weight")}
    assert norms
    for name, p in norms.items():
        assert torch.equal(p, recovered.get_parameter(name))


def test_both_rows_begin_with_the_same_pruned_weights(images, tmp_path, monkeypatch):
    calls = []
    real = pipeline.make.prune_
    monkeypatch.setattr(pipeline.make, "prune_", lambda *a: calls.append(1) or real(*a))
    variants = [
        Variant(MagnitudeConfig()),
        Variant(MagnitudeConfig(), recovery=LORA),
        Variant(MagnitudeConfig(), recovery=dataclasses.replace(DISTILL)),
    ]
    record = go(images, tmp_path / "out", variants)
    assert len(calls) == 1
    assert [v["name"] for v in record["variants"]] == [
        "magnitude 2:4",
        "magnitude 2:4 + sparselora",
        "magnitude 2:4 + distill",
    ]
    assert [v.get("saved", {}).get("folder") for v in record["variants"]] == [None, "recovered", "model"]
    assert [v["prune"]["sparsity"] for v in record["variants"]] == [0.5, 0.5, 0.5]
    assert record["variants"][1]["recovery"]["taught_by"] == "its own dense weights"
    assert (tmp_path / "out" / "recovered-2").is_dir()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(record))


def test_page_and_table_tell_of_every_training(whole, tmp_path):
    record = json.loads(json.dumps(whole[1]))
    text = report.table(record)
    for name in (f"{NAME} + distill, after width", f"{NAME} + distill, after depth"):
        assert f"{name}:\ndistill, taught by the dense model: {STEPS} steps of 3 images" in text
    assert "calibrated on others; trained on more" in text
    zeros = record["variants"][3]["recovery"]["zeros"]["before"]
    assert f"zeros: {zeros:,} before, {zeros:,} after: the same ones" in text
    page = tmp_path / "report.html"
    report.write_html(record, page)
    html = page.read_text()
    assert html.count(">learning rate<") == 3
    for outside in ("<script", "<link", "src=", "@import"):
        assert outside not in html


def test_what_is_only_narrower_is_trained_as_it_was_left(images, tmp_path, monkeypatch):
    narrow = StructuredConfig(visual=dataclasses.replace(SMALLER.visual, layers=None), criterion="magnitude")
    out = tmp_path / "out"
    record = go(images, out, [Variant(None, narrow, recovery=LORA)])
    first, second = record["structured"].values()
    assert second["origin"] == "magnitude visual heads 50%"
    assert second["keep_lists"] == first["keep_lists"]
    assert [part["taught_by"] for part in second["trainings"]] == ["the dense model"]
    assert f"what is left of {second['origin']}, trained" in report.table(record)
    assert record["variants"][0]["structured"] == "magnitude visual heads 50% + sparselora"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["structured-2-width", "recovered"])
def test_killed_run_goes_on_in_the_middle_of_training(images, whole, tmp_path, stage):
    killed, (undisturbed, expected) = tmp_path / "killed", whole
    tests = HERE.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.run_child", str(images), str(killed), "0.2"],
        cwd=tests,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tests.parent)},
    )
    # a step after the checkpoint of two, which is then to be taken again
    while len(lines_of(killed / "training" / stage)) < 3 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    assert 3 <= len(lines_of(killed / "training" / stage)) < STEPS
    assert not (killed / "report.json").exists()
    with one_thread():
        record = go(images, killed)
    # equal to the last bit
    for folder in ("structured", "structured-2", "recovered"):
        assert same_weights(killed / folder, undisturbed / folder), folder
    for folder in (stage, "recovered"):
        losses = [
            [json.loads(line)["loss"] for line in lines_of(out / "training" / folder)]
            for out in (killed, undisturbed)
        ]
        assert losses[0] == losses[1]
        assert len(losses[0]) == STEPS
    assert [v["metrics"] for v in record["variants"]] == [v["metrics"] for v in expected["variants"]]
    trainings = {part["name"]: part["resumed"] for part in report.training.trainings_of(record)}
    assert sorted(trainings.values()) == [0, 0, 2]


def test_another_training_begins_anew(images, tmp_path):
    out = tmp_path / "out"
    first = [Variant(MagnitudeConfig(), recovery=LORA)]
    go(images, out, first)
    other = Recovery.from_dict({**LORA.to_dict(), "seed": 5})
    record = go(images, out, [Variant(MagnitudeConfig(), recovery=other)])
    assert record["variants"][0]["recovery"]["config"]["seed"] == 5
    assert record["variants"][0]["recovery"]["resumed"] == 0


def test_variants_survive_json():
    for variant in VARIANTS:
        assert Variant.from_dict(json.loads(json.dumps(variant.to_dict()))) == variant


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Variant(MagnitudeConfig(), between=DISTILL), "between: expected weights to prune after"),
        (
            lambda: Variant(MagnitudeConfig(), recovery=Recovery.from_dict({"method": "lora"})),
            "recovery: lora fills the zeros",
        ),
        (
            lambda: Variant(
                None, SMALLER, Recovery.from_dict({"method": "distill", "retained": {"visual": [0, 2]}})
            ),
            "recovery: retained: a run knows which layers it left; leave it out",
        ),
        (
            lambda: Variant.from_dict({"method": "magnitude", "recovery": "distill"}),
            "recovery: expected a section of its own",
        ),
    ],
    ids=["between", "lora", "retained", "section"],
)
def test_bad_variants(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no data", "needs data to train by"),
        ("half", "bfloat16 rounds"),
        ({"targets": ["nope"]}, "'nope' matches no layer"),
        ({"rank": {"text": 4}}, "rank: none of 'text' fits layer visual"),
        ({"alpha": {"*.c_fc": 4}}, "alpha: none of "),
        ({"batch_size": 1}, "no batch has two"),
    ],
    ids=str,
)
def test_faults_of_training_show_before_any_work(clip, pairs, tmp_path, monkeypatch, fault, message):
    monkeypatch.setattr(pipeline.job, "evaluate", lambda *_: pytest.fail("evaluated first"))
    recovery, train, model = DISTILL, pairs, copy.deepcopy(clip)
    if fault == "no data":
        train = None
    elif fault == "half":
        model.bfloat16()
    else:
        recovery = Recovery.from_dict(fault)
    variants = [Variant(MagnitudeConfig(), recovery=recovery)]
    with pytest.raises(ValueError, match=message):
        pipeline.run(model, pairs, pairs, variants, OPTIONS, tmp_path / "out", print, train)
