"""The ways to compute `linear24` and `linear24_scaled` on CUDA tensors, by their backends, best first."""

from __future__ import annotations

from .compiled import Compiled
from .cusparselt import CuSparseLt
from .few import Few
from .problem import Form, Problem

__all__ = ["FORMS", "Form", "Problem", "all_forms"]


def all_forms() -> dict[str, dict[str, Form]]:
    """Those of each operator, anew, with nothing kept yet."""
    forms: dict[str, tuple[Form, ...]] = {
        "linear24": (
            Compiled("sm90", (9, 0), exactly=True),
            Compiled("sm80", (8, 0), exactly=False),
            Few(),
            CuSparseLt(),
        ),
        "linear24_scaled": (Compiled("sm90", (9, 0), exactly=True, scaled=True),),
    }
    return {op: {form.name: form for form in each} for op, each in forms.items()}


FORMS = all_forms()
