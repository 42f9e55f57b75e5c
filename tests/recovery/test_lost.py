"""A rank that is killed ends the job in words, and torchrun starts it again on the step of the checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lost_child import KILLED, SAVED, STEPS

from vlprune import distributed

HERE = Path(__file__).parent
CHILD = str(HERE / "lost_child.py")


@pytest.fixture
def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}


@pytest.mark.slow
def test_torchrun_resumes_what_a_killed_rank_ended(tmp_path, environment):
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run(
        [sys.executable, *run, CHILD, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    for rank in range(2):
        resumed, weights, undisturbed = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert resumed == KILLED // SAVED * SAVED
        # the same operations in the same order: equal to the last bit
        assert all(torch.equal(weights[name], value) for name, value in undisturbed.items())
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("killed", "whole")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == list(range(STEPS))


@pytest.mark.slow
def test_the_rank_that_is_left_says_that_another_was_lost(tmp_path, environment):
    command = [sys.executable, CHILD, str(tmp_path)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said, _ = (process.communicate(timeout=300)[1] for process in ranks)
    assert [process.returncode for process in ranks] == [1, -9]
    assert "distill: another of the 2 processes of this job failed or was lost, so rank 0 stops." in said
    assert "See what that one said; if nothing, start all of them again" in said
    # what gloo says of sockets does not hide it
    assert "gloo" not in said


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2$"), distributed.losing_none("recover"):
        raise RuntimeError("mat1 and mat2")
    with pytest.raises(RuntimeError, match=r"^recover: another of the 2"), distributed.losing_none("recover"):
        raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error")
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    with pytest.raises(RuntimeError, match=r"^Connection reset by peer"), distributed.losing_none("recover"):
        raise RuntimeError("Connection reset by peer, but by nobody of this job")
