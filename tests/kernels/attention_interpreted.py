"""The attention kernels under Triton's interpreter, on CPU tensors: run as a script, in a process of its own.

Prints one JSON object: case -> null or what was wrong. Inputs lie in memory that is otherwise NaN, outputs
are made of NaN and followed by a guard.
"""

import json
import math
import os
import sys
import traceback

if __name__ == "__main__":
    # Read by triton when a kernel is decorated.
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from interpreted import DTYPES, guards_stand, poison

from vlprune.ops import library, triton_ops

# (whole, split, rows, keys, warps) of `Form`.
FORMS = {
    "head": (True, False, 64, 0, 4),
    "split": (True, True, 64, 0, 4),
    "tiled": (False, True, 64, 64, 4),
    "wide": (False, True, 128, 64, 8),
    "narrow": (False, True, 32, 16, 4),
}
WHOLE, TILED = ("head", "split"), ("tiled", "wide")
# name -> images, tokens, heads, width of a head, causal, dtype, factor on q, scale, forms but the chosen one
SHAPES = {
    "1 token": (2, 1, 1, 64, False, "float16", 1, None, (*WHOLE, *TILED)),
    "17 tokens": (3, 17, 2, 32, False, "bfloat16", 1, None, (*WHOLE, *TILED)),
    "17 tokens, causal, 8 wide": (1, 17, 3, 8, True, "float32", 1, 1.5, ("narrow",)),
    "5 wide": (2, 19, 1, 5, False, "float16", 1, None, ("head",)),
    "50 tokens": (3, 50, 3, 64, False, "bfloat16", 1, None, (*WHOLE, *TILED)),
    "50 tokens, float32": (1, 50, 2, 88, False, "float32", 1, 0.1, ("narrow",)),
    "77 tokens, causal": (2, 77, 1, 64, True, "bfloat16", 1, None, (*WHOLE, *TILED)),
    "77 tokens, causal, float16": (1, 77, 1, 80, True, "float16", 1, 0.2, WHOLE),
    "77 tokens, causal, float32": (1, 77, 2, 64, True, "float32", 1, None, ("narrow",)),
    "100 tokens, causal": (1, 100, 1, 32, True, "bfloat16", 1, None, WHOLE),
    "128 tokens, causal": (1, 128, 1, 128, True, "bfloat16", 1, None, WHOLE),
    "197 tokens": (1, 197, 1, 64, False, "bfloat16", 1, None, (*WHOLE, *TILED)),
    "197 tokens, 88 wide": (1, 197, 1, 88, False, "float16", 1, None, WHOLE),
    "257 tokens": (1, 257, 1, 80, False, "bfloat16", 1, None, (*WHOLE, "wide")),
    "272 tokens, scale": (1, 272, 1, 64, False, "float16", 1, 0.4, WHOLE),
    "300 tokens": (1, 300, 1, 72, False, "bfloat16", 1, None, TILED),
    "300 tokens, causal": (1, 300, 1, 64, True, "bfloat16", 1, None, TILED),
    "577 tokens": (1, 577, 1, 64, False, "bfloat16", 1, None, ("tiled",)),
    "large scores": (1, 77, 2, 64, False, "bfloat16", 1000, None, (*WHOLE, "tiled")),
    "large scores, causal": (1, 150, 1, 64, True, "float16", 300, None, ("tiled",)),
}


def widened(handle):
    """The interpreter keeps bfloat16 as integers, and would multiply those."""
    from triton.runtime import interpreter

    if handle.dtype.scalar != interpreter.tl.bfloat16:
        return handle
    values = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(values, interpreter.tl.float32)


def mend_interpreter():
    from triton.runtime.interpreter import InterpreterBuilder

    dot = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)


def surrounded(batch, length, width, dtype, seed):
    """Random normal numbers whose every neighbour in memory is NaN."""
    around = torch.full((batch, length + 3, width + 16), math.nan, dtype=dtype)
    inside = around[:, 1 : length + 1, 8 : width + 8]
    generator = torch.Generator().manual_seed(seed)
    inside.copy_(torch.randn(batch, length, width, generator=generator))
    return inside


def by_head(x, heads):
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def expected(qkv, grad, heads, causal, scale):
    """Logarithms, results and gradients in float64, and these as sums whose terms are all made positive."""
    q, k, v = (by_head(t, heads) for t in qkv.double().chunk(3, -1))
    do = by_head(grad.double(), heads)
    logits = q @ k.mT * scale
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -math.inf)
    share = logits.softmax(-1)
    out = share @ v
    change = share * (do @ v.mT - (do * out).sum(-1, keepdim=True)) * scale
    terms = share * (do.abs() @ v.abs().mT + (do * out).abs().sum(-1, keepdim=True)) * scale
    values = (out, change @ k, change.mT @ q, share.mT @ do)
    bounds = (share @ v.abs(), terms @ k.abs(), terms.mT @ q.abs(), share.mT @ do.abs())
    lse = logits.logsumexp(-1) / math.log(2)
    flat = [[t.transpose(1, 2).flatten(2) for t in each] for each in (values, bounds)]
    return lse, *((each[0], torch.cat(each[1:], -1)) for each in flat)


