"""Prune, evaluate, sparsify, measure: one model, several variants, all numbers in one record."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import measure
from .checkpoint import check_target, save_pretrained
from .config import PruneConfig
from .evaluate import Metrics, evaluate
from .example import example_inputs
from .files import read_json, write_json
from .fingerprint import add_weights
from .models import merge_attention_, split_attention_
from .patterns import Pattern
from .prune import prune_
from .sparsify import sparsify_
from .targets import select_layers

__all__ = ["RECORD_VERSION", "RunOptions", "run", "variant_name"]

RECORD_VERSION = 1

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunOptions:
    """What `run` needs to know besides the model, the data and the configs.

    Args:
        model: name shown in the report.
        data: evaluation spec shown in the report.
        calib: calibration spec shown in the report.
        limit: at most this many evaluation images, None for all.
        batch: images (and texts) a call when timing.
        rounds: timed rounds of every dense-sparse pair.
        backend: for `sparsify_`.

    """

    model: str
    data: str
    calib: str
    limit: int | None = None
    batch: int = 8
    rounds: int = 20
    backend: str = "auto"


def variant_name(config: PruneConfig) -> str:
    """Short name of a variant: "wanda 2:4", "magnitude 70%", "wanda 60% ecoflap"."""
    pattern = Pattern.parse(config.pattern)
    share = config.pattern if config.sparsity is None or pattern.m else f"{100 * config.sparsity:g}%"
    kind = config.allocation.kind
    return f"{config.method} {share}" + ("" if kind == "uniform" else f" {kind}")


def run(
    model: nn.Module,
    data: Any,
    calib: Any,
    configs: Sequence[PruneConfig],
    options: RunOptions,
    out: Path,
    say: Say = print,
) -> dict[str, Any]:
    """Measure the dense model and every variant, and return (and keep in `out`) the record.

    Each finished step is written at once, so a killed run continues where it was when started again
    with the same arguments. The last 2:4 variant is saved to ``out/model``.

    Args:
        model: the dense model; it is not changed.
        data: evaluation data of `load_data`.
        calib: calibration data of `load_data`.
        configs: one variant each.
        options: names, sizes, rounds.
        out: folder for the record and the pruned model.
        say: told about progress, a line at a time.

    """
    if not configs:
        raise ValueError("run: expected at least one config, got none")
    model.eval()
    out.mkdir(parents=True, exist_ok=True)
    check_target(out / "model")
    _check_targets(model, configs)
    steps = _Steps(out, _fingerprint(model, data, calib, options))
    dense = steps.get("dense", None, lambda: _evaluate(model, data, options, say, "dense"))
    last_24 = max((i for i, config in enumerate(configs) if config.pattern == "2:4"), default=None)
    variants = []
    for i, (config, name) in enumerate(
        zip(configs, _unique([variant_name(c) for c in configs]), strict=True)
    ):
        target = out / "model" if i == last_24 else None
        compute = partial(_variant, model, data, calib, config, name, options, target, say)
        variants.append(steps.get(json.dumps([name, config.to_dict()]), target, compute))
    parameter = next(model.parameters())
    record = {
        "format": "vlprune-report",
        "version": RECORD_VERSION,
        **dataclasses.asdict(options),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "machine": measure.machine_info(),
        "dense": {"metrics": dense, "bytes": sum(p.numel() * p.element_size() for p in model.parameters())},
        "variants": variants,
    }
    write_json(out / "report.json", record)
    return record


class _Steps:
    """Results of finished steps, kept beside the report under a fingerprint of the arguments."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.path = out / "progress.json"
        self.done: dict[str, Any] = {}
        self.fingerprint = fingerprint
        try:
            kept = read_json(self.path)
            if kept["fingerprint"] == fingerprint:
                self.done = dict(kept["steps"])
        except (OSError, ValueError, TypeError, KeyError):
            pass  # nothing kept, or nothing of use: start anew

    def get(self, key: str, folder: Path | None, compute: Callable[[], Any]) -> Any:
        """The kept result, unless the folder that it speaks of is gone; else compute and keep it."""
        if key not in self.done or (folder is not None and not folder.is_dir()):
            self.done[key] = compute()
            write_json(self.path, {"fingerprint": self.fingerprint, "steps": self.done})
        return self.done[key]


