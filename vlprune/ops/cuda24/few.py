"""`linear24` by the Triton kernels for few tokens, which read the packed weight as it is stored."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import gpu
from .problem import Problem, Scales

__all__ = ["Few"]

# Configs that are measured, of some fifty.
_TRIED = 3


@functools.cache
def _kernels() -> ModuleType:
    # Triton is imported with the first kernel that is needed.
    return importlib.import_module("vlprune.kernels.linear24")


class Few:
    """`kernels/linear24.py`."""

    name = "triton"
    dtypes = frozenset({torch.float32, torch.bfloat16, torch.float16})

    def why_not_here(self, index: int) -> str | None:
        """Nothing beyond what every Triton kernel needs."""
        return None

    def why_not(self, problem: Problem) -> str | None:
        """Nothing: more tokens only take more tiles."""
        return None

    def able(self, problem: Problem) -> list[str]:
        """The configs that the kernels themselves expect most of, best first."""
        return list(_by_name(problem.tokens, problem.out, problem.inputs, problem.dtype.itemsize))[:_TRIED]

    def runs(self, config: str, problem: Problem) -> bool:
        """Whether it is one of those that are worth a measurement for such a problem."""
        return config in _by_name(problem.tokens, problem.out, problem.inputs, problem.dtype.itemsize)

    def candidates(
        self, problem: Problem, x: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Sequence[str]:
        """Few: each is compiled before it can be measured, which takes seconds."""
        return self.able(problem)

    def weight(self, values: Tensor, meta: Tensor, anew: bool = False) -> Tensor:
        """The metadata as it is stored."""
        return meta

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
        """Launch a config; x and residual are copied only where a kernel cannot read them."""
        (tokens, inputs), out = x.shape, values.shape[0]
        x = x if x.stride(1) == 1 else x.contiguous()
        residual = residual if residual is None or residual.stride(1) == 1 else residual.contiguous()
        bias = bias if bias is None or bias.is_contiguous() else bias.contiguous()
        y = x.new_empty(tokens, out) if y is None else y
        how = _by_name(tokens, out, inputs, x.itemsize)[config]
        _kernels().linear24_few(x, values, weight, bias, residual, activation, y, how)
        return y


def _named(config: Any) -> str:
    return f"{config.rows}x{config.depth} split {config.split} warps {config.warps} stages {config.stages}"


@functools.lru_cache(1024)
def _by_name(tokens: int, out: int, inputs: int, size: int) -> dict[str, Any]:
    processors = gpu.multiprocessors(gpu.index_of(None))
    return {_named(config): config for config in _kernels().configs(tokens, out, inputs, size, processors)}
