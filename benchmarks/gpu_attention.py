"""Attention on a CUDA device: first against float64, then against every backend of PyTorch's attention.

    python benchmarks/gpu_attention.py [--out benchmarks/results/<gpu>/attention.json]

All start from the packed projection [B, S, 3*H*d] and end with the input of the output projection,
[B, S, H*d], so that what a model has to permute counts. A time is that of a CUDA graph of calls, each on an
input of its own and together more than the caches hold, divided by their number and interleaved over what is
compared (`vlprune.measure.compare`). `speed-up` is against the best of PyTorch's; `share of copy` is the
bytes that have to move (q, k and v read once, the result written once) by the time, over what a copy reaches.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlprune import files, measure, ops
from vlprune.ops import reference

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# CLIP's: ViT-B/32, the text towers, ViT-B/16, ViT-L/14 and ViT-L/14 at 336 pixels.
TOKENS = ((50, False), (77, True), (197, False), (257, False), (577, False))
HEADS, BATCHES, WIDTH = (12, 16), (1, 8, 64), 64
CHECKED = (1, 17, 50, 77, 100, 197, 257, 300, 577)
WIDTHS = (32, 64, 80, 88, 128)
PEERS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# Forms beside the chosen one, which the choice is to be judged by.
FORMS = {
    "a head a program": (True, False, 64, 0, 4),
    "a tile a program": (True, True, 64, 0, 4),
    "tiles of 64": (False, True, 64, 64, 4),
    "tiles of 128": (False, True, 128, 64, 8),
}
ROUNDS, BYTES, CALLS = 30, 256 * 2**20, 64


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON to write; by default under benchmarks/results/<gpu>/")
    args = parser.parse_args()
    if (reason := ops.why_not("triton", "head_attention")) is not None:
        sys.exit(f"gpu_attention: nothing to measure: {reason}")
    machine = measure.machine_info()
    machine["triton"] = importlib.metadata.version("triton")
    print(f"{machine['gpu']}: {check()} results and as many gradients agree with float64")
    rows = []
    for row in measured():
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items() if key != "times"))
    folder = Path(__file__).parent / "results" / re.sub(r"\W+", "-", str(machine["gpu"])).lower().strip("-")
    path = args.out or folder / "attention.json"
    files.write_json(path, {"machine": machine, "rows": rows})
    print(path)


def surrounded(batch: int, length: int, width: int, dtype: torch.dtype) -> Tensor:
    """Random normal numbers between NaN, which are to reach nothing."""
    around = torch.full((batch, length + 2, width + 16), math.nan, dtype=dtype, device="cuda")
    inside = around[:, 1:-1, 8:-8]
    inside.copy_(torch.randn(inside.shape, device="cuda"))
    return inside


def formula(qkv: Tensor, heads: int, causal: bool) -> Tensor:
    """Softmax attention, written out."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
        scores = scores.masked_fill(unseen, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def with_gradient(call: Callable[[Tensor], Tensor], qkv: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Result and gradient."""
    leaf = qkv.detach().requires_grad_()
    out = call(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, slope.to(out.dtype))[0]


def check() -> int:
    """Compare results and gradients with float64, every form there is; how many were compared."""
    from vlprune.kernels import head_attention as kernels

    count = 0
    for length in CHECKED:
        for width in WIDTHS:
            for name, dtype in DTYPES.items():
                if ops.why_not("triton", "head_attention", dtype=dtype, head_dim=width) is not None:
                    continue
                for causal in (False, True):
                    case = f"head_attention {length} tokens, {width} wide, {name}, causal: {causal}"
                    qkv = surrounded(2, length, 9 * width, dtype)
                    slope = surrounded(2, length, 3 * width, dtype)
                    right = with_gradient(lambda x, c=causal: formula(x, 3, c), qkv.double(), slope)
                    peer = with_gradient(lambda x, c=causal: formula(x, 3, c), qkv, slope)
                    mine = with_gradient(lambda x, c=causal: ops.head_attention(x, 3, c), qkv, slope)
                    for what, *three in zip(("result", "gradient"), mine, right, peer, strict=True):
                        measure.check_close(f"{case}: {what}", *three)
                    for form in forms(length, width, causal, dtype):
                        out, _ = kernels.head_attention(
                            qkv, 3, causal, width**-0.5, False, kernels.Form(*FORMS[form])
                        )
                        measure.check_close(f"{case}: {form}", out, right[0], peer[0])
                    count += 1
    qkv = surrounded(2, 197, 9 * 64, torch.bfloat16)
    compiled = torch.compile(lambda x: ops.head_attention(x, 3), fullgraph=True)
    if not torch.equal(compiled(qkv), ops.head_attention(qkv, 3)):
        sys.exit("gpu_attention: compiled, the result is another")
    return count


def forms(length: int, width: int, causal: bool, dtype: torch.dtype) -> Iterator[str]:
    """Names of the forms that can make this call."""
    from vlprune.kernels.head_attention import LOOPED, UNROLLED
    from vlprune.kernels.head_attention_whole import LARGEST

    if dtype is torch.float32:
        return
    for name, (whole, split, *_) in FORMS.items():
        most = UNROLLED if causal else LARGEST if split else LOOPED
        # Keys and values of heads above 64 want more of the memory on chip, and their sums of the registers.
        if not whole or length <= most * 64 // max(64, width):
            yield name


def graphed(calls: list[Callable[[], object]]) -> Callable[[], None]:
    """Capture all calls, so that what is timed is the device alone."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def sdpa(backend: SDPBackend, heads: int, causal: bool) -> Callable[[Tensor], Tensor]:
    """PyTorch's attention by one backend, with the permutes around it."""

    def call(qkv: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return reference.head_attention(qkv, heads, causal)

    return call


def runs(call: Callable[[Tensor], object], qkv: Tensor) -> bool:
    """Whether a backend takes such an input."""
    try:
        call(qkv)
    except RuntimeError:
        return False
    return True


def compared(
    what: str, batch: int, length: int, heads: int, causal: bool, training: bool = False
) -> dict[str, Any]:
    """Time one shape by every means."""
    from vlprune.kernels import head_attention as kernels

    inner = heads * WIDTH
    moved = 4 * batch * length * inner * 2
    copies = max(1, min(CALLS, BYTES // moved))
    inputs = [torch.randn(batch, length, 3 * inner, device="cuda").bfloat16() for _ in range(copies)]
    functions: dict[str, Callable[[Tensor], object]] = {
        "vlprune": lambda qkv: ops.head_attention(qkv, heads, causal)
    }
    functions |= {name: sdpa(backend, heads, causal) for name, backend in PEERS.items()}
    if training:
        slope = torch.randn(batch, length, inner, device="cuda").bfloat16()
        functions = {
            name: lambda qkv, call=call: with_gradient(call, qkv, slope) for name, call in functions.items()
        }
    else:
        for form in forms(length, WIDTH, causal, torch.bfloat16):
            how = (heads, causal, WIDTH**-0.5, False, kernels.Form(*FORMS[form]))
            functions[form] = lambda qkv, how=how: kernels.head_attention(qkv, *how)
    functions = {name: call for name, call in functions.items() if runs(call, inputs[0])}
    candidates = {
        name: graphed([lambda call=call, qkv=qkv: call(qkv) for qkv in inputs])
        for name, call in functions.items()
    }
    # Half of what the kernel moves is read, half written.
    halves = [torch.empty(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(2 * copies)]
    candidates["copy"] = graphed([lambda i=i: halves[2 * i].copy_(halves[2 * i + 1]) for i in range(copies)])
    times = measure.compare(candidates, device="cuda", rounds=ROUNDS, cold=True)
    each = {name: timing.median / copies for name, timing in times.items()}
    best = min((name for name in PEERS if name in each), key=each.__getitem__)
    row = {
        "what": what,
        "microseconds": round(each["vlprune"] * 1e6, 2),
        "best of PyTorch": best,
        "speed-up": round(each[best] / each["vlprune"], 2),
        "calls": copies,
    }
    if not training:
        row["TB/s"] = round(moved / each["vlprune"] / 1e12, 3)
        row["share of copy"] = round(each["copy"] / each["vlprune"], 3)
    row |= {
        f"{name} times as long": round(t / each["vlprune"], 2)
        for name, t in each.items()
        if name != "vlprune"
    }
    return {**row, "times": {name: timing.to_dict() for name, timing in times.items()}}


def measured() -> Iterator[dict[str, Any]]:
    """One row for each thing measured."""
    for length, causal in TOKENS:
        for heads in HEADS:
            for batch in BATCHES:
                shape = f"{batch} x {length} tokens x {heads} heads{', causal' * causal}"
                yield compared(shape, batch, length, heads, causal)
    full = None
    for heads in (16, 12, 8, 5, 4):
        row = compared(f"64 x 257 tokens x {heads} of 16 heads", 64, 257, heads, False)
        full = full or row["microseconds"]
        yield {**row, "times its share of all heads": round(row["microseconds"] / full * 16 / heads, 3)}
    for length, causal in TOKENS:
        shape = f"with gradient, 64 x {length} tokens x 12 heads{', causal' * causal}"
        yield compared(shape, 64, length, 12, causal, training=True)


if __name__ == "__main__":
    main()
