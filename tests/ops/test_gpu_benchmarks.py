"""The measurements for a GPU, as far as they go without one: rows that last, and what is checked before."""

import json

import pytest
import torch

import vlprune
from benchmarks import gpu_common, gpu_linear24, gpu_tower

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
    with pytest.raises(SystemExit, match="gpu_linear24: sm80, config 64x32 split: wrong result"):
        gpu_linear24.check(torch.device("cpu"))


def test_the_tower_is_one_that_vlprune_knows():
    torch.manual_seed(1)
    model = gpu_tower.Clip(width=32, heads=2, layers=2, patch=8, size=16).eval()
    vlprune.prune_(model, vlprune.MagnitudeConfig())
    images = torch.randn(2, 3, 16, 16)
    before = model.encode_image(images)
    report = vlprune.sparsify_(model, example=images, only_if_faster=False)
    assert [layer.name for layer in report.layers[:4]] == [
        f"visual.transformer.resblocks.0.{name}"
        for name in ("attn.qkv", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert report.packed == 8
    # Sums of 128 float32 products in another order, over two blocks.
    torch.testing.assert_close(model.encode_image(images), before, rtol=1e-4, atol=1e-5)
