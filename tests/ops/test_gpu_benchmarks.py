"""The measurements for a GPU, as far as they go without one: rows that last, and what is checked before."""

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_common, gpu_linear24

from . import fake_cuda


@pytest.fixture
def report(tmp_path):
    return gpu_common.Report("some", tmp_path / "deep" / "rows.json")


def test_a_failure_loses_no_other_row(report, capsys):
    def fail():
        raise RuntimeError("CUDA error: an illegal instruction\nwas encountered")

    report.attempt("first", lambda: {"a": 1, "times": {"b": 2}})
    assert json.loads(report.path.read_text())["rows"] == [{"what": "first", "a": 1, "times": {"b": 2}}]
    report.attempt("second", fail)
    report.attempt("third", lambda: {"a": 3})
    with pytest.raises(SystemExit) as left:
        report.finish()
    assert left.value.code == 1
    stored = json.loads(report.path.read_text())
    assert stored["rows"][1] == {
        "what": "second",
        "error": "RuntimeError: CUDA error: an illegal instruction",
    }
    assert stored["rows"][2] == {"what": "third", "a": 3}
    assert {"torch", "vlprune", "cuda", "triton", "cusparselt"} <= stored["machine"].keys()
    assert "2 rows" not in capsys.readouterr().out


def test_success_leaves_with_0(report):
    report.attempt("first", lambda: {"a": 1})
    report.attempt("nothing to say", lambda: None)
    with pytest.raises(SystemExit) as left:
        report.finish()
    assert (left.value.code, len(report.rows)) == (0, 1)


@pytest.mark.parametrize(("bytes_", "copies"), [(1, 64), (2**22, 64), (2**23, 32), (2**28, 1), (2**30, 1)])
def test_copies_are_more_than_caches_hold(bytes_, copies):
    assert gpu_common.copies_for(bytes_) == copies


def test_every_config_is_checked(monkeypatch, tmp_path):
    kernels = fake_cuda.install(monkeypatch, tmp_path)
    # 5 sizes, 2 dtypes, 3 ends, 2 backends of 3 configs, and 2 dtypes of 8 bits on one: none refuses these.
    assert gpu_linear24.check(torch.device("cpu")) == 5 * 2 * 3 * 2 * 3 + 5 * 2 * 3 * 3
    kernels["sm80"].wrong.add(2)
    with pytest.raises(SystemExit) as left:
        gpu_linear24.check(torch.device("cpu"))
    said = str(left.value).splitlines()
    # all of them, not the first
    assert len(said) == 5 * 2 * 3
    assert all(line.startswith("gpu_linear24: sm80, config 64x32 split: wrong result for") for line in said)


def test_nothing_more_is_tried_on_a_device_that_is_lost(report, monkeypatch):
    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    report.attempt("first", lambda: {"a": 1})
    with pytest.raises(SystemExit) as left:
        report.attempt("second", fail)
    assert left.value.code == 1
    assert [row["what"] for row in json.loads(report.path.read_text())["rows"]] == ["first", "second"]


def test_what_is_sanitized_are_names_of_kernels():
    root = Path(__file__).parents[2]
    lists = re.findall(r"^GPU_KERNELS\w* := (.*(?:\\\n.*)*)", (root / "Makefile").read_text(), re.MULTILINE)
    asked = [name for each in lists for name in each.replace("\\", " ").split()]
    assert len(lists) == 3
    sources = [*(root / "kernels").glob("*.py"), *(root / "csrc" / "cuda").glob("*.cu*")]
    # CUTLASS's own is the one of `device_kernel`
    text = "\n".join(path.read_text() for path in sources)
    assert [name for name in asked if not re.search(rf"\b{name}\b\(", text)] == ["device_kernel"]
