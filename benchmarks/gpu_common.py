"""What the measurements on a GPU share: rows that are written as they come, and times of cold CUDA graphs.

A time is that of a CUDA graph of calls, each on operands of its own and together more than the caches hold,
divided by their number and interleaved over what is compared (`vlprune.measure.compare`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vlprune import files, measure
from vlprune.bench.case import Call
from vlprune.bench.device import graphed
from vlprune.measure import Timing
from vlprune.ops import gpu

__all__ = ["Report", "calls_of", "cold_times", "copies_for", "graphed", "host_seconds", "needs_gpu", "parser"]

BYTES, CALLS, ROUNDS = 256 * 2**20, 64, 30
_SMI = "driver_version,power.limit,clocks.max.sm,clocks.max.mem"


def needs_gpu(script: str) -> None:
    """Leave where there is none."""
    if (reason := gpu.why_none(None)) is not None:
        sys.exit(f"{script}: nothing to measure: {reason}")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options of every script here."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--out", type=Path, help="JSON to write; by default under benchmarks/results/<gpu>/")
    return made


class Report:
    """The rows of one script, in a file that is whole after each of them.

    Args:
        name: of the script, and of its file by default.
        out: where to write instead.

    """

    def __init__(self, name: str, out: Path | None) -> None:
        self.machine = {**measure.machine_info(), **_versions()}
        folder = re.sub(r"\W+", "-", str(self.machine["gpu"])).lower().strip("-")
        self.path = out or Path(__file__).parent / "results" / folder / f"{name}.json"
        self.rows: list[dict[str, Any]] = []
        self.failed = 0
        self._start = time.perf_counter()
        print(f"{name} on {self.machine['gpu']}", flush=True)

    def attempt(self, what: str, make: Callable[[], dict[str, Any] | None]) -> None:
        """Add the row that `make` gives, or one that says why there is none; the next come all the same."""
        try:
            row = make()
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            row = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        self._add(what, row)
        if row is not None and "error" in row and _is_lost():
            print("the device is unusable for this process: nothing more is measured", flush=True)
            self.finish()

    def _add(self, what: str, row: dict[str, Any] | None) -> None:
        if row is not None:
            self.failed += "error" in row
            self.rows.append({"what": what, **row})
            print(
                "  ".join(f"{key} {value}" for key, value in self.rows[-1].items() if _short(value)),
                flush=True,
            )
            files.write_json(self.path, {"machine": self.machine, "rows": self.rows})

    def finish(self) -> None:
        """Say where the rows are; leave with status 1 if any is missing."""
        took = time.perf_counter() - self._start
        if not self.rows:
            print("nothing was measured, and nothing is written", flush=True)
            sys.exit(0)
        print(f"{self.path}: {len(self.rows)} rows in {took:.0f} s, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed else 0)


def _is_lost() -> bool:
    """Whether an illegal access or the like has ended all use of the device."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _short(value: object) -> bool:
    return not isinstance(value, dict | list)


def _versions() -> dict[str, Any]:
    versions: dict[str, Any] = {"cuda": torch.version.cuda}
    versions["cusparselt"] = torch.backends.cusparselt.version()
    try:
        versions["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        versions["triton"] = None
    try:
        asked = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
        versions |= dict(zip(_SMI.split(","), said.splitlines()[0].split(", "), strict=True))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        pass
    return versions


def copies_for(bytes_: int) -> int:
    """Copies of operands of so many bytes that are together more than the caches hold."""
    return max(1, min(CALLS, -(-BYTES // bytes_)))


def calls_of(function: Callable[..., object], operands: Sequence[tuple[Any, ...]]) -> list[Call]:
    """A call on each of the operands."""
    return [lambda each=each: function(*each) for each in operands]  # type: ignore[misc]


def cold_times(candidates: Mapping[str, Sequence[Call]], rounds: int = ROUNDS) -> dict[str, Timing]:
    """Time of one call of each candidate, in a graph of all its calls, with caches overwritten before it."""
    graphs = {name: graphed(calls) for name, calls in candidates.items()}
    times = measure.compare(graphs, device="cuda", rounds=rounds, cold=True)
    return {name: _divided(timing, len(candidates[name])) for name, timing in times.items()}


def host_seconds(call: Call, calls: int = 300, repeats: int = 7) -> float:
    """Seconds of the host for a call that keeps the device for less; the least of several means."""
    best = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return best


def _divided(timing: Timing, calls: int) -> Timing:
    return Timing(timing.median / calls, timing.p20 / calls, timing.p80 / calls, timing.samples)
