"""What several commands do alike: load a model, open data, say how it goes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from ..data import LabelledData, PairData, load_data
from ..distributed import is_first
from ..models import LoadedModel, load_model

__all__ = ["add_limits", "load", "open_data", "positive", "say_for", "spec_of", "whole"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def positive(text: str) -> int:
    """A count, as argparse reads it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return value


@contextmanager
def whole(path: object) -> Iterator[None]:
    """What a record lacks, or has in another form, is one error that names its file."""
    try:
        yield
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: incomplete record, {error} is missing") from error


def add_limits(command: argparse.ArgumentParser) -> None:
    """Options of every command that evaluates."""
    command.add_argument("--limit", type=positive, help="at most this many evaluation images")
    command.add_argument("--skip-broken", action="store_true", help="leave broken images out, and count them")


def say_for(args: argparse.Namespace) -> Callable[[str], None]:
    """What tells about progress: on standard error when standard output is JSON."""
    return partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)


def load(args: argparse.Namespace, name: str | None = None) -> LoadedModel:
    """Load `args.model`, or another one by name, with the threads, device and dtype that were asked for."""
    if args.threads:
        torch.set_num_threads(args.threads)
    name, pretrained = args.model if name is None else name, None
    # "hf-hub:org/name" and "local-dir:path" are open_clip's own forms of a name
    if not Path(name).exists() and not name.startswith(("hf-hub:", "local-dir:")):
        name, _, pretrained = name.partition(":")
    loaded = load_model(name, pretrained or None, device=args.device)
    if loaded.random_weights and is_first():
        print(f"{name}: no pretrained tag was given, the weights are random", file=sys.stderr)
    if args.dtype:
        loaded.model.to(_DTYPES[args.dtype])
    return loaded


def open_data(spec: str, loaded: LoadedModel, args: argparse.Namespace) -> PairData | LabelledData:
    """Data of a spec, prepared as the model wants it."""
    on_error = "skip" if args.skip_broken else "raise"
    return load_data(spec, loaded.preprocess, loaded.tokenizer, on_error=on_error)


def spec_of(args: argparse.Namespace) -> str:
    """The evaluation data's spec; only the demo has one of its own."""
    if args.data:
        return str(args.data)
    if args.model == "demo":
        return "demo"
    raise ValueError("--data: required for every model but demo")
