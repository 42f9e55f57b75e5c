"""Calibration: input norms of every linear layer, streamed over batches of images and texts.

Two orders. *Dense*: one pass over the unpruned model. *Sequential*: a block is calibrated on what its
already pruned predecessors give it. The latter runs the model's own forward for every block, with the
blocks before it answering from a cache, so each block receives exactly the arguments (masks, contexts)
that the model passes to it, whatever its architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from . import ops
from .config import TokenWeight

__all__ = ["Calibration", "LayerStats", "collect", "execution_order", "sequential"]

Run = Callable[[], object]


@dataclass
class LayerStats:
    """Sum of squares of each input column, and over how many sequences."""

    sumsq: Tensor
    sequences: int = 0

    @property
    def column_norm(self) -> Tensor:
        """``sqrt(sum_t w_t x_tj^2 / n)``, float32 [in], n counts sequences (Wanda's convention)."""
        return (self.sumsq / max(self.sequences, 1)).sqrt().float()


@dataclass
class Calibration:
    """Collects `LayerStats` through forward hooks on linear layers."""

    token_weight: TokenWeight | None = None
    stats: dict[str, LayerStats] = field(default_factory=dict)

    @contextmanager
    def watching(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        """Observe the inputs of these layers while the block runs."""
        with ExitStack() as stack:
            for name, layer in layers.items():
                stack.callback(layer.register_forward_pre_hook(self._hook(name)).remove)
            yield

    def column_norm(self, name: str) -> Tensor:
        """Input norms of a layer; it must have been reached, and its inputs must be finite."""
        if name not in self.stats:
            raise ValueError(f"{name}: no calibration input reached this layer; ignore it or give other data")
        norm = self.stats[name].column_norm
        if not bool(norm.isfinite().all()):
            column = int((~norm.isfinite()).nonzero()[0])
            raise ValueError(f"{name}: calibration input {column} is not finite (norm {float(norm[column])})")
        return norm

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def observe(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            weight = self.token_weight(name, x) if self.token_weight else None
            # float64 between batches: thousands of small sums must not be lost in a large one
            sumsq = ops.column_sumsq(x, weight).double()
            stats = self.stats.setdefault(name, LayerStats(torch.zeros_like(sumsq)))
            stats.sumsq += sumsq
            stats.sequences += x.shape[0] if x.dim() > 2 else 1

        return observe


def collect(
    runs: Sequence[Run], layers: Mapping[str, nn.Module], token_weight: TokenWeight | None = None
) -> Calibration:
    """Run all batches once and return the statistics of all layers ("dense" activations)."""
    calibration = Calibration(token_weight)
    with torch.no_grad(), calibration.watching(layers):
        for run in runs:
            run()
    return calibration


class _Reached(Exception):
    """Ends a forward once the block of interest has run."""


_UNSET = object()


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace one module's forward for a while, also one that hangs on the instance already."""
    before = vars(module).get("forward", _UNSET)
    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        if before is _UNSET:
            object.__delattr__(module, "forward")
        else:
            object.__setattr__(module, "forward", before)


def execution_order(run: Run, blocks: Mapping[str, nn.Module]) -> list[str]:
    """Names of the blocks in the order in which one forward first reaches them."""
    order: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: order.setdefault(name)

    with ExitStack() as stack, torch.no_grad():
        for name, block in blocks.items():
            stack.callback(block.register_forward_pre_hook(note(name)).remove)
        run()
    return list(order)


def sequential(
    runs: Sequence[Run],
    blocks: Mapping[str, nn.Module],
    layers: Mapping[str, Mapping[str, nn.Module]],
    prune: Callable[[str, Calibration], None],
    token_weight: TokenWeight | None = None,
) -> None:
    """Calibrate and prune block after block, each on the outputs of the pruned ones before it.

    Args:
        runs: one function a batch, each running the model's whole forward on it.
        blocks: qualified name -> block, all towers.
        layers: block name -> its layers to observe, for the blocks to prune.
        prune: called with a block's name and statistics, before the next block is calibrated.
        token_weight: as in `Calibration`.

    """
    order = execution_order(runs[0], blocks)
    cached: _Cache = {}
    final = 0  # blocks before this position are pruned, and their outputs cached
    with torch.no_grad():
        for position, name in enumerate(order):
            if name not in layers:
                continue
            calibration = Calibration(token_weight)
            for batch, run in enumerate(runs):
                with ExitStack() as stack, calibration.watching(layers[name]):
                    for place, earlier in enumerate(order[:position]):
                        replace = _returning if place < final else _renewing
                        key = (earlier.rpartition(".")[0], batch)
                        forward = replace(blocks[earlier].forward, cached, key)
                        stack.enter_context(_forward(blocks[earlier], forward))
                    _stop_after(stack, blocks[name])
                    try:
                        run()
                    except _Reached:
                        pass
                    else:
                        raise ValueError(
                            f"{name}: batch {batch} does not reach it, though the first batch did"
                        )
            prune(name, calibration)
            final = position


# (stack of blocks, batch) -> output of its newest final block. One a stack (a tower, or a list of
# cross-attentions), because shapes may differ between them: what an older block returns only has to fit,
# since its successor ignores it too. Copies, because a block may write into its input.
_Cache = dict[tuple[str, int], Any]


def _returning(_: Callable[..., Any], cached: _Cache, key: tuple[str, int]) -> Callable[..., Any]:
    return lambda *_, **__: _copy(cached[key])


def _renewing(compute: Callable[..., Any], cached: _Cache, key: tuple[str, int]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = compute(*args, **kwargs)
        cached[key] = _copy(output)
        return output

    return forward


def _copy(output: Any) -> Any:
    return tree_map_only(Tensor, Tensor.clone, output)


def _stop_after(stack: ExitStack, block: nn.Module) -> None:
    """Run the block as it is (its hooks observe), then end the forward."""

    def stop(*_: object) -> None:
        raise _Reached

    stack.callback(block.register_forward_hook(stop).remove)
