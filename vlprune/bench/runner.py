"""Run cases one after the other, and put what was measured into one record."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import measure
from ..files import write_json
from .case import OURS, Case, Work
from .ceilings import ceilings
from .device import timed_calls
from .noise import median_interval
from .suites import Selection, cases

__all__ = ["FORMAT", "VERSION", "Effort", "measure_case", "run_bench"]

FORMAT, VERSION = "vlprune-bench", 2


@dataclass(frozen=True)
class Effort:
    """How long each case is timed.

    Args:
        rounds: of every call of a case in turn; six at least.
        seconds: more rounds until they have taken this long.
        most: no further round once they have taken this long.

    """

    rounds: int
    seconds: float
    most: float

    @classmethod
    def of(cls, full: bool, rounds: int | None = None) -> Effort:
        """What the sets take; with `rounds` exactly so many, as long as they may take."""
        if rounds is not None:
            return cls(rounds, 0.0, 60.0)
        return cls(20, 1.0, 30.0) if full else cls(9, 0.2, 0.8)


def run_bench(
    selection: Selection,
    *,
    device: str = "cpu",
    rounds: int | None = None,
    out: Path | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure what was selected, and write it to `out`, if given, when all of it is there.

    Until then what there is lies beside it, "bench.partial.json" of "bench.json": a run that was interrupted
    leaves an older result as it is. A case that fails loses no other: its row says why under "error".

    Returns:
        The record: machine and versions, ceilings of the machine, a row for every case (times in seconds).
        ``ceilings`` is None where they were not measured, for the reason under ``ceilings_error`` if any.

    """
    chosen, where = cases(selection, device), torch.device(device)
    effort = Effort.of(selection.full, rounds)
    partial = None if out is None else out.with_suffix(f".partial{out.suffix}")
    start = time.perf_counter()
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "set": "full" if selection.full else "quick",
        "selection": selection.to_dict(),
        "device": device,
        "machine": measure.machine_info(),
        "ceilings": None,
        "rows": [],
    }
    if not selection.only and not selection.tokens:
        dtypes = tuple(dict.fromkeys(case.dtype for case in chosen))
        try:
            record["ceilings"] = ceilings(where, dtypes, seconds=1.0 if selection.full else 0.2)
        except Exception as error:
            record["ceilings_error"] = _why(error)
            say(f"ceilings: {_why(error)}")
    for case in tqdm(chosen, unit="case", disable=None if progress is None else not progress):
        try:
            row = measure_case(case, where, effort)
        except Exception as error:
            row = {**_about(case), "error": _why(error)}
            say(f"{case.name}: {row['error']}")
        record["rows"].append(row)
        record["seconds"] = time.perf_counter() - start
        if partial is not None:
            write_json(partial, record)
    if out is not None and partial is not None:
        os.replace(partial, out)
    return record


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@torch.inference_mode()
def measure_case(case: Case, device: torch.device, effort: Effort) -> dict[str, Any]:
    """Check one case, time its calls in turn, and return its row."""
    # what one case held is not to be collected while another is timed
    gc.collect()
    with torch.inference_mode(False), torch.no_grad():
        work: Work = case.make(device)
    error = work.check()
    samples = measure.rounds_of(
        timed_calls(work, device),
        device=device,
        warmup=1,
        rounds=effort.rounds,
        min_seconds=effort.seconds,
        max_seconds=effort.most,
    )
    times = {name: measure.Timing.of(seconds) for name, seconds in samples.items()}
    ratios = {name: _paired(seconds, samples[OURS]) for name, seconds in samples.items() if name != OURS}
    rivals = [name for name in work.against if name in ratios] or list(ratios)[:1]
    peer = min(rivals, key=lambda name: times[name].median, default=None)
    return {
        **_about(case),
        "largest_error": error,
        "operations": work.operations,
        "moved": dict(work.moved),
        "times": {name: timing.to_dict() for name, timing in times.items()},
        "ratios": ratios,
        "peer": peer,
        "speedup": None if peer is None else ratios[peer]["median"],
        **work.more,
    }


def _about(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "op": case.op,
        "label": case.label,
        "dtype": case.dtype,
        "sizes": dict(case.sizes),
    }


def _paired(peer: Sequence[float], ours: Sequence[float]) -> dict[str, float | None]:
    """The ratio within each round, where what disturbs both calls cancels.

    Percentiles, the 95 % interval of the median (``low`` and ``high``, None of too few rounds), and the
    standard deviation of the logarithm.
    """
    found = [p / o for p, o in zip(peer, ours, strict=True)]
    low, high = median_interval(found) or (None, None)
    deviation = statistics.stdev(map(math.log, found)) if len(found) > 1 else None
    return {**measure.Timing.of(found).to_dict(), "low": low, "high": high, "deviation": deviation}
