"""Options that say how a pruned model is trained."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import read_json
from ..pipeline import RECOVERY_METHODS, Recovery, Variant

__all__ = ["add_training", "recovery_of", "with_recovery"]

# Field, other names for it, and what it is. Values are checked where configs are made, with one line.
_NUMBERS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("steps", (), "optimizer steps (default: as many as the epochs have)"),
    ("epochs", (), "passes over the training data (default: 1)"),
    ("batch_size", (), "images a step, of all processes together (default: 32)"),
    ("learning_rate", ("lr",), "the highest (default: 1e-4 of adapters, 2e-5 of weights)"),
    ("final_learning_rate", (), "share of it at the end (default: 0.1 of adapters, 0 of weights)"),
    ("warmup", (), "share of the steps in which it rises (default: 0 of adapters, 0.1 of weights)"),
    ("weight_decay", ("wd",), "(default: 0 of adapters, 3e-4 of weights)"),
    ("clip_norm", ("grad-clip-norm",), "largest norm of the gradients (default: 1.0)"),
    ("ema", (), "decay of a running mean of the weights, which the model has at the end"),
    ("seed", (), "of the order of the data, of adapters and of dropout (default: 0)"),
    ("save_every", (), "steps between checkpoints (default: 100)"),
    ("samples", (), "at most this many training images"),
    ("rank", (), "of the adapters (default: 8)"),
    ("alpha", (), "of the adapters: their factor is alpha / rank (default: 16)"),
    ("lam", (), "adapters learn by (1 - lam) * task + lam * KL to the teacher (default: 0.1)"),
    ("itc", (), "weight of the contrastive loss (default: 1)"),
    ("sim", (), "weight of the similarities' cross-entropy with the teacher's (default: 1)"),
    ("feat", (), "weight of the embeddings' difference from the teacher's (default: 1000)"),
    ("hidden", (), "weight of the hidden states' difference from the teacher's (default: 1)"),
)
_CHOICES = (
    ("amp", "bf16 or fp16: train under autocast"),
    ("teacher_amp", "bf16: the teacher under autocast"),
)
_FLAGS = (
    ("checkpointing", ("grad-checkpointing",), "compute activations again instead of keeping them"),
    ("shard", (), "under torchrun: every process holds a part of weights and optimizer (FSDP2)"),
)
_LISTS = (
    ("towers", "visual, text: the towers that are trained and compared (default: both)"),
    ("targets", "visual, text, or patterns of layers that get adapters (default: all)"),
    ("ignore", "the same, left out"),
)
_FIELDS = (
    *(name for name, *_ in (*_NUMBERS, *_FLAGS)),
    *(name for name, _ in (*_CHOICES, *_LISTS)),
    "retained",
)


def add_training(command: argparse.ArgumentParser, prefix: str = "") -> None:
    """Add the options to a command, each name after `prefix`; `recovery_of` reads them."""
    about = "Defaults are those of the papers; with captions missing, give itc 0, sim 0 and towers visual."
    group = command.add_argument_group("training", about)
    for name, others, text in _NUMBERS:
        _add(group, prefix, name, others, text, type=_number, metavar="N")
    for name, text in _CHOICES:
        _add(group, prefix, name, (), text, metavar="DTYPE")
    for name, others, text in _FLAGS:
        _add(group, prefix, name, others, text, action="store_const", const=True)
    for name, text in _LISTS:
        _add(group, prefix, name, (), text, nargs="+", metavar="NAME")
    if not prefix:  # a run knows which layers it left
        _add(
            group, prefix, "retained", (), "layers of the teacher that are left: visual=0,1,3", nargs="+",
            metavar="TOWER=LAYERS",
        )  # fmt: skip
    _add(group, prefix, "config", (), "JSON file of all of it, instead of options", metavar="FILE")


def recovery_of(args: argparse.Namespace, method: str | None, prefix: str = "") -> Recovery | None:
    """The training that the options ask for, None for none (which then no option may be given for).

    Args:
        args: of a command that `add_training` was called for.
        method: one of `RECOVERY_METHODS`, or None where only a config file could name one.
        prefix: of the options.

    Raises:
        ValueError: what is wrong with which option.

    """
    given = {name: value for name in _FIELDS if (value := getattr(args, _dest(name), None)) is not None}
    named = _option("recover" if prefix else "method")
    if method is not None and method not in RECOVERY_METHODS:
        # a run holds the zeros, which lora cannot
        offered = [each for each in RECOVERY_METHODS if each != "lora" or not prefix]
        raise ValueError(f"{named}: expected one of {', '.join(offered)}, got {method!r}")
    if (file := getattr(args, _dest("config"))) is not None:
        asked = [*([named] if method is not None else []), *(_option(prefix + name) for name in given)]
        if asked:
            raise ValueError(f"{_option(prefix + 'config')}: the file says all of it; leave out {asked[0]}")
        content = read_json(Path(file))
        if not isinstance(content, dict):
            raise ValueError(f"{file}: expected an object of settings, got {content!r:.80}")
        try:
            return Recovery.from_dict(content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from error
    if method is None:
        if given:
            raise ValueError(f"{_option(prefix + next(iter(given)))}: needs {named} beside it")
        return None
    if "retained" in given:
        given["retained"] = _layers(given["retained"], _option(prefix + "retained"))
    try:
        return Recovery.from_dict({"method": method, **given})
    except ValueError as error:
        name, colon, rest = str(error).partition(": ")
        shown = f"{_option(prefix + name)}: {rest}" if colon and name in _FIELDS else str(error)
        raise ValueError(shown) from error


def with_recovery(variants: Sequence[Variant], recovery: Recovery | None) -> list[Variant]:
    """The variants, each before and after training; what was taken out is trained before weights go."""
    if recovery is None:
        return list(variants)
    if recovery.method == "lora":
        raise ValueError("--recover: lora fills the zeros that pruning made; expected sparselora, finetune, "
                         "distill")  # fmt: skip
    result: list[Variant] = []
    for variant in variants:
        own = variant
        if variant.weights is not None and variant.structured is not None and variant.between is None:
            own = dataclasses.replace(variant, between=recovery)
        after = own if own.recovery is not None else dataclasses.replace(own, recovery=recovery)
        result += [one for one in (own.before, after) if one not in result]
    return result


def _add(
    group: argparse._ArgumentGroup, prefix: str, name: str, others: Sequence[str], text: str, **kwargs: Any
) -> None:
    flags = [_option(prefix + own) for own in (name, *others)]
    group.add_argument(*flags, dest=_dest(name), help=text, **kwargs)


def _dest(name: str) -> str:
    """Apart from other options' names, such as the calibration's samples."""
    return f"training_{name}"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _number(text: str) -> Any:
    """A number, or the text as it is: what is made of it says what it expected."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _layers(texts: Sequence[str], option: str) -> dict[str, list[int]]:
    result: dict[str, list[int]] = {}
    for text in texts:
        tower, equals, layers = text.partition("=")
        try:
            result[tower] = [int(layer) for layer in layers.split(",")]
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(f"{option}: expected TOWER=LAYER,LAYER,..., got {text!r}")
    return result
