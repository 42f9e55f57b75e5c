"""Processes that share calibration and ECoFLaP's scores prune as one process does, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_child import CASES, run

HERE = Path(__file__).parent


def of_ranks(count, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    command = [sys.executable, str(HERE / "shared_child.py")]
    arguments = [str(count), str(folder / "store"), str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank), *arguments], env=environment) for rank in range(count)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.slow
def test_ranks_prune_as_one_process_does(tmp_path, one_thread):
    expected = run()
    # with three ranks those of one batch have nothing for two of them, those of ECoFLaP for one
    for count in (2, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        every = of_ranks(count, folder)
        for found, _ in every:
            for name in CASES:
                numbers, weights = expected[name]
                assert found[name][0] == numbers, name
                assert all(torch.equal(found[name][1][key], value) for key, value in weights.items()), name
        if count == 2:
            (_, first), (_, second) = every
            other = "expected the same on every rank, but rank 1 differs from rank 0"
            assert first[0] == second[0] == f"ValueError: calib: {other}"
            assert first[1].startswith("RuntimeError: rank 1 of 2 failed: IndexError")
            assert second[1].startswith("IndexError")
            assert first[2:] == second[2:] == [True, f"ValueError: model: {other}"]
