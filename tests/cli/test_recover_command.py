"""vlprune recover on the demo: better than pruned, zeros as they were, killed, resumed, on two processes."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from vlprune import MagnitudeConfig, from_pretrained, load_model, masks, prune_, save_pretrained
from vlprune.cli import main

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
STEPS = ["--batch-size", "32", "--lr", "1e-3", "--samples", "512"]
PYTHON = [sys.executable, "-m"]
COUNT = 6
# one thread: the same operations in the same order
EXACT = ["--steps", COUNT, "--save-every", 2, "--threads", 1]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The demo at 70 % sparsity, of which magnitude pruning leaves something to win back."""
    folder = tmp_path_factory.mktemp("models") / "pruned"
    model = load_model("demo").model
    prune_(model, MagnitudeConfig(pattern="unstructured", sparsity=0.7))
    save_pretrained(model, folder)
    return folder


def arguments(pruned, out, *more):
    base = ["recover", pruned, "--teacher", "demo", "--data", "demo:train:512", *STEPS]
    return [*map(str, base), *map(str, more), "--out", str(out)]


@pytest.fixture(scope="module")
def whole(pruned, tmp_path_factory):
    """What a training leaves that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run([*PYTHON, "vlprune", *arguments(pruned, out, *EXACT)], env=ENV, check=True)
    return out


def lines_of(out):
    log = out / "training" / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def same_zeros(folder, other):
    own, before = (masks(from_pretrained(path)) for path in (folder, other))
    return own.keys() == before.keys() and all(torch.equal(keep, before[name]) for name, keep in own.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparselora", "distill"])
def test_recovered_is_better_than_pruned(pruned, tmp_path, capfd, method):
    out = tmp_path / "out"
    options = ["--method", method, "--steps", 12, "--eval", "demo", "--limit", 100, "--json"]
    assert main(arguments(pruned, out, *options)) == 0
    printed = capfd.readouterr().out
    record = json.loads(printed)
    assert record == json.loads((out / "report.json").read_text())
    scores = {name: found["mean_recall"] for name, found in record["metrics"].items()}
    # of 600 answers; the difference of these seeds is several points
    assert scores["pruned"] + 1 < scores["recovered"] <= scores["teacher"] + 1
    losses = [line["loss"] for line in lines_of(out)]
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    assert same_zeros(out / "model", pruned)
    assert {p.name for p in out.iterdir()} == {"model", "report.html", "report.json", "training"}
    assert main(["report", str(out)]) == 0
    text = capfd.readouterr().out
    assert f"recovered  {record['metrics']['recovered']['tr1']:>5.1f}" in text
    assert "<svg" in (out / "report.html").read_text()
    assert main(["eval", str(out / "model"), "--data", "demo", "--limit", "100", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == record["metrics"]["recovered"]


@pytest.mark.slow
def test_killed_training_goes_on_with_the_same_step(pruned, whole, tmp_path):
    killed = tmp_path / "killed"
    command = [*PYTHON, "vlprune", *arguments(pruned, killed, *EXACT)]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL)
    while len(lines_of(killed)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert 3 <= len(lines_of(killed)) < COUNT
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    resumed = json.loads((killed / "report.json").read_text())["training"]["resumed"]
    assert resumed in (2, 4)
    assert f"resumed at step {resumed}" in done.stdout
    # equal to the last bit
    assert lines_of(killed) == lines_of(whole)
    own, other = (from_pretrained(out / "model").state_dict() for out in (killed, whole))
    assert all(torch.equal(tensor, other[name]) for name, tensor in own.items())


@pytest.mark.slow
@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["ddp", "fsdp"])
def test_two_processes_train_as_one_and_the_first_alone_tells(pruned, whole, tmp_path, shard):
    together = [
        *PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "vlprune", *arguments(pruned, tmp_path, *EXACT, *shard),
    ]  # fmt: skip
    done = subprocess.run(together, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("zeros:") == done.stdout.count("Report:") == 1
    assert "2 processes" in done.stdout
    losses = [[line["loss"] for line in lines_of(out)] for out in (whole, tmp_path)]
    # float32 sums in another order, up to five steps of Adam later
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert same_zeros(tmp_path / "model", pruned)


def test_one_process_alone_runs_the_rest(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys.modules["vlprune.cli.main"], "world_size", lambda: 2)
    assert main(["run", "demo", "--out", str(tmp_path / "out")]) == 2
    expected = "vlprune run: torchrun is for prune, recover, eval; run it as one process"
    assert expected in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_is_of_one_training_and_never_the_models_own(pruned, tmp_path, capfd):
    out = tmp_path / "out"
    base = ["--steps", 1, "--samples", 32]
    assert main(arguments(pruned, out, *base)) == 0
    capfd.readouterr()
    assert main(arguments(pruned, out, *base, "--rank", 2)) == 2
    assert "it holds a training with rank 8, now 2; give another folder" in capfd.readouterr().err
    assert main(arguments(out / "model", out, *base)) == 2
    assert "model is the pruned model itself; give another folder" in capfd.readouterr().err