def close(name, actual, value, bound, factor, length, largest):
    """Off by `factor` roundings of every term, and for each by a share too small for its dtype or float32."""
    info = torch.finfo(actual.dtype)
    smallest = max(info.smallest_normal * info.eps, 2.0**-126)
    allowed = factor * info.eps / 2 * bound + length * 16 * largest * smallest
    error = (actual.double() - value).abs()
    assert bool((error <= allowed).all()), (
        f"{name}: off by up to {(error / allowed).nan_to_num(1e9).max():.3} bounds"
    )


def _shape(name):
    from vlprune.kernels import head_attention as kernels

    batch, length, heads, dim, causal, dtype, factor, scale, forms = SHAPES[name]
    qkv = surrounded(batch, length, 3 * heads * dim, DTYPES[dtype], 1)
    qkv[..., : heads * dim] *= factor
    grad = surrounded(batch, length, heads * dim, DTYPES[dtype], 2)
    scale = 1 / math.sqrt(dim) if scale is None else scale
    lse, values, bounds = expected(qkv, grad, heads, causal, scale)
    # 16 bits: shares, result, what the gradient saved of it, and what it multiplies are rounded. Float32: so
    # are scores of about 10, which the shares are exponentials of, and sums of 300 terms.
    roundings = 64 if dtype == "float32" else 4
    for form in (None, *(kernels.Form(*FORMS[form]) for form in forms)):
        out, sums = kernels.head_attention(qkv, heads, causal, scale, True, form)
        close(f"result, {form}", out, values[0], bounds[0], roundings, length, factor)
        torch.testing.assert_close(sums.double(), lse, rtol=2.0**-20, atol=factor * 2.0**-18)
        alone, nothing = kernels.head_attention(qkv, heads, causal, scale, False, form)
        assert torch.equal(alone, out)
        assert nothing.numel() == 0
    got = kernels.head_attention_backward(grad, qkv, out, sums, heads, causal, scale)
    assert got.is_contiguous()
    close("gradient", got, values[1], bounds[1], roundings, length, factor)
    assert torch.equal(got, kernels.head_attention_backward(grad, qkv, out, sums, heads, causal, scale))


def _enormous():
    """Scores near the largest float: one key takes all, and nothing overflows on the way."""
    from vlprune.kernels import head_attention as kernels

    for dtype, length, forms in (
        (torch.float32, 40, ("narrow",)),
        (torch.bfloat16, 130, ("head", "split", "tiled")),
    ):
        qkv = surrounded(1, length, 3 * 32, dtype, 5)
        qkv[..., :64] *= 2.0**58
        q, k, v = qkv.double().chunk(3, -1)
        best = (q @ k.mT).argmax(-1)[0]
        for form in forms:
            out, _ = kernels.head_attention(qkv, 1, False, 1.0, False, kernels.Form(*FORMS[form]))
            assert torch.equal(out[0].double(), v[0, best])


def _not_finite():
    """A NaN reaches what sees it, and nothing else."""
    from vlprune.kernels import head_attention as kernels

    qkv = surrounded(2, 70, 3 * 2 * 32, torch.bfloat16, 3)
    clean = qkv.clone()
    qkv[0, 66, 64 : 64 + 32] = math.nan
    for form in ("head", "split", "tiled", "wide"):
        how = (2, True, 0.2, False, kernels.Form(*FORMS[form]))
        out, whole = kernels.head_attention(qkv, *how)[0], kernels.head_attention(clean, *how)[0]
        assert out[0, 66:, :32].isnan().all()
        rest = out.clone()
        rest[0, 66:, :32] = whole[0, 66:, :32]
        assert torch.equal(rest, whole)


def _memory():
    """Layouts that are no [B, S, width] rows next to each other, and nothing at all."""
    from vlprune.kernels import head_attention as kernels

    qkv = surrounded(3, 21, 3 * 2 * 16, torch.float16, 4)
    grad = surrounded(3, 21, 2 * 16, torch.float16, 6)
    plain = qkv.contiguous()
    want, sums = kernels.head_attention(plain, 2, False, 0.3, True)
    slope = kernels.head_attention_backward(grad.contiguous(), plain, want, sums, 2, False, 0.3)
    tokens_first = plain.transpose(0, 1).contiguous().transpose(0, 1)
    columns_first = plain.mT.contiguous().mT
    between = torch.zeros(plain.numel() + 1, dtype=plain.dtype)[1:].view_as(plain).copy_(plain)
    for view in (tokens_first, columns_first, between):
        assert torch.equal(kernels.head_attention(view, 2, False, 0.3, True)[0], want)
        for given in (grad, grad.mT.contiguous().mT):
            assert torch.equal(kernels.head_attention_backward(given, view, want, sums, 2, False, 0.3), slope)
    once = plain[:1].expand(3, -1, -1)
    assert torch.equal(kernels.head_attention(once, 2, False, 0.3, False)[0], want[:1].expand(3, -1, -1))
    for empty in (plain[:0], plain[:, :0]):
        out, sums = kernels.head_attention(empty, 2, True, 0.3, True)
        assert out.shape == (*empty.shape[:2], 32)
        assert kernels.head_attention_backward(out, empty, out, sums, 2, True, 0.3).shape == empty.shape


