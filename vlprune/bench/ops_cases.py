"""Cases of the operators that run in a model: `linear24` and `head_attention`."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import measure, ops
from .case import DTYPES, OURS, Call, Case, Work, seeded
from .onednn import ONEDNN, OneDnnLinear, has_onednn

__all__ = ["DENSE", "DENSE32", "SDPA", "attention_case", "linear24_case"]

# Tokens whose results are compared with float64: all take as long to multiply as to measure.
_COMPARED = 256

DENSE, DENSE32, SDPA, CUSPARSELT = "F.linear", "dense fp32", "SDPA", "cuSPARSELt"


def linear24_case(
    tokens: int, inputs: int, outputs: int, dtype: str = "fp32", activation: str | None = None, **more: bool
) -> Case:
    """`linear24` with bias beside `F.linear`, and beside oneDNN and cuSPARSELt where there are.

    Many CPUs have no product of half precision, and are faster at a float32 one with conversions around it:
    there that is a peer too.
    """
    sizes = {"tokens": tokens, "in": inputs, "out": outputs, "activation": activation}
    label = f"{tokens} x {inputs} -> {outputs}" + (f" {activation}" if activation else "")

    def make(device: torch.device) -> Work:
        generator, kind = seeded(device), DTYPES[dtype]

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(kind)

        weight, bias, x = normal(outputs, inputs), normal(outputs), normal(tokens, inputs)
        values, meta = ops.wanda_pack24(weight, torch.ones(inputs, device=device))
        ours = partial(ops.linear24, x, values, meta, bias, activation)

        def dense(weight: Tensor, bias: Tensor) -> Tensor:
            y = F.linear(x.to(weight.dtype), weight, bias)
            return (F.gelu(y) if activation else y).to(kind)

        def check() -> float:
            rows = x[:_COMPARED].double()
            exact = F.linear(rows, ops.unpack24(values, meta).double(), bias.double())
            exact = F.gelu(exact) if activation else exact
            if ONEDNN in calls:
                given: Tensor = calls[ONEDNN]()  # type: ignore[assignment]
                measure.check_close(
                    f"{ONEDNN} {label}", given[:_COMPARED], exact, dense(weight, bias)[:_COMPARED]
                )
            return measure.check_close(label, ours()[:_COMPARED], exact)

        calls: dict[str, Call] = {OURS: ours, DENSE: partial(dense, weight, bias)}
        if device.type == "cpu" and dtype != "fp32":
            calls[DENSE32] = partial(dense, weight.float(), bias.float())
        if has_onednn(kind, device):
            calls[ONEDNN] = partial(OneDnnLinear(weight, bias, tokens, activation is not None), x)
        asked = {"tokens": tokens, "in_features": inputs, "out_features": outputs}
        if ops.why_not("cusparselt", "linear24", dtype=kind, device=device, **asked) is None:
            calls[CUSPARSELT] = partial(ours, backend="cusparselt")
        around = x.nbytes + bias.nbytes + tokens * outputs * x.element_size()
        packed = around + values.nbytes + meta.nbytes
        unpacked = around + weight.nbytes
        moved = {OURS: packed, DENSE: unpacked, ONEDNN: unpacked, CUSPARSELT: packed}
        return Work(
            calls,
            check,
            2.0 * tokens * inputs * outputs,
            {name: moved[name] for name in calls if name in moved},
            against=(DENSE, DENSE32, ONEDNN),
        )

    return Case("linear24", sizes, label, dtype, (DENSE,), make, **more)


def attention_case(
    batch: int,
    tokens: int,
    heads: int,
    dtype: str = "fp32",
    causal: bool = False,
    width: int = 64,
    **more: bool,
) -> Case:
    """`head_attention` beside PyTorch's attention and the permutes that a model has around it."""
    sizes = {"batch": batch, "tokens": tokens, "heads": heads, "width": width, "causal": causal}
    label = f"{batch} x {tokens}, {heads} heads" + (", causal" if causal else "")

    def make(device: torch.device) -> Work:
        shape = (batch, tokens, 3 * heads * width)
        qkv = torch.randn(shape, generator=seeded(device), device=device).to(DTYPES[dtype])

        def plain(qkv: Tensor) -> Tensor:
            q, k, v = qkv.view(batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            return y.transpose(1, 2).reshape(batch, tokens, heads * width)

        ours = partial(ops.head_attention, qkv, heads, causal)

        def check() -> float:
            return measure.check_close(label, ours(), plain(qkv.double()), plain(qkv))

        # of two products, each of tokens x tokens x width a head; of causal ones half is not needed
        operations = 4.0 * batch * heads * tokens**2 * width / (2 if causal else 1)
        least = qkv.nbytes + qkv.nbytes // 3
        calls: dict[str, Call] = {OURS: ours, SDPA: partial(plain, qkv)}
        return Work(calls, check, operations, dict.fromkeys(calls, least))

    return Case("head_attention", sizes, label, dtype, (SDPA,), make, **more)
