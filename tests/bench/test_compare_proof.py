"""The proof of `--against`: what its file says of each trial."""

import json

import pytest

from benchmarks import compare_proof


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run one more trial, which does not measure, and return the file."""
    monkeypatch.setattr(compare_proof, "planted", lambda folder: None)
    monkeypatch.setattr(compare_proof, "trial", lambda *_: {"right": True, "cases": []})
    out = tmp_path / "proof.json"

    def run(*options):
        command = ["compare_proof", "--out", str(out), "--most", "1", "--threads", "1", *options]
        monkeypatch.setattr("sys.argv", command)
        compare_proof.main()
        return json.loads(out.read_text())

    run.out = out
    return run


@pytest.mark.usefixtures("one_thread")
def test_each_trial_says_how_it_was_made(run):
    run()
    record = run("--repeats", "12")
    assert [(trial["kind"], trial["repeats"]) for trial in record["trials"]] == [
        ("same", compare_proof.REPEATS),
        ("a tenth slower", 12),
    ]
    assert all(trial["commit"] == record["machine"]["commit"] for trial in record["trials"])
    assert record["right of a tenth slower"] == [1, 1]


@pytest.mark.usefixtures("one_thread")
def test_what_a_file_says_of_older_trials_stays(run):
    old = {"machine": {"commit": "old"}, "repeats": 9, "trials": [{"kind": "same", "right": False}]}
    run.out.write_text(json.dumps(old))
    record = run()
    assert (record["machine"], record["repeats"]) == ({"commit": "old"}, 9)
    assert record["trials"][1]["commit"] != "old"
    assert record["right of same"] == [0, 1]
