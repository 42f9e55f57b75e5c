"""Every operator's schema, fake, gradient and tracing, checked by torch itself and by compiling it whole."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from vlprune import ops

from .cases import normal, packed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def scaled(x, values, meta):
    (q, x_scale), (packed_q, weight_scale) = ops.quantize_rows(x), ops.quantize_rows(values)
    return q, x_scale, packed_q, meta, weight_scale


def arguments(dtype):
    """Name -> list of arguments for each operator; what is differentiable requires a gradient."""
    weight, norm = normal(12, 24, dtype=dtype), normal(24, seed=1).abs()
    values, meta = packed(12, 24, dtype)
    dense = ops.unpack24(values, meta)
    x, bias = normal(2, 5, 24, dtype=dtype), normal(12, dtype=dtype)
    added = normal(2, 5, 12, dtype=dtype, seed=3)
    leaves = [t.detach().clone().requires_grad_() for t in (x, values, bias, dense, added)]
    gx, gvalues, gbias, gdense, gadded = leaves
    qkv = normal(2, 7, 36, dtype=dtype).requires_grad_()
    return {
        "column_sumsq": [(x,), (x, normal(2, 1)), (x.transpose(0, 1), normal(2) > 0)],
        "wanda_scores": [(weight, norm), (weight.t(), norm[:12])],
        "select": [
            (weight, "2:4"),
            (weight, "unstructured", 0.3),
            (weight.t(), "unstructured", 0.3, "layer"),
        ],
        "wanda_mask": [
            (weight, norm),
            (weight.t(), norm[:12], "1:4"),
            (weight, norm, "unstructured", 0.3, "layer"),
        ],
        "wanda_pack24": [(weight, norm), (weight.t(), norm[:12])],
        "wanda_pack24_many": [([weight, weight.t()], [norm, norm[:12]]), ([weight], [norm])],
        "pack24": [(gdense,), (dense,), (dense.t().contiguous().t(),)],
        "unpack24": [(gvalues, meta), (values, meta)],
        "linear24": [
            (x, values, meta),
            (gx, gvalues, meta, gbias),
            (gx, values, meta, bias, "gelu"),
            (x, gvalues, meta, gbias, "quick_gelu"),
            (x.transpose(0, 1), values, meta, None, "gelu"),
            (x, values, meta, None, None, "auto", added),
            (gx, gvalues, meta, gbias, "gelu", "auto", gadded),
            (
                x,
                values,
                meta,
                bias,
                "quick_gelu",
                "auto",
                gadded.transpose(0, 1).contiguous().transpose(0, 1),
            ),
        ],
        "linear24_scaled": [
            (*scaled(x, values, meta), torch.bfloat16, normal(12), "gelu"),
            (*scaled(x, values, meta), torch.float16, None, None, "auto", added.half()),
        ],
        "quantize_rows": [(x, torch.int8), (x.transpose(0, 1), torch.int8)],
        "masked_update": [
            (weight, normal(3, 24), normal(12, 3)),
            (weight, normal(3, 24, dtype=dtype), normal(12, 3, dtype=dtype), 0.5, weight > 0),
            (weight.t(), normal(17, 12), normal(24, 17), -2.0, weight.t() > 0),
        ],
        "head_attention": [(qkv, 3), (qkv, 2, True), (qkv, 4, False, 0.7)],
    }


CASES = [
    pytest.param(op, dtype, case, id=f"{op}-{name}-{case}")
    for name, dtype in DTYPES.items()
    for op, calls in arguments(dtype).items()
    for case in range(len(calls))
]
every_case = pytest.mark.parametrize(("op", "dtype", "case"), CASES)


def test_every_operator_is_here():
    assert set(arguments(torch.float32)) == set(ops.backends())


@every_case
def test_opcheck(op, dtype, case):
    torch.library.opcheck(getattr(torch.ops.vlprune, op).default, arguments(dtype)[op][case])


def function_of(op):
    """The public function, with the operator's own arguments."""
    if op == "linear24_scaled":

        def linear24_scaled(
            x, x_scale, values, meta, scale, out, bias=None, act=None, backend="auto", add=None
        ):
            ends = {"out_dtype": out, "backend": backend, "residual": add}
            return ops.linear24_scaled(x, x_scale, values, meta, scale, bias, act, **ends)

        return linear24_scaled
    if op != "linear24":
        return getattr(ops, op)

    def linear24(x, values, meta, bias=None, activation=None, backend="auto", residual=None):
        return ops.linear24(x, values, meta, bias, activation, backend=backend, residual=residual)

    return linear24


@every_case
def test_compiles_whole(op, dtype, case):
    torch._dynamo.reset()
    args = arguments(dtype)[op][case]
    function = function_of(op)
    expected = function(*args)
    # "aot_eager" traces forward and backward as "inductor" does, without compiling C++ for each case.
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*args)
    for a, b in zip(*(tree_leaves(r) for r in (got, expected)), strict=True):
        assert torch.equal(a, b)
        if a.requires_grad:
            leaves = [t for t in args if isinstance(t, torch.Tensor) and t.requires_grad]
            grads = [torch.autograd.grad(r.square().sum(), leaves) for r in (a, b)]
            for compiled, eager in zip(*grads, strict=True):
                assert torch.equal(compiled, eager)


CUDA = [
    "column_sumsq",
    "masked_update",
    "wanda_mask",
    "wanda_pack24",
    "wanda_pack24_many",
    "linear24",
    "linear24_scaled",
    "quantize_rows",
]


@pytest.mark.parametrize("op", [*CUDA, "_head_attention", "_head_attention_backward"])
def test_cuda_has_its_own_form(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vlprune::{op}", "CUDA")


def test_compiles_with_inductor_for_any_number_of_tokens():
    values, meta = packed(12, 24)
    bias = normal(12)

    @torch.compile(fullgraph=True, dynamic=True)
    def layer(x):
        return ops.linear24(x * 2, values, meta, bias, "gelu") + 1

    for tokens in (3, 7, 50):
        x = normal(2, tokens, 24)
        expected = ops.linear24(x * 2, values, meta, bias, "gelu") + 1
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def test_functions_and_operators_are_the_same():
    weight, norm = normal(4, 8), normal(8).abs()
    assert torch.equal(torch.ops.vlprune.wanda_mask(weight, norm), ops.wanda_mask(weight, norm))
    assert torch.equal(torch.ops.vlprune.select(weight, sparsity=0.5), ops.select(weight, sparsity=0.5))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_results_on_other_devices_have_the_right_form(dtype):
    values, meta = packed(12, 24, dtype)
    on_meta = ops.linear24(normal(2, 5, 24, dtype=dtype).to("meta"), values.to("meta"), meta.to("meta"))
    assert on_meta.shape == (2, 5, 12)
    assert on_meta.dtype is dtype