def _fingerprint(model: nn.Module, data: Any, calib: Any, options: RunOptions) -> str:
    """Everything besides the config that a result depends on: weights, buffers, data, options, machine."""
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(options), measure.machine_info()]).encode())
    add_weights(digest, model)
    for part in (data, calib):
        for i, image in enumerate(part.images):
            digest.update(f"{image.name} {part.text(i)}\n".encode())
    return digest.hexdigest()


def _check_targets(model: nn.Module, configs: Sequence[PruneConfig]) -> None:
    """A pattern that matches no layer is an error now, not after an hour of evaluation."""
    split = split_attention_(model)
    try:
        for config in configs:
            select_layers(model, config)
    finally:
        merge_attention_(model, split)


def _unique(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def _evaluate(model: nn.Module, data: Any, options: RunOptions, say: Say, name: str) -> dict[str, Any]:
    metrics: Metrics = evaluate(model, data.subset(options.limit))
    say(f"{name}: {metrics}")
    result: dict[str, Any] = metrics.to_dict()
    return result


def _variant(
    dense: nn.Module,
    data: Any,
    calib: Any,
    config: PruneConfig,
    name: str,
    options: RunOptions,
    target: Path | None,
    say: Say,
) -> dict[str, Any]:
    pruned = copy.deepcopy(dense)
    report = prune_(pruned, config, calib)
    say(str(report))
    result: dict[str, Any] = {
        "name": name,
        "config": config.to_dict(),
        "prune": report.to_dict(),
        "metrics": _evaluate(pruned, data, options, say, name),
    }
    images, texts = _example(pruned, data, options.batch)
    if config.pattern == "2:4":
        peers = _towers(pruned, images, texts)
        exact = (
            peers
            if images.dtype == torch.float32
            else _towers(copy.deepcopy(pruned).float(), images.float(), texts)
        )
        sparsified = sparsify_(pruned, backend=options.backend, example=(images, texts))
        say(f"{name}: {sparsified}")
        after = _towers(pruned, images, texts)
        errors = {
            tower: measure.check_close(f"{name}: {tower} tower", after[tower], exact[tower], peers[tower])
            for tower in after
        }
        result |= {
            "sparsify": sparsified.to_dict(),
            "packed_error": errors,
            "packed_metrics": _evaluate(pruned, data, options, say, f"{name}, packed"),
        }
    result["timing"] = _time_towers(dense, pruned, images, texts, options, say, name)
    if target is not None:
        save_pretrained(pruned, target)
        result["saved"] = {"folder": target.name, "bytes": (target / "model.safetensors").stat().st_size}
        say(f"{name}: saved to {target} ({result['saved']['bytes'] / 1e6:.1f} MB)")
    return result


def _example(model: nn.Module, data: Any, batch: int) -> tuple[Tensor, Tensor]:
    """A batch of exactly this size from the data, repeated if there is less of it."""
    images, texts = example_inputs(model, next(iter(data.batches(batch))))
    assert texts is not None
    rows = torch.arange(batch, device=images.device) % len(images)
    return images[rows], texts[rows]


@torch.inference_mode()
def _towers(model: Any, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    return {"image": model.encode_image(images), "text": model.encode_text(texts)}


@torch.inference_mode()
def _time_towers(
    dense: Any, variant: Any, images: Tensor, texts: Tensor, options: RunOptions, say: Say, name: str
) -> dict[str, Any]:
    calls = {
        "image": (lambda: dense.encode_image(images), lambda: variant.encode_image(images)),
        "text": (lambda: dense.encode_text(texts), lambda: variant.encode_text(texts)),
    }
    result = {}
    for tower, (before, after) in calls.items():
        times = measure.compare(
            {"dense": before, "variant": after}, device=images.device, rounds=options.rounds, max_seconds=60
        )
        speedup = times["dense"].median / times["variant"].median
        result[tower] = {key: timing.to_dict() for key, timing in times.items()} | {"speedup": speedup}
        say(f"{name}: {tower} tower, batch {options.batch}: {speedup:.2f}x dense")
    return result