def _choices():
    """What is chosen can be run, and every image's heads are as if they were alone."""
    from vlprune.kernels import head_attention as kernels

    for length in (33, 65, 129, 197, 257, 577):
        for dim, heads, capability in ((64, 1, 90), (64, 10**6, 90), (64, 10**6, 80), (128, 7, 100)):
            form = kernels.choose(2, dim, length, False, heads, 132, capability)
            assert not form.whole or length <= kernels.LARGEST
            assert form.split or (capability >= 90 and heads >= 264) or length <= 64
    qkv = surrounded(2, 70, 3 * 3 * 16, torch.bfloat16, 8)
    out = triton_ops.head_attention(qkv, 3)
    for head in range(3):
        columns = [slice(16 * (3 * part + head), 16 * (3 * part + head + 1)) for part in range(3)]
        alone = triton_ops.head_attention(torch.cat([qkv[1:, :, c] for c in columns], -1), 1)
        assert torch.equal(alone, out[1:, :, 16 * head : 16 * (head + 1)])


def _operators():
    """Schema, fake, gradient and tracing of the operators whose only form is that for CUDA, through it."""
    for op, function in (
        ("_head_attention", triton_ops.head_attention_forward),
        ("_head_attention_backward", triton_ops.head_attention_backward),
    ):
        library.LIBRARY.impl(op, function, "CPU", allow_override=True)
    qkv = surrounded(2, 18, 3 * 2 * 16, torch.float32, 7).clone().requires_grad_()
    operators = torch.ops.vlprune
    with torch.no_grad():
        out, lse = operators._head_attention(qkv, 2, True, 0.25, True)
        slope = torch.ones_like(out)
        torch.library.opcheck(
            operators._head_attention_backward.default, (slope, qkv, out, lse, 2, True, 0.25)
        )
    for training in (True, False):
        given = qkv if training else qkv.detach()
        torch.library.opcheck(operators._head_attention.default, (given, 2, False, 0.25, training))

    def loss(x):
        return (triton_ops.head_attention(x * 2, 2, True) ** 2).sum()

    def formula(x):
        q, k, v = (by_head(t * 2, 2) for t in x.chunk(3, -1))
        mask = torch.ones(18, 18).triu(1).bool()
        return (((q @ k.mT / 4).masked_fill(mask, -math.inf).softmax(-1) @ v) ** 2).sum()

    double = qkv.detach().double().requires_grad_()
    (got,), (want,) = torch.autograd.grad(loss(qkv), qkv), torch.autograd.grad(formula(double), double)
    # Float32, 18 tokens, gradients of up to 100.
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)
    compiled = torch.compile(
        lambda x: operators._head_attention(x * 2, 2, True, 0.25, True)[0].square().sum(),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(torch.autograd.grad(compiled(qkv), qkv)[0], got)
    with torch.no_grad():
        assert torch.equal(triton_ops.head_attention(qkv, 2, True), out)


def _elsewhere():
    """What no kernel takes goes to the definition."""
    from vlprune.ops import reference

    for shape, dtype, scale in (
        ((1, 7, 3 * 130), torch.bfloat16, None),
        ((1, 7, 3 * 65), torch.float32, None),
        ((1, 7, 3 * 16), torch.float64, None),
        ((1, 7, 3 * 16), torch.float32, -0.5),
        ((1, 7, 3 * 16), torch.float32, 0.0),
    ):
        qkv = surrounded(*shape, dtype, 9)
        got, want = (form.head_attention(qkv, 1, True, scale) for form in (triton_ops, reference))
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


# The operators first: torch's own checks are not to meet poisoned memory.
CHECKS = {
    "operators": _operators,
    "elsewhere": _elsewhere,
    "choices": _choices,
    "memory": _memory,
    "not finite": _not_finite,
    "enormous scores": _enormous,
}
CASES = (*CHECKS, *SHAPES)


def main():
    mend_interpreter()
    triton_ops.runs_on_triton.__globals__["_why_not_triton"] = lambda op, device: None
    results = {}
    for name in CASES:
        try:
            if name in SHAPES:
                poison()
                _shape(name)
                assert guards_stand(), "wrote past the end of an output"
            else:
                CHECKS[name]()
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
