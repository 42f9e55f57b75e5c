"""Chooses the form that runs a problem here, measuring where nothing is remembered."""

from __future__ import annotations

import functools
import importlib.metadata
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ... import _version
from .. import extensions, gpu
from ..backend import asked, why_not, why_not_form
from .choice import Choice, Memory, key
from .compiled import Compiled
from .default import default
from .forms import FORMS
from .measure import measured
from .problem import Form, Problem

__all__ = ["able_forms", "choice_of", "form_for"]

# Tokens above which what is good for few is not worth a measurement where the kernels for many can.
_FEW = 1024

_DRIVER = Path("/proc/driver/nvidia/version")

_lock = threading.Lock()


def able_forms(problem: Problem, backend: str, device: torch.device) -> dict[str, Form]:
    """The forms to choose from, best first: the one asked for, or for "auto" all that are worth a try.

    Raises:
        ValueError: a backend was asked for, by the call or by the environment, that cannot; it says why.

    """
    op, known = problem.op, FORMS[problem.op]
    wanted = _wanted(op, backend)
    if wanted != "auto":
        reason = why_not(wanted, op, dtype=problem.dtype, device=device)
        if reason is None:
            reason = known[wanted].why_not(problem)
        if reason is not None:
            raise ValueError(f'{op}: backend "{wanted}" was asked for, but {reason}')
        return {wanted: known[wanted]}
    forms = {
        name: form
        for name, form in known.items()
        if why_not_form(op, name, problem.dtype, device) is None and form.why_not(problem) is None
    }
    if len(forms) > 1:
        # Closed, and with algorithms that have been wrong: for where nothing else can.
        forms.pop("cusparselt", None)
    if problem.tokens > _FEW:
        best, *others = forms or ("",)
        if best == "sm90":
            return {best: forms[best]}
        if others:
            forms.pop("triton", None)
    return forms


def choice_of(problem: Problem, backend: str, device: torch.device) -> Choice | None:
    """What was measured for a problem, here or in an earlier process, or is measured now.

    Returns:
        None where only the reference can compute it.

    Raises:
        ValueError: a backend was asked for that cannot.
        RuntimeError: a backend was asked for, and none of its configs gives the right result.

    """
    forms = able_forms(problem, backend, device)
    if not forms:
        return None
    index = gpu.index_of(device)
    name = _key(problem, backend)
    with _lock:
        known = _known(_memory(index).find(name), forms, problem)
        if known is not None:
            return known
        with torch.cuda.device(index):
            choice = measured(problem, list(forms.values()), torch.device("cuda", index))
        if choice is not None:
            _memory(index).remember(name, choice)
        elif _wanted(problem.op, backend) != "auto":
            raise RuntimeError(
                f'{problem.op}: no config of backend "{_wanted(problem.op, backend)}" gives the right result'
            )
    return choice


def form_for(problem: Problem, backend: str, device: torch.device) -> tuple[Form | None, str, bool]:
    """The form that a call shall run (None: the reference) and its config, and whether that stays so.

    While a CUDA graph is captured nothing is measured: what is not remembered is chosen by counting, for
    this call alone.
    """
    forms, stays = able_forms(problem, backend, device), False
    if not forms:
        return None, "", True
    index = gpu.index_of(device)
    choice = _known(_memory(index).find(_key(problem, backend)), forms, problem)
    if choice is None and _may_measure():
        try:
            choice = choice_of(problem, backend, device)
        except torch.OutOfMemoryError:
            warnings.warn(
                f"{problem.op}: too little memory to measure in, chosen by counting; "
                "vlprune.ops.tune24 measures",
                stacklevel=2,
            )
            # Not tried again at each call: that would make the allocator give back all it holds.
            stays = True
        else:
            if choice is None:
                return None, "", True
    if choice is not None:
        return forms[choice.backend], choice.config, True
    tiles = {name: _tiles(form, problem) for name, form in forms.items()}
    name, config = default(problem, tiles, gpu.multiprocessors(index))
    return forms[name], config, stays


def _key(problem: Problem, backend: str) -> str:
    name = key(problem, _wanted(problem.op, backend))
    # PyTorch may be told to take float32's dense products by tensor cores, which are much faster.
    exact = problem.dtype is not torch.float32 or torch.backends.cuda.matmul.fp32_precision != "tf32"
    return name if exact else f"{name} tf32"


def _wanted(op: str, backend: str) -> str:
    wanted = asked(backend)
    # The environment may name what is for other operators, and "cpu" is about tensors on the CPU.
    return "auto" if backend == "auto" and wanted not in FORMS[op] else wanted


def _known(choice: Choice | None, forms: Mapping[str, Form], problem: Problem) -> Choice | None:
    if choice is None or choice.backend not in forms:
        return None
    # Measured for another number of tokens of the bucket, or by kernels that are no more.
    return choice if forms[choice.backend].runs(choice.config, problem) else None


def _may_measure() -> bool:
    return not (gpu.capturing() or torch.compiler.is_compiling())


def _tiles(form: Form, problem: Problem) -> dict[str, Any]:
    infos = form.infos() if isinstance(form, Compiled) else {}
    return {config: infos.get(config) for config in form.able(problem)}


@functools.cache
def _memory(index: int) -> Memory:
    name = torch.cuda.get_device_name(index)
    return Memory(f"linear24-{name}.json", {"gpu": name, **_versions()})


def _versions() -> dict[str, str]:
    versions = {"vlprune": _version.__version__, "torch": torch.__version__}
    try:
        # The one place where Linux tells it without another library.
        versions["driver"] = _DRIVER.read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        versions["driver"] = "unknown"
    try:
        versions["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        versions["triton"] = "none"
    module, _ = extensions.cuda_extension()
    if module is not None and module.__file__:
        # Built anew, the kernels may be others under the same version.
        versions["kernels"] = str(Path(module.__file__).stat().st_mtime_ns)
    return versions
