"""Training that was killed goes on as if nothing had happened."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from resume_child import STEPS, run

from vlprune.recovery import DistillConfig, distill_
from vlprune.recovery.state import FILE

HERE = Path(__file__).parent


def lines_of(out):
    log = out / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distill", "recover"])
def test_killed_run_continues_on_the_same_step_with_the_same_losses(tmp_path, kind, one_thread):
    killed = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "resume_child.py"), str(killed), kind, "0.3"], env=environment
    )
    # two steps after a checkpoint, which are then to be taken again
    while len(lines_of(killed)) < 8 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    before = len(lines_of(killed))
    assert 8 <= before < STEPS

    expected, model = run(tmp_path / "whole", kind)
    report, resumed = run(killed, kind)
    assert expected.resumed == 0
    assert report.resumed == before // 3 * 3
    # one thread, the same operations in the same order: equal to the last bit
    assert report.losses == expected.losses
    assert report.terms == expected.terms
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    lines = [json.loads(line) for line in lines_of(killed)]
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert [line["loss"] for line in lines] == list(expected.losses)


def test_finished_run_is_not_repeated(clip, batches, tmp_path):
    config = DistillConfig(steps=2, ema=0.5, learning_rate=1e-2)
    first, second = copy.deepcopy(clip), copy.deepcopy(clip)
    report = distill_(first, clip, batches, config, out=tmp_path)
    again = distill_(second, clip, batches, config, out=tmp_path)
    assert (again.resumed, again.losses) == (2, report.losses)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_checkpoint_of_another_run_is_refused(clip, batches, tmp_path):
    distill_(copy.deepcopy(clip), clip, batches, DistillConfig(steps=2), out=tmp_path)
    student = copy.deepcopy(clip)
    with pytest.raises(ValueError, match=r"another run: config\.learning_rate was 2e-05, now 0\.001"):
        distill_(student, clip, batches, DistillConfig(steps=2, learning_rate=1e-3), out=tmp_path)
    with pytest.raises(ValueError, match="another run: data was 3, now 2"):
        distill_(student, clip, batches[:2], DistillConfig(steps=2), out=tmp_path)
    state = torch.load(tmp_path / FILE, weights_only=True)
    del state["optimizer"]
    torch.save(state, tmp_path / FILE)
    with pytest.raises(ValueError, match="no checkpoint can be read from it"):
        distill_(student, clip, batches, DistillConfig(steps=2), out=tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:1000])
    with pytest.raises(ValueError, match="no checkpoint can be read from it"):
        distill_(student, clip, batches, DistillConfig(steps=2), out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), clip.parameters(), strict=True))


def test_processes_that_found_other_checkpoints_are_refused(clip, batches, tmp_path, monkeypatch):
    monkeypatch.setattr("vlprune.recovery.loop.on_all_ranks", lambda read: [read(), 3])
    with pytest.raises(ValueError, match=r"checkpoints of steps \[0, 3\]; they must share"):
        distill_(copy.deepcopy(clip), clip, batches, DistillConfig(steps=4), out=tmp_path)


def test_failed_save_leaves_the_old_checkpoint(clip, batches, tmp_path, monkeypatch):
    config = DistillConfig(steps=4, save_every=2)
    whole = torch.save

    def fail_later(state, file):
        if len(state["history"]) > 2:
            file.write(b"half")
            raise OSError("no space left")
        whole(state, file)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fail_later)
        with pytest.raises(OSError, match="no space left"):
            distill_(copy.deepcopy(clip), clip, batches, config, out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "log.jsonl"]
    assert distill_(copy.deepcopy(clip), clip, batches, config, out=tmp_path).resumed == 2
