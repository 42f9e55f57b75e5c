"""The suite as pytest-benchmark runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_every_call_of_a_case_is_a_benchmark():
    pytest.importorskip("pytest_benchmark")
    options = ["-k", "unpack24", "--benchmark-disable", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks/test_scoring.py", *options],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    # this package's own form, and a peer at least
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 2
