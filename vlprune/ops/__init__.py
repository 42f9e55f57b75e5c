"""Tensor operators for pruned weights, each also in `torch.ops.vlprune`.

One schema and one plain PyTorch definition an operator; faster forms are chosen by `backends()`.
"""

from .backend import backends, check_backend, why_not
from .checks import SCALED_DTYPES, LayerNorm
from .codes import check_activation
from .cuda24.entry import tune24
from .functional import (
    FLOAT_DTYPES,
    column_sumsq,
    head_attention,
    linear24,
    masked_update,
    pack24,
    select,
    unpack24,
    wanda_mask,
    wanda_pack24,
    wanda_pack24_many,
    wanda_scores,
)
from .isa import cpu_isa
from .prepared import prepare24
from .scaled import linear24_scaled, quantize_rows

__all__ = [
    "FLOAT_DTYPES",
    "SCALED_DTYPES",
    "LayerNorm",
    "backends",
    "check_activation",
    "check_backend",
    "column_sumsq",
    "cpu_isa",
    "head_attention",
    "linear24",
    "linear24_scaled",
    "masked_update",
    "pack24",
    "prepare24",
    "quantize_rows",
    "select",
    "tune24",
    "unpack24",
    "wanda_mask",
    "wanda_pack24",
    "wanda_pack24_many",
    "wanda_scores",
    "why_not",
]
