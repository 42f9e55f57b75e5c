"""One `linear24` on a CUDA device: its sizes, and what each way to compute it has to offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import gpu

__all__ = [
    "ALIGNMENT",
    "Again",
    "Form",
    "Launch",
    "Problem",
    "Scales",
    "aligned",
    "aligned_rows",
    "is_aligned",
    "refuse_capture",
]

# What bulk copies and vector loads want of an address, and of the distance from row to row: bytes.
ALIGNMENT = 16


@dataclass(frozen=True)
class Problem:
    """What the fastest way depends on, besides the device."""

    tokens: int
    out: int
    inputs: int
    dtype: torch.dtype
    activation: str | None = None
    bias: bool = False
    residual: bool = False
    out_dtype: torch.dtype | None = None  # of `linear24_scaled`, whose `dtype` has 8 bits

    @property
    def op(self) -> str:
        """The operator that it is a call of."""
        return "linear24" if self.out_dtype is None else "linear24_scaled"

    @property
    def y_dtype(self) -> torch.dtype:
        """Of the result, and of what is added to it."""
        return self.out_dtype or self.dtype


class Scales(NamedTuple):
    """What `linear24_scaled` has beside the operands of `linear24`."""

    x: Tensor  # float32 [tokens]
    weight: Tensor  # float32 [out]
    out_dtype: torch.dtype


class Launch(Protocol):
    """Runs a kernel on the current stream that has all but what differs from call to call."""

    def __call__(
        self, x: int, residual: int, y: int, ldx: int = ..., ldr: int = ..., ldy: int = ..., fresh: bool = ...
    ) -> None:
        """Addresses, multiples of 16 bytes (0 for no residual), and entries from row to row, all by default.

        See `Form.run` for `fresh`.
        """


class Again(Protocol):
    """Makes a call again, of tensors that differ from those of the first only in place and contents."""

    def __call__(
        self, x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor | None:
        """The result, or None where it cannot of tensors in these places; meta is as it was."""


class Form(Protocol):
    """A way to compute an operator on CUDA tensors; a backend has one, with several configs."""

    name: str
    dtypes: frozenset[torch.dtype]

    def why_not_here(self, index: int) -> str | None:
        """Say why device `index` cannot run it, or None."""

    def why_not(self, problem: Problem) -> str | None:
        """Say why no config takes a problem, or None."""

    def able(self, problem: Problem) -> list[str]:
        """Names of the configs that take a problem."""

    def runs(self, config: str, problem: Problem) -> bool:
        """Whether the config of this name, from a file say, is there and takes a problem."""

    def candidates(
        self, problem: Problem, x: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Sequence[str]:
        """Names of the configs worth measuring; may try some on the tensors given."""

    def weight(self, values: Tensor, meta: Tensor, anew: bool = False) -> Tensor:
        """What it reads beside `values`: made at the first call, then kept as long as these stay as they are.

        Args:
            values: of the packed weight.
            meta: of the same.
            anew: make it even if these seem to be as they were, since not every write to them is counted.

        Raises:
            RuntimeError: it would have to be made while a CUDA graph is captured.

        """

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
        """[tokens, out] of x [tokens, in], in `y` if the form can write to a tensor that it is given.

        `fresh` has it do all that it does in a CUDA graph, where no workspace is ready from a call before.
        """


def is_aligned(tensor: Tensor) -> bool:
    """Whether `tensor` is contiguous and starts at a multiple of 16 bytes."""
    return tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0


def aligned(tensor: Tensor) -> Tensor:
    """`tensor` if it `is_aligned`, else a copy that is."""
    if is_aligned(tensor):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def aligned_rows(x: Tensor) -> tuple[Tensor, int]:
    """``(x, entries from row to row)`` for x [rows, columns], or for a copy where kernels could not read it.

    A row is to be contiguous, rows not to overlap, and each to start at a multiple of 16 bytes.
    """
    rows, columns = x.shape
    # Asked first, since strides take the host longer.
    whole = x.is_contiguous()
    step = columns if whole or rows <= 1 else x.stride(0)
    packed = whole or x.stride(1) == 1 or columns == 1
    if packed and step >= columns and step * x.itemsize % ALIGNMENT == 0 and x.data_ptr() % ALIGNMENT == 0:
        return x, step
    return x.clone(memory_format=torch.contiguous_format), columns


def refuse_capture(form: str) -> None:
    """Refuse to make a weight's form while a CUDA graph is captured: that waits for the device."""
    if gpu.capturing():
        raise RuntimeError(
            f"linear24: the weight has no form for the {form} backend yet, and none can be made while a CUDA "
            f"graph is captured; run the layer once before, or call vlprune.ops.prepare24(values, meta)"
        )
