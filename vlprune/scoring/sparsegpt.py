"""SparseGPT: prune and repair by second-order information, Frantar & Alistarh 2023 (arXiv 2301.00774)."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import torch
from torch import Tensor

from .. import ops
from ..patterns import Pattern
from .wanda import wanda_mask

__all__ = ["sparsegpt_prune"]

# Damping is tried at 1, 10 and 100 times the asked-for value before Wanda takes over.
_ATTEMPTS = 3
# Of the largest entry: float32 sums over millions of tokens stay well below, a wrong matrix does not.
_ASYMMETRY = 1e-3


@torch.no_grad()
def sparsegpt_prune(
    weight: Tensor,
    hessian: Tensor,
    pattern: str | Pattern,
    sparsity: float | None = None,
    blocksize: int = 128,
    damping: float = 0.01,
    *,
    name: str = "weight",
) -> tuple[Tensor, Tensor]:
    """Prune a weight, and let the weights that stay make up for those that go (algorithm 1).

    The score of a weight is ``|w_ij| / U_jj`` with ``H^-1 = U^T U``, U upper triangular. "unstructured"
    prunes exactly ``int(n * sparsity)`` of the n entries of each block of columns (the last block may be
    narrower), so rows may differ; "n:m" chooses in each group when the columns before it are done. Among
    equal scores the lowest index goes first, by rows. A column that calibration never fed (H_jj = 0)
    becomes zero, also where the mask keeps it.

    Where the damped Hessian cannot be factored, damping grows to 10 and 100 times; where that does not
    help either, or no column was fed at all, the weight gets Wanda's mask, row by row, with the square
    root of the Hessian's diagonal as column norm. Both are warned of.

    Args:
        weight: [out, in], any floating dtype.
        hessian: [in, in], ``(2/n) sum_t x_t x_t^T``; any positive factor gives the same result.
        pattern: "n:m" or "unstructured".
        sparsity: fraction of zeros in [0, 1]; n:m implies it.
        blocksize: columns after which the errors reach the columns to their right; divisible by m.
        damping: fraction of the diagonal's mean that is added to the diagonal, always; above zero.
        name: what messages call the weight.

    Returns:
        ``(weight, keep mask)``, new tensors: the weight in its own dtype with exact zeros outside the
        mask. Between, all is float32, or float64 where an input is.

    Raises:
        ValueError: wrong shapes, dtypes or settings, a value that is not finite, an asymmetric Hessian.

    """
    kind = Pattern.parse(pattern)
    target = kind.resolve_sparsity(sparsity)
    _check(weight, hessian, kind, blocksize, damping, name)
    if weight.numel() == 0:
        return weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    fed = hessian.diagonal() != 0
    dtype = torch.promote_types(torch.promote_types(weight.dtype, hessian.dtype), torch.float32)
    upper = _inverse_factor(hessian.to(dtype), damping, name) if bool(fed.any()) else None
    if upper is None:
        why = "its Hessian is not positive definite" if bool(fed.any()) else "no input reached it"
        warnings.warn(
            f"sparsegpt_prune: {name}: {why}; pruned by Wanda instead", RuntimeWarning, stacklevel=3
        )
        keep = wanda_mask(weight, hessian.diagonal().clamp(min=0).sqrt(), kind, target)
        return weight.masked_fill(~keep, 0), keep
    # Transposed, here and below: a column of the weight is then contiguous.
    columns = weight.t().to(dtype, memory_format=torch.contiguous_format, copy=True)
    columns[~fed] = 0
    keep = torch.empty(columns.shape, dtype=torch.bool, device=weight.device)
    edges = [*range(0, len(columns), blocksize), len(columns)]
    for start, stop in pairwise(edges):
        block = slice(start, stop)
        errors = _prune_block(columns[block], upper[block, block], kind, target, keep[block])
        columns[stop:].addmm_(upper[block, stop:].t(), errors, alpha=-1)
    pruned = columns.masked_fill_(~keep, 0).t().to(weight.dtype)
    return pruned.contiguous(), keep.t().contiguous()


def _prune_block(columns: Tensor, upper: Tensor, kind: Pattern, sparsity: float, keep: Tensor) -> Tensor:
    # Writes to columns and keep [b, out]; gives the errors [b, out], which the columns after the block are
    # still to receive. Weights are chosen a group at a time: m columns, or the whole block.
    errors = torch.empty_like(columns)
    inverse = upper.diagonal().reciprocal()
    size = kind.m or len(columns)
    share = None if kind.m else sparsity
    for start in range(0, len(columns), size):
        group = slice(start, start + size)
        # What the columns before owe this group, in one product rather than one column at a time.
        columns[group].addmm_(upper[:start, group].t(), errors[:start], alpha=-1)
        keep[group] = ops.wanda_mask(columns[group].t(), inverse[group], kind, share, "layer").t()
        # One factor both chooses and divides: 1/U_jj where a weight goes, 0 where it stays.
        factor = ~keep[group] * inverse[group, None]
        for step, column in enumerate(range(start, start + size)):
            if step:
                columns[column].addmv_(errors[start:column].t(), upper[start:column, column], alpha=-1)
            torch.mul(columns[column], factor[step], out=errors[column])
    return errors


def _inverse_factor(hessian: Tensor, damping: float, name: str) -> Tensor | None:
    # Upper triangular U with (H + damping)^-1 = U^T U, or None. With both axes reversed H = L L^T, the
    # reversed L is an upper R with H = R R^T, and U = R^-1: one factorization, and no inverse is formed.
    flipped = hessian.flip(0, 1)
    diagonal = flipped.diagonal()
    diagonal[diagonal == 0] = 1
    plain, mean = diagonal.clone(), diagonal.mean()
    eye = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    for attempt in range(_ATTEMPTS):
        damped = damping * 10**attempt
        diagonal.copy_(plain + damped * mean)
        lower, info = torch.linalg.cholesky_ex(flipped)
        if int(info) == 0:
            if attempt:
                warnings.warn(
                    f"sparsegpt_prune: {name}: its Hessian needed damping {damped:g}, not {damping:g}",
                    RuntimeWarning,
                    stacklevel=4,
                )
            inverse: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
            return inverse.flip(0, 1)
    return None


def _check(weight: Tensor, hessian: Tensor, kind: Pattern, blocksize: int, damping: float, name: str) -> None:
    op = "sparsegpt_prune"
    if weight.dim() != 2 or weight.dtype not in ops.FLOAT_DTYPES:
        raise ValueError(
            f"{op}: expected {name} of shape [out, in] and a floating dtype, "
            f"got {tuple(weight.shape)}, {weight.dtype}"
        )
    inputs = weight.shape[1]
    kind.check_inputs(inputs, name)
    if hessian.shape != (inputs, inputs) or hessian.dtype not in ops.FLOAT_DTYPES:
        raise ValueError(
            f"{op}: expected hessian of shape {(inputs, inputs)} and a floating dtype for {name} of shape "
            f"{tuple(weight.shape)}, got {tuple(hessian.shape)}, {hessian.dtype}"
        )
    if hessian.device != weight.device:
        raise ValueError(f"{op}: expected hessian on {weight.device} as {name} is, got {hessian.device}")
    if isinstance(blocksize, bool) or not isinstance(blocksize, int) or blocksize < 1:
        raise ValueError(f"{op}: expected blocksize an integer of at least 1, got {blocksize!r}")
    if kind.m and blocksize % kind.m:
        raise ValueError(
            f'{op}: expected blocksize divisible by {kind.m} for pattern "{kind.name}", got {blocksize}'
        )
    if isinstance(damping, bool) or not isinstance(damping, int | float) or not 0 < damping < math.inf:
        raise ValueError(f"{op}: expected damping a finite number above 0, got {damping!r}")
    for what, tensor in ((name, weight), (f"hessian of {name}", hessian)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{op}: expected {what} to be finite, got an infinity or a NaN")
    if inputs:
        largest, gap = float(hessian.abs().max()), float((hessian - hessian.t()).abs().max())
        if gap > _ASYMMETRY * largest:
            raise ValueError(
                f"{op}: expected hessian of {name} to be symmetric, got entries that differ from their "
                f"mirror image by up to {gap:g} (largest entry {largest:g})"
            )
