"""The command line in processes of its own: output, exit codes, one clear line for bad input."""

import json
import os
import subprocess
import sys

import pytest


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
        (["report", "/no/such/run"], "/no/such/run/report.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vlprune", *args], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert message in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_is_exit_code_2():
    assert vlprune("run", "demo", "--patern", "2:4").returncode == 2


def test_prune_eval_and_pack_round_trip(tmp_path):
    saved = tmp_path / "pruned"
    done = vlprune("prune", "demo", "--data", "demo:train:64", "--pack", "--out", saved, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["prune"]["sparsity"] == 0.5
    dense = json.loads(vlprune("eval", "demo", "--limit", 100, "--json").stdout)
    pruned = vlprune("eval", saved, "--data", "demo", "--limit", 100, "--json")
    assert pruned.returncode == 0, pruned.stderr
    assert 10 < json.loads(pruned.stdout)["mean_recall"] < dense["mean_recall"]


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


def test_bench_json(tmp_path):
    done = vlprune("bench", "--tokens", 8, "--rounds", 5, "--dtype", "fp32", "--json")
    record = json.loads(done.stdout)
    assert len(record["rows"]) == 4
    for row in record["rows"]:
        assert row["speedup"] == row["dense"]["median"] / row["sparse"]["median"]
    assert record["machine"]["torch"]


def test_info_lists_every_operator_and_backend():
    record = json.loads(vlprune("info", "--json").stdout)
    assert record["backends"]["linear24"]["torch"] is None
    text = vlprune("info").stdout
    assert "linear24" in text
    assert record["machine"]["cpu"] in text
