"""What each method makes of one layer: new weights with exact zeros."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from .. import ops, scoring
from ..calibration import Calibration
from ..config import MagnitudeConfig, PruneConfig, RIAConfig, SparseGPTConfig, WandaConfig
from ..patterns import Pattern
from .counts import mask_of_zeros
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
    zeros: int | None = None,
) -> None:
    """Prune one layer in place.

    Args:
        name: its qualified name.
        layer: nn.Linear with a plain weight [out, in].
        config: the method and the pattern.
        sparsity: fraction of zeros that the allocation gives it.
        calibration: statistics of its inputs, None for a method without.
        undo: told of every parameter before it changes.
        feed: what feeds it, if its inputs can be reordered; see `vlprune.prune.permutation`.
        zeros: exactly how many weights go, where a budget over all layers says so; None leaves it to
            `sparsity`, rounded down in each row.

    """
    pattern = Pattern.parse(config.pattern)
    if isinstance(config, RIAConfig) and config.permute and feed is not None and calibration is not None:
        _permute_(name, layer, config, pattern, calibration, undo, feed)
    undo.keep(layer.weight)
    weight = layer.weight.detach()
    layer.weight.data.copy_(_pruned(name, weight, config, pattern, sparsity, calibration, zeros))


def _pruned(
    name: str,
    weight: Tensor,
    config: PruneConfig,
    pattern: Pattern,
    sparsity: float,
    calibration: Calibration | None,
    zeros: int | None,
) -> Tensor:
    if isinstance(config, SparseGPTConfig):
        hessian = _required(calibration).hessian(name).to(weight.device)
        share = None if pattern.m else sparsity
        return scoring.sparsegpt_prune(
            weight, hessian, pattern, share, config.blocksize, config.damping, name=name
        )[0]
    select = _selection(name, weight, config, pattern, calibration)
    rows, columns = weight.shape
    if zeros is None or pattern.m:
        keep = select(slice(rows), sparsity)
    else:
        keep = mask_of_zeros(select, (rows, columns), zeros, config.scope)
    return weight.masked_fill(~keep, 0.0)


def _selection(
    name: str, weight: Tensor, config: PruneConfig, pattern: Pattern, calibration: Calibration | None
) -> Callable[[slice, float], Tensor]:
    """``(rows, sparsity) -> keep mask`` of these rows, whose scores do not depend on what is asked for."""
    if isinstance(config, MagnitudeConfig):
        return lambda rows, share: scoring.magnitude_mask(weight[rows], pattern, share, config.scope)
    norm = _required(calibration).column_norm(name).to(weight.device)
    if isinstance(config, RIAConfig):
        scores = scoring.ria_scores(weight, norm, config.a)
        return lambda rows, share: ops.select(
            scores[rows], pattern.name, None if pattern.m else share, config.scope
        )
    if isinstance(config, WandaConfig):
        return lambda rows, share: scoring.wanda_mask(weight[rows], norm, pattern, share, config.scope)
    raise TypeError(f"config: {type(config).__name__} is no method that prune_ knows")


def _required(calibration: Calibration | None) -> Calibration:
    if calibration is None:
        raise ValueError("calibration: this method needs it")
    return calibration


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
