"""linear24_sm80 as nvcc compiles it: what only the machine code shows. No GPU is needed."""

import re
import subprocess
from pathlib import Path

import pytest
from build_tools import ROOT, cuobjdump, nvcc
from sm80_host import configs


@pytest.mark.slow
def test_machine_code_of_sm80(tmp_path: Path) -> None:
    cubin = tmp_path / "linear24_sm80.cubin"
    command = [
        nvcc(), "-std=c++17", "-O3", "-DNDEBUG", f"-I{ROOT / 'csrc'}", "-arch=sm_80", "-cubin",
        "-Xptxas", "-v,--warn-on-spills,--warning-as-error", "-o", cubin, ROOT / "csrc/cuda/linear24_sm80.cu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    tiles = [config for config in configs() if not config.parts]
    assert len(spills) == 2 * len(tiles), "one kernel for each tile and number format"
    assert set(spills) == {("0", "0")}

    sass = subprocess.run([cuobjdump(), "-sass", cubin], capture_output=True, text=True, check=True).stdout
    kernels = re.split(r"Function : ", sass)[1:]
    assert len(kernels) == 2 * len(tiles)
    for kernel in kernels:
        name = kernel.split("\n", 1)[0]
        out, tokens, *_ = (int(size) for size in re.findall(r"Li(\d+)", name))
        threads = next(config.threads for config in tiles if (config.out, config.tokens) == (out, tokens))
        kind = "BF16" if "BFloat16" in name else ""
        # Two steps of 32 inputs, each instruction 16 x 8 results of a warp: unrolled, and nothing else.
        products = len(re.findall(rf"HMMA\.SP\.16832\.F32{'[.]' + kind if kind else ' '}", kernel))
        assert products == 2 * out * tokens // (16 * 8) // (threads // 32), name
        assert "LDGSTS.E.BYPASS.LTC128B.128" in kernel, name
        assert "LDSM.16.M88.4" in kernel, name
        assert "MOVM.16.MT88" in kernel, name
        assert not re.search(r"\b(LDL|STL)\b", kernel), name
