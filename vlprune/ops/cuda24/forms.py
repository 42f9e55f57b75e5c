"""The ways to compute `linear24` on CUDA tensors, by the names of their backends, best first."""

from __future__ import annotations

from .compiled import Compiled
from .cusparselt import CuSparseLt
from .few import Few
from .problem import Form, Problem

__all__ = ["FORMS", "Form", "Problem", "all_forms"]


def all_forms() -> dict[str, Form]:
    """Each anew, with nothing kept yet."""
    forms: tuple[Form, ...] = (
        Compiled("sm90", (9, 0), exactly=True),
        Compiled("sm80", (8, 0), exactly=False),
        Few(),
        CuSparseLt(),
    )
    return {form.name: form for form in forms}


FORMS = all_forms()
