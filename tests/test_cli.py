"""The command line: output, exit codes, one clear line for bad input."""

import json
import os
import subprocess
import sys

import pytest

from vlprune import evaluate, load_data, load_model
from vlprune.cli import main
from vlprune.nn import Linear24


def vlprune(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "vlprune", *map(str, args)],
        capture_output=True, text=True, timeout=600, env={**os.environ, **env},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "ViT-B-33", "--data", "demo"], "ViT-B-32"),
        (["eval", "demo", "--data", "nonsense:x"], "nonsense"),
        (["eval", "demo", "--data", "folder:/no/such/folder"], "/no/such/folder"),
        (["eval", "ViT-B-32"], "--data: required"),
        (["prune", "demo", "--out", "x", "--method", "wander"], "--method: expected one of magnitude, wanda"),
        (["prune", "demo", "--out", "x", "--pattern", "4:2"], "0 < n < m"),
        (["prune", "demo", "--out", "x", "--pattern", "unstructured"], "sparsity: required"),
        (["prune", "demo", "--out", "x"], "needs calibration data"),
        (
            ["prune", "demo", "--out", "x", "--sparsity", "0.7", "--pattern", "2:4"],
            'pattern "2:4" means 0.5, got 0.7',
        ),
        (["eval", "demo", "--device", "cuda:9"], "cuda:9"),
        (["eval", "demo", "--device", "foo"], "foo"),
        (["run", "demo", "--targets", "nope"], "targets: 'nope' matches no layer"),
        (["bench", "--out", "/dev/null"], "--out: expected a folder, /dev/null is a file"),
        (["report", "/no/such/run"], "/no/such/run/report.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    out, err = capfd.readouterr()
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert out == ""
    assert [p.name for p in tmp_path.iterdir() if p.name != "vlprune-run"] == []


def test_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m vlprune info | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_incomplete_record(tmp_path):
    (tmp_path / "report.json").write_text('{"format": "vlprune-report", "version": 1}')
    done = vlprune("report", tmp_path)
    assert done.returncode == 2
    assert "report.json: incomplete record, 'dense' is missing" in done.stderr


BAD_OPTIONS = {
    "unknown": (("--patern", "2:4"), "vlprune: unrecognized arguments: --patern 2:4"),
    "choice": (("--dtype", "int8"), "vlprune run: argument --dtype: invalid choice: 'int8'"),
    "number": (("--batch", "0"), "vlprune run: argument --batch: "),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_one_line_and_exit_code_2(options, message):
    done = vlprune("run", "demo", *options)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_an_unknown_backend_in_the_environment():
    done = vlprune("info", VLPRUNE_BACKEND="fast")
    assert done.returncode == 2
    assert done.stderr.startswith("vlprune info: VLPRUNE_BACKEND: expected one of auto, torch, cpu,")


def test_prune_eval_and_pack_round_trip(tmp_path):
    saved = tmp_path / "pruned"
    done = vlprune("prune", "demo", "--data", "demo:train:64", "--pack", "--out", saved, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["prune"]["sparsity"] == 0.5
    pruned = vlprune("eval", saved, "--data", "demo", "--limit", 100, "--json")
    assert pruned.returncode == 0, pruned.stderr
    loaded = load_model(saved)
    data = load_data("demo", loaded.preprocess, loaded.tokenizer).subset(100)
    assert json.loads(pruned.stdout) == evaluate(loaded.model, data).to_dict()
    assert sum(isinstance(m, Linear24) for m in loaded.model.modules()) == result["sparsify"]["packed"]


def test_run_writes_report_and_model(tmp_path):
    out = tmp_path / "run"
    done = vlprune(
        "run", "demo", "--pattern", "2:4", "--limit", 60, "--samples", 32, "--rounds", 5, "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "wanda 2:4" in done.stdout
    assert {p.name for p in out.iterdir()} == {"report.json", "report.html", "progress.json", "model"}
    again = vlprune("report", out)
    assert again.returncode == 0
    assert done.stdout.endswith(again.stdout)


def test_info_lists_every_operator_and_backend():
    record = json.loads(vlprune("info", "--json").stdout)
    assert record["backends"]["linear24"]["torch"] is None
    text = vlprune("info").stdout
    assert "linear24" in text
    assert record["machine"]["cpu"] in text
