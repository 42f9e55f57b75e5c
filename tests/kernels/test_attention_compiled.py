"""The attention kernels compiled for GPUs that are not here: no spills, products on tensor cores.

Arguments are described as a launch describes them: pointers and steps between rows that are divisible by 16.
"""

import functools
import os
import re

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("under the interpreter nothing is compiled", allow_module_level=True)

from cubins import PRODUCT, compile_for, dump_of  # noqa: E402

from vlprune.kernels import head_attention as attention  # noqa: E402
from vlprune.kernels.head_attention_backward import columns_kernel, rows_kernel  # noqa: E402

# Types of the arguments by name; `W` stands for a pointer to the tensor's dtype.
TYPES = {
    **dict.fromkeys(("qkv", "out", "grad", "grad_qkv"), "W"),
    **dict.fromkeys(("lse", "delta"), "*fp32"),
    **dict.fromkeys(("scale", "scale2"), "fp32"),
}
STEPS = ("batch_step", "row_step", "out_step", "grad_batch_step", "grad_row_step")
# name -> tokens, width of a head, causal, heads of all images, whether for training
FORWARD = {
    "50": (50, 64, False, 12 * 64, False),
    "50-32": (50, 32, False, 12 * 64, False),
    "77-causal": (77, 64, True, 8 * 64, False),
    "77-causal-32": (77, 32, True, 8 * 64, True),
    "77-causal-training": (77, 64, True, 8 * 64, True),
    "77-causal-few": (77, 64, True, 8, False),
    "197": (197, 64, False, 12 * 64, False),
    "197-training": (197, 64, False, 12 * 64, True),
    "197-few": (197, 64, False, 12, False),
    "240": (240, 64, False, 12 * 64, True),
    "257": (257, 64, False, 16 * 64, False),
    "257-training": (257, 64, False, 16 * 64, True),
    "257-80": (257, 80, False, 16 * 64, False),
    "257-88": (257, 88, False, 16 * 64, False),
    "257-128-few": (257, 128, False, 16, True),
    "577": (577, 64, False, 16 * 64, True),
    "577-few": (577, 64, False, 16, False),
    "577-causal": (577, 64, True, 16 * 64, True),
}
BACKWARD = {
    f"{name}-{dim}{'-causal' * causal}": (kernel, dim, causal)
    for name, kernel in (("rows", rows_kernel), ("columns", columns_kernel))
    for dim, causal in ((32, False), (64, False), (64, True), (80, False), (88, False), (128, False))
}
# sm_90 is where it is to be fast, with 132 multiprocessors; elsewhere what differs.
ELSEWHERE = {
    ("fp16", 90): ("197-training", "257", "577", "columns-88"),
    ("bf16", 80): ("50", "77-causal", "197", "257-128-few", "rows-64", "columns-128"),
    ("bf16", 100): ("50", "77-causal-few", "197", "257-training", "577", "columns-64"),
    ("fp32", 90): ("50", "77-causal", "577", "rows-64", "columns-64-causal"),
}
CASES = [(name, "bf16", 90) for name in (*FORWARD, *BACKWARD)]
CASES += [(name, *target) for target, names in ELSEWHERE.items() for name in names]


def described(name, dtype, architecture):
    """``(kernel, constants)`` of a call, as the launchers make them."""
    size = 4 if dtype == "fp32" else 2
    if name in FORWARD:
        length, dim, causal, heads, training = FORWARD[name]
        form = attention.choose(size, dim, length, causal, heads, 132, architecture)
        kernel, _, constants = attention.forward_call(form, length, dim, causal, training, 8)
    else:
        kernel, dim, causal = BACKWARD[name]
        constants = attention.backward_constants(size, dim, causal, 8, 8, architecture)
    return kernel, constants


@functools.cache
def compiled(name, dtype, architecture):
    kernel, constants = described(name, dtype, architecture)
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages") if key in constants}
    types = {argument: kind.replace("W", f"*{dtype}") for argument, kind in TYPES.items()}
    return compile_for(architecture, kernel, types, constants, STEPS, **options, enable_fp_fusion=True)


@functools.cache
def dump(name, dtype, architecture, what, folder):
    return dump_of(compiled(name, dtype, architecture), what, folder / f"{name}-{dtype}-{architecture}.cubin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "architecture"), CASES, ids=[f"{n}-{d}-sm_{a}" for n, d, a in CASES]
)
def test_no_spills_and_on_tensor_cores(folder, name, dtype, architecture):
    usage = dump(name, dtype, architecture, "--dump-resource-usage", folder)
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage
    sass = dump(name, dtype, architecture, "--dump-sass", folder)
    # No tensor core takes float32 as it is.
    assert bool(re.search(PRODUCT[architecture], sass)) is (dtype != "fp32")
    # Tensors are read and written by 16 bytes; what else is loaded are the logarithms of the gradient.
    assert re.search(r"LDG\.E\.(?:\w+\.)*128|LDGSTS\.E\.(?:\w+\.)*128", sass)
    assert re.search(r"STG\.E\.(?:\w+\.)*128", sass)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["50", "77-causal", "197", "197-few", "257"])
def test_reads_in_no_other_way(folder, name):
    sass = dump(name, "bf16", 90, "--dump-sass", folder)
    assert len(re.findall(r"LDG", sass)) == len(re.findall(r"LDG\.E\.128", sass)) > 0
    assert len(re.findall(r"STG", sass)) == len(re.findall(r"STG\.E\.128", sass)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "programs"), [("50", 6), ("77-causal", 4), ("197", 2), ("257", 2), ("577", 2)]
)
def test_programs_that_a_multiprocessor_of_sm_90_holds(folder, name, programs):
    usage = dump(name, "bf16", 90, "--dump-resource-usage", folder)
    threads = 32 * described(name, "bf16", 90)[1]["num_warps"]
    registers = -(-int(re.findall(r"REG:(\d+)", usage)[0]) // 8) * 8
    shared = compiled(name, "bf16", 90).metadata.shared + 1024
    assert min(65536 // (registers * threads), 227 * 1024 // shared) >= programs
