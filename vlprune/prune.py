"""The first verb: set weights to exact zero, in place, and say what was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import models, scoring
from .calibrate import Calibration, Run, collect, sequential
from .config import MagnitudeConfig, PruneConfig
from .patterns import Pattern
from .targets import select_layers

__all__ = ["LayerReport", "PruneReport", "prune_"]

FilterFn = Callable[[nn.Module, str], bool]


@dataclass(frozen=True)
class LayerReport:
    """One pruned weight: its layer, shape and exact number of zeros."""

    name: str
    shape: tuple[int, int]
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return self.zeros / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class PruneReport:
    """What `prune_` did: method, pattern, every layer, seconds."""

    method: str
    pattern: str
    layers: tuple[LayerReport, ...]
    seconds: float

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all pruned weights."""
        total = sum(layer.shape[0] * layer.shape[1] for layer in self.layers)
        return sum(layer.zeros for layer in self.layers) / total

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "sparsity": self.sparsity}

    def __str__(self) -> str:
        zeros = sum(layer.zeros for layer in self.layers)
        return (
            f"{self.method} {self.pattern}: {len(self.layers)} layers, {zeros:,} weights set to zero, "
            f"sparsity {self.sparsity:.4f}, {self.seconds:.1f} s"
        )


def prune_(
    model: nn.Module,
    config: PruneConfig,
    calib: Any = None,
    *,
    filter_fn: FilterFn | None = None,
    progress: bool | None = None,
) -> PruneReport:
    """Prune the linear layers of a model's blocks in place; it stays an ordinary dense model with zeros.

    Packed attention projections are seen as linear layers while this runs and folded back afterwards.

    Args:
        model: an open_clip model (see `vlprune.models.view`).
        config: method, pattern and where, e.g. ``WandaConfig(pattern="2:4")``.
        calib: data of `load_data`, or batches: an iterable of ``(images, texts)`` tensors. Magnitude
            needs none.
        filter_fn: ``(module, qualified name) -> bool``, True for the layers to prune.
        progress: None shows a bar on a terminal, False never, True always.

    Raises:
        ValueError: a weight or a calibration input is not finite (the layer is named), no calibration
            data, a width that the pattern does not divide. The model is then as it was before.
        NoMatchError: `targets` match no layer.

    """
    start = time.perf_counter()
    split = models.split_attention_(model)
    training = model.training
    model.eval()
    saved: dict[str, Tensor] = {}
    try:
        layers = select_layers(model, config, filter_fn)
        _check_weights(layers, config)
        with tqdm(
            total=len(layers),
            desc=f"{config.method} {config.pattern}",
            unit="layer",
            disable=None if progress is None else not progress,
        ) as bar:
            _prune_layers(model, layers, config, calib, saved, bar)
        report = tuple(_report(name, layer) for name, layer in layers.items())
    except BaseException:
        for name, weight in saved.items():
            model.get_submodule(name).weight.data.copy_(weight)  # type: ignore[operator]
        raise
    finally:
        model.train(training)
        models.merge_attention_(model, split)
    return PruneReport(config.method, config.pattern, report, time.perf_counter() - start)


def _check_weights(layers: Mapping[str, nn.Linear], config: PruneConfig) -> None:
    pattern = Pattern.parse(config.pattern)
    for name, layer in layers.items():
        pattern.check_inputs(layer.in_features, name)
        weight = layer.weight.detach()
        bad = ~weight.isfinite()
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            value = float(weight[row, column])
            raise ValueError(
                f"{name}: weight [{row}, {column}] is {value}; only finite weights can be pruned"
            )


def _prune_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    config: PruneConfig,
    calib: Any,
    saved: dict[str, Tensor],
    bar: Any,
) -> None:
    sparsity = Pattern.parse(config.pattern).resolve_sparsity(config.sparsity)
    shares = config.allocation.sparsities({n: m.weight.numel() for n, m in layers.items()}, sparsity)

    def prune(names: Iterable[str], calibration: Calibration | None) -> None:
        for name in names:
            mask = _keep_mask(name, layers[name].weight.detach(), config, shares[name], calibration)
            saved[name] = layers[name].weight.detach().clone()
            layers[name].weight.data.masked_fill_(~mask, 0.0)
            bar.update()

    if not config.needs_calibration:
        prune(layers, None)
        return
    runs = _runs(model, calib, config)
    if config.activations == "dense":
        prune(layers, collect(runs, layers, config.token_weight))
        return
    blocks = {b.name: b for tower in models.view(model).towers.values() for b in tower.blocks}
    inside = {n: [layer for layer in b.linears() if layer in layers] for n, b in blocks.items()}
    chosen = {name: blocks[name].module for name, names in inside.items() if names}
    sequential(
        runs,
        {name: block.module for name, block in blocks.items()},
        lambda block: {name: layers[name] for name in inside[block]},
        lambda block, calibration: prune(inside[block], calibration),
        config.token_weight,
    )
    if missed := [name for name in layers if name not in saved]:
        raise ValueError(
            f"{missed[0]}: no calibration input reached this layer ({len(chosen)} blocks targeted)"
        )


def _keep_mask(
    name: str, weight: Tensor, config: PruneConfig, sparsity: float, calibration: Calibration | None
) -> Tensor:
    pattern = Pattern.parse(config.pattern)
    if isinstance(config, MagnitudeConfig) or calibration is None:
        return scoring.magnitude_mask(weight, pattern, sparsity, config.scope)
    return scoring.wanda_mask(weight, calibration.column_norm(name), pattern, sparsity, config.scope)


def _runs(model: nn.Module, calib: Any, config: PruneConfig) -> list[Run]:
    """One function a batch: the model's whole forward on it."""
    if calib is None:
        raise ValueError(f"calib: {config.method} needs calibration data, e.g. vlprune.load_data(...)")
    where = next(model.parameters())
    batches = calib.batches(config.batch_size, limit=config.samples) if hasattr(calib, "batches") else calib
    runs: list[Run] = []
    for batch in batches:
        images, texts = (batch.images, batch.texts) if hasattr(batch, "images") else batch
        runs.append(partial(model, images.to(where.device, where.dtype), texts.to(where.device)))
    if not runs:
        raise ValueError("calib: expected at least one batch of images and texts, got none")
    return runs


def _report(name: str, layer: nn.Linear) -> LayerReport:
    rows, columns = layer.weight.shape
    return LayerReport(name, (rows, columns), int(torch.count_nonzero(layer.weight == 0)))
