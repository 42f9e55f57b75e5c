"""The Triton kernels compiled for GPUs that are not here: they compile, spill nothing, read 16 bytes at once.

The launchers' own block sizes; arguments described as a launch describes them: pointers and sizes that are
divisible by 16 said to be so, sizes that are 1 given as constants.
"""

import functools
import os
import re

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("under the interpreter nothing is compiled", allow_module_level=True)

import triton.language as tl  # noqa: E402
from cubins import compile_for, dump_of  # noqa: E402

from vlprune.kernels import (  # noqa: E402
    column_sumsq,
    groups4,
    masked_update,
    quantize_rows,
    unpack24,
    wanda_layer,
    wanda_mask,
    wanda_pack24,
    wanda_rows,
)

DTYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
ARCHITECTURES = (80, 90, 100)

# Types of the arguments by name; `W` stands for a pointer to the weight's dtype.
TYPES = {
    **dict.fromkeys(("weight", "values", "x"), "W"),
    **dict.fromkeys(("norm", "token_weight", "partial", "out"), "*fp32"),
    **dict.fromkeys(("keep", "meta"), "*u8"),
    **dict.fromkeys(("histograms", "ties"), "*i32"),
    "table": "*i64",
}
UPDATE_TYPES = {"out": "W", "a": "*fp32", "b": "*fp32", "scale": "fp32"}
QUANTIZE_TYPES = {"q": "*i8", "scales": "*fp32"}
FACTORS_AS_WEIGHT = {"a": "W", "b": "W"}
TILE = {"ROWS": groups4.ROWS, "UNITS": groups4.UNITS}
UNPACK = {"ROWS": unpack24.ROWS, "UNITS": unpack24.UNITS}
SUMS = {"TOKENS": column_sumsq.TOKENS, "COLUMNS": column_sumsq.COLUMNS}
UPDATE = {"ROWS": masked_update.ROWS, "COLUMNS": masked_update.COLUMNS}
QUANTIZE = {"LARGEST": 127.0, "INTEGER": True}
LAYER = {"BLOCK": wanda_layer.BLOCK}


