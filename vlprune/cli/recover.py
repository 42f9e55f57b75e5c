"""`vlprune recover`: a pruned model trained towards the dense one that it was."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .. import pipeline
from ..distributed import is_first
from ..files import read_json
from ..pipeline import RECOVERY_METHODS, TRAINING_FORMAT
from ..report import training_table, write_training
from .common import add_limits, load, open_data, say_for
from .training import add_training, recovery_of

__all__ = ["add_recover", "recover"]


def add_recover(command: argparse.ArgumentParser) -> None:
    """Options of the command, but for those that all commands have."""
    command.add_argument("--teacher", required=True, help="the dense model that MODEL was: a name or folder")
    command.add_argument("--data", required=True, metavar="SPEC", help="training data, such as wds:GLOB.tar")
    command.add_argument(
        "--method",
        help=f"{', '.join(RECOVERY_METHODS)} (default: sparselora); lora fills the zeros",
    )
    command.add_argument("--eval", metavar="SPEC", help="evaluate before and after on this data")
    add_limits(command)
    add_training(command)
    command.add_argument("--out", required=True, help="folder for model, log, checkpoint and report")


def recover(args: argparse.Namespace) -> None:
    """Train, save and report; under torchrun the processes share the work and the first one tells."""
    method = args.method
    if method is None and args.training_config is None:
        method = "sparselora"
    recovery = recovery_of(args, method)
    assert recovery is not None
    out = Path(args.out)
    _check_out(out, args.model)
    loaded, teacher = load(args), load(args, args.teacher)
    data = open_data(args.data, loaded, args)
    test = None if args.eval is None else open_data(args.eval, loaded, args).subset(args.limit)
    record = pipeline.recover(
        loaded.model,
        teacher.model,
        data,
        recovery,
        out,
        names={"model": args.model, "teacher": args.teacher, "data": args.data, "test": args.eval},
        test=test,
        say=say_for(args),
    )
    if is_first():
        write_training(record, out / "report.html")
        shown = f"\n{training_table(record)}\nReport: {out / 'report.html'}"
        print(json.dumps(record) if args.json else shown)


def _check_out(out: Path, model: str) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {out} is a file")
    if (out / "model").resolve() == Path(model).resolve() and Path(model).exists():
        raise ValueError(f"--out: {out / 'model'} is the pruned model itself; give another folder")
    if (report := out / "report.json").exists():
        content = read_json(report)
        if not isinstance(content, dict) or content.get("format") != TRAINING_FORMAT:
            raise ValueError(f"--out: {report} is the report of something else; give another folder")
