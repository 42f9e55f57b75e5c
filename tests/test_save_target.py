"""Where models are saved: folders are replaced whole or not at all, and no file of anyone else's is lost."""

import os
import signal
import subprocess
import sys

import pytest
from models.zoo import build

import vlprune
from vlprune import checkpoint, files


@pytest.fixture
def saved(tmp_path):
    vlprune.save_pretrained(build("clip"), tmp_path / "saved")
    return tmp_path / "saved"


def test_only_our_own_folders_are_replaced(saved, tmp_path):
    vlprune.save_pretrained(build("coca"), saved)
    assert sorted(f.name for f in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert type(vlprune.from_pretrained(saved)).__name__ == "CoCa"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name, reason in (("mine", "not empty"), ("file", "is a file"), ("file/a/b", "file is a file")):
        with pytest.raises(ValueError, match=reason):
            vlprune.save_pretrained(build("clip"), tmp_path / name)
    (tmp_path / "empty").mkdir()
    vlprune.save_pretrained(build("clip"), tmp_path / "empty")
    vlprune.save_pretrained(build("clip"), tmp_path / "new" / "nested")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["empty", "file", "mine", "new", "saved"]


@pytest.mark.parametrize(
    "entry", ["eval_results.json", ".git/HEAD", "README.md", "text/notes.txt", "text/config.json"]
)
def test_what_is_not_ours_is_never_deleted(entry, tmp_path):
    model = build("hf", tmp_path)
    vlprune.save_pretrained(model, tmp_path / "saved")
    vlprune.save_pretrained(model, tmp_path / "saved")
    (tmp_path / "saved" / entry).parent.mkdir(exist_ok=True)
    (tmp_path / "saved" / entry).write_text("mine")
    before = sorted((tmp_path / "saved").rglob("*"))
    for refuse in (checkpoint.check_target, lambda folder: vlprune.save_pretrained(model, folder)):
        with pytest.raises(ValueError, match=rf"saved/{entry.split('/HEAD')[0]} is not as"):
            refuse(tmp_path / "saved")
    assert (tmp_path / "saved" / entry).read_text() == "mine"
    assert sorted((tmp_path / "saved").rglob("*")) == before


def test_a_file_that_appears_while_saving_is_not_deleted(saved, monkeypatch):
    def meanwhile(*arguments):
        (saved / "notes.txt").write_text("mine")
        return model_card(*arguments)

    model_card = checkpoint.model_card
    monkeypatch.setattr(checkpoint, "model_card", meanwhile)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        vlprune.save_pretrained(build("clip"), saved)
    assert (saved / "notes.txt").read_text() == "mine"
    assert [f.name for f in saved.parent.iterdir()] == ["saved"]


def test_a_target_is_refused_before_any_work(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_write", None)
    for folder in (saved, tmp_path / "new", tmp_path / "new" / "nested"):
        checkpoint.check_target(folder)
    assert [f.name for f in tmp_path.iterdir()] == ["saved"]
    # root may write anywhere, so a read-only folder is played
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path)
    for folder in (saved, tmp_path / "new", tmp_path / "new" / "nested"):
        for refuse in (
            checkpoint.check_target,
            lambda folder: vlprune.save_pretrained(build("clip"), folder),
        ):
            with pytest.raises(PermissionError, match=rf"{tmp_path} is read-only"):
                refuse(folder)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)], ids=["022", "027"])
def test_every_file_has_the_mode_that_the_umask_leaves(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        vlprune.save_pretrained(build("hf", tmp_path), tmp_path / "saved")
    finally:
        os.umask(before)
    files = [f for f in (tmp_path / "saved").rglob("*") if f.is_file()]
    assert len(files) == 4
    assert {f.stat().st_mode & 0o777 for f in files} == {mode}


def test_a_failed_save_leaves_the_old_folder(saved, monkeypatch):
    before = {f.name: f.read_bytes() for f in saved.iterdir()}

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    for place, name in ((checkpoint, "model_card"), (checkpoint, "put_in_place")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full_disk)
            with pytest.raises(OSError, match="No space"):
                vlprune.save_pretrained(build("coca"), saved)
        assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
        assert [f.name for f in saved.parent.iterdir()] == ["saved"]


def test_without_an_atomic_exchange_the_folder_is_still_replaced(saved, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    vlprune.save_pretrained(build("coca"), saved)
    assert type(vlprune.from_pretrained(saved)).__name__ == "CoCa"
    assert [f.name for f in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("place", "when", "found"),
    [
        ("checkpoint._write", "before", 1.0),
        ("checkpoint.model_card", "before", 1.0),
        ("checkpoint.put_in_place", "before", 1.0),
        ("files._exchange", "before", 1.0),
        ("files._exchange", "after", 2.0),
        ("checkpoint.put_in_place", "after", 2.0),
    ],
    ids=lambda v: str(v).rpartition(".")[2].strip("_") if isinstance(v, str) else str(v),
)
def test_a_killed_save_leaves_a_whole_folder(place, when, found, tmp_path):
    model = build("clip")
    model.logit_scale.data.fill_(1.0)
    vlprune.save_pretrained(model, tmp_path / "saved")
    program = f"""
import os, signal, sys
import vlprune
from vlprune import checkpoint, files
model = vlprune.from_pretrained(sys.argv[1])
model.logit_scale.data.fill_(2.0)
real = {place}
def killed(*arguments):
    if {when!r} == "after":
        assert real(*arguments) is not False
    os.kill(os.getpid(), signal.SIGKILL)
{place} = killed
vlprune.save_pretrained(model, sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "saved")], cwd=os.getcwd())
    assert done.returncode == -signal.SIGKILL
    assert vlprune.from_pretrained(tmp_path / "saved").logit_scale.item() == found
    # what the kill left lies beside it, and is in no one's way
    vlprune.save_pretrained(model, tmp_path / "saved")
