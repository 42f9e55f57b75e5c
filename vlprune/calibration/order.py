"""Calibration block by block: each block is observed, then pruned, before the next one is.

Ranks share the batches: each runs its own, and all prune by the sums of all of them.

Two orders. *Sequential*: a block is observed on what its already pruned predecessors give it. *Dense*: on
what they gave while they were dense, kept from just before each was pruned. Both run the model's own
forward for every block, with the blocks before it answering from a cache, so each block receives exactly
the arguments (masks, contexts) that the model passes to it, whatever its architecture; and both hold no
more than one block's output a batch and one block's statistics at a time, as long as the data's own
sequences are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..distributed import on_all_ranks, own_share
from ..models import Block
from ..models.tokens import real_tokens, sees_images
from ..reuse import replaced_forward
from ..token_weights import Tokens, TokenWeight, TokenWeighting, drift_of
from .batches import Run
from .cache import OutputCache
from .stats import Calibration

__all__ = ["block_by_block", "collect", "execution_order"]

Layers = Mapping[str, nn.Module]
Forward = Callable[..., Any]


class _Reached(Exception):
    """Ends a forward once the block of interest has run."""


def execution_order(run: Run, blocks: Mapping[str, Block]) -> list[str]:
    """Names of the blocks in the order in which one forward, made by `run`, first reaches them."""
    order: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: order.setdefault(name)

    with ExitStack() as stack, torch.no_grad():
        for name, block in blocks.items():
            stack.callback(block.module.register_forward_pre_hook(note(name)).remove)
        run()
    return list(order)


def collect(
    runs: Sequence[Run],
    blocks: Mapping[str, Block],
    layers: Mapping[str, Layers],
    calibration: Calibration,
    token_weight: TokenWeight | TokenWeighting | None = None,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Run every batch once and gather the statistics of all layers of the model as it is.

    Args:
        runs: the batches, of which a rank runs its share.
        blocks: qualified name -> block, all towers.
        layers: block name -> its layers to observe.
        calibration: takes the statistics in.
        token_weight: as in `PruneConfig`.
        tick: called after each batch.

    """
    own = own_share(runs)

    def observe() -> None:
        for run in own:
            with ExitStack() as stack:
                for name, group in layers.items():
                    observed = _observing(blocks[name], group, run, calibration, token_weight)
                    stack.enter_context(replaced_forward(blocks[name].module, observed))
                run()
            tick()

    with torch.no_grad():
        on_all_ranks(observe)
    calibration.share()


def block_by_block(
    runs: Sequence[Run],
    blocks: Mapping[str, Block],
    layers: Mapping[str, Layers],
    prune: Callable[[str, Calibration], None],
    *,
    activations: str = "sequential",
    statistics: str = "norm",
    token_weight: TokenWeight | TokenWeighting | None = None,
    offload: bool = False,
) -> None:
    """Calibrate and prune block after block.

    Args:
        runs: the batches, of which a rank runs its share.
        blocks: qualified name -> block, all towers.
        layers: block name -> its layers to observe, for the blocks to prune.
        prune: called with a block's name and statistics, before the next block is calibrated.
        activations: "sequential" observes a block on the outputs of pruned ones, "dense" of dense ones.
        statistics: "norm" or "hessian".
        token_weight: as in `PruneConfig`.
        offload: keep statistics and outputs in CPU memory.

    Raises:
        ValueError: a batch does not reach a block that the first batch reached.

    """
    order = execution_order(runs[0], blocks)
    own = own_share(list(enumerate(runs)))
    cache = OutputCache(offload)
    final = 0  # outputs of the blocks before this position are cached, and do not change any more

    def observe(position: int, calibration: Calibration) -> None:
        name = order[position]
        block = blocks[name]
        for batch, run in own:
            with ExitStack() as stack:
                for place, earlier in enumerate(order[:position]):
                    module, key = blocks[earlier].module, (_stack_of(earlier), batch)
                    answer = cache.answering(key) if place < final else cache.keeping(module.forward, key)
                    stack.enter_context(replaced_forward(module, answer))
                observed = _observing(block, layers[name], run, calibration, token_weight)
                if activations == "dense":
                    observed = cache.keeping(observed, (_stack_of(name), batch))
                stack.enter_context(replaced_forward(block.module, observed))
                _stop_after(stack, block.module)
                try:
                    run()
                except _Reached:
                    pass
                else:
                    raise ValueError(f"{name}: batch {batch} does not reach it, though the first batch did")

    with torch.no_grad():
        for position, name in enumerate(order):
            if name not in layers:
                continue
            calibration = Calibration(statistics, offload)
            on_all_ranks(partial(observe, position, calibration))
            calibration.share()
            prune(name, calibration)
            final = position + 1 if activations == "dense" else position


def _observing(
    block: Block,
    layers: Layers,
    run: Run,
    calibration: Calibration,
    token_weight: TokenWeight | TokenWeighting | None,
) -> Forward:
    """The block's forward under observation of its layers."""
    compute = block.module.forward
    if not isinstance(token_weight, TokenWeighting):

        def watched(*args: Any, **kwargs: Any) -> Any:
            with calibration.watching(layers, token_weight):
                return compute(*args, **kwargs)

        return watched
    weighting = token_weight
    real = real_tokens(run.model, run.texts)

    def weighted(*args: Any, **kwargs: Any) -> Any:
        drift = None
        if weighting.needs_drift and block.tower == "visual":
            # on copies, because the block may write into its input
            given, named = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
            before, after = _first_tensor((args, kwargs)), _first_tensor(compute(*given, **named))
            drift = None if before is None or after is None else drift_of(before, after)

        def weigh(name: str, x: Tensor) -> Tensor | None:
            return weighting.weigh(x, Tokens(sees_images(block, name), real, drift))

        with calibration.watching(layers, weigh):
            return compute(*args, **kwargs)

    return weighted


def _first_tensor(values: Any) -> Tensor | None:
    return next((leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)), None)


def _stack_of(block: str) -> str:
    return block.rpartition(".")[0]


def _stop_after(stack: ExitStack, block: nn.Module) -> None:
    """End the forward once the block has run."""

    def stop(*_: object) -> None:
        raise _Reached

    stack.callback(block.register_forward_hook(stop).remove)
