"""The table of implementations, the reasons, and the override by the environment."""

import os
import subprocess
import sys

import pytest
import torch

from vlprune import ops
from vlprune.ops import backend, triton_ops
from vlprune.ops.gpu import capability

from .cases import native, needs_native

TRITON = ("column_sumsq", "masked_update", "pack24", "unpack24")
TRITON += ("wanda_mask", "wanda_pack24", "wanda_pack24_many")
NATIVE = (*TRITON, "linear24")
ON_CUDA = ("sm90", "sm80", "cusparselt")
KNOWN = "torch, cpu, triton, sm90, sm80, cusparselt"
COMPOSED = ("wanda_scores", "select")


def test_table():
    table = ops.backends()
    scaled = table.pop("linear24_scaled")
    assert {name: scaled[name] for name in ("torch", "cpu", "triton", "sm80", "cusparselt")} == {
        "torch": None,
        **{
            name: f"linear24_scaled has no form on the {name} backend"
            for name in ("cpu", "triton", "sm80", "cusparselt")
        },
    }
    assert scaled["sm90"] == table["linear24"]["sm90"]
    quantize = table.pop("quantize_rows")
    assert quantize.pop("triton") == table["column_sumsq"]["triton"]
    assert quantize == {
        "torch": None,
        **{name: f"quantize_rows has no form on the {name} backend" for name in ("cpu", *ON_CUDA)},
    }
    assert set(table) == {*NATIVE, *COMPOSED, "head_attention"}
    for op, row in table.items():
        assert set(row) == {"torch", "cpu", "triton", *ON_CUDA}
        assert row["torch"] is None
        composed = f"{op} is composed of PyTorch operators only"
        if op != "linear24":
            for name in ON_CUDA:
                assert row[name] == (
                    composed if op in COMPOSED else f"{op} has no form on the {name} backend"
                )
        if op not in (*TRITON, "linear24", "head_attention"):
            assert row["triton"] == (
                composed if op in COMPOSED else f"{op} has no form on the triton backend"
            )
        if op in COMPOSED:
            assert row["cpu"] == composed
        elif native is None:
            assert row["cpu"].startswith("the native extension is not built: ")
        else:
            assert row["cpu"] is None


@needs_native
def test_reasons():
    assert ops.why_not("cpu", "linear24", dtype=torch.bfloat16, device="cpu") is None
    assert ops.why_not("torch", "linear24", dtype=torch.float64, device="cuda") is None
    assert (
        ops.why_not("cpu", "linear24", dtype=torch.float64)
        == "linear24 on the cpu backend takes bfloat16 or float32, not float64"
    )
    assert (
        ops.why_not("cpu", "pack24", device="cuda:1")
        == "the cpu backend takes tensors on the CPU, not on cuda"
    )


