"""Where the tests find compilers and headers; a test is skipped where one of them is not here."""

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"


def cxx() -> str:
    """The host's C++ compiler."""
    found = shutil.which("g++") or shutil.which("c++")
    return found or pytest.skip("needs a C++ compiler")


@functools.cache
def nvcc() -> str:
    """CUDA's compiler."""
    homes = [os.environ.get("CUDA_HOME"), *sorted(map(str, Path("/usr/local").glob("cuda*")))]
    for home in homes:
        if home and (Path(home) / "bin/nvcc").exists():
            return str(Path(home) / "bin/nvcc")
    return shutil.which("nvcc") or pytest.skip("needs nvcc")


def cuda_headers() -> list[str]:
    """Flags for a host compiler to find CUDA's headers."""
    include = Path(nvcc()).resolve().parents[1] / "include"
    if not (include / "cuda_runtime.h").exists():
        pytest.skip("needs CUDA's headers beside nvcc")
    return ["-isystem", str(include), "-isystem", str(include / "cccl")]


def cutlass() -> str:
    """The folder of CUTLASS's headers: CUTLASS_PATH, or the package nvidia-cutlass."""
    places = []
    if os.environ.get("CUTLASS_PATH"):
        places += [Path(os.environ["CUTLASS_PATH"]), Path(os.environ["CUTLASS_PATH"]) / "include"]
    spec = importlib.util.find_spec("cutlass_library")
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / "source/include")
    for place in places:
        if (place / "cutlass/version.h").exists():
            return str(place)
    return pytest.skip("needs CUTLASS's headers (CUTLASS_PATH, or the package nvidia-cutlass)")


@functools.cache
def cuobjdump() -> str:
    """The disassembler, the toolkit's or the one inside Triton."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        if inside.exists():
            return str(inside)
    return shutil.which("cuobjdump") or pytest.skip("needs cuobjdump")


def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
    """Run a command that has to succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done


def compile_program(folder: Path, source: str, *flags: str) -> Path:
    """A program of the host's compiler from C++ text."""
    (folder / "program.cpp").write_text(source)
    program = folder / "program"
    run([cxx(), "-std=c++17", "-O1", f"-I{CSRC}", *flags, folder / "program.cpp", "-o", program])
    return program
