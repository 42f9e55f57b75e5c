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
    changes_table,
    compare_records,
    differences,
    run_bench,
    this_tree,
    tree_of,
)
from ..bench.against import REPEATS
from ..bench.case import DTYPES
from ..bench.noise import LEAST
from ..files import read_json, write_json
from ..report.bench_page import write_bench, write_plots
from .common import positive

__all__ = ["add_bench", "bench"]


def add_bench(command: argparse.ArgumentParser) -> None:
    """Options of the command, but for those that all commands have."""
    size = command.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="two minutes on two CPU cores (the default)")
    size.add_argument("--full", action="store_true", help="every shape, dtype and tower")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    command.add_argument("--only", nargs="+", default=[], metavar="NAME", help="operators, or parts of names")
    command.add_argument("--dtype", choices=tuple(DTYPES), nargs="+", default=[], help="(default: the set's)")
    command.add_argument(
        "--tokens", type=positive, nargs="+", default=[], help="only linear24, with so many tokens"
    )
    command.add_argument("--rounds", type=positive, help="timed rounds of each case (default: the set's)")
    command.add_argument("--out", help="folder for bench.json, the page and its plots")
    command.add_argument(
        "--compare", nargs=2, metavar=("OLD.json", "NEW.json"), help="what changed beyond the noise"
    )
    command.add_argument(
        "--against",
        nargs="+",
        metavar="VERSION",
        help="time this tree in turns with a commit or folder; or the second with the first of two",
    )
    command.add_argument(
        "--repeats", type=positive, default=REPEATS, help=f"of --against: process pairs (default: {REPEATS})"
    )
    command.add_argument(
        "--least", type=float, default=LEAST, help=f"smallest change that is flagged (default: {LEAST})"
    )


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.least < 0 or not math.isfinite(args.least):
        raise ValueError(f"--least: expected a fraction of at least 0, got {args.least:g}")
    if args.compare:
        _compare(args)
    elif args.against:
        _against(args)
    else:
        _measure(args)


def _selection(args: argparse.Namespace) -> Selection:
    return Selection(args.full, tuple(args.only), tuple(args.dtype), tuple(args.tokens))


def _measure(args: argparse.Namespace) -> None:
    out = None if args.out is None else Path(args.out)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {out} is a file")
    _check_device(args.device)
    record = run_bench(
        _selection(args),
        device=args.device,
        rounds=args.rounds,
        out=None if out is None else out / "bench.json",
        say=partial(print, file=sys.stderr),
    )
    if out is not None:
        write_bench(record, out / "bench.html")
        write_plots(record, out)
    print(json.dumps(record) if args.json else bench_table(record))
    if out is not None and not args.json:
        print(f"Page: {out / 'bench.html'}")
    if failed := [row["name"] for row in record["rows"] if "error" in row]:
        raise ValueError(f"{len(failed)} of {len(record['rows'])} cases failed: {', '.join(failed)}")


def _compare(args: argparse.Namespace) -> None:
    old, new = (_record(path) for path in args.compare)
    found = compare_records(old, new, args.least)
    notes = [f"differs: {line}" for line in differences(old, new)]
    labels = [f"{r['machine']['commit']} ({path})" for r, path in zip((old, new), args.compare, strict=True)]
    _print(args, found, labels[0], labels[1], notes)


def _against(args: argparse.Namespace) -> None:
    if len(args.against) > 2:
        raise ValueError(f"--against: expected one or two versions, got {len(args.against)}")
    if args.repeats < 3:
        raise ValueError(f"--repeats: expected at least 3, got {args.repeats}")
    _check_device(args.device)
    say = partial(print, file=sys.stderr)
    old = tree_of(args.against[0], say)
    new = tree_of(args.against[1], say) if len(args.against) > 1 else this_tree()
    found = against(
        old, new, _selection(args), device=args.device, repeats=args.repeats, least=args.least, say=say
    )
    if not found:
        raise ValueError("--against: no case runs in both versions")
    _print(args, found, old.label, new.label, [f"{args.repeats} pairs of processes"])


def _print(args: argparse.Namespace, found: list[Change], old: str, new: str, notes: list[str]) -> None:
    result: dict[str, Any] = {
        "format": "vlprune-changes",
        "old": old,
        "new": new,
        "notes": notes,
        "cases": [{**dataclasses.asdict(change), "verdict": change.verdict} for change in found],
    }
    if args.out is not None:
        write_json(Path(args.out) / "changes.json", result)
    print(json.dumps(result) if args.json else changes_table(found, old, new, notes))


def _record(path: str) -> dict[str, Any]:
    record = read_json(Path(path))
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"--compare: {path} is no result of vlprune bench")
    if record.get("version") != VERSION:
        raise ValueError(f"--compare: {path}: expected version {VERSION}, got {record.get('version')!r}")
    return record


def _check_device(device: str) -> None:
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {device!r}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device: {device} asked for, and torch sees no GPU here")
