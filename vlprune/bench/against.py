"""Two versions of the package, timed in turns of milliseconds: what changed beyond the noise.

A pair of processes, one for each version, is alive at the same time; a case is timed in short bursts, old,
new, new, old and so on, so that whatever disturbs the machine for longer than a burst disturbs both. What
one process has and another has not (where code and data lie) is part of the noise too: each repeat starts a
new pair, and intervals come from the scatter between repeats. See `noise` for the statistics.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from tqdm import tqdm

from .checkout import Tree
from .noise import LEAST, Change, changes
from .suites import Selection, cases

__all__ = ["REPEATS", "CaseFailed", "Side", "Worker", "against", "compare_sides", "log_ratio"]

# Pairs of processes; a change that all of them agree on is seen through 2 % of noise when it is 10 %.
REPEATS = 8
# Turns of each version in a repeat, and the seconds and calls of a turn. On a virtual machine with neighbours
# two turns in a row differ by 14 % (standard deviation; two Zen 3 cores, November 2026), however long.
_BURSTS, _SECONDS, _CALLS = 100, 0.002, 2
# Between turns: threads that wait for more work spin for a while, and would take a core from the other side.
_PAUSE = 0.001
# Slow calls get fewer turns, but no fewer than so many, when a case would take longer than so many seconds.
_FEWEST, _MOST_SECONDS = 5, 8.0


class CaseFailed(ValueError):
    """A case that one version cannot run."""


class Side(Protocol):
    """One version, running."""

    def prepare(self, case: str, check: bool) -> float:
        """Make a case ready, and look whether its result is right; returns the seconds of a call."""

    def burst(self, calls: int) -> float:
        """Time so many calls, and return what one takes undisturbed."""


def log_ratio(old: Side, new: Side, case: str, bursts: int = _BURSTS, check: bool = True) -> float:
    """Logarithm of new over old time of one case, from one pair of processes."""
    one = max(min(old.prepare(case, check), new.prepare(case, check)), 1e-9)
    calls = max(_CALLS, math.ceil(_SECONDS / one))
    turns = max(_FEWEST, min(bursts, int(_MOST_SECONDS / (2 * calls * one))))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            times[which].append((old, new)[which].burst(calls))
    # the two of a turn shared whatever mood the machine was in; a turn that only one was disturbed in is an
    # outlier, which the median passes over
    return statistics.median(math.log(b / a) for a, b in zip(*times, strict=True))


def compare_sides(
    start: Callable[[int], tuple[Side, Side]],
    names: Sequence[str],
    *,
    repeats: int = REPEATS,
    least: float = LEAST,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Change]:
    """Compare pair after pair; `start` makes the pair of a repeat. Cases that fail are said and left out."""
    logs: dict[str, list[float]] = {name: [] for name in names}
    disable = None if progress is None else not progress
    with tqdm(total=repeats * len(names), unit="case", disable=disable) as bar:
        for repeat in range(repeats):
            old, new = start(repeat)
            for name in list(logs):
                try:
                    logs[name].append(log_ratio(old, new, name, check=repeat == 0))
                except CaseFailed as error:
                    say(f"{name}: left out: {error}")
                    del logs[name]
                bar.update()
    return changes(logs, least) if logs else []


def against(
    old: Tree,
    new: Tree,
    selection: Selection,
    *,
    device: str = "cpu",
    repeats: int = REPEATS,
    least: float = LEAST,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Change]:
    """Compare two trees; towers only where `selection` names them, because building them takes longest."""
    names = [case.name for case in cases(selection, device) if case.op != "tower" or selection.only]
    order = {"device": device, "threads": torch.get_num_threads(), "selection": selection.to_dict()}
    with ExitStack() as running:

        def start(repeat: int) -> tuple[Side, Side]:
            running.close()
            trees = (old, new) if repeat % 2 == 0 else (new, old)
            pair = [running.enter_context(Worker({"tree": str(tree.path), **order})) for tree in trees]
            native = [worker.ready() for worker in pair]
            if native[0] != native[1]:
                lacks = trees[native.index(False)]
                raise ValueError(
                    f"--against: {lacks.path}: its native extension is not built or does not load, "
                    "and that of the other version does"
                )
            return (pair[0], pair[1]) if repeat % 2 == 0 else (pair[1], pair[0])

        return compare_sides(start, names, repeats=repeats, least=least, progress=progress, say=say)


class Worker:
    """A process of `worker`, and messages to it."""

    def __init__(self, order: dict[str, Any]) -> None:
        script = Path(__file__).with_name("worker.py")
        self._tree = order["tree"]
        # a file, because a pipe that nobody reads is full some day
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script), json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def ready(self) -> bool:
        """Wait until everything is imported; returns whether the native extension is."""
        return bool(self._answer()["native"])

    def prepare(self, case: str, check: bool) -> float:
        """Make a case ready, and look whether its result is right; returns the seconds of a call."""
        return self._ask(prepare=case, check=check)

    def burst(self, calls: int) -> float:
        """Time so many calls, and return what one takes undisturbed."""
        time.sleep(_PAUSE)
        return self._ask(burst=calls)

    def _ask(self, **message: Any) -> float:
        assert self._process.stdin
        # a process that is gone has no answer either, and there it is told
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines()
            why = said[-1] if said else f"the process ended with status {status}"
            raise ValueError(f"--against: {self._tree}: {why}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CaseFailed(answer["error"])
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()
        self._said.close()
