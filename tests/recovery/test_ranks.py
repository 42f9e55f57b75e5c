"""Processes that train together end where one alone does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks_child import run

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "ranks_child.py")]
    ranks = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path / "store"), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    expected = run(tmp_path / "alone")
    assert [process.wait(timeout=300) for process in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for kind, (terms, weights) in expected.items():
        alone, together = (
            [json.loads(line) for line in (tmp_path / runs / kind / "log.jsonl").read_text().splitlines()]
            for runs in ("alone", "runs")
        )
        # Adam does not see the scale of a gradient, its norm does
        norms = [line["grad_norm"] for line in together]
        # float32 sums in another order, up to four steps of Adam later
        assert norms == pytest.approx([line["grad_norm"] for line in alone], rel=1e-3), kind
        for name, values in terms.items():
            assert first[kind][0][name] == pytest.approx(values, rel=1e-3, abs=1e-6), (kind, name)
        assert first[kind][0] == second[kind][0]
        for name, weight in weights.items():
            assert torch.equal(first[kind][1][name], second[kind][1][name]), (kind, name)
            # the gradient of the keys' bias is zero but for rounding, of which Adam makes steps
            if not name.endswith("qkv.bias"):
                torch.testing.assert_close(first[kind][1][name], weight, rtol=1e-2, atol=1e-3)
