"""Training that was killed goes on as if nothing had happened."""

import copy
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from common import pruned
from resume_child import STEPS, run

import vlprune
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    add_sparse_lora_,
    distill_,
    loop,
    recover_,
)
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
    torch.save(state | {"optimizer": {}, "identity": 3}, tmp_path / FILE)
    with pytest.raises(ValueError, match="no checkpoint can be read from it"):
        distill_(student, clip, batches, DistillConfig(steps=2), out=tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:1000])
    with pytest.raises(ValueError, match="no checkpoint can be read from it"):
        distill_(student, clip, batches, DistillConfig(steps=2), out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), clip.parameters(), strict=True))


def adapted(clip, config, keeps):
    student = copy.deepcopy(clip)
    add_sparse_lora_(student, config, keeps)
    return student


def test_checkpoint_of_other_adapters_masks_or_weights_is_refused(clip, batches, tmp_path):
    """Of shapes, names and numbers of zeros they are all alike."""
    config, settings = SparseLoRAConfig(rank=2), RecoverConfig(steps=2)
    keeps = vlprune.masks(pruned(clip, pattern="2:4"))
    others = {name: ~keep for name, keep in keeps.items()}
    recover_(adapted(clip, config, keeps), batches, settings, out=tmp_path)
    # the adapters' first values are of no run
    assert recover_(adapted(clip, config, keeps), batches, settings, out=tmp_path).resumed == 2
    changed = copy.deepcopy(clip)
    changed.visual.conv1.weight.data.neg_()
    for model, said in (
        (adapted(clip, SparseLoRAConfig(rank=2, alpha=64), keeps), r"adapters\.alpha was 16, now 64"),
        (adapted(clip, SparseLoRAConfig(rank=2, sparse=False), keeps), r"adapters\.sparse was True"),
        (adapted(clip, config, others), r"frozen\..*\.keep was '[0-9a-f]{16}', now"),
        (adapted(changed, config, keeps), r"frozen\.visual\.conv1\.weight was"),
    ):
        with pytest.raises(ValueError, match=f"another run: {said}"):
            recover_(model, batches, settings, out=tmp_path)


def test_checkpoint_under_another_mask_is_refused_and_revives_no_zero(clip, batches, tmp_path):
    distill_(pruned(clip, pattern="2:4"), clip, batches, DistillConfig(steps=2), out=tmp_path)
    student = copy.deepcopy(clip)
    keeps = {name: ~keep for name, keep in vlprune.masks(pruned(clip, pattern="2:4")).items()}
    vlprune.apply_masks_(student, keeps)
    before = vlprune.masks(student)
    with pytest.raises(ValueError, match=r"another run: zeros\..* was"):
        distill_(student, clip, batches, DistillConfig(steps=2), out=tmp_path)
    after = vlprune.masks(student)
    assert all(torch.equal(after[name], keep) for name, keep in before.items())


@pytest.mark.parametrize(
    "left", ["", '{"step": 0, "loss": 1.0}\n{"step": 1, "lo', None], ids=["empty", "cut", "gone"]
)
def test_log_is_that_of_the_checkpoint(clip, batches, tmp_path, left):
    config = DistillConfig(steps=3, save_every=2)
    distill_(copy.deepcopy(clip), clip, batches, config, out=tmp_path)
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    log.unlink() if left is None else log.write_text(left)
    distill_(copy.deepcopy(clip), clip, batches, config, out=tmp_path)
    assert log.read_text() == whole


def test_checkpoint_is_not_kept_in_memory(clip, batches, tmp_path, monkeypatch):
    distill_(copy.deepcopy(clip), clip, batches, DistillConfig(steps=2, save_every=1), out=tmp_path)
    kept, whole = [], loop.read_state

    def read(*given):
        found = whole(*given)
        found["history"].pop()
        kept.extend(weakref.ref(tensor) for tensor in found["model"].values())
        return found

    monkeypatch.setattr(loop, "read_state", read)
    student = copy.deepcopy(clip)
    seen = []
    student.visual.register_forward_pre_hook(lambda *_: seen.append([ref() for ref in kept]))
    distill_(student, clip, batches, DistillConfig(steps=2, save_every=1), out=tmp_path)
    assert len(seen[0]) > 10
    assert not any(tensor is not None for tensor in seen[0])


def test_processes_that_found_other_checkpoints_are_refused(clip, batches, tmp_path, monkeypatch):
    monkeypatch.setattr("vlprune.recovery.loop.on_all_ranks", lambda read: [read(), 3])
    with pytest.raises(ValueError, match=r"checkpoints of steps \[0, 3\]; they must share"):
        distill_(copy.deepcopy(clip), clip, batches, DistillConfig(steps=4), out=tmp_path)


def test_failed_save_leaves_the_old_checkpoint(clip, batches, tmp_path, monkeypatch):
    config = DistillConfig(steps=4, save_every=2)
    whole = torch.save
    # what a kill in the middle of a save left
    (tmp_path / f".{FILE}.partial").write_bytes(b"half")

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
