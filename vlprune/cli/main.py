"""Entry point: parse, run the command, turn bad input into one line and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .._version import __version__
from ..config import METHODS
from ..distributed import is_first, rank, under_torchrun, world_size
from ..ops.backend import asked
from .bench import add_bench
from .commands import COMMANDS
from .common import add_limits, positive
from .recover import add_recover
from .structured import add_structured
from .training import add_training

__all__ = ["main"]

# Commands that the processes of one job share.
_SHARED = ("prune", "recover", "eval")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 when done, 2 for bad input, 130 when interrupted.

    A process of torchrun that fails because of another one returns 1.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    with under_torchrun(getattr(args, "device", "cpu")):
        return _outcome(args)


def _outcome(args: argparse.Namespace) -> int:
    who = args.command if is_first() else f"{args.command} (process {rank()})"
    try:
        if world_size() > 1 and args.command not in _SHARED:
            raise ValueError(f"torchrun is for {', '.join(_SHARED)}; run it as one process")
        asked("auto")  # refuses a backend in the environment that is none, before any work
        COMMANDS[args.command](args)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has enough; nothing is left to say, also not at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("VLPRUNE_TRACEBACK"):
            raise
        print(f"vlprune {who}: {_one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # alone it is a fault of vlprune; with others it says which of them failed, or that one is gone
        if world_size() == 1 or os.environ.get("VLPRUNE_TRACEBACK"):
            raise
        print(f"vlprune {who}: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"vlprune {who}: interrupted", file=sys.stderr)
        return 130
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where the options are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help lists the options)\n")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="vlprune",
        description="Prune CLIP-style models, run them faster, and prove what that cost.",
    )
    parser.add_argument("--version", action="version", version=f"vlprune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    run = _add(commands, "run", "prune, evaluate, sparsify, measure and report")
    _model(run)
    _data(run)
    _method(run, several=True)
    add_structured(run)
    run.add_argument(
        "--recover", metavar="METHOD", help="train what was pruned: sparselora, distill or finetune"
    )
    run.add_argument("--recover-data", metavar="SPEC", help="training data (default: the calibration data)")
    add_training(run, "recover-")
    run.add_argument("--batch", type=positive, default=8, help="images a call when timing (default: 8)")
    run.add_argument(
        "--rounds", type=positive, default=20, help="timed rounds of each pair, more if short (default: 20)"
    )
    run.add_argument(
        "--out", default="vlprune-run", help="folder for report and model (default: vlprune-run)"
    )

    prune = _add(commands, "prune", "prune a model and save it")
    _model(prune)
    prune.add_argument("--data", help="calibration data; not needed for magnitude")
    _method(prune, several=False)
    add_structured(prune)
    prune.add_argument(
        "--pack", action="store_true", help="also swap in packed 2:4 layers where they are faster"
    )
    prune.add_argument("--out", required=True, help="folder for the pruned model")

    recover = _add(commands, "recover", "train a pruned model towards the dense one, zeros held")
    _model(recover)
    add_recover(recover)

    evaluate = _add(commands, "eval", "zero-shot accuracy or retrieval recall of a model")
    _model(evaluate)
    _data(evaluate)

    bench = _add(commands, "bench", "measure every operator and whole towers, or compare two measurements")
    add_bench(bench)
    _threads(bench)

    report = _add(
        commands, "report", "show a finished run again, or curves of a benchmark, and write the page"
    )
    report.add_argument(
        "run",
        help="folder of `vlprune run`, or a record of recover, bench, benchmarks/mope.py or frontier.py",
    )
    report.add_argument("--out", help="page to write (default: beside the record)")

    _add(commands, "info", "machine, versions, and what each backend can do here")
    return parser


def _add(commands: argparse._SubParsersAction[_Parser], name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    return command


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help='open_clip NAME[:PRETRAINED], a saved folder, or "demo"')
    command.add_argument("--dtype", choices=("fp32", "bf16"), help="(default: as the model is)")
    command.add_argument("--device", default="cpu", help="(default: cpu)")
    _threads(command)


def _threads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", type=positive, help="CPU threads (default: torch's own choice)")


def _data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        help="demo, folder:DIR, coco:FILE.json:IMAGES, pairs:FILE.tsv or wds:GLOB.tar (demo model: demo)",
    )
    add_limits(command)


def _method(command: argparse.ArgumentParser, *, several: bool) -> None:
    many = "+" if several else None
    command.add_argument("--method", nargs=many, help=f"{', '.join(METHODS)}, or none (default: wanda)")
    command.add_argument("--pattern", nargs=many, help='"2:4", any n:m, or unstructured (default: 2:4)')
    command.add_argument(
        "--sparsity", nargs=many, type=float, help="fraction of zeros of the unstructured pattern"
    )
    command.add_argument(
        "--allocation",
        nargs=many,
        help="how unstructured sparsity is shared out: uniform, ecoflap, owl, per_tower:visual=0.4,text=0.6, "
        "or a JSON file (default: uniform)",
    )
    command.add_argument(
        "--scope", choices=("row", "layer"), help="unstructured scores are compared in it (default: row)"
    )
    command.add_argument(
        "--activations",
        choices=("sequential", "dense"),
        help="calibration sees the layers before pruned, or as they were (default: sequential)",
    )
    command.add_argument(
        "--targets", nargs="+", help="visual, text, or patterns of layer names (default: all)"
    )
    command.add_argument("--ignore", nargs="+", help="the same, left out")
    command.add_argument(
        "--token-weight",
        help="tokens that count in the statistics: attention_mask, atv:alpha=1, modality:text=0.5",
    )
    command.add_argument("--config", nargs=many, help="JSON file of configs, instead of options")
    command.add_argument("--samples", type=positive, help="calibration images (default: 128)")
    if several:
        command.add_argument("--calib", help="calibration data (default: the evaluation data's images)")
