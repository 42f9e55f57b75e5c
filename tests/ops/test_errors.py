# ruff: noqa: E501 (a table: a call and its message to a line)
"""Bad input: one ValueError that names the operator, the argument, what it got and what is allowed."""

import math

import pytest
import torch

from vlprune import ops

from .cases import native, packed

W = torch.ones(4, 8)
NORM = torch.ones(8)
A, B = torch.ones(3, 8), torch.ones(4, 3)
VALUES, META = packed(6, 8)
X = torch.ones(3, 8)
QKV = torch.ones(2, 5, 24)
Q, S, QV, VS = *ops.quantize_rows(X), *ops.quantize_rows(VALUES)
ON_META = torch.device("meta")

CALLS = {
    "sumsq-int": (lambda: ops.column_sumsq(X.int()), "column_sumsq: expected x of dtype float32, bfloat16, float16 or float64, got int32"),
    "sumsq-scalar": (lambda: ops.column_sumsq(torch.tensor(1.0)), "column_sumsq: expected x of shape [..., in], got a scalar"),
    "sumsq-weight-shape": (lambda: ops.column_sumsq(X, torch.ones(8)), "column_sumsq: expected token_weight that broadcasts to (3,), got shape (8,)"),
    "sumsq-weight-rank": (lambda: ops.column_sumsq(X, torch.ones(1, 3)), "column_sumsq: expected token_weight that broadcasts to (3,), got shape (1, 3)"),
    "sumsq-weight-int": (lambda: ops.column_sumsq(X, torch.ones(3).int()), "column_sumsq: expected token_weight of dtype"),
    "scores-rank": (lambda: ops.wanda_scores(W[0], NORM), "wanda_scores: expected weight of shape [out, in], got (8,)"),
    "scores-norm": (lambda: ops.wanda_scores(W, NORM[:4]), "wanda_scores: expected column_norm of shape (8,) for weight of shape (4, 8), got (4,)"),
    "scores-norm-int": (lambda: ops.wanda_scores(W, NORM.int()), "wanda_scores: expected column_norm of dtype"),
    "scores-device": (lambda: ops.wanda_scores(W, NORM.to(ON_META)), "wanda_scores: expected column_norm on cpu as weight is, got meta"),
    "select-bool": (lambda: ops.select(W > 0, "2:4"), "select: expected scores of dtype float32, bfloat16, float16 or float64, got bool"),
    "select-no-sparsity": (lambda: ops.select(W), 'sparsity: required for pattern "unstructured"'),
    "select-sparsity": (lambda: ops.select(W, sparsity=1.5), "sparsity: expected a fraction of zeros in [0, 1], got 1.5"),
    "select-negative": (lambda: ops.select(W, sparsity=-0.1), "sparsity: expected a fraction of zeros in [0, 1], got -0.1"),
    "select-nan": (lambda: ops.select(W, sparsity=math.nan), "sparsity: expected a fraction of zeros in [0, 1], got nan"),
    "select-contradiction": (lambda: ops.select(W, "1:4", 0.25), 'sparsity: pattern "1:4" means 0.75, got 0.25'),
    "select-pattern": (lambda: ops.select(W, "4:4"), "pattern: expected"),
    "select-width": (lambda: ops.select(torch.ones(2, 6), "2:4"), "needs in_features divisible by 4, got 6"),
    "select-scope": (lambda: ops.select(W, sparsity=0.5, scope="block"), 'select: expected scope "row" or "layer", got \'block\''),
    "select-sparsity-text": (lambda: ops.select(W, sparsity="0.5"), "sparsity: expected a fraction of zeros in [0, 1], got '0.5'"),
    "mask-sparsity-text": (lambda: ops.wanda_mask(W, NORM, "2:4", "0.5"), "sparsity: pattern \"2:4\" means 0.5, got '0.5'"),
    "mask-width": (lambda: ops.wanda_mask(torch.ones(2, 12), torch.ones(12), "4:8"), "needs in_features divisible by 8, got 12"),
    "wanda-pack-width": (lambda: ops.wanda_pack24(torch.ones(2, 6), torch.ones(6)), "wanda_pack24: expected in_features divisible by 4, got 6"),
    "many-count": (lambda: ops.wanda_pack24_many([W, W], [NORM]), "wanda_pack24_many: expected a column_norm for each weight, got 2 weights and 1 norms"),
    "many-norm": (lambda: ops.wanda_pack24_many([W, W], [NORM, NORM[:4]]), "wanda_pack24_many, matrix 1: expected column_norm of shape (8,) for weight of shape (4, 8), got (4,)"),
    "many-width": (lambda: ops.wanda_pack24_many([torch.ones(2, 6)], [torch.ones(6)]), "wanda_pack24_many, matrix 0: expected in_features divisible by 4, got 6"),
    "many-device": (lambda: ops.wanda_pack24_many([W, W.to(ON_META)], [NORM, NORM.to(ON_META)]), "wanda_pack24_many, matrix 1: expected weight on cpu as the first is, got meta"),
    "pack-width": (lambda: ops.pack24(torch.zeros(2, 6)), "pack24: expected in_features divisible by 4, got 6"),
    "pack-int": (lambda: ops.pack24(W.long()), "pack24: expected weight of dtype float32, bfloat16, float16 or float64, got int64"),
    "pack-dense": (lambda: ops.pack24(W), "pack24: expected at most 2 non-zeros in every 4 consecutive inputs, got [1.0, 1.0, 1.0, 1.0] in row 0, group 0 (inputs 0 to 3)"),
    "unpack-meta-dtype": (lambda: ops.unpack24(VALUES, META.int()), "unpack24: expected meta of dtype uint8, got int32"),
    "unpack-meta-shape": (lambda: ops.unpack24(VALUES, META[:3]), "unpack24: expected meta of shape (6, 1) for values of shape (6, 4), got (3, 1)"),
    "unpack-values-shape": (lambda: ops.unpack24(VALUES[:, :3], META), "unpack24: expected values of shape [out, in/2] with in divisible by 4, got (6, 3)"),
    "unpack-device": (lambda: ops.unpack24(VALUES, META.to(ON_META)), "unpack24: expected meta on cpu as values is, got meta"),
    "linear-values-int": (lambda: ops.linear24(X, VALUES.long(), META), "linear24: expected values of dtype float32, bfloat16, float16 or float64, got int64"),
    "linear-mixed": (lambda: ops.linear24(X, VALUES.bfloat16(), META), "linear24: expected values of dtype float32 as x has, got bfloat16"),
    "linear-x": (lambda: ops.linear24(X[:, :6], VALUES, META), "linear24: expected x of shape [..., 8] for values of shape (6, 4), got (3, 6)"),
    "linear-device": (lambda: ops.linear24(X.to(ON_META), VALUES, META), "linear24: expected values on meta as x is, got cpu"),
    "linear-bias": (lambda: ops.linear24(X, VALUES, META, NORM), "linear24: expected bias of shape (6,), dtype float32 on cpu, got (8,), float32 on cpu"),
    "linear-bias-dtype": (lambda: ops.linear24(X, VALUES, META, NORM[:6].double()), "linear24: expected bias of shape (6,), dtype float32 on cpu, got (6,), float64 on cpu"),
    "linear-activation": (lambda: ops.linear24(X, VALUES, META, None, "relu"), 'linear24: expected activation None, "gelu" or "quick_gelu", got \'relu\''),
    "linear-backend": (lambda: ops.linear24(X, VALUES, META, backend="gpu"), "backend: expected one of auto, torch, cpu, triton, sm90, sm80, cusparselt, got 'gpu'"),
    "linear-cannot": (lambda: ops.linear24(X.double(), VALUES.double(), META, backend="cpu"), 'linear24: backend "cpu" was asked for, but '),
    "linear-elsewhere": (lambda: ops.linear24(X, VALUES, META, backend="sm90"), 'linear24: backend "sm90" was asked for, but the sm90 backend takes tensors on CUDA devices, not on cpu'),
    "linear-residual": (lambda: ops.linear24(X, VALUES, META, residual=X), "linear24: expected residual of shape (3, 6), dtype float32 on cpu, got (3, 8), float32 on cpu"),
    "linear-residual-dtype": (lambda: ops.linear24(X, VALUES, META, residual=torch.ones(3, 6).half()), "linear24: expected residual of shape (3, 6), dtype float32 on cpu, got (3, 6), float16 on cpu"),
    "linear-residual-device": (lambda: ops.linear24(X, VALUES, META, residual=torch.ones(3, 6, device=ON_META)), "linear24: expected residual of shape (3, 6), dtype float32 on cpu, got (3, 6), float32 on meta"),
    "quantize-int": (lambda: ops.quantize_rows(X.int()), "quantize_rows: expected x of dtype float32, bfloat16, float16 or float64, got int32"),
    "quantize-dtype": (lambda: ops.quantize_rows(X, torch.uint8), "quantize_rows: expected dtype int8 or float8_e4m3fn, got uint8"),
    "quantize-empty": (lambda: ops.quantize_rows(X[:, :0]), "quantize_rows: expected x of shape [..., in], in at least 1, got (3, 0)"),
    "scaled-x-float": (lambda: ops.linear24_scaled(X, S, QV, META, VS), "linear24_scaled: expected x of dtype int8 or float8_e4m3fn, got float32"),
    "scaled-values-float": (lambda: ops.linear24_scaled(Q, S, VALUES, META, VS), "linear24_scaled: expected values of dtype int8 or float8_e4m3fn, got float32"),
    "scaled-mixed": (lambda: ops.linear24_scaled(Q, S, QV.to(torch.float8_e4m3fn), META, VS), "linear24_scaled: expected values of dtype int8 as x has, got float8_e4m3fn"),
    "scaled-x": (lambda: ops.linear24_scaled(Q[:, :6], S, QV, META, VS), "linear24_scaled: expected x of shape [..., 8] for values of shape (6, 4), got (3, 6)"),
    "scaled-device": (lambda: ops.linear24_scaled(Q.to(ON_META), S, QV, META, VS), "linear24_scaled: expected values on meta as x is, got cpu"),
    "scaled-out": (lambda: ops.linear24_scaled(Q, S, QV, META, VS, out_dtype=torch.float32), "linear24_scaled: expected out_dtype bfloat16 or float16, got float32"),
    "scaled-scale": (lambda: ops.linear24_scaled(Q, S[:, None], QV, META, VS), "linear24_scaled: expected x_scale of shape (3,), dtype float32 on cpu, got (3, 1), float32 on cpu"),
    "scaled-weight-scale": (lambda: ops.linear24_scaled(Q, S, QV, META, VS.double()), "linear24_scaled: expected weight_scale of shape (6,), dtype float32 on cpu, got (6,), float64 on cpu"),
    "scaled-bias": (lambda: ops.linear24_scaled(Q, S, QV, META, VS, NORM[:6].bfloat16()), "linear24_scaled: expected bias of shape (6,), dtype float32 on cpu, got (6,), bfloat16 on cpu"),
    "scaled-residual": (lambda: ops.linear24_scaled(Q, S, QV, META, VS, residual=torch.ones(3, 6)), "linear24_scaled: expected residual of shape (3, 6), dtype bfloat16 on cpu, got (3, 6), float32 on cpu"),
    "scaled-activation": (lambda: ops.linear24_scaled(Q, S, QV, META, VS, None, "relu"), 'linear24_scaled: expected activation None, "gelu" or "quick_gelu", got \'relu\''),
    "scaled-zero": (lambda: ops.linear24_scaled(Q, S * 0, QV, META, VS), "linear24_scaled: expected x_scale above 0, got 0.0 at row 0"),
    "scaled-nan": (lambda: ops.linear24_scaled(Q, S, QV, META, VS * math.nan), "linear24_scaled: expected weight_scale finite and above 0, got nan at row 0"),
    "scaled-cannot-prepare": (lambda: ops.prepare24(QV, META, "cpu"), 'linear24: backend "cpu" was asked for, but '),
    "scaled-cannot": (lambda: ops.linear24_scaled(Q, S, QV, META, VS, backend="cpu"), 'linear24_scaled: backend "cpu" was asked for, but linear24_scaled has no form on the cpu backend'),
    "update-weight": (lambda: ops.masked_update(W[0], A, B), "masked_update: expected weight of shape [out, in], got (8,)"),
    "update-a": (lambda: ops.masked_update(W, A[:, :6], B), "masked_update: expected a of shape [rank, 8], got (3, 6)"),
    "update-a-rank": (lambda: ops.masked_update(W, A[0], B), "masked_update: expected a of shape [rank, 8], got (8,)"),
    "update-b": (lambda: ops.masked_update(W, A, B[:, :2]), "masked_update: expected b of shape (4, 3), got (4, 2)"),
    "update-a-int": (lambda: ops.masked_update(W, A.int(), B), "masked_update: expected a of dtype float32, bfloat16, float16 or float64, got int32"),
    "update-b-device": (lambda: ops.masked_update(W, A, B.to(ON_META)), "masked_update: expected b on cpu as weight is, got meta"),
    "update-keep": (lambda: ops.masked_update(W, A, B, 1.0, W[:, :6] > 0), "masked_update: expected keep of shape (4, 8), dtype bool, got (4, 6), bool"),
    "update-keep-float": (lambda: ops.masked_update(W, A, B, 1.0, W), "masked_update: expected keep of shape (4, 8), dtype bool, got (4, 8), float32"),
    "update-keep-device": (lambda: ops.masked_update(W, A, B, 1.0, (W > 0).to(ON_META)), "masked_update: expected keep on cpu as weight is, got meta"),
    "tune-device": (lambda: ops.tune24(8, 64, 64, device="cpu"), "tune24: expected a CUDA device, got cpu"),
    "attention-rank": (lambda: ops.head_attention(QKV[0], 2), "head_attention: expected qkv of shape [B, S, 3*H*d], got (5, 24)"),
    "attention-heads": (lambda: ops.head_attention(QKV, 5), "head_attention: expected num_heads such that qkv's width 24 is a positive multiple of 3*num_heads, got 5"),
    "attention-heads-text": (lambda: ops.head_attention(QKV, "2"), "head_attention: expected num_heads an integer of at least 1, got '2'"),
    "attention-heads-float": (lambda: ops.head_attention(QKV, 2.0), "head_attention: expected num_heads an integer of at least 1, got 2.0"),
    "attention-scale-text": (lambda: ops.head_attention(QKV, 2, scale="1"), "head_attention: expected scale a number or None, got '1'"),
    "attention-none": (lambda: ops.head_attention(QKV, 0), "multiple of 3*num_heads, got 0"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_one_clear_error(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "row", "layer"])
def test_a_score_that_is_not_finite_is_named(dtype, value, pattern):
    weight, norm = torch.ones(4, 8, dtype=dtype), torch.ones(8)
    weight[2, 5] = weight[3, 0] = value
    how = (
        {"pattern": pattern}
        if ":" in pattern
        else {"pattern": "unstructured", "sparsity": 0.5, "scope": pattern}
    )
    calls = {
        "select": lambda: ops.select(weight, **how),
        "wanda_mask": lambda: ops.wanda_mask(weight, norm, **how),
    }
    if pattern == "2:4":
        calls["wanda_pack24"] = lambda: ops.wanda_pack24(weight, norm)
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match=f"^{name}: expected finite scores, got {value} at row 2, column 5$"
        ):
            call()


def test_overflow_of_a_score_is_named():
    weight = torch.full((1, 4), 1e30)
    with pytest.raises(ValueError, match="wanda_mask: expected finite scores, got inf at row 0, column 1"):
        ops.wanda_mask(weight, torch.tensor([1, 1e20, 1, 1]))


def test_compiled_code_raises_the_same():
    call = torch.compile(ops.pack24, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"in row 0, group 0"):
        call(W)


def test_asking_for_the_native_form_says_why_not():
    with pytest.raises(ValueError, match="float64" if native else "the native extension is not built"):
        ops.linear24(X.double(), VALUES.double(), META, backend="cpu")
