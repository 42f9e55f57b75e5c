"""The attention kernels' numbers, without a GPU: see `attention_interpreted.py`, run once for all cases."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attention_interpreted import CASES

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module")
def results():
    # The child finds the package where this process did.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # An override could put the definition in the kernels' place.
    environment = {name: value for name, value in os.environ.items() if name != "VLPRUNE_BACKEND"}
    script = Path(__file__).with_name("attention_interpreted.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow  # the first case waits for all of them
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_formula(results, case):
    assert results[case] is None, results[case]
