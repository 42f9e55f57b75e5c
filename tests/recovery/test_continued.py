"""A result file is gone on with where it is of the same things on the same machine, and refused in a line."""

import copy
import json

import pytest

from benchmarks.continued import continue_from

MACHINE = {"cpu": "one", "isa": "avx2", "gpu": None, "commit": "abc"}
KEPT = {"model": "demo", "machine": MACHINE, "rows": {"dense": 1}}


def continued(path, kept):
    path.write_text(json.dumps(kept))
    record = {"model": "demo", "machine": {**MACHINE, "commit": "def"}, "rows": {}}
    continue_from(path, record, ("model",))
    return record


def test_rows_are_taken_over(tmp_path):
    record = continued(tmp_path / "file.json", KEPT)
    assert record == {**KEPT, "machine": {**MACHINE, "commit": "def"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "has another model; give a new --out"),
        ({"machine": {**MACHINE, "cpu": "two", "gpu": "H200"}}, "has another cpu, gpu;"),
        ({"machine": None}, "has no machine to go on with;"),
        ({"rows": None}, "has no rows to go on with;"),
        (None, "has no machine, rows to go on with;"),
    ],
    ids=["model", "machine", "no machine", "no rows", "no object"],
)
def test_other_results_are_refused(tmp_path, change, message):
    kept = copy.deepcopy(KEPT)
    if change is not None:
        kept = {name: value for name, value in {**kept, **change}.items() if value is not None}
    with pytest.raises(SystemExit, match=message):
        continued(tmp_path / "file.json", [] if change is None else kept)
