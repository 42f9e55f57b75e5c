"""`linear24` by NVIDIA's cuSPARSELt, through the functions that PyTorch has for it.

It keeps a compressed copy of the weight in an order of its own, numbers its algorithms, and searches for a
good one. Some of its algorithms have given wrong results (pytorch issue 155333), so none is trusted before
its result was compared: that is done where candidates are measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import gpu, reference
from ..seen import Kept
from .problem import Problem, Scales, aligned, refuse_capture

__all__ = ["CuSparseLt"]

# Of the weight's sizes, and of the tokens, which are padded to it.
_WEIGHT_MULTIPLE, _TOKENS_MULTIPLE = 16, 8


class CuSparseLt:
    """PyTorch's `_cslt_compress` and `_cslt_sparse_mm`."""

    name = "cusparselt"
    dtypes = frozenset({torch.bfloat16, torch.float16})

    def __init__(self) -> None:
        self._weights: Kept[Tensor] = Kept()

    def why_not_here(self, index: int) -> str | None:
        """Say why device `index` cannot run it, or None."""
        if not torch.backends.cusparselt.is_available():
            return "this PyTorch was built without cuSPARSELt"
        return gpu.too_old(index, (8, 0))

    def why_not(self, problem: Problem) -> str | None:
        """Say why a problem cannot be given to it, or None."""
        for what, size in (("inputs", problem.inputs), ("outputs", problem.out)):
            if size % _WEIGHT_MULTIPLE:
                return f"cuSPARSELt takes multiples of {_WEIGHT_MULTIPLE} {what}, not {size}"
        return None

    def able(self, problem: Problem) -> list[str]:
        """Its default algorithm."""
        return [_named(0)] if self.why_not(problem) is None else []

    def runs(self, config: str, problem: Problem) -> bool:
        """Whether it is the name of an algorithm, and the problem one for it."""
        number = config.removeprefix("alg ")
        return config.startswith("alg ") and number.isdecimal() and self.why_not(problem) is None

    def candidates(
        self, problem: Problem, x: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Sequence[str]:
        """The default algorithm and the one that the library's search finds."""
        if problem.dtype is torch.float16 and gpu.capability(gpu.index_of(x.device)) >= (9, 0):
            # There the search of version 0.8.1 ran into an illegal instruction, after which nothing runs.
            return [_named(0)]
        found = torch._cslt_sparse_mm_search(weight, _padded(x).t(), bias=bias, transpose_result=True)
        return [_named(number) for number in sorted({0, int(found)})]

    def weight(self, values: Tensor, meta: Tensor, anew: bool = False) -> Tensor:
        """The compressed weight."""
        found = None if anew else self._weights.find(values, meta)
        if found is None:
            refuse_capture(self.name)
            made = torch._cslt_compress(reference.unpack24(values.detach(), meta))
            # Copied there, not made: in each thread the library would be started anew, and never ended.
            found = gpu.lasting(made.clone, values.device)
            gpu.wait(values.device)
            self._weights.keep(found, values, meta)
        return found

    def run(
        self,
        config: str,
        x: Tensor,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str | None,
        y: Tensor | None = None,
        scales: Scales | None = None,
        fresh: bool = False,
    ) -> Tensor:
        """Its product, with the bias in the epilogue, and the rest after it; not in `y`."""
        product = torch._cslt_sparse_mm(
            weight,
            _padded(x).t(),
            bias=None if bias is None else aligned(bias),
            transpose_result=True,
            alg_id=int(config.removeprefix("alg ")),
        )
        done = reference.activate(product[: x.shape[0]], activation)
        return done if residual is None else done + residual


def _named(number: int) -> str:
    return f"alg {number}"


def _padded(x: Tensor) -> Tensor:
    short = -x.shape[0] % _TOKENS_MULTIPLE
    return aligned(F.pad(x, (0, 0, 0, short)) if short else x)
