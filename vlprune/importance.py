"""What allocations measure on the dense model before anything is pruned: one number a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from .allocation import OWL, ECoFLaP
from .calibration import Calibration, Run, calibration_batches, collect
from .config import PruneConfig
from .distributed import hides_progress, own_share
from .losses import loss_and_batches
from .models import Block
from .token_weights import token_weighting
from .zeroth_order import zeroth_order_scores

__all__ = ["measure_importance", "outlier_ratio"]


def measure_importance(
    model: nn.Module,
    config: PruneConfig,
    blocks: Mapping[str, Block],
    layers: Mapping[str, Mapping[str, nn.Linear]],
    calib: Any,
    progress: bool | None = None,
) -> dict[str, float] | None:
    """Layer name -> what `config.allocation.importance` names, None if it names nothing.

    Args:
        model: an open_clip model in eval mode with its attention split; it is left as it was.
        config: its allocation asks; its token weight and samples count for "outliers".
        blocks: qualified name -> block, all towers.
        layers: block name -> its layers to prune.
        calib: as `prune_` takes it; it must not be an iterator, which could be read only once.
        progress: as `prune_` takes it.

    """
    if isinstance(config.allocation, ECoFLaP):
        return _zeroth_order(model, config.allocation, blocks, layers, calib, progress)
    if isinstance(config.allocation, OWL):
        return _outliers(model, config, config.allocation, blocks, layers, calib, progress)
    return None


def outlier_ratio(weights: Mapping[str, Tensor], norms: Mapping[str, Tensor], m: float) -> float:
    """Percentage of a block's Wanda scores that exceed m times the block's mean score: OWL's D.

    Args:
        weights: layer name -> weight [out, in] of the block.
        norms: layer name -> float32 [in].
        m: how many times the mean.

    """
    total, count, above = 0.0, 0, 0
    for name, weight in weights.items():
        # the sum of |W_ij| n_j without holding the scores
        total += float((weight.abs().float().sum(0) * norms[name]).double().sum())
        count += weight.numel()
    for name, weight in weights.items():
        above += int((weight.abs().float() * norms[name] > m * total / count).sum())
    return 100 * above / count


def _outliers(
    model: nn.Module,
    config: PruneConfig,
    allocation: OWL,
    blocks: Mapping[str, Block],
    layers: Mapping[str, Mapping[str, nn.Linear]],
    calib: Any,
    progress: bool | None,
) -> dict[str, float]:
    batches = calibration_batches(calib, config.samples, config.batch_size, "OWL")
    calibration = Calibration("norm", config.offload)
    runs = [Run(model, images, texts) for images, texts in batches]
    disable = hides_progress(progress)
    with tqdm(total=len(own_share(runs)), desc="outliers", unit="batch", disable=disable) as bar:
        collect(runs, blocks, layers, calibration, token_weighting(config.token_weight), bar.update)
    found: dict[str, float] = {}
    for group in layers.values():
        weights = {name: layer.weight.detach() for name, layer in group.items()}
        norms = {name: calibration.column_norm(name).to(weights[name].device) for name in group}
        found |= dict.fromkeys(group, outlier_ratio(weights, norms, allocation.m))
    return found


def _zeroth_order(
    model: nn.Module,
    allocation: ECoFLaP,
    blocks: Mapping[str, Block],
    layers: Mapping[str, Mapping[str, nn.Linear]],
    calib: Any,
    progress: bool | None,
) -> dict[str, float]:
    loss, batches = loss_and_batches(
        allocation.loss, model, calib, samples=allocation.samples, batch_size=allocation.batch_size
    )
    return zeroth_order_scores(
        model,
        {name: layer for group in layers.values() for name, layer in group.items()},
        {name: block.module for name, block in blocks.items()},
        batches,
        loss,
        epsilon=allocation.epsilon,
        draws=allocation.draws,
        seed=allocation.seed,
        progress=progress,
    )
