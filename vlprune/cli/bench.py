"""`vlprune bench`: measure, compare two result files, or compare two versions of the package."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..bench import (
    FORMAT,
    VERSION,
    Change,
    Selection,
    against,
    bench_table,
    cases,
    changes_table,
    compare_records,
    differences,
    run_bench,
    this_tree,
    tree_of,
)
from ..bench.against import REPEATS
from ..bench.case import DTYPES
from ..bench.noise import FEWEST, LEAST
from ..files import read_json, write_json
from ..report.bench_page import write_bench, write_plots
from .common import positive, whole

__all__ = ["add_bench", "bench"]


# Options that say something in each way to run the command; the others are refused there.
_SELECT = ("quick", "full", "device", "only", "dtype", "tokens", "threads")
_APPLY = {
    "--compare": ("least",),
    "--against": (*_SELECT, "repeats", "least"),
    "a measurement": (*_SELECT, "rounds"),
}


def add_bench(command: argparse.ArgumentParser) -> None:
    """Options of the command, but for those that all commands have."""
    size = command.add_mutually_exclusive_group()
    # whatever was not given is None: that is how an option of another way to run is told
    size.add_argument(
        "--quick", action="store_true", default=None, help="two minutes on two CPU cores (the default)"
    )
    size.add_argument("--full", action="store_true", default=None, help="every shape, dtype and tower")
    command.add_argument("--device", help="cpu, cuda or cuda:N (default: cpu)")
    command.add_argument("--only", nargs="+", metavar="NAME", help="operators, or parts of names")
    command.add_argument("--dtype", choices=tuple(DTYPES), nargs="+", help="(default: the set's)")
    command.add_argument("--tokens", type=positive, nargs="+", help="only linear24, with so many tokens")
    command.add_argument("--rounds", type=positive, help="timed rounds of each case (default: the set's)")
    command.add_argument("--out", help="folder for bench.json, the page and its plots")
    way = command.add_mutually_exclusive_group()
    way.add_argument(
        "--compare", nargs=2, metavar=("OLD.json", "NEW.json"), help="what changed beyond the noise"
    )
    way.add_argument(
        "--against",
        nargs="+",
        metavar="VERSION",
        help="time this tree in turns with a commit or folder; or the second with the first of two",
    )
    command.add_argument("--repeats", type=positive, help=f"of --against: process pairs (default: {REPEATS})")
    command.add_argument("--least", type=float, help=f"smallest change that is flagged (default: {LEAST})")


def bench(args: argparse.Namespace) -> None:
    """Run the command; exits with status 1 if a case fails."""
    way = "--compare" if args.compare else "--against" if args.against else "a measurement"
    known = {option for options in _APPLY.values() for option in options}
    if wrong := sorted(known.difference(_APPLY[way]) & {k for k, v in vars(args).items() if v is not None}):
        raise ValueError(f"{', '.join(f'--{option}' for option in wrong)}: not for {way}")
    out = None if args.out is None else Path(args.out)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {out} is a file")
    least = LEAST if args.least is None else args.least
    if least < 0 or not math.isfinite(least):
        raise ValueError(f"--least: expected a fraction of at least 0, got {least:g}")
    if args.compare:
        _compare(args, out, least)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    device = _device(args.device or "cpu")
    selection = Selection(
        bool(args.full), tuple(args.only or ()), tuple(args.dtype or ()), tuple(args.tokens or ())
    )
    if args.against:
        _against(args, selection, device, out, least)
    else:
        _measure(args, selection, device, out)


def _measure(args: argparse.Namespace, selection: Selection, device: str, out: Path | None) -> None:
    record = run_bench(
        selection,
        device=device,
        rounds=args.rounds,
        out=None if out is None else out / "bench.json",
        say=partial(print, file=sys.stderr),
    )
    print(json.dumps(record) if args.json else bench_table(record))
    if out is not None:
        write_bench(record, out / "bench.html")
        write_plots(record, out)
        if not args.json:
            print(f"Page: {out / 'bench.html'}")
    failed = [row["name"] for row in record["rows"] if "error" in row]
    failed += ["the ceilings"] if "ceilings_error" in record else []
    if failed:
        raise SystemExit(f"vlprune bench: failed: {', '.join(failed)}")


def _compare(args: argparse.Namespace, out: Path | None, least: float) -> None:
    old, new = (_record(path) for path in args.compare)
    with whole(" or ".join(args.compare)):
        found = compare_records(old, new, least)
        notes = [f"differs: {line}" for line in differences(old, new)]
        labels = [
            f"{record['machine']['commit']} ({path})"
            for record, path in zip((old, new), args.compare, strict=True)
        ]
    if any(change.verdict == "unclear" for change in found):
        notes.append("--against tells more of what is unclear: it sees how processes differ")
    _print(args, found, labels[0], labels[1], notes, out)


def _against(
    args: argparse.Namespace, selection: Selection, device: str, out: Path | None, least: float
) -> None:
    if len(args.against) > 2:
        raise ValueError(f"--against: expected one or two versions, got {len(args.against)}")
    repeats = args.repeats or REPEATS
    if repeats < FEWEST:
        raise ValueError(f"--repeats: expected at least {FEWEST}, got {repeats}")
    # what fits no case is to be said before a version is built
    cases(selection, device)
    say = partial(print, file=sys.stderr)
    old = tree_of(args.against[0], say)
    new = tree_of(args.against[1], say) if len(args.against) > 1 else this_tree()
    found = against(old, new, selection, device=device, repeats=repeats, least=least, say=say)
    if not found:
        raise ValueError("--against: no case runs in both versions")
    _print(args, found, old.label, new.label, [f"{repeats} pairs of processes"], out)


def _print(
    args: argparse.Namespace, found: list[Change], old: str, new: str, notes: list[str], out: Path | None
) -> None:
    result: dict[str, Any] = {
        "format": "vlprune-changes",
        "old": old,
        "new": new,
        "notes": notes,
        "cases": [{**dataclasses.asdict(change), "verdict": change.verdict} for change in found],
    }
    print(json.dumps(result) if args.json else changes_table(found, old, new, notes))
    if out is not None:
        write_json(out / "changes.json", result)


def _record(path: str) -> dict[str, Any]:
    record = read_json(Path(path))
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"--compare: {path} is no result of vlprune bench")
    if record.get("version") != VERSION:
        raise ValueError(f"--compare: {path}: expected version {VERSION}, got {record.get('version')!r}")
    return record


def _device(name: str) -> str:
    """A device that is here, by the name it was given."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index is not None):
        raise ValueError(f"--device: expected cpu, cuda or cuda:N, got {name!r}")
    there = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= there:
        raise ValueError(f"--device: {name} asked for, and torch sees {there or 'no'} GPUs here")
    return name
