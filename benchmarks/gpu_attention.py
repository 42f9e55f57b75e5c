"""Attention on a CUDA device: first against float64, then against every backend of PyTorch's attention.

    python -m benchmarks.gpu_attention [--check] [--quick] [--out benchmarks/results/<gpu>/attention.json]

All start from the packed projection [B, S, 3*H*d] and end with the input of the output projection,
[B, S, H*d], so that what a model has to permute counts. Times are those of `gpu_common`. `speed-up` is
against the best of PyTorch's; `share of copy` is the bytes that have to move (q, k and v read once, the
result written once) by the time, over what a copy reaches.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_common import Report, calls_of, cold_times, copies_for, parser
from vlprune import measure, ops
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


def main() -> None:
    """Check, measure, write."""
    options = parser(__doc__)
    options.add_argument("--check", action="store_true", help="compare some results and time nothing")
    options.add_argument("--quick", action="store_true", help="12 heads of 64 images, without gradients")
    args = options.parse_args()
    if (reason := ops.why_not("triton", "head_attention")) is not None:
        sys.exit(f"gpu_attention: nothing to measure: {reason}")
    if args.check:
        print(f"{check((50, 77, 300), (64,))} results and gradients agree with float64")
        return
    report = Report("attention", args.out)
    report.attempt("results, and as many gradients, that agree with float64", lambda: {"count": check()})
    if args.quick:
        for length, causal in TOKENS:
            attempt(report, 64, length, 12, causal)
    else:
        measured(report)
    report.finish()


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


def check(lengths: Sequence[int] = CHECKED, widths: Sequence[int] = WIDTHS) -> int:
    """Compare results and gradients with float64; how many were compared.

    Of bfloat16 every width and, for that of CLIP, every form that there is; of the others that width. Each
    is compiled by itself, so all of all would take minutes.
    """
    from vlprune.kernels import head_attention as kernels

    count = 0
    for length in lengths:
        for width in widths:
            for name, dtype in DTYPES.items():
                if width != WIDTH and dtype is not torch.bfloat16:
                    continue
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
                    for form in forms(length, causal) if (width, name) == (WIDTH, "bf16") else ():
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


def forms(length: int, causal: bool) -> Iterator[str]:
    """Names of the forms that can make a call of bfloat16 with CLIP's heads."""
    from vlprune.kernels.head_attention import LOOPED, UNROLLED
    from vlprune.kernels.head_attention_whole import LARGEST

    for name, (whole, split, *_) in FORMS.items():
        most = UNROLLED if causal else LARGEST if split else LOOPED
        if not whole or length <= most:
            yield name


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


def compared(batch: int, length: int, heads: int, causal: bool, training: bool = False) -> dict[str, Any]:
    """Time one shape by every means."""
    from vlprune.kernels import head_attention as kernels

    inner = heads * WIDTH
    moved = 4 * batch * length * inner * 2
    copies = copies_for(moved)
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
        for form in forms(length, causal):
            how = (heads, causal, WIDTH**-0.5, False, kernels.Form(*FORMS[form]))
            functions[form] = lambda qkv, how=how: kernels.head_attention(qkv, *how)
    functions = {name: call for name, call in functions.items() if runs(call, inputs[0])}
    candidates = {name: calls_of(call, [(qkv,) for qkv in inputs]) for name, call in functions.items()}
    # Half of what the kernel moves is read, half written.
    halves = [[torch.empty(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(2)] for _ in inputs]
    candidates["copy"] = calls_of(lambda a, b: a.copy_(b), [tuple(pair) for pair in halves])
    times = cold_times(candidates)
    each = {name: timing.median for name, timing in times.items()}
    best = min((name for name in PEERS if name in each), key=each.__getitem__)
    row = {
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


def attempt(report: Report, batch: int, length: int, heads: int, causal: bool) -> None:
    """Add the row of one shape."""
    shape = f"{batch} x {length} tokens x {heads} heads{', causal' * causal}"
    report.attempt(shape, lambda: compared(batch, length, heads, causal))


def measured(report: Report) -> None:
    """Add a row for each thing measured."""
    for length, causal in TOKENS:
        for heads in HEADS:
            for batch in BATCHES:
                attempt(report, batch, length, heads, causal)
    whole: list[float] = []
    for heads in (16, 12, 8, 5, 4):
        report.attempt(f"64 x 257 tokens x {heads} of 16 heads", lambda heads=heads: some(heads, whole))
    for length, causal in TOKENS:
        shape = f"with gradient, 64 x {length} tokens x 12 heads{', causal' * causal}"
        how = (64, length, 12, causal)
        report.attempt(shape, lambda how=how: compared(*how, training=True))


def some(heads: int, whole: list[float]) -> dict[str, Any]:
    """Time some of 16 heads; `whole` gets the time of all, which come first."""
    row = compared(64, 257, heads, False)
    whole.append(row["microseconds"])
    return {**row, "times its share of all heads": round(row["microseconds"] / whole[0] * 16 / heads, 3)}


if __name__ == "__main__":
    main()
