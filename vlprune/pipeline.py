"""Prune, evaluate, sparsify, measure: one model, several variants, all numbers in one record."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import measure
from .checkpoint import save_pretrained
from .config import PruneConfig
from .evaluate import Metrics, evaluate
from .example import example_inputs
from .files import read_json, write_json
from .patterns import Pattern
from .prune import prune_
from .sparsify import SparsifyReport, sparsify_

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
    """Short name of a variant: "wanda 2:4", "magnitude 70%"."""
    pattern = Pattern.parse(config.pattern)
    share = config.pattern if pattern.m else f"{100 * pattern.resolve_sparsity(config.sparsity):g}%"
    return f"{config.method} {share}"


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
    with the same arguments. The first 2:4 variant of the last method is saved to ``out/model``.

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
    saved = next((c for c in reversed(configs) if c.pattern == "2:4"), None)
    steps = _Steps(out, _fingerprint(model, configs, options))
    dense = steps.get("dense", lambda: _evaluate(model, data, options, say, "dense"))
    variants = []
    for config in configs:
        target = out / "model" if config is saved else None
        variants.append(
            steps.get(
                variant_name(config),
                lambda c=config, t=target: _variant(model, data, calib, c, options, t, say),  # type: ignore[misc]
            )
        )
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
        if self.path.exists():
            kept = read_json(self.path)
            if kept.get("fingerprint") == fingerprint:
                self.done = kept["steps"]

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        if name not in self.done:
            self.done[name] = compute()
            write_json(self.path, {"fingerprint": self.fingerprint, "steps": self.done})
        return self.done[name]


def _fingerprint(model: nn.Module, configs: Sequence[PruneConfig], options: RunOptions) -> str:
    text = json.dumps([dataclasses.asdict(options), [c.to_dict() for c in configs], measure.machine_info()])
    digest = hashlib.sha256(text.encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{float(parameter.detach().float().norm())}".encode())
    return digest.hexdigest()


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
    options: RunOptions,
    target: Path | None,
    say: Say,
) -> dict[str, Any]:
    name = variant_name(config)
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
        before = _towers(pruned, images, texts)
        sparsified = sparsify_(pruned, backend=options.backend, example=(images, texts))
        say(f"{name}: {sparsified}")
        result |= _packed(pruned, sparsified, before, images, texts, data, options, say, name)
    result["timing"] = _time_towers(dense, pruned, images, texts, options, say, name)
    if target is not None:
        save_pretrained(pruned, target)
        result["saved"] = {"folder": target.name, "bytes": (target / "model.safetensors").stat().st_size}
        say(f"{name}: saved to {target} ({result['saved']['bytes'] / 1e6:.1f} MB)")
    return result


def _packed(
    model: nn.Module,
    report: SparsifyReport,
    before: dict[str, Tensor],
    images: Tensor,
    texts: Tensor,
    data: Any,
    options: RunOptions,
    say: Say,
    name: str,
) -> dict[str, Any]:
    """Outputs and accuracy must be what they were before the layers were packed."""
    after = _towers(model, images, texts)
    errors = {
        tower: measure.check_close(f"{name}: {tower} tower", after[tower], y) for tower, y in before.items()
    }
    metrics = _evaluate(model, data, options, say, f"{name}, packed")
    return {"sparsify": report.to_dict(), "packed_metrics": metrics, "packed_error": errors}


def _example(model: nn.Module, data: Any, batch: int) -> tuple[Tensor, Tensor]:
    """A batch of exactly this size from the data, repeated if there is less of it."""
    images, texts = example_inputs(model, next(iter(data.batches(batch))))
    assert texts is not None
    rows = torch.arange(batch, device=images.device) % len(images)
    return images[rows], texts[rows]


@torch.no_grad()
def _towers(model: Any, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    return {"image": model.encode_image(images), "text": model.encode_text(texts)}


@torch.no_grad()
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
