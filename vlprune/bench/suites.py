"""Which cases there are, and which of them were asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from .case import Case
from .ops_cases import attention_case, linear24_case
from .scoring_cases import mask_case, pack_case, sumsq_case, unpack_case, wanda_pack_case
from .towers import tower_case

__all__ = ["CROSS_WIDTHS", "SHAPES", "TOKENS", "Selection", "cases"]

# One 224-px image of ViT-B/32 and of B/16, and batches of 8 and 32 of the former.
TOKENS = (50, 197, 400, 1600)
# in -> out: fc1, fc2 and qkv of ViT-B, fc1 of ViT-L.
SHAPES = ((768, 3072), (3072, 768), (768, 2304), (1024, 4096))
# fc1 of a width and the four times as many neurons of its MLP, from one token to a batch of L/14.
CROSS_WIDTHS, CROSS_TOKENS = (256, 512, 768, 1024, 1280), (1, 4, 16, 50, 197, 577, 1600, 4112)
_QUICK_WIDTHS, _QUICK_TOKENS = (512, 768, 1024), (1, 4, 16, 50, 197, 577)
_MATRICES, _PATTERNS = ((3072, 768), (4096, 1024), (4096, 4096)), ("2:4", "4:8", "unstructured")


@dataclass(frozen=True)
class Selection:
    """What to measure.

    Args:
        full: everything, else what two CPU cores do in two minutes.
        only: names of operators, parts of case names, or patterns of them; none means all.
        dtypes: "fp32", "bf16", "fp16"; none means the set's own.
        tokens: `linear24` alone, at the shapes of ViT-B and ViT-L, with so many tokens; none means the set.

    """

    full: bool = False
    only: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Selection:
        """Read what `to_dict` returned, also through JSON."""
        return cls(data["full"], *(tuple(data[name]) for name in ("only", "dtypes", "tokens")))


def cases(selection: Selection, device: str = "cpu") -> list[Case]:
    """The cases asked for, each once, in the order they are measured.

    Raises:
        ValueError: the set has no case of these dtypes, or a name in `only` fits none; what there is is said.

    """
    if selection.tokens:
        dtypes = selection.dtypes or ("fp32", "bf16")
        found = [linear24_case(t, i, o, d) for d in dtypes for i, o in SHAPES for t in selection.tokens]
    else:
        found = [case for case in _all(device) if case.quick or selection.full]
        there = list(dict.fromkeys(case.dtype for case in found))
        found = [case for case in found if not selection.dtypes or case.dtype in selection.dtypes]
        if lacking := [dtype for dtype in selection.dtypes if dtype not in there]:
            lacks = f"no case of {', '.join(lacking)} in this set on {device}"
            raise ValueError(f"--dtype: {lacks}; there are {', '.join(there)}")
    by_name, ops = {case.name: case for case in found}, {case.op for case in found}
    for wanted in selection.only:
        if not any(_fits(wanted, case, ops) for case in by_name.values()):
            near = difflib.get_close_matches(wanted, [*sorted(ops), *by_name], 3, 0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(sorted(ops))}"
            raise ValueError(f"--only: no case fits {wanted!r}; {hint}")
    return [
        case
        for case in by_name.values()
        if not selection.only or any(_fits(wanted, case, ops) for wanted in selection.only)
    ]


def _fits(wanted: str, case: Case, ops: set[str]) -> bool:
    # "pack24" is an operator, and no part of "wanda_pack24"
    if wanted in ops:
        return wanted == case.op
    return wanted in case.name or fnmatchcase(case.name, wanted)


def _all(device: str) -> list[Case]:
    """Every case; on a GPU in the dtypes that models run in there."""
    main, half = ("bf16", "fp16") if device.startswith("cuda") else ("fp32", "bf16")
    found = [linear24_case(t, i, o, main, quick=t != 197) for i, o in SHAPES for t in TOKENS]
    for width in CROSS_WIDTHS:
        for tokens in CROSS_TOKENS:
            quick = width in _QUICK_WIDTHS and tokens in _QUICK_TOKENS
            found.append(linear24_case(tokens, width, 4 * width, main, quick=quick))
            if quick or device.startswith("cuda"):
                # few CPUs have a fast product of half precision, and on the others this takes hours
                found.append(linear24_case(tokens, width, 4 * width, half, quick=False))
    found += [
        linear24_case(t, i, o, half, quick=t in (50, 400) and i + o == 3840)
        for i, o in SHAPES
        for t in TOKENS
    ]
    found += [linear24_case(t, 768, 3072, main, "gelu", quick=t == 400) for t in TOKENS]
    found += _attention(main, (50, 77, 197, 257)) + _attention(half, (50, 197))
    found += _scoring(main, True) + _scoring(half, False)
    return found + _towers(device, main, half)


def _attention(dtype: str, quick: tuple[int, ...]) -> list[Case]:
    # ViT-B/32, the text tower, ViT-B/16, ViT-L/14 at 224 and 336 pixels
    sizes = ((50, 12, False), (77, 8, True), (197, 12, False), (257, 16, False), (577, 16, False))
    return [
        attention_case(batch, tokens, heads, dtype, causal, quick=batch == 8 and tokens in quick)
        for tokens, heads, causal in sizes
        for batch in (1, 8)
    ]


def _scoring(dtype: str, quick: bool) -> list[Case]:
    found = [sumsq_case(tokens, 768, dtype, quick=quick and tokens == 1600) for tokens in (400, 1600, 6400)]
    for shape in _MATRICES:
        own = quick and shape == _MATRICES[0]
        found += [mask_case(shape, pattern, dtype, quick=own and pattern != "4:8") for pattern in _PATTERNS]
        found += [make(shape, dtype, quick=own) for make in (wanda_pack_case, pack_case, unpack_case)]
    return found


def _towers(device: str, main: str, half: str) -> list[Case]:
    slow = not device.startswith("cuda")
    batches = (1, 8) if slow else (1, 64)
    quick = {(main, tower, batch) for tower in ("image", "text") for batch in batches}
    if slow:
        quick.add((half, "image", 8))
    return [
        tower_case(model, tower, batch, dtype, quick=model == "ViT-B-32" and (dtype, tower, batch) in quick)
        for dtype in (main, half)
        for model in (("ViT-B-32",) if slow and dtype == half else ("ViT-B-32", "ViT-B-16", "ViT-L-14"))
        for batch in batches
        # B/16's text tower is that of B/32
        for tower in (("image",) if model == "ViT-B-16" else ("image", "text"))
    ]