def forget():
    capability.cache_clear()
    backend._no_compiler.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """As if triton, a C compiler and two CUDA devices were here."""
    monkeypatch.setattr(backend, "_triton_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setenv("CC", "cc")
    forget()
    yield
    forget()


REFUSED = {
    "device": (
        "wanda_mask",
        {"device": "cpu"},
        "the triton backend takes tensors on CUDA devices, not on cpu",
    ),
    "dtype": (
        "wanda_pack24",
        {"dtype": torch.float64},
        "wanda_pack24 on the triton backend takes bfloat16 or float16 or float32, not float64",
    ),
    "width": (
        "wanda_mask",
        {"in_features": 16385},
        "wanda_mask on the triton backend selects from at most 8192 inputs where 16 does not divide them, "
        "not from 16385",
    ),
    "width of sixteens": (
        "wanda_mask",
        {"in_features": 16400},
        "wanda_mask on the triton backend selects from at most 16384 inputs, not from 16400",
    ),
    "third device": (
        "wanda_mask",
        {"device": "cuda:2"},
        "there is no device cuda:2, only 2 CUDA devices",
    ),
    "head": (
        "head_attention",
        {"head_dim": 160},
        "head_attention on the triton backend takes heads at most 128 wide, not 160",
    ),
    "head of float32": (
        "head_attention",
        {"head_dim": 80, "dtype": torch.float32},
        "head_attention on the triton backend takes heads of float32 at most 64 wide, not 80",
    ),
    "dtype of attention": (
        "head_attention",
        {"dtype": torch.float64},
        "head_attention on the triton backend takes bfloat16 or float16 or float32, not float64",
    ),
    "no form": ("linear24_scaled", {}, "linear24_scaled has no form on the triton backend"),
    "composed": ("select", {}, "select is composed of PyTorch operators only"),
}


@pytest.mark.parametrize(("op", "asked", "reason"), REFUSED.values(), ids=REFUSED)
def test_reasons_of_triton(gpu, op, asked, reason):
    assert ops.why_not("triton", op, **asked) == reason


@pytest.mark.parametrize("op", [*TRITON, "head_attention"])
def test_triton_can(gpu, op):
    sizes = {"in_features": 16384, "head_dim": 128}
    assert ops.why_not("triton", op, dtype=torch.bfloat16, device="cuda:1", **sizes) is None


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"head_dim": 128}, True),
        ({"head_dim": 129}, False),
        ({"head_dim": 64, "scale": 0.1}, True),
        ({"head_dim": 64, "scale": 0.0}, False),
        ({"head_dim": 64, "scale": -1.0}, False),
        ({"head_dim": 64, "scale": float("inf")}, False),
        ({"head_dim": 64, "scale": float("nan")}, False),
    ],
)
def test_attention_on_cuda(gpu, monkeypatch, sizes, expected):
    monkeypatch.setattr(backend, "_override", lambda: "auto")
    assert backend.runs_on_triton("head_attention", torch.bfloat16, **sizes) is expected
    monkeypatch.setattr(backend, "_override", lambda: "triton")
    if not expected:
        with pytest.raises(ValueError, match=r'head_attention: backend "triton" was asked for, but '):
            backend.runs_on_triton("head_attention", torch.bfloat16, **sizes)


def test_triton_without_a_gpu_or_without_triton(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ops.why_not("triton", "wanda_mask") == "there is no CUDA device"
    monkeypatch.setattr(backend, "_triton_installed", lambda: False)
    assert ops.why_not("triton", "wanda_mask") == "triton is not installed"


def test_triton_on_another_makers_gpu(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    reason = "the kernels are written for NVIDIA's GPUs; this PyTorch is for AMD's (HIP 6.2)"
    assert ops.why_not("triton", "wanda_mask") == reason


def test_triton_beside_an_older_gpu(gpu, monkeypatch):
    monkeypatch.setattr(backend, "_override", lambda: "auto")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0) if index else (7, 5))
    reason = "the kernels need a GPU of compute capability 8.0, cuda:0 has 7.5"
    assert ops.why_not("triton", "wanda_mask") == reason
    assert ops.why_not("triton", "wanda_mask", device="cuda:1") is None
    old, new = torch.device("cuda", 0), torch.device("cuda", 1)
    assert not backend.runs_on_triton("wanda_mask", torch.float32, device=old)
    assert backend.runs_on_triton("wanda_mask", torch.float32, device=new)


def test_triton_without_a_c_compiler(gpu, monkeypatch, tmp_path):
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = "triton needs a C compiler: CC is not set, and neither gcc nor clang is on the PATH"
    assert ops.why_not("triton", "wanda_mask") == reason
    forget()
    compiler = tmp_path / "clang"
    compiler.touch(mode=0o755)
    assert ops.why_not("triton", "wanda_mask") is None


def test_a_layer_that_nothing_on_a_gpu_can_sort():
    weight = torch.zeros(1, 1).expand(2**16, 2**15)
    with pytest.raises(
        ValueError, match=r'expected at most 2147418112 weights for scope "layer" .*got 2147483648'
    ):
        triton_ops.wanda_mask(weight, torch.ones(2**15), "unstructured", 0.5, "layer")


@pytest.mark.parametrize(
    ("override", "dtype", "sizes", "expected"),
    [
        ("auto", torch.float16, {}, True),
        ("auto", torch.float64, {}, False),
        ("auto", torch.float32, {"unit": 16384}, True),
        ("auto", torch.float32, {"unit": 16385}, False),
        ("auto", torch.float32, {"unit": 8193}, False),
        ("auto", torch.float32, {"unit": 8191}, True),
        ("auto", torch.float32, {"device": torch.device("cuda", 1)}, True),
        ("auto", torch.float32, {"device": torch.device("cuda", 2)}, False),
        ("torch", torch.float32, {}, False),
        ("cpu", torch.float32, {}, True),
        ("triton", torch.bfloat16, {}, True),
    ],
)
def test_choice_on_cuda(gpu, monkeypatch, override, dtype, sizes, expected):
    monkeypatch.setattr(backend, "_override", lambda: override)
    assert backend.runs_on_triton("wanda_mask", dtype, **sizes) is expected


