"""The kernels of `linear24` for few tokens compiled for GPUs that are not here.

No spills, products on tensor cores that do not wait for one another, weights copied by 16 bytes, and how many
instructions it takes to make them dense. Arguments are described as a launch describes them: pointers, and
steps between tokens, that are divisible by 16.
"""

import functools
import os
import re

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("under the interpreter nothing is compiled", allow_module_level=True)

from cubins import PRODUCT, compile_for, dump_of  # noqa: E402

from vlprune.kernels import linear24  # noqa: E402
from vlprune.kernels.linear24_product import finish, product  # noqa: E402

# name -> tokens, columns, tile (rows, depth, split, warps, stages), activation
CASES = {
    "1": (1, 4096, (128, 64, 1, 4, 5), None),
    "50": (50, 4096, (128, 64, 1, 4, 5), "gelu"),
    "50-split": (50, 4096, (128, 64, 4, 4, 5), None),
    "50-256-rows": (50, 4096, (256, 64, 8, 8, 4), None),
    "50-64-rows": (50, 768, (64, 64, 1, 4, 4), "quick_gelu"),
    "50-deep": (50, 4096, (128, 128, 1, 4, 3), None),
    "77": (77, 768, (128, 64, 1, 8, 4), None),
    "257": (257, 1024, (128, 64, 1, 8, 3), None),
    "50-uneven": (50, 772, (128, 64, 1, 4, 3), None),
}
FINISH = "finish"
TARGETS = [(name, "bf16", 90) for name in (*CASES, FINISH)]
TARGETS += [(name, "bf16", architecture) for name in ("50", "257") for architecture in (80, 100)]
TARGETS += [("50", "fp16", 90), ("50-split", "fp32", 90), ("257", "fp32", 90)]
TYPES = {**dict.fromkeys(("x", "values", "bias", "residual"), "W"), "meta": "*u8", "workspace": "*fp32"}
STEPS = ("out", "residual_pitch", "y_pitch")


def described(name, dtype, architecture):
    """``(kernel, warps, constants)`` of a call, as the launcher makes them."""
    if name == FINISH:
        return finish, 4, {"SPLIT": 4, "ACTIVATION": "gelu", "TOKENS": 4, "COLUMNS": 256}
    tokens, cols, tile, activation = CASES[name]
    size = 4 if dtype == "fp32" else 2
    config = linear24.Config(*((64, 32, tile[2], 8, 2) if dtype == "fp32" else tile))
    constants = linear24.product_constants(config, tokens, cols, size, cols, activation, architecture)
    if constants["SPLIT"] > 1:
        constants |= {"bias": None, "residual": None}
    return product, config.warps, constants


@functools.cache
def compiled(name, dtype, architecture):
    kernel, warps, constants = described(name, dtype, architecture)
    results = "*fp32" if constants["SPLIT"] > 1 and kernel is product else f"*{dtype}"
    types = {a: kind.replace("W", f"*{dtype}") for a, kind in {**TYPES, "y": results}.items()}
    divisible = (*STEPS, "cols") if constants.get("EVEN") else STEPS
    return compile_for(
        architecture, kernel, types, constants, divisible, num_warps=warps, enable_fp_fusion=False
    )


@functools.cache
def dump(name, dtype, architecture, what, folder):
    return dump_of(compiled(name, dtype, architecture), what, folder / f"{name}-{dtype}-{architecture}.cubin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


def loop_of(sass):
    """Instructions from the target of a branch back, that has products in between, to that branch."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?\s*(\S[^;]*);", sass)
    code = [(int(address, 16), text) for address, text in lines]
    for address, text in code:
        target = re.search(r"^BRA.*0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            body = [text for at, text in code if int(target[1], 16) <= at <= address]
            if any("HGMMA" in text for text in body):
                return body
    raise AssertionError("no loop with products")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "architecture"), TARGETS, ids=[f"{n}-{d}-sm_{a}" for n, d, a in TARGETS]
)
def test_no_spills_and_on_tensor_cores(folder, name, dtype, architecture):
    usage = dump(name, dtype, architecture, "--dump-resource-usage", folder)
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage
    sass = dump(name, dtype, architecture, "--dump-sass", folder)
    # No tensor core takes float32 as it is.
    assert bool(re.search(PRODUCT[architecture], sass)) is (dtype != "fp32" and name != FINISH)
    assert re.search(r"STG\.E\.(?:\w+\.)*(?:128|64)", sass)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_copies_weights_by_16_bytes(folder, architecture):
    sass = dump("50", "bf16", architecture, "--dump-sass", folder)
    # 128 rows of 128 bytes of values by 128 threads: four each, for the four steps ahead and in the loop.
    copies = len(re.findall(r"LDGSTS\.E\.BYPASS\.128", sass))
    assert copies % 4 == 0
    assert copies >= 4 * 5
    # Nothing but what is added at the end is read past the copies.
    assert len(re.findall(r"\bLDG\b", sass)) == len(re.findall(r"LDG\.E\.128", sass))


# Instructions of the loop, a thread and group of four weights: all, and those of the integer pipes. There is
# time for 27 and 13 at 4.8 TB/s, with 132 multiprocessors at 1.7 GHz.
BUDGET = {"1": (17, 9), "50": (19, 10), "50-split": (19, 10), "50-256-rows": (18, 9), "50-deep": (18, 10)}
INTEGER = r"PRMT|LOP3|IADD3|ISETP|SEL|SHF|LEA|VIADD|VIMNMX|PLOP3"


@pytest.mark.slow
@pytest.mark.parametrize("name", BUDGET)
def test_making_dense_fits_under_the_bytes(folder, name):
    body = loop_of(dump(name, "bf16", 90, "--dump-sass", folder))
    _, warps, constants = described(name, "bf16", 90)
    groups = constants["ROWS"] * constants["DEPTH"] / 4 / (32 * warps)
    assert sum(text.startswith("PRMT") for text in body) <= 5 * groups + 4
    assert len(body) <= BUDGET[name][0] * groups
    assert sum(bool(re.match(rf"(?:{INTEGER})\b", text)) for text in body) <= BUDGET[name][1] * groups
    # Nothing is exchanged between threads: what is copied here is read, and never written by stores.
    assert not any(re.match(r"(?:STS|SHFL|LDSM|STSM)\b", text) for text in body)
    # Products of the same sums wait for one another where the compiler puts a barrier before each.
    products = sum(text.startswith("HGMMA") for text in body)
    assert sum("WARPGROUP.ARRIVE" in text for text in body) <= products / 2
