"""Cases of the operators that prune: column sums, masks and packing, beside plain PyTorch.

Beside procedures as published and as defined stand forms without loops, so that speed is not won from a slow
way to write PyTorch: a speed-up is over the fastest of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import measure, ops
from ..patterns import Pattern
from . import published
from .case import DTYPES, OURS, Call, Case, Work, seeded

__all__ = ["mask_case", "pack_case", "sumsq_case", "unpack_case", "wanda_pack_case"]

PUBLISHED, DEFINITION, TOPK, RANKS, VECTORISED = "published", "definition", "topk", "ranks", "vectorised"

# What an operator gives: a mask, or values and meta.
_Result = Tensor | tuple[Tensor, ...]


def sumsq_case(tokens: int, inputs: int, dtype: str = "fp32", **more: bool) -> Case:
    """`column_sumsq` beside the norm of each column, as Wanda's code takes it."""
    label = f"{tokens} x {inputs}"

    def make(device: torch.device) -> Work:
        x = torch.randn(tokens, inputs, generator=seeded(device), device=device).to(DTYPES[dtype])
        ours = partial(ops.column_sumsq, x)

        def check() -> float:
            return measure.check_close(label, ours(), x.double().square().sum(0))

        calls: dict[str, Call] = {OURS: ours, PUBLISHED: partial(published.column_sumsq, x)}
        return Work(calls, check, 2.0 * x.numel(), dict.fromkeys(calls, x.nbytes + 4 * inputs))

    sizes = {"tokens": tokens, "in": inputs}
    return Case("column_sumsq", sizes, label, dtype, (PUBLISHED,), make, **more)


def mask_case(shape: tuple[int, int], pattern: str = "2:4", dtype: str = "fp32", **more: bool) -> Case:
    """`wanda_mask` of n:m, or of half of each row, beside the published procedure."""
    kind = Pattern.parse(pattern)
    if kind.n is None or kind.m is None:
        how: dict[str, Any] = {"pattern": pattern, "sparsity": 0.5, "scope": "row"}
        forms = {PUBLISHED: partial(published.row_mask, sparsity=0.5)}
    else:
        how = {"pattern": pattern}
        forms = {
            PUBLISHED: partial(published.group_mask, kept=kind.n, group=kind.m),
            TOPK: partial(published.topk_mask, kept=kind.n, group=kind.m),
            RANKS: partial(published.ranked_mask, kept=kind.n, group=kind.m),
        }

    def make(device: torch.device) -> Work:
        weight, norm = _matrix(shape, dtype, device)
        peers = {name: partial(form, weight, norm) for name, form in forms.items()}
        return _equal(f"wanda_mask {pattern}", partial(ops.wanda_mask, weight, norm, **how), peers, weight)

    name = pattern if kind.m else "row 50%"
    return _case("wanda_mask", shape, name, dtype, tuple(forms), make, more)


def wanda_pack_case(shape: tuple[int, int], dtype: str = "fp32", **more: bool) -> Case:
    """`wanda_pack24` beside the published procedure followed by packing."""
    forms = {PUBLISHED: published.pack24, TOPK: published.packed_by_topk}

    def make(device: torch.device) -> Work:
        weight, norm = _matrix(shape, dtype, device)
        peers = {name: partial(form, weight, norm) for name, form in forms.items()}
        return _equal("wanda_pack24", partial(ops.wanda_pack24, weight, norm), peers, weight)

    return _case("wanda_pack24", shape, "", dtype, tuple(forms), make, more)


def pack_case(shape: tuple[int, int], dtype: str = "fp32", **more: bool) -> Case:
    """`pack24` of a weight that is 2:4 already, beside its definition."""
    from ..ops import reference

    forms = {DEFINITION: reference.pack24, VECTORISED: published.packed_zeros}

    def make(device: torch.device) -> Work:
        weight = ops.unpack24(*ops.wanda_pack24(*_matrix(shape, dtype, device)))
        peers = {name: partial(form, weight) for name, form in forms.items()}
        return _equal("pack24", partial(ops.pack24, weight), peers, weight)

    return _case("pack24", shape, "", dtype, tuple(forms), make, more)


def unpack_case(shape: tuple[int, int], dtype: str = "fp32", **more: bool) -> Case:
    """`unpack24` beside its definition."""
    from ..ops import reference

    forms = {DEFINITION: reference.unpack24, VECTORISED: published.unpacked}

    def make(device: torch.device) -> Work:
        packed = ops.wanda_pack24(*_matrix(shape, dtype, device))
        peers = {name: partial(form, *packed) for name, form in forms.items()}
        return _equal("unpack24", partial(ops.unpack24, *packed), peers, *packed)

    return _case("unpack24", shape, "", dtype, tuple(forms), make, more)


def _matrix(shape: tuple[int, int], dtype: str, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = seeded(device)
    norm = torch.rand(shape[1], generator=generator, device=device) + 0.5
    return published.untied_weight(shape, DTYPES[dtype], norm, generator), norm


def _equal(
    name: str, ours: Callable[[], _Result], peers: Mapping[str, Callable[[], _Result]], *read: Tensor
) -> Work:
    """A case whose results are to be the same bit for bit."""

    def check() -> float:
        result = _parts(ours())
        for peer, plain in peers.items():
            if not all(torch.equal(a, b) for a, b in zip(result, _parts(plain()), strict=True)):
                raise ValueError(f"{name}: differs from plain PyTorch ({peer})")
        return 0.0

    moved = sum(t.nbytes for t in (*read, *_parts(ours())))
    calls: dict[str, Call] = {OURS: ours, **peers}
    waits = frozenset(peers) & {PUBLISHED, DEFINITION}
    return Work(calls, check, None, {OURS: moved}, waits=waits, against=tuple(peers))


def _parts(result: _Result) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _case(
    op: str,
    shape: tuple[int, int],
    how: str,
    dtype: str,
    peers: tuple[str, ...],
    make: Callable[[torch.device], Work],
    more: dict[str, bool],
) -> Case:
    label = " ".join(filter(None, (how, f"{shape[0]} x {shape[1]}")))
    sizes = {"out": shape[0], "in": shape[1], "how": how or None}
    return Case(op, sizes, label, dtype, peers, make, **more)
