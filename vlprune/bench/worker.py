"""One side of a comparison in a process of its own: this version's cases of another tree's package.

Both sides are timed by this version's `measure`, or a change of the clock would be one of everything.

Run as a script with one argument, JSON of tree, device, threads and selection; says ``{"native": bool}``,
whether the tree's native extension is loaded, once everything is imported; then reads a message a line from
standard input and answers each with a line: ``{"prepare": name, "check": bool}`` makes a case, checks it if
told to, and gives the seconds of a call, ``{"burst": calls}`` times so many calls of it. A case that fails
is answered with ``{"error": why}``.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["serve"]


def serve(order: Mapping[str, Any]) -> None:
    """Answer messages until there are no more."""
    # libraries may print: what they say goes to standard error, answers where it was
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _load(Path(order["tree"]))
    side = _Side(order)
    print(json.dumps({"native": "vlprune._C" in sys.modules}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = side.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(answer), file=answers, flush=True)


def _load(tree: Path) -> None:
    """Import the package of a tree, and this file's folder as its `vlprune.bench`, whatever it has there."""
    sys.path.insert(0, str(tree))
    package = importlib.import_module("vlprune")
    found = Path(str(package.__file__)).resolve().parents[1]
    if found != tree.resolve():
        raise ImportError(f"expected vlprune of {tree}, got that of {found}")
    # without running __init__, so that an old tree needs no more than what the cases themselves use
    bench = types.ModuleType("vlprune.bench")
    bench.__path__ = [str(Path(__file__).resolve().parent)]
    sys.modules["vlprune.bench"] = bench


def _clock() -> Any:
    """This version's `vlprune.measure`, beside that of the tree."""
    path = Path(__file__).resolve().parents[1] / "measure.py"
    spec: Any = importlib.util.spec_from_file_location("vlprune.bench.measure", path)
    module = importlib.util.module_from_spec(spec)
    # where dataclasses look for their module
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class _Side:
    """The case that is ready, and how to time it."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        import torch

        from vlprune.bench.case import OURS
        from vlprune.bench.device import timed_calls
        from vlprune.bench.suites import Selection, cases

        torch.set_num_threads(order["threads"])
        self._quiet: Any = torch.no_grad
        self._measure = _clock()
        self._device = torch.device(order["device"])
        selection = Selection.from_dict(order["selection"])
        self._cases = {case.name: case for case in cases(selection, order["device"])}
        self._calls_of: Any = lambda work: timed_calls(work, self._device)[OURS]
        self._call: Any = None

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        with self._quiet():
            if "prepare" in message:
                return self._prepare(message["prepare"], message["check"])
            return self._burst(message["burst"])

    def _prepare(self, name: str, check: bool) -> dict[str, Any]:
        self._call = None
        gc.collect()
        work = self._cases[name].make(self._device)
        if check:
            work.check()
        self._call = self._calls_of(work)
        return self._burst(3)

    def _burst(self, calls: int) -> dict[str, Any]:
        times = self._measure.compare(
            {"ours": self._call}, device=self._device, warmup=1, rounds=calls, max_seconds=60.0
        )
        return {"seconds": times["ours"].p20}


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
