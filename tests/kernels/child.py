"""A script beside this file in its own process: Triton reads TRITON_INTERPRET where kernels are defined."""

import json
import os
import subprocess
import sys
from pathlib import Path


def results_of(script):
    """The JSON that the script prints: case -> null or what was wrong."""
    # The child finds the package where this process did, and runs the kernels whatever this one is to run:
    # an override could put the definition in their place.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {name: value for name, value in os.environ.items() if name != "VLPRUNE_BACKEND"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script))],
        env={**environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
