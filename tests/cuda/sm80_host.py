"""linear24_sm80's kernel code compiled by the host's C++ compiler, and one call of it on numpy arrays."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FAULTS = ["bank_conflicts", "outside", "misaligned", "indices", "different_instructions", "stuck"]
SIZES = ["out", "tokens", "stages", "threads", "shared_bytes", "parts"]
POISON = 0x7FC1  # a NaN as bfloat16 and as float16


@functools.cache
def library() -> ctypes.CDLL:
    """The emulation, compiled once a test session."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    target = Path(tempfile.mkdtemp(prefix="vlprune-sm80-")) / "emulation.so"
    here = ROOT / "tests/cuda/sm80_emulation"
    sources = [here / "emulate.cpp", ROOT / "csrc/cuda/linear24_sm80_meta.cpp"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{here}"]
    done = subprocess.run(
        [compiler, *flags, *includes, "-o", target, *sources], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lib = ctypes.CDLL(str(target))
    shutil.rmtree(target.parent)
    for name in ("workspace_needed", "parts_chosen", "copy_conflicts", "meta_bytes"):
        getattr(lib, name).restype = ctypes.c_int64
    return lib


@dataclass(frozen=True)
class Config:
    """One config as the kernel's table has it."""

    index: int
    name: str
    out: int
    tokens: int
    stages: int
    threads: int
    shared_bytes: int
    parts: bool


@functools.cache
def configs() -> list[Config]:
    """All configs."""
    lib, found = library(), []
    for index in range(lib.config_total()):
        name, sizes = ctypes.c_char_p(), (ctypes.c_int64 * len(SIZES))()
        lib.config_info(index, ctypes.byref(name), sizes)
        assert name.value is not None
        found.append(Config(index, name.value.decode(), *sizes[:5], bool(sizes[5])))
    return found


class Launch(ctypes.Structure):
    """As in emulate.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ["config", "parts", "bfloat16", "order", "landing", "seed"]),
        *((name, ctypes.c_int64) for name in ["blocks_backwards", "tokens", "out", "in_"]),
        *((name, ctypes.c_int64) for name in ["ldx", "ldr", "ldy", "activation"]),
        *((name, ctypes.c_void_p) for name in ["x", "values", "meta", "bias", "residual", "y", "workspace"]),
    ]


def address(array: np.ndarray | None) -> int | None:
    """Where an array's numbers are."""
    return None if array is None else array.ctypes.data


def aligned(shape: tuple[int, ...], dtype: type, fill: int) -> np.ndarray:
    """An array that starts at a multiple of 16 bytes, as torch's do."""
    count = int(np.prod(shape))
    raw = np.empty(count * np.dtype(dtype).itemsize + 16, np.uint8)
    start = -raw.ctypes.data % 16
    array = raw[start : start + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    array[...] = fill
    return array


def to_16(values: np.ndarray, bfloat16: bool) -> np.ndarray:
    """float32 rounded to the bits of a 16-bit format."""
    source = np.ascontiguousarray(values, np.float32)
    bits = aligned(source.shape, np.uint16, 0)
    library().to_16(int(bfloat16), ctypes.c_void_p(address(source)), ctypes.c_void_p(address(bits)),
                    ctypes.c_int64(source.size))  # fmt: skip
    return bits


def from_16(bits: np.ndarray, bfloat16: bool) -> np.ndarray:
    """Numpy's own reading of the same bits."""
    if bfloat16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def reordered(meta: np.ndarray, out: int, inputs: int) -> np.ndarray:
    """pack24's indices in the order of mma.sp."""
    lib = library()
    target = aligned((lib.meta_bytes(ctypes.c_int64(out), ctypes.c_int64(inputs)),), np.uint8, 0)
    lib.reorder_meta(ctypes.c_void_p(address(meta)), ctypes.c_int64(out), ctypes.c_int64(inputs),
                     ctypes.c_void_p(address(target)))  # fmt: skip
    return target


def random_weight(
    rng: np.random.Generator, out: int, inputs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A dense weight with two random inputs of each four kept, the kept values, and pack24's indices."""
    groups = inputs // 4
    pairs = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])[rng.integers(0, 6, (out, groups))]
    kept = rng.standard_normal((out, groups, 2)).astype(np.float32)
    dense = np.zeros((out, groups, 4), np.float32)
    np.put_along_axis(dense, pairs, kept, 2)
    nibbles = (pairs[..., 0] | pairs[..., 1] << 2).astype(np.uint8)
    if groups % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
    meta = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    return dense.reshape(out, inputs), kept.reshape(out, inputs // 2), np.ascontiguousarray(meta)