def test_forced_triton_refuses_what_it_cannot_do(gpu, monkeypatch):
    monkeypatch.setattr(backend, "_override", lambda: "triton")
    with pytest.raises(ValueError, match=r'wanda_mask: backend "triton" was asked for, but .*not from 20000'):
        backend.runs_on_triton("wanda_mask", torch.float32, unit=20000)
    with pytest.raises(
        ValueError, match=r"wanda_pack24: .* takes bfloat16 or float16 or float32, not float64"
    ):
        backend.runs_on_triton("wanda_pack24", torch.float64)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=f"expected a backend of {KNOWN}, got 'cuda'"):
        ops.why_not("cuda", "linear24")
    with pytest.raises(ValueError, match=r"expected an op of .*linear24.*, got 'conv24'"):
        ops.why_not("cpu", "conv24")


@needs_native
@pytest.mark.parametrize(
    ("override", "asked", "dtype", "expected"),
    [
        ("auto", "auto", torch.float32, True),
        ("auto", "auto", torch.float64, False),
        ("auto", "torch", torch.float32, False),
        ("torch", "auto", torch.float32, False),
        ("torch", "cpu", torch.float32, True),
        ("cpu", "auto", torch.float32, True),
        ("cpu", "torch", torch.float32, False),
        ("triton", "auto", torch.float32, True),
        ("triton", "auto", torch.float64, False),
    ],
)
def test_choice(monkeypatch, override, asked, dtype, expected):
    monkeypatch.setattr(backend, "_override", lambda: override)
    assert backend.runs_natively("linear24", dtype, asked) is expected


def test_forced_native_form_refuses_what_it_cannot_do(monkeypatch):
    monkeypatch.setattr(backend, "_override", lambda: "cpu")
    with pytest.raises(ValueError, match='pack24: backend "cpu" was asked for, but '):
        ops.pack24(torch.zeros(2, 4, dtype=torch.float64))
    assert ops.select(torch.ones(1, 4), "2:4").sum() == 2  # has no native form: as always


def run(code, **environment):
    # The child finds the package where this process did.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


USE = """
import torch
from vlprune import ops
from vlprune.ops import backend, prepared
values, meta = ops.wanda_pack24(torch.arange(16.).view(2, 8), torch.ones(8))
print(ops.linear24(torch.ones(1, 8), values, meta).tolist(), len(prepared._cache))
"""
RESULT = "[[18.0, 50.0]]"


@pytest.mark.parametrize(("override", "entries"), [("torch", 0), ("auto", 1), ("cpu", 1), ("triton", 1)])
@needs_native
def test_environment_chooses(override, entries):
    result = run(USE, VLPRUNE_BACKEND=override)
    assert result.stdout.split("\n")[0] == f"{RESULT} {entries}", result.stderr


def test_unknown_value_is_refused_at_the_first_use():
    result = run("import vlprune.cli, vlprune.ops; print('imported')" + USE, VLPRUNE_BACKEND="gpu")
    assert result.returncode == 1
    assert result.stdout == "imported\n"
    assert result.stderr.strip().endswith(
        f"ValueError: VLPRUNE_BACKEND: expected one of auto, {KNOWN}, got 'gpu'"
    )


WITHOUT_EXTENSION = (
    """
import sys
sys.modules["vlprune._C"] = None
"""
    + USE
    + """
print(ops.why_not("cpu", "linear24"))
try:
    ops.linear24(torch.ones(1, 8), values, meta, backend="cpu")
except ValueError as error:
    print(error)
"""
)


def test_everything_works_without_the_extension():
    lines = run(WITHOUT_EXTENSION).stdout.split("\n")
    assert lines[0] == f"{RESULT} 0"
    assert lines[1].startswith("the native extension is not built: ")
    assert lines[2].startswith(
        'linear24: backend "cpu" was asked for, but the native extension is not built: '
    )
