"""The first verb: set weights to exact zero, in place, and say what was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import models, scoring
from .allocation import LayerInfo
from .calibrate import Calibration, Run, collect, sequential
from .config import PruneConfig
from .models.running import evaluating, image_dtype, model_device
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


@torch.inference_mode(False)
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
            needs none. At most ``config.samples`` images are used.
        filter_fn: ``(module, qualified name) -> bool``, True for the layers to prune.
        progress: None shows a bar on a terminal, False never, True always.

    Raises:
        ValueError: a weight or a calibration input is not finite (the layer is named), no calibration
            data, a width that the pattern does not divide. The model is then as it was before.
        NoMatchError: `targets` match no layer.

    """
    if not isinstance(config, PruneConfig):
        raise ValueError(f'config: expected a config such as WandaConfig(pattern="2:4"), got {config!r}')
    start = time.perf_counter()
    split: list[str] = []
    saved: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.callback(models.merge_attention_, model, split)
        split += models.split_attention_(model)
        stack.enter_context(evaluating(model))
        layers = select_layers(model, config, filter_fn)
        try:
            _check_weights(layers, config)
            with tqdm(
                total=len(layers),
                desc=f"{config.method} {config.pattern}",
                unit="layer",
                disable=None if progress is None else not progress,
            ) as bar:
                _prune_layers(model, layers, config, calib, saved, bar)
        except BaseException:
            for name, weight in saved.items():
                layers[name].weight.data.copy_(weight)
            raise
        report = tuple(_report(name, layer) for name, layer in layers.items())
    return PruneReport(config.method, config.pattern, report, time.perf_counter() - start)


def _check_weights(layers: Mapping[str, nn.Linear], config: PruneConfig) -> None:
    pattern = Pattern.parse(config.pattern)
    for name, layer in layers.items():
        if "weight" not in layer._parameters:
            raise ValueError(f"{name}: its weight is computed by a parametrization; remove that first")
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
    view = models.view(model)
    blocks = {block.name: block for tower in view.towers.values() for block in tower.blocks}
    inside = {
        name: {layer: layers[layer] for layer in block.linears() if layer in layers}
        for name, block in blocks.items()
    }
    infos = {
        layer: LayerInfo(layers[layer].weight.numel(), blocks[name].tower, name)
        for name, group in inside.items()
        for layer in group
    }
    shares = config.allocation.sparsities(infos, Pattern.parse(config.pattern), config.sparsity)

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
    sequential(
        runs,
        {name: block.module for name, block in blocks.items()},
        {name: group for name, group in inside.items() if group},
        lambda block, calibration: prune(inside[block], calibration),
        config.token_weight,
    )
    if missed := [name for name in layers if name not in saved]:
        raise ValueError(f"{missed[0]}: no calibration input reached this layer")


def _keep_mask(
    name: str, weight: Tensor, config: PruneConfig, sparsity: float, calibration: Calibration | None
) -> Tensor:
    pattern = Pattern.parse(config.pattern)
    if calibration is None:
        return scoring.magnitude_mask(weight, pattern, sparsity, config.scope)
    return scoring.wanda_mask(weight, calibration.column_norm(name), pattern, sparsity, config.scope)


def _runs(model: nn.Module, calib: Any, config: PruneConfig) -> list[Run]:
    """One function a batch: the model's whole forward on it."""
    device, dtype = model_device(model), image_dtype(model)
    return [
        partial(model, images.to(device, dtype), texts.to(device))
        for images, texts in _batches(calib, config)
    ]


def _batches(calib: Any, config: PruneConfig) -> list[tuple[Tensor, Tensor]]:
    if calib is None:
        raise ValueError(f"calib: {config.method} needs calibration data, e.g. vlprune.load_data(...)")
    if hasattr(calib, "batches"):
        given: Any = ((b.images, b.texts) for b in calib.batches(config.batch_size, limit=config.samples))
    else:
        given = [calib] if _is_pair(calib) else calib
    batches: list[tuple[Tensor, Tensor]] = []
    left = config.samples
    for batch in given if isinstance(given, Iterable) else ():
        if not _is_pair(batch):
            batches = []
            break
        if left > 0:
            batches.append((batch[0][:left], batch[1][:left]))
            left -= len(batch[0])
    if not batches:
        raise ValueError(
            "calib: expected data of load_data, or at least one batch (images, texts) of two tensors, "
            f"got {calib!r:.80}"
        )
    return batches


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, Tensor) for v in value)


def _report(name: str, layer: nn.Linear) -> LayerReport:
    rows, columns = layer.weight.shape
    return LayerReport(name, (rows, columns), int(torch.count_nonzero(layer.weight == 0)))