def ranked(m):
    """Constants for groups of m."""
    padded = triton.next_power_of_2(m)
    return {"M": m, "PRUNE": m // 2, "PADDED": padded, "TILE": wanda_mask.RANKED // padded}


# name -> (kernel, warps, constants, sizes that are multiples of 16 or all, whether the dtype is a constant)
KERNELS = {
    "pack24": (wanda_pack24._pack_one, 4, {**TILE, "EVEN": True}, (), True),
    "pack24-uneven": (wanda_pack24._pack_one, 4, {**TILE, "EVEN": False}, (), True),
    "pack24-one-row": (wanda_pack24._pack_one, 4, {**TILE, "EVEN": False, "rows": 1, "groups": 1}, (), True),
    "pack24-many": (wanda_pack24._pack_many, 4, {**TILE, "EVEN": True, "MATRICES": 256}, (), True),
    "unpack24": (unpack24._unpack, 4, {**UNPACK, "EVEN": True}, (), True),
    "unpack24-uneven": (unpack24._unpack, 4, {**UNPACK, "EVEN": False}, (), True),
    "mask-1:4": (wanda_mask._mask4, 4, {**TILE, "EVEN": True, "PRUNE": 3}, (), True),
    "mask-2:4": (wanda_mask._mask4, 4, {**TILE, "EVEN": True, "PRUNE": 2}, (), True),
    "mask-2:4-uneven": (wanda_mask._mask4, 4, {**TILE, "EVEN": False, "PRUNE": 2}, (), True),
    "mask-4:8": (wanda_mask._mask_ranked, 4, ranked(8), (), False),
    "mask-1:2": (wanda_mask._mask_ranked, 4, ranked(2), (), False),
    "mask-3:6": (wanda_mask._mask_ranked, 4, ranked(6), (), False),
    "mask-15:31": (wanda_mask._mask_ranked, 4, ranked(31), (), False),
    "mask-16:32": (wanda_mask._mask_ranked, 4, ranked(32), (), False),
    "mask-row-1024": (wanda_rows._mask_units, 1, {"BLOCK": 1024, "units": 1}, ("width",), False),
    "mask-row-16384": (wanda_rows._mask_units, 16, {"BLOCK": 16384, "units": 1}, ("width",), False),
    "mask-row-8191": (wanda_rows._mask_units, 8, {"BLOCK": 8192}, (), False),
    "mask-row-16384-units": (wanda_rows._mask_units, 16, {"BLOCK": 16384}, ("width",), False),
    "mask-row-prune-1": (wanda_rows._mask_units, 4, {"BLOCK": 4096, "prune": 1}, (), False),
    "layer-digits-0": (wanda_layer._count_digits, 4, {**LAYER, "PASS": 0}, ("cols",), False),
    "layer-digits-3": (wanda_layer._count_digits, 4, {**LAYER, "PASS": 3}, ("cols",), False),
    "layer-digits-prune-1": (wanda_layer._count_digits, 4, {**LAYER, "PASS": 2, "prune": 1}, (), False),
    "layer-ties": (wanda_layer._count_ties, 4, {**LAYER, "prune": 1}, ("cols",), False),
    "layer-write": (wanda_layer._write, 4, LAYER, ("cols",), False),
    "sumsq": (column_sumsq._partial, 4, {**SUMS, "WEIGHTED": True}, ("cols", "pitch", "chunk"), False),
    "sumsq-plain": (
        column_sumsq._partial,
        4,
        {**SUMS, "WEIGHTED": False, "token_weight": None},
        ("cols", "pitch", "chunk"),
        False,
    ),
    "update-8": (masked_update._update, 8, {**UPDATE, "RANK": 8, "STEP": 16}, ("rows", "cols"), False),
    "update-8-odd": (masked_update._update, 8, {**UPDATE, "RANK": 8, "STEP": 16}, (), False),
    "update-70-odd": (masked_update._update, 8, {**UPDATE, "RANK": 70, "STEP": 32}, (), False),
    "update-16": (masked_update._update, 8, {**UPDATE, "RANK": 16, "STEP": 16}, ("rows", "cols"), False),
    "update-64": (masked_update._update, 8, {**UPDATE, "RANK": 64, "STEP": 32}, ("rows", "cols"), False),
    "update-64-no-mask": (
        masked_update._update, 8, {**UPDATE, "RANK": 64, "STEP": 32, "keep": None}, ("rows", "cols"), False,
    ),
    "update-64-factors-as-weight": (
        masked_update._update, 8, {**UPDATE, "RANK": 64, "STEP": 32}, ("rows", "cols"), False,
    ),
    "quantize-1024": (quantize_rows._quantize, 4, {**QUANTIZE, "COLUMNS": 1024}, ("cols", "pitch"), False),
    "quantize-16384": (quantize_rows._quantize, 8, {**QUANTIZE, "COLUMNS": 16384}, ("cols", "pitch"), False),
    "quantize-16384-odd": (quantize_rows._quantize, 8, {**QUANTIZE, "COLUMNS": 16384}, (), False),
    "sumsq-total": (
        column_sumsq._total,
        4,
        {"CHUNKS": column_sumsq.SUM_CHUNKS, "COLUMNS": column_sumsq.SUM_COLUMNS},
        ("cols",),
        False,
    ),
}  # fmt: skip


@functools.cache
def compiled(name, dtype, architecture):
    kernel, warps, constants, divisible, constant_dtype = KERNELS[name]
    constants = {**constants, **({"dtype": DTYPES[dtype]} if constant_dtype else {})}
    own = UPDATE_TYPES if name.startswith("update") else {}
    own = QUANTIZE_TYPES if name.startswith("quantize") else own
    own = own | FACTORS_AS_WEIGHT if name.endswith("factors-as-weight") else own
    types = {argument: kind.replace("W", f"*{dtype}") for argument, kind in (TYPES | own).items()}
    return compile_for(
        architecture, kernel, types, constants, divisible, num_warps=warps, enable_fp_fusion=False
    )


@functools.cache
def dump(name, dtype, architecture, what, folder):
    path = folder / f"{name.replace(':', '-')}-{dtype}-{architecture}.cubin"
    return dump_of(compiled(name, dtype, architecture), what, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


# Every kernel for sm_90, where it is to be fast; elsewhere bfloat16, since only the target differs. Groups of
# other sizes than 8 take long to compile, and are only tried with the dtype that needs the most registers.
OTHER_GROUPS = ("mask-1:2", "mask-3:6", "mask-15:31", "mask-16:32")
TARGETS = [(dtype, 90) for dtype in DTYPES] + [("bf16", a) for a in ARCHITECTURES if a != 90]
COMPILED = [(n, *t) for n in KERNELS for t in (TARGETS if n not in OTHER_GROUPS else [("fp32", 90)])]


# Which Triton 3.6 lets spill a few registers, or has threads exchange what later ones keep in order.
OLD = triton.__version__.startswith("3.6.")
OLD_SPILLS = {("mask-15:31", "fp32", 90), ("quantize-16384-odd", "bf16", 80)} if OLD else set()
OLD_EXCHANGES = {("unpack24", "fp32")} if OLD else set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "architecture"), COMPILED, ids=[f"{n}-{d}-sm_{a}" for n, d, a in COMPILED]
)
def test_compiles_without_spills(folder, name, dtype, architecture):
    # Not the size of the stack, which may be more than is used: that nothing goes there, by whatever address.
    sass = dump(name, dtype, architecture, "--dump-sass", folder)
    spilled = bool(re.findall(r"\b(?:LDL?|STL?)\b.*;", sass))
    assert spilled is ((name, dtype, architecture) in OLD_SPILLS)
    assert "EXIT" in sass


