"""Prune a model: importance, allocation, then layer by layer; all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import models
from ..allocation import LayerInfo
from ..calibration import Calibration, Run, block_by_block, calibration_batches
from ..config import PruneConfig
from ..distributed import hides_progress, same_on_ranks, send_from_first, world_size
from ..fingerprint import fingerprint
from ..importance import measure_importance
from ..models.running import evaluating
from ..patterns import Pattern
from ..targets import select_layers
from ..token_weights import token_weighting
from .counts import layer_zeros
from .layer import prune_layer_
from .permutation import feeds
from .report import LayerReport, PruneReport
from .undo import Undo

__all__ = ["prune_"]

FilterFn = Callable[[nn.Module, str], bool]


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
    Ranks (see `vlprune.distributed`) share the calibration, and each gets the model of one process.

    Args:
        model: an open_clip model (see `vlprune.models.view`).
        config: method, pattern and where, e.g. ``WandaConfig(pattern="2:4")``. A second copy of the
            pruned weights is held until all is done, in CPU memory with ``offload=True``.
        calib: data of `load_data`, or batches: an iterable of ``(images, texts)`` tensors. Magnitude
            needs none (but OWL and ECoFLaP do). At most ``config.samples`` images are used.
        filter_fn: ``(module, qualified name) -> bool``, True for the layers to prune.
        progress: None shows a bar on a terminal, False never, True always.

    Raises:
        ValueError: a weight or a calibration input is not finite (the layer is named), no calibration
            data, a width that the pattern does not divide, ranks with different models or data. The model
            is then as it was before, and so it is after any other error or KeyboardInterrupt.
        NoMatchError: `targets` match no layer.

    """
    if not isinstance(config, PruneConfig):
        raise ValueError(f'config: expected a config such as WandaConfig(pattern="2:4"), got {config!r}')
    start = time.perf_counter()
    if isinstance(calib, Iterator) and config.needs_calibration:
        calib = _read(calib, config)
    split: list[str] = []
    undo = Undo(config.offload)
    with ExitStack() as stack:
        stack.callback(models.merge_attention_, model, split)
        split += models.split_attention_(model)
        stack.enter_context(evaluating(model))
        layers = select_layers(model, config, filter_fn)
        try:
            _check_weights(layers, config)
            if world_size() > 1:
                same_on_ranks("model", fingerprint(model, (), config.method))
            report = _prune_layers(model, layers, config, calib, undo, progress)
            # on GPUs of different kinds products may have been rounded differently
            send_from_first(parameter.data for parameter in undo.changed)
        except BaseException:
            undo.restore()
            raise
    return PruneReport(config.method, config.pattern, report, time.perf_counter() - start)


def _read(calib: Iterator[Any], config: PruneConfig) -> list[tuple[Tensor, Tensor]]:
    """As many batches as the allocation and the method need, since an iterator can be read only once."""
    samples = max(config.samples, getattr(config.allocation, "samples", 0))
    return calibration_batches(calib, samples, config.batch_size, config.method)


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
    undo: Undo,
    progress: bool | None,
) -> tuple[LayerReport, ...]:
    blocks = {block.name: block for tower in models.view(model).towers.values() for block in tower.blocks}
    inside = {
        name: {layer: layers[layer] for layer in block.linears() if layer in layers}
        for name, block in blocks.items()
    }
    inside = {name: group for name, group in inside.items() if group}
    block_of = {layer: blocks[name] for name, group in inside.items() for layer in group}
    infos = {
        name: LayerInfo(layers[name].weight.numel(), block.tower, block.name)
        for name, block in block_of.items()
    }
    importance = measure_importance(model, config, blocks, inside, calib, progress)
    pattern = Pattern.parse(config.pattern)
    shares = config.allocation.sparsities(infos, pattern, config.sparsity, importance)
    zeros: dict[str, int] = {}
    if config.allocation.exact_budget and pattern.m is None:
        zeros = layer_zeros({name: info.size for name, info in infos.items()}, shares)
    done: dict[str, LayerReport] = {}

    def prune(name: str, calibration: Calibration | None) -> None:
        feed_of = feeds(blocks[name])
        for layer in inside[name]:
            prune_layer_(
                layer,
                layers[layer],
                config,
                shares[layer],
                calibration,
                undo,
                feed_of.get(layer),
                zeros.get(layer),
            )
            rows, columns = layers[layer].weight.shape
            done[layer] = LayerReport(
                layer,
                (rows, columns),
                int((layers[layer].weight == 0).sum()),
                shares[layer],
                blocks[name].tower,
                blocks[name].index,
                None if importance is None else importance[layer],
            )
            bar.update()

    what, disable = f"{config.method} {config.pattern}", hides_progress(progress)
    with tqdm(total=len(layers), desc=what, unit="layer", disable=disable) as bar:
        if config.statistics is None:
            for name in inside:
                prune(name, None)
        else:
            batches = calibration_batches(calib, config.samples, config.batch_size, config.method)
            block_by_block(
                [Run(model, images, texts) for images, texts in batches],
                blocks,
                inside,
                prune,
                activations=config.activations,
                statistics=config.statistics,
                token_weight=token_weighting(config.token_weight),
                offload=config.offload,
            )
    if missed := [name for name in layers if name not in done]:
        raise ValueError(f"{missed[0]}: no calibration input reached this layer")
    return tuple(done[name] for name in layers)
