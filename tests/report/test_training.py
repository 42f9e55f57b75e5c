"""Trainings as lines, plots and pages, read back."""

import re

import pytest

from vlprune import report
from vlprune.report.training import training_lines, training_plot, trainings_of

CURVES = {
    "step": [0, 1, 2, 3],
    "loss": [8.0, 4.0, 2.0, 1.0],
    "task": [7.0, 3.5, 1.5, 0.5],
    "kl": [1.0, 0.5, 0.5, 0.5],
    "lr": [1e-3, 7.5e-4, 5e-4, 2.5e-4],
}


def part(**more):
    return {
        "name": "wanda 2:4 + sparselora",
        "config": {"method": "sparselora", "batch_size": 16, "rank": 4, "version": 1},
        "taught_by": "its own dense weights",
        "steps": 4,
        "trained": 12_345,
        "seconds": 61.4,
        "resumed": 0,
        "zeros": {"before": 5000, "after": 5000, "kept": True},
        "curves": CURVES,
    } | more


def record(**more):
    scores = {"kind": "pairs", "count": 60, "tr1": 50.0, "ir1": 40.0, "mean_recall": 45.0}
    return {
        "format": "vlprune-training",
        "version": 1,
        "model": "<b>small",
        "teacher": "ViT-B-32:laion",
        "data": "wds:a.tar",
        "test": "coco:b.json:c",
        "images": 4000,
        "dtype": "float32",
        "device": "cpu",
        "ranks": 2,
        "machine": {"cpu": "a CPU", "gpu": None, "torch": "2.15"},
        "metrics": {"teacher": scores, "pruned": scores | {"tr1": 12.5}, "recovered": scores | {"tr1": 37.5}},
        "training": part(),
    } | more


def heights(svg, count):
    """The y of each line of so many points: as much lower on the page as the value is smaller."""
    lines = re.findall(r'<path d="(M [^"]*)"[^>]*clip-path', svg)
    found = [[float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line)] for line in lines]
    return [line for line in found if len(line) == count]


def test_lines_are_the_curves():
    *losses, rate = heights(training_plot(part()), 4)
    assert len(losses) == 3
    # linear: equal steps of the rate, halves of the loss
    assert [rate[i + 1] - rate[i] for i in range(3)] == pytest.approx([rate[1] - rate[0]] * 3, rel=1e-3)
    total = losses[-1]
    falls = [total[i + 1] - total[i] for i in range(3)]
    assert [falls[0] / fall for fall in falls] == pytest.approx([1, 2, 4], rel=1e-3)
    # the terms add up to the loss, seen from where zero would be
    zero = total[3] + falls[2]
    task, kl = losses[:2]
    assert [zero - a + zero - b for a, b in zip(task, kl, strict=True)] == pytest.approx(
        [zero - y for y in total], rel=1e-3
    )


def test_large_falls_are_drawn_logarithmically():
    curves = CURVES | {"loss": [1000.0, 100.0, 10.0, 1.0], "task": [1000.0, 100.0, 10.0, 1.0]}
    total = heights(training_plot(part(curves=curves)), 4)[-2]
    falls = [total[i + 1] - total[i] for i in range(3)]
    assert falls == pytest.approx([falls[0]] * 3, rel=1e-3)


def test_one_term_is_drawn_once():
    curves = {name: CURVES[name] for name in ("step", "loss", "lr")} | {"task": CURVES["loss"]}
    assert len(heights(training_plot(part(curves=curves)), 4)) == 2


def test_lines_say_what_became_of_the_zeros():
    assert training_lines(part()) == [
        "sparselora of rank 4, taught by its own dense weights: 4 steps of 16 images, 12,345 numbers trained",
        "loss 8 -> 1, learning rate at most 0.001, 61 s",
        "zeros: 5,000 before, 5,000 after: the same ones",
    ]
    lost = part(zeros={"before": 5000, "after": 0, "kept": False}, resumed=2)
    assert training_lines(lost)[1].endswith("61 s since it was resumed at step 2")
    assert training_lines(lost)[2] == "zeros: 5,000 before, 0 after: not the same ones"
    assert len(training_lines(part(zeros={"before": 0, "after": 0, "kept": True}))) == 2


def test_trainings_come_in_their_order():
    run = {
        "structured": {"a": {"trainings": [{"name": "width"}, {"name": "depth"}]}, "b": {}},
        "variants": [{"name": "x"}, {"name": "y", "recovery": {"name": "last"}}],
    }
    assert [found["name"] for found in trainings_of(run)] == ["width", "depth", "last"]


def test_table_of_a_training():
    text = report.training_table(record())
    assert re.search(r"^pruned +12\.5 +40\.0 +45\.0$", text, re.MULTILINE)
    assert re.search(r"^recovered +37\.5 +40\.0 +45\.0$", text, re.MULTILINE)
    assert "<b>small, teacher ViT-B-32:laion, trained on wds:a.tar, 4,000 images" in text
    assert "evaluated on coco:b.json:c, 60 images" in text
    assert "float32, 2 processes, a CPU" in text
    same = report.training_table(record(test="wds:a.tar"))
    assert "evaluated on wds:a.tar (which it was trained on)" in same
    assert "tr@1" not in report.training_table(record(metrics=None))


def test_page_is_whole_and_self_contained(tmp_path):
    path = tmp_path / "report.html"
    report.write_training(record(), path)
    text = path.read_text()
    assert text.count("<svg") == 1
    assert "<b>small" not in text
    assert "&lt;b&gt;small" in text
    assert "<td>rank</td>" in text
    assert "37.5" in text
    for outside in ("<script", "<link", "src=", "@import"):
        assert outside not in text
