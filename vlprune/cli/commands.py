"""What each command does: thin calls of the library, and printing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import measure, ops
from ..bench import FORMAT as BENCH_FORMAT
from ..bench import VERSION as BENCH_VERSION
from ..bench import bench_table
from ..checkpoint import check_target, save_pretrained
from ..data import load_data
from ..distributed import is_first, of_first_rank
from ..evaluate import evaluate
from ..files import read_json
from ..pipeline import RECORD_VERSION, TRAINING_FORMAT, TRAINING_VERSION, RunOptions, run
from ..prune import prune_
from ..report import (
    STUDY_FORMAT,
    study_table,
    table,
    training_table,
    write_html,
    write_study,
    write_training,
)
from ..report.bench_page import write_bench
from ..report.frontier import FRONTIER_FORMAT, frontier_table, write_frontier
from ..sparsify import sparsify_
from ..structured import compact_
from .bench import bench
from .common import load, open_data, say_for, spec_of, whole
from .configs import variants_of
from .recover import recover
from .training import recovery_of, with_recovery

__all__ = ["COMMANDS"]

_VERSIONS = {
    "vlprune-report": RECORD_VERSION,
    TRAINING_FORMAT: TRAINING_VERSION,
    BENCH_FORMAT: BENCH_VERSION,
}

# By the format of a file: its table, and what writes its page.
_REPORTS = {
    "vlprune-report": (table, write_html),
    STUDY_FORMAT: (study_table, write_study),
    TRAINING_FORMAT: (training_table, write_training),
    BENCH_FORMAT: (bench_table, write_bench),
    FRONTIER_FORMAT: (frontier_table, write_frontier),
}


def _run(args: argparse.Namespace) -> None:
    variants = with_recovery(variants_of(args), recovery_of(args, args.recover, "recover-"))
    spec = spec_of(args)
    calib_spec = args.calib or ("demo:train" if spec == "demo" else spec)
    trains = any(variant.recovery or variant.between for variant in variants)
    if args.recover_data and not trains:
        raise ValueError("--recover-data: needs --recover beside it")
    train_spec = (args.recover_data or calib_spec) if trains else None
    out = Path(args.out)
    loaded = load(args)
    opened = {name: open_data(name, loaded, args) for name in {spec, calib_spec, train_spec or spec}}
    options = RunOptions(args.model, spec, calib_spec, args.limit, args.batch, args.rounds, train=train_spec)
    record = run(
        loaded.model,
        opened[spec],
        opened[calib_spec],
        variants,
        options,
        out,
        say_for(args),
        None if train_spec is None else opened[train_spec],
    )
    write_html(record, out / "report.html")
    print(json.dumps(record) if args.json else f"\n{table(record)}\nReport: {out / 'report.html'}")


def _prune(args: argparse.Namespace) -> None:
    (variant,) = variants_of(args)
    check_target(args.out)
    loaded = load(args)
    calib = load_data(args.data, loaded.preprocess, loaded.tokenizer) if args.data else None
    result: dict[str, Any] = {}
    lines: list[str] = []
    if variant.structured is not None:
        smaller = compact_(loaded.model, variant.structured, calib)
        result["compact"] = smaller.to_dict()
        lines.append(str(smaller))
    if variant.weights is not None:
        report = prune_(loaded.model, variant.weights, calib)
        result["prune"] = report.to_dict()
        lines.append(str(report))
    if args.pack:
        packed = sparsify_(loaded.model)
        result["sparsify"] = packed.to_dict()
        lines.append(str(packed))
    of_first_rank(lambda: save_pretrained(loaded.model, args.out))
    if is_first():
        print(json.dumps(result) if args.json else "\n".join([*lines, f"Saved to {args.out}"]))


def _eval(args: argparse.Namespace) -> None:
    spec = spec_of(args)
    loaded = load(args)
    data = open_data(spec, loaded, args)
    metrics = evaluate(loaded.model, data.subset(args.limit))
    if is_first():
        print(json.dumps(metrics.to_dict()) if args.json else metrics)


def _report(args: argparse.Namespace) -> None:
    path = Path(args.run)
    if path.suffix != ".json" or path.is_dir():
        path = path / "report.json"
    record = read_json(path)
    kind = record.get("format") if isinstance(record, dict) else None
    if kind not in _REPORTS:
        raise ValueError(f"{path}: expected a record of format {', '.join(_REPORTS)}, got {kind!r}")
    known = _VERSIONS.get(kind)
    if known is not None and record.get("version") != known:
        raise ValueError(f"{path}: expected version {known}, got {record.get('version')!r}")
    as_text, write = _REPORTS[kind]
    page = path.with_suffix(".html") if args.out is None else Path(args.out)
    with whole(path):
        text = as_text(record)
        write(record, page)
    print(json.dumps(record) if args.json else f"{text}\nReport: {page}")


def _info(args: argparse.Namespace) -> None:
    machine, table_of = measure.machine_info(), ops.backends()
    if args.json:
        print(json.dumps({"machine": machine, "backends": table_of}))
        return
    for key, value in machine.items():
        print(f"{key:10} {value}")
    print()
    for op, reasons in table_of.items():
        for backend, reason in reasons.items():
            print(f"{op:17} {backend:10} {'yes' if reason is None else 'no: ' + reason}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "run": _run,
    "prune": _prune,
    "recover": recover,
    "eval": _eval,
    "bench": bench,
    "report": _report,
    "info": _info,
}