# What a thread loads and stores by 16 bytes, where everything is aligned: kernel -> dtype -> (loads, stores).
WIDE = {
    # Four units of 32 bytes and 64 bytes of norms (32 for float32), four units of 16 bytes of values.
    "pack24": {"bf16": (12, 4), "fp16": (12, 4), "fp32": (10, 4)},
    "pack24-many": {"bf16": (12, 4), "fp16": (12, 4), "fp32": (10, 4)},
    # 16 entries of mask a unit of 16-bit weights, 8 of float32: those are 8-byte stores.
    "mask-2:4": {"bf16": (12, 4), "fp16": (12, 4), "fp32": (10, 0)},
    "mask-1:4": {"bf16": (12, 4), "fp16": (12, 4), "fp32": (10, 0)},
    # 32 entries a thread, their norms, and 32 bytes of mask.
    "mask-row-1024": {"bf16": (12, 2), "fp16": (12, 2), "fp32": (16, 2)},
    "mask-row-16384": {"bf16": (12, 2), "fp16": (12, 2), "fp32": (16, 2)},
    "sumsq-plain": {"bf16": (4, 0), "fp16": (4, 0), "fp32": (8, 0)},
    # 64 inputs a thread.
    "quantize-16384": {"bf16": (8, 4), "fp16": (8, 4), "fp32": (16, 4)},
}
WIDE_CASES = [(name, dtype) for name, dtypes in WIDE.items() for dtype in dtypes]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), WIDE_CASES, ids=[f"{n}-{d}" for n, d in WIDE_CASES])
def test_reads_and_writes_16_bytes_at_once(folder, name, dtype):
    sass = dump(name, dtype, 90, "--dump-sass", folder)
    assert (len(re.findall(r"LDG\.E\.128", sass)), len(re.findall(r"STG\.E\.128", sass))) == WIDE[name][dtype]
    if "many" not in name:
        # W, or what is large of the input, is read in no other way.
        assert len(re.findall(r"LDG", sass)) == WIDE[name][dtype][0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [512, 16384])
def test_quantizes_to_e4m3(folder, dtype, columns):
    constants = {"LARGEST": 448.0, "INTEGER": False, "COLUMNS": columns}
    types = {"x": f"*{dtype}", "q": "*fp8e4nv", "scales": "*fp32"}
    how = {"num_warps": 8 if columns > 512 else 2, "enable_fp_fusion": False}
    made = compile_for(90, quantize_rows._quantize, types, constants, ("cols", "pitch"), **how)
    sass = dump_of(made, "--dump-sass", folder / f"e4m3-{dtype}-{columns}.cubin")
    # Two at a time, by the hardware.
    assert len(re.findall(r"F2FP\.SATFINITE\.E4M3", sass)) == columns // (32 * how["num_warps"]) // 2
    assert not re.findall(r"\b(?:LDL|STL)\b", sass)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbouring_threads_read_neighbouring_units(dtype):
    # A warp lies over two rows of 16 units, in order along the rows.
    layout = "sizePerThread = [1, 2], threadsPerWarp = [2, 16], warpsPerCTA = [4, 1], order = [1, 0]"
    assert layout in compiled("pack24", dtype, 90).asm["ttgir"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pack24", "unpack24"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_exchanges_nothing_between_threads(folder, dtype, name):
    sass = dump(name, dtype, 90, "--dump-sass", folder)
    exchanges = bool(re.findall(r"\b(?:SHFL|LDS|STS|BAR)\b", sass))
    assert exchanges is ((name, dtype) in OLD_EXCHANGES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacking_stores_16_bytes_at_once(folder, dtype):
    # Of each of eight units a thread reads 8 bytes of values and one of meta, and writes 16.
    sass = dump("unpack24", dtype, 90, "--dump-sass", folder)
    reads, writes = re.findall(r"LDG\.E\.(\w+)", sass), re.findall(r"STG\.E\.(\w+)", sass)
    assert (reads.count("64"), len(reads), writes) == (8, 16, ["128"] * 8)
