"""toolkit.cmake: what it finds, and why it says that _C_cuda is not built. No compiler runs."""

import shutil
import subprocess
import sys

import pytest
from build_tools import CSRC

CMAKE = shutil.which("cmake")
pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs CMake")

NVCC = '#!/bin/sh\necho "Cuda compilation tools, release {version}, V{version}.1"\n'
SCRIPT = f"""
set(Python_EXECUTABLE {sys.executable})
include({CSRC / "cuda/toolkit.cmake"})
message("[${{vlprune_why_no_cuda}}] [${{VLPRUNE_CUTLASS_INCLUDE}}]")
"""


@pytest.fixture
def found(tmp_path, monkeypatch):
    """found(wish, nvcc=, cutlass=): CMake's status and words, where these versions are on the machine."""

    def run(wish, *, nvcc="13.0", cutlass=(4, 2)):
        toolkit, site = tmp_path / "toolkit", tmp_path / "site"
        (toolkit / "bin").mkdir(parents=True)
        (toolkit / "bin/nvcc").write_text(NVCC.format(version=nvcc))
        (toolkit / "bin/nvcc").chmod(0o755)
        headers = site / "cutlass_library/source/include/cutlass"
        headers.mkdir(parents=True)
        if cutlass:
            numbers = zip(("MAJOR", "MINOR"), cutlass, strict=True)
            (headers / "version.h").write_text("".join(f"#define CUTLASS_{k} {v}\n" for k, v in numbers))
        monkeypatch.setenv("CUDA_HOME", str(toolkit))
        # As where packages are carried along: not in the interpreter's own folder.
        monkeypatch.setenv("PYTHONPATH", str(site))
        monkeypatch.delenv("CUTLASS_PATH", raising=False)
        (tmp_path / "script.cmake").write_text(SCRIPT)
        command = [CMAKE, f"-DVLPRUNE_CUDA={wish}", "-P", str(tmp_path / "script.cmake")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


def test_headers_on_the_path_of_python_are_found(found, tmp_path):
    status, said = found("ON")
    assert status == 0
    assert said.endswith(f"[] [{tmp_path}/site/cutlass_library/source/include]")


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({"nvcc": "12.4"}, "is of CUDA 12.4, 12.8 or newer is needed"),
        ({"cutlass": (3, 9)}, "is 3.9, 4.2 or a newer 4 is needed"),
        ({"cutlass": (5, 0)}, "is 5.0, 4.2 or a newer 4 is needed"),
    ],
    ids=["old nvcc", "old CUTLASS", "unknown CUTLASS"],
)
def test_asked_for_but_impossible_is_an_error(found, versions, reason):
    status, said = found("ON", **versions)
    assert status != 0
    assert said.count("CMake Error") == 1
    assert reason in said


def test_turned_off_nothing_is_asked_of_the_machine(found):
    status, said = found("OFF", nvcc="1.0", cutlass=None)
    assert status == 0
    assert "[it was turned off when vlprune was built (VLPRUNE_CUDA=0)]" in said
