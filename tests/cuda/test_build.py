"""What nvcc makes of the Hopper kernel: the instructions and registers of one config, read from its SASS."""

import math
import re
import subprocess

import pytest
from build_tools import cuobjdump, nvcc, run
from hopper_build import HOPPER, STRICT, address, compile_to, program_of

# The sums are touched between the start of a product and the wait for it, in a loop.
SERIALIZED = """
__global__ void kernel(float* out, unsigned long long a, unsigned long long b, int times) {
    float d[4] = {0, 0, 0, 0};
    for (int i = 0; i < times; ++i) {
        asm volatile("wgmma.fence.sync.aligned;");
        asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0;"
                     "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a + i), "l"(b));
        asm volatile("wgmma.commit_group.sync.aligned;");
        d[0] += 1.0f;
        d[1] *= d[0];
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;");
    for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];
}
"""


def test_a_serialized_wgmma_fails_the_build(tmp_path):
    (tmp_path / "kernel.cu").write_text(SERIALIZED)
    command = [nvcc(), *HOPPER, "-c", str(tmp_path / "kernel.cu"), "-o", str(tmp_path / "kernel.o")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    done = subprocess.run([*STRICT, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: ptxas serialized wgmma" in done.stderr


def test_other_errors_come_through(tmp_path):
    (tmp_path / "kernel.cu").write_text("#error no kernel\n")
    command = [nvcc(), *HOPPER, "-c", str(tmp_path / "kernel.cu"), "-o", str(tmp_path / "kernel.o")]
    done = subprocess.run([*STRICT, *command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no kernel" in done.stderr
    assert "serialized" not in done.stderr


# A small config of each dtype but float16, and the instruction it is made of.
CONFIGS = {
    "bf16": ("ping_pong_64x32", "HGMMA.SP.64x32x32.F32.BF16"),
    "s8": ("ping_pong_64x64", "IGMMA.SP.64x64x64.S8.S8"),
    "e4m3": ("ping_pong_64x64", "QGMMA.SP.64x64x64.F32.E4M3.E4M3"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, dtype):
    return compile_to(tmp_path_factory.mktemp("sm90") / "kernel.o", CONFIGS[dtype][0], dtype)


@pytest.mark.slow
def test_sass_of_a_config(compiled, dtype):
    sass = run([cuobjdump(), "-sass", compiled], text=True).stdout
    # One for each 32 of a tile's 128 inputs of 16 bits, or 64 of 256 of 8.
    assert re.findall(r"\b[HIQ]GMMA[^\s;]*", sass) == [CONFIGS[dtype][1]] * 4
    assert not re.findall(r"\b(?:LDL|STL)\b", sass)
    # Weights, tokens and results all go through the copy engine.
    assert re.findall(r"\bUTMALDG\S*", sass)
    assert re.findall(r"\bUTMASTG\S*", sass)
    assert not re.findall(r"\bSTG\S*", sass)
    usage = run([cuobjdump(), "-res-usage", compiled], text=True).stdout
    # 384 threads and one block a multiprocessor: 65536 / 384, in steps of 8.
    assert re.findall(r"REG:(\d+) STACK:(\d+)", usage) == [("168", "0")]


@pytest.fixture(scope="module")
def launches(compiled, dtype):
    return program_of(compiled, CONFIGS[dtype][0], dtype)


@pytest.mark.slow
def test_tensor_maps_are_those_of_the_tensors(launches, dtype):
    tokens, out, inputs, ldx, ldr, ldy = 197, 1000, 800, 816, 1024, 1008
    size = 2 if dtype == "bf16" else 1
    asked = launches((tokens, out, inputs, ldx, ldr, ldy, 0))
    values, meta, x, residual, y = (each for each in asked if each["what"] == "encode")
    assert (values["sizes"][:2], values["strides"][0]) == ([inputs // 2, out], inputs // 2 * size)
    assert (x["sizes"][:2], x["strides"][0]) == ([inputs, tokens], size * ldx)
    assert (residual["sizes"][:2], residual["strides"][0]) == ([out, tokens], 2 * ldr)
    assert (y["sizes"][:2], y["strides"][0]) == ([out, tokens], 2 * ldy)
    # In units of 8 bytes: blocks of 64 outputs x 128 inputs, 16 along the outputs and 7 along the inputs, 8
    # where a tile is two of them.
    assert math.prod(meta["sizes"]) * 8 == 16 * (7 if size == 2 else 8) * 1024
    assert [each["address"] for each in (x, values, meta, residual, y)] == [
        address(i) for i in (1, 2, 3, 5, 6)
    ]


@pytest.mark.slow
def test_a_shape_seen_before_only_gets_its_addresses(launches, dtype):
    first = (50, 768, 768, 768, 0, 768, 0)
    asked = launches(first, (*first[:6], 4096), (51, *first[1:]))
    kinds = [each["what"] for each in asked]
    assert kinds == [
        "attribute",
        *["encode"] * 5,
        "launch",
        "run",
        "launch",
        "run",
        *["encode"] * 5,
        "launch",
        "run",
    ]
    assert all(each["code"] == 0 for each in asked if each["what"] == "run")
    launched = [each for each in asked if each["what"] == "launch"]
    # Values, meta, x, the residual (none: y stands in), y.
    assert launched[0]["maps"] == [address(i) for i in (2, 3, 1, 6, 6)]
    assert launched[1]["maps"] == [address(i, 4096) for i in (2, 3, 1, 6, 6)]
    # The bias, and where there are scales first those of the outputs and of the tokens.
    assert [each["places"] for each in launched] == [[4] if dtype == "bf16" else [8, 7, 4]] * 3
    assert launched[0]["shared"] == asked[0]["value"] <= 232448


@pytest.mark.slow
def test_a_pointer_that_the_copy_engine_cannot_take_is_refused(launches):
    asked = launches((50, 768, 768, 768, 0, 768, 2))
    assert [each["what"] for each in asked] == ["run"]
    assert asked[0]["code"] != 0


@pytest.mark.slow
def test_blocks_are_no_more_than_tiles_or_multiprocessors(launches):
    for tokens, blocks in ((7, 12), (4096, 132)):
        launch = launches((tokens, 768, 768, 768, 0, 768, 0))[-2]
        assert math.prod(launch["grid"]) == blocks


@pytest.mark.slow
def test_locks_of_shared_inputs_are_cleared_where_the_kernel_looks_for_them(tmp_path):
    config, sums = "split_128x32", 128 * 32 * 4
    launches = program_of(compile_to(tmp_path / "kernel.o", config, "bf16"), config, "bf16")
    # one tile, of 4096 inputs, and as many tiles as there are multiprocessors: nothing to share
    shared, alone = (launches((tokens, 768, 4096, 4096, 0, 768, 0)) for tokens in (7, 32 * 22))
    bytes_ = shared[-1]["workspace"]
    # a sum for each of the six tiles at least, then the locks; the kernel counts from the start to them
    assert bytes_ >= 6 * sums + 4096
    assert bytes_ % sums == 4096
    (memset,) = (each for each in shared if each["what"] == "memset")
    assert memset == {"what": "memset", "address": address(9) + bytes_ - 4096, "value": 0, "bytes": 4096}
    assert [each["what"] for each in shared][-3:] == ["memset", "launch", "run"]
    assert alone[-1] == {"what": "run", "code": 0, "workspace": 0}
    assert not [each for each in alone if each["what"] == "memset"]
