"""The scripts of examples/ and the README's six lines, run on the demo."""

import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from structured.clock import Clock

import vlprune
from benchmarks.example import code
from benchmarks.tables import result
from vlprune import measure

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script as the command line would, and return what it prints."""
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    # counts parameters instead of seconds: at once, and the same on every machine
    monkeypatch.setattr(measure, "compare", Clock())

    def call(script, *options):
        monkeypatch.setattr("sys.argv", [script, *options])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return printed.getvalue()

    return call


SMALL = ("--calib", "demo:train:24", "--data", "demo:test:40")


def test_prune_24(run, tmp_path):
    printed = run("prune_24.py", *SMALL, "--samples", "8", "--out", "pruned")
    assert "32 layers, 2,260,992 weights set to zero" in printed
    assert [float(r) for r in re.findall(r"mean recall ([\d.]+)", printed)] == pytest.approx([100, 95], abs=5)
    keep = vlprune.masks(vlprune.from_pretrained(tmp_path / "pruned"))
    assert len(keep) == 32
    for mask in keep.values():
        assert (mask.reshape(-1, 4).sum(1) == 2).all()


def test_target_speedup(run, tmp_path):
    run("target_speedup.py", "--speedup", "2", *SMALL, "--samples", "24", "--out", "smaller")
    whole = vlprune.load_model("demo").model.visual
    smaller = vlprune.from_pretrained(tmp_path / "smaller").visual
    blocks = [sum(p.numel() for p in tower.transformer.parameters()) for tower in (whole, smaller)]
    assert blocks[1] < 0.55 * blocks[0]


def test_recover(run, tmp_path):
    printed = run("recover.py", *SMALL, "--steps", "2", "--batch-size", "8", "--out", "recovered")
    assert "the zeros are the masks': True" in printed
    steps = [json.loads(line) for line in (tmp_path / "recovered" / "log.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1]


def test_custom_data(run, tmp_path):
    printed = run("custom_data.py", "--folder", "mine", "--count", "12")
    assert printed.count("2,260,992 weights set to zero, sparsity 0.5000") == 2
    assert "(12 images, 12 captions)" in printed
    assert len(list((tmp_path / "mine").glob("*.png"))) == 12


def shape(printed):
    """What is printed, without the numbers that differ from machine to machine."""
    lines = re.sub(r"[\d.]+ s$", "# s", printed, flags=re.MULTILINE).splitlines()
    lines[1] = re.sub(r"^\d+( of 32 2:4 layers packed).*", r"#\1", lines[1])
    return [re.sub(r" +\d+\.\d\d\b", " #", line) for line in lines]


def test_the_six_lines_print_what_the_readme_shows(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "compare", Clock())
    torch.manual_seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code(), "README.md", "exec"), {})
    shown = result("example")["printed"]
    assert result("example")["code"] == code()
    assert shape(printed.getvalue()) == shape(shown)
    # sums in another order may tip a few of 500 pairs
    recalls = [float(re.search(r"mean recall ([\d.]+)", text)[1]) for text in (printed.getvalue(), shown)]
    assert recalls[0] == pytest.approx(recalls[1], abs=1.0)
    assert len(code().strip().splitlines()) == 8  # an import, an empty line, six
