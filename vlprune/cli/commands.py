"""What each command does: thin calls of the library, and printing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import measure, ops
from ..bench import BENCH_TOKENS, bench_linear24, bench_table
from ..checkpoint import check_target, save_pretrained
from ..data import LabelledData, PairData, load_data
from ..evaluate import evaluate
from ..files import read_json, write_json
from ..models import LoadedModel, load_model
from ..pipeline import RECORD_VERSION, RunOptions, run
from ..prune import prune_
from ..report import STUDY_FORMAT, study_table, table, write_html, write_study
from ..sparsify import sparsify_
from ..structured import compact_
from .configs import variants_of

__all__ = ["COMMANDS"]

# By the format of a file: its table, and what writes its page.
_REPORTS = {"vlprune-report": (table, write_html), STUDY_FORMAT: (study_table, write_study)}

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _say(as_json: bool) -> Callable[[str], None]:
    """Progress goes to standard error when standard output is JSON."""
    return partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)


def _load(args: argparse.Namespace) -> LoadedModel:
    if args.threads:
        torch.set_num_threads(args.threads)
    name, pretrained = args.model, None
    # "hf-hub:org/name" and "local-dir:path" are open_clip's own forms of a name
    if not Path(name).exists() and not name.startswith(("hf-hub:", "local-dir:")):
        name, _, pretrained = name.partition(":")
    loaded = load_model(name, pretrained or None, device=args.device)
    if loaded.random_weights:
        print(f"{name}: no pretrained tag was given, the weights are random", file=sys.stderr)
    if args.dtype:
        loaded.model.to(_DTYPES[args.dtype])
    return loaded


def _open(spec: str, loaded: LoadedModel, args: argparse.Namespace) -> PairData | LabelledData:
    on_error = "skip" if args.skip_broken else "raise"
    return load_data(spec, loaded.preprocess, loaded.tokenizer, on_error=on_error)


def _spec(args: argparse.Namespace) -> str:
    if args.data:
        return str(args.data)
    if args.model == "demo":
        return "demo"
    raise ValueError("--data: required for every model but demo")


def _run(args: argparse.Namespace) -> None:
    say = _say(args.json)
    variants = variants_of(args)
    spec = _spec(args)
    calib_spec = args.calib or ("demo:train" if spec == "demo" else spec)
    out = Path(args.out)
    loaded = _load(args)
    data = _open(spec, loaded, args)
    calib = data if calib_spec == spec else _open(calib_spec, loaded, args)
    options = RunOptions(args.model, spec, calib_spec, args.limit, args.batch, args.rounds)
    record = run(loaded.model, data, calib, variants, options, out, say)
    write_html(record, out / "report.html")
    print(json.dumps(record) if args.json else f"\n{table(record)}\nReport: {out / 'report.html'}")


def _prune(args: argparse.Namespace) -> None:
    (variant,) = variants_of(args)
    check_target(args.out)
    loaded = _load(args)
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
    save_pretrained(loaded.model, args.out)
    print(json.dumps(result) if args.json else "\n".join([*lines, f"Saved to {args.out}"]))


def _eval(args: argparse.Namespace) -> None:
    spec = _spec(args)
    loaded = _load(args)
    data = _open(spec, loaded, args)
    metrics = evaluate(loaded.model, data.subset(args.limit))
    print(json.dumps(metrics.to_dict()) if args.json else metrics)


def _bench(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    dtypes = [_DTYPES[name] for name in args.dtype]
    if args.out and Path(args.out).is_dir():
        raise ValueError(f"--out: expected a file, {args.out} is a folder")
    rows = bench_linear24(args.tokens or BENCH_TOKENS, dtypes, rounds=args.rounds)
    record = {"machine": measure.machine_info(), "rows": rows}
    if args.out:
        write_json(Path(args.out), record)
    print(json.dumps(record) if args.json else bench_table(rows))


def _report(args: argparse.Namespace) -> None:
    path = Path(args.run)
    if path.suffix != ".json" or path.is_dir():
        path = path / "report.json"
    record = read_json(path)
    kind = record.get("format") if isinstance(record, dict) else None
    if kind not in _REPORTS:
        raise ValueError(f"{path}: neither the record of a vlprune run nor the file of a benchmark to draw")
    if kind == "vlprune-report" and record.get("version") != RECORD_VERSION:
        raise ValueError(f"{path}: expected version {RECORD_VERSION}, got {record.get('version')!r}")
    as_text, write = _REPORTS[kind]
    page = path.with_suffix(".html") if args.out is None else Path(args.out)
    try:
        text = as_text(record)
        write(record, page)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: incomplete record, {error} is missing") from error
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
    "eval": _eval,
    "bench": _bench,
    "report": _report,
    "info": _info,
}
