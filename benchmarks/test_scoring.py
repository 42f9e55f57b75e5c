"""Fused scoring, selection and packing in C++ beside their plain PyTorch definitions."""

import pytest
import torch

from vlprune import measure, ops
from vlprune.ops import reference

CASES = {
    "wanda_mask 2:4": (lambda m, w, n: m.wanda_mask(w, n, "2:4", None, "row")),
    "wanda_mask row 50%": (lambda m, w, n: m.wanda_mask(w, n, "unstructured", 0.5, "row")),
    "wanda_mask layer 50%": (lambda m, w, n: m.wanda_mask(w, n, "unstructured", 0.5, "layer")),
    "wanda_pack24": (lambda m, w, n: m.wanda_pack24(w, n)),
}


@pytest.mark.parametrize("form", ["definition", "native"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(3072, 768), (4096, 1024)], ids=["3072x768", "4096x1024"])
def test_scoring(benchmark, shape, case, form):
    weight, norm = torch.randn(shape), torch.rand(shape[1])
    call = CASES[case]
    fast, slow = call(ops, weight, norm), call(reference, weight, norm)
    pairs = zip(fast, slow, strict=True) if isinstance(fast, tuple) else [(fast, slow)]
    assert all(torch.equal(a, b) for a, b in pairs)
    benchmark.group = f"{case} {shape[0]}x{shape[1]}"
    benchmark.extra_info.update(measure.machine_info())
    benchmark.pedantic(
        call, (ops if form == "native" else reference, weight, norm), rounds=5, warmup_rounds=1
    )
