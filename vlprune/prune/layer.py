"""What each method makes of one layer: new weights with exact zeros."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .. import scoring
from ..calibration import Calibration
from ..config import PruneConfig, RIAConfig, SparseGPTConfig, WandaConfig
from ..patterns import Pattern
from .permutation import Feed, input_order, reorder_inputs_
from .undo import Undo

__all__ = ["prune_layer_"]


def prune_layer_(
    name: str,
    layer: nn.Linear,
    config: PruneConfig,
    sparsity: float,
    calibration: Calibration | None,
    undo: Undo,
    feed: Feed | None = None,
) -> None:
    """Prune one layer in place.

    Args:
        name: its qualified name.
        layer: nn.Linear with a plain weight [out, in].
        config: the method and the pattern.
        sparsity: fraction of zeros that the allocation gives it.
        calibration: statistics of its inputs, None for a method without.
        undo: told of every parameter before it changes.
        feed: what feeds it, if its inputs can be reordered; see `vlprune.permutation`.

    """
    pattern = Pattern.parse(config.pattern)
    if isinstance(config, RIAConfig) and config.permute and feed is not None and calibration is not None:
        _permute_(name, layer, config, pattern, calibration, undo, feed)
    undo.keep(layer.weight)
    layer.weight.data.copy_(_pruned(name, layer.weight.detach(), config, pattern, sparsity, calibration))


def _pruned(
    name: str,
    weight: Tensor,
    config: PruneConfig,
    pattern: Pattern,
    sparsity: float,
    calibration: Calibration | None,
) -> Tensor:
    if calibration is None:
        keep = scoring.magnitude_mask(weight, pattern, sparsity, config.scope)
    elif isinstance(config, SparseGPTConfig):
        hessian = calibration.hessian(name).to(weight.device)
        share = None if pattern.m else sparsity
        return scoring.sparsegpt_prune(
            weight, hessian, pattern, share, config.blocksize, config.damping, name=name
        )[0]
    else:
        norm = calibration.column_norm(name).to(weight.device)
        if isinstance(config, RIAConfig):
            keep = scoring.ria_mask(weight, norm, pattern, sparsity, config.scope, config.a)
        elif isinstance(config, WandaConfig):
            keep = scoring.wanda_mask(weight, norm, pattern, sparsity, config.scope)
        else:
            raise TypeError(f"config: {type(config).__name__} is no method that prune_ knows")
    return weight.masked_fill(~keep, 0.0)


def _permute_(
    name: str,
    layer: nn.Linear,
    config: RIAConfig,
    pattern: Pattern,
    calibration: Calibration,
    undo: Undo,
    feed: Feed,
) -> None:
    """Reorder the inputs so that n:m keeps more of the RIA scores; segments that m does not tile stay."""
    if pattern.m is None or feed.segment % pattern.m:
        return
    norm = calibration.column_norm(name).to(layer.weight.device)
    scores = scoring.ria_scores(layer.weight.detach(), norm, config.a)
    order = input_order(scores, feed.segment, partial(scoring.channel_permutation, pattern=pattern))
    undo.keep(layer.weight, feed.layer.weight, feed.layer.bias)
    reorder_inputs_(layer, feed, order)
    calibration.reorder(name, order)
