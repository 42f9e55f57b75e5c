"""Scores kept in files: of several jobs, of several ranks, and through a kill in the middle of `compact_`."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vlprune.structured import progress
from vlprune.structured.progress import KeptScores

ROOT = Path(__file__).parents[2]


def test_jobs_do_not_disturb_one_another(tmp_path):
    file = tmp_path / "kept.json"
    first = KeptScores(file, "first")
    assert first.scores == {}
    first.add({"a": 1.0})
    first.add({"b": 2.5})
    second = KeptScores(file, "second")
    assert second.scores == {}
    second.add({"a": -3.0})
    assert KeptScores(file, "first").scores == {"a": 1.0, "b": 2.5}
    assert KeptScores(file, "second").scores == {"a": -3.0}
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


def test_the_newest_jobs_stay(tmp_path):
    file = tmp_path / "kept.json"
    for number in range(12):
        KeptScores(file, f"job {number}").add({"score": float(number)})
    left = [number for number in range(12) if KeptScores(file, f"job {number}").scores]
    assert left == list(range(4, 12))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"jobs": 3}', '{"jobs": {"job": {"a": "x"}}}', '{"jobs": {"job": [1]}}', "\0"]
)
def test_a_file_of_something_else_is_refused_and_stays(tmp_path, text):
    file = tmp_path / "kept.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"resume: .*kept.json is no file of kept scores; give another"):
        KeptScores(file, "job")
    assert file.read_text() == text
    with pytest.raises(ValueError, match="is no file of kept scores"):
        KeptScores(tmp_path, "job")


def test_ranks_write_files_of_their_own_and_one_is_left(tmp_path, monkeypatch):
    file = tmp_path / "kept.json"
    KeptScores(file, "earlier").add({"z": 0.5})
    monkeypatch.setattr(progress, "is_first", lambda: False)
    monkeypatch.setattr(progress, "rank", lambda: 3)
    other = KeptScores(file, "job")
    other.add({"b": 2.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.json", "kept.json.rank3"]
    monkeypatch.undo()
    assert "job" not in json.loads(file.read_text())["jobs"]
    # whoever comes next, alone say, finds what that rank had
    kept = KeptScores(file, "job")
    assert kept.scores == {"b": 2.0}
    kept.finish({"a": 1.0, "b": 2.0})
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert KeptScores(file, "job").scores == {"a": 1.0, "b": 2.0}
    assert KeptScores(file, "earlier").scores == {"z": 0.5}


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = KeptScores(None, "")
    kept.add({"a": 1.0})
    kept.finish({"b": 2.0})
    assert kept.scores == {"a": 1.0, "b": 2.0}
    assert not list(tmp_path.iterdir())


COMPACT = """
import json, os, signal, sys
import vlprune
from vlprune import demo
from vlprune.structured import Keep, StructuredConfig, ablated, compact_, mope

computed, stop = [], int(sys.argv[2])
original = ablated.embeddings_without

def counting(model, encode, inputs, removed, tick):
    if len(computed) >= stop >= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    found = original(model, encode, inputs, removed, tick)
    computed.extend(module.key for module in removed)
    return found

ablated.embeddings_without = counting
mope._CHUNK_MODULES = 8
model, preprocess, tokenizer = demo.load()
data = vlprune.load_data("demo:train:8", preprocess, tokenizer)
half = Keep(heads=0.5, neurons=0.5, layers=0.75)
config = StructuredConfig(visual=half, text=half, groups=2, stage="finetune")
report = compact_(model, config, data, resume=sys.argv[1] if stop != -2 else None)
print(json.dumps([computed, report.keep_lists, [e.error for e in report.errors]]))
"""


@pytest.mark.slow
def test_compact_goes_on_after_a_kill(tmp_path):
    def run(stop):
        command = [sys.executable, "-c", textwrap.dedent(COMPACT), str(tmp_path / "kept.json"), str(stop)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    def kept():
        jobs = json.loads((tmp_path / "kept.json").read_text())["jobs"]
        return [key for scores in jobs.values() for key in scores]

    computed, *whole = json.loads(run(-2).stdout)
    in_width = [key for key in computed if " layers " not in key]
    assert len(in_width) < len(computed) == len(set(computed))
    # killed while it judges heads and neurons of the second tower, then while it judges layers
    done = 0
    for stop in (len(in_width) - 4, 5):
        assert run(stop).returncode == -9
        assert len(kept()) >= done + stop
        assert len(set(kept())) == len(kept()) < len(computed)
        done = len(kept())
    assert done > len(in_width)
    again, *found = json.loads(run(-1).stdout)
    assert found == whole
    assert len(again) == len(computed) - done
    assert set(kept()) == set(computed)
    nothing, *found = json.loads(run(-1).stdout)
    assert found == whole
    assert nothing == []
