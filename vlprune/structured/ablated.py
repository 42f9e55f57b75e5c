"""Embeddings of a tower without each of several modules, computed from the missing module on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .. import models
from ..reuse import Memory, inside, outside
from .mask import silence
from .modules import Removable
from .plan import plan_of

__all__ = ["embeddings_without"]


def embeddings_without(
    model: nn.Module,
    encode: Callable[[Tensor], Tensor],
    inputs: Iterable[Tensor],
    removed: Sequence[Removable],
    tick: Callable[[], object],
) -> Tensor:
    """Embed the inputs once without each module; equal to a full forward inside `mask_modules`, bit for bit.

    Of each batch the unchanged model's activations are remembered (`vlprune.reuse`), so that a head costs
    its layer's output projection and MLP and the layers behind, neurons the second layer of the MLP and the
    layers behind, a layer only those behind it. They are kept for a batch at a time.

    Args:
        model: in eval mode, its attention split.
        encode: from a batch of one tower's inputs to embeddings [B, D].
        inputs: all batches.
        removed: modules of that tower; those of one layer should follow on one another.
        tick: called after each module and batch.

    Returns:
        The embeddings [modules, N, D].

    """
    blocks = [b.module for tower in models.view(model).towers.values() for b in tower.blocks]
    around = Memory(outside(model, blocks))
    ablations = [_Ablation(model, module) for module in removed]
    parts: list[Tensor] = []
    for batch in inputs:
        run = partial(encode, batch)
        around.record(run)
        found: list[Tensor] = []
        for block, group in itertools.groupby(ablations, key=lambda ablation: ablation.first):
            within = Memory([block, *inside(block)])
            with around.answering([block]):
                within.record(run)
            for ablation in group:
                with (
                    ablation.silenced(),
                    around.answering(ablation.blocks),
                    within.answering(ablation.changed),
                ):
                    found.append(run())
                tick()
        parts.append(torch.stack(found))
    return torch.cat(parts, dim=1)


class _Ablation:
    """One missing module: the first block in which it is, and what then computes something else."""

    def __init__(self, model: nn.Module, removed: Removable) -> None:
        self.blocks = [block.module for block in removed.blocks]
        self.first = self.blocks[0]
        names = {block.name for block in removed.blocks}
        self._plans = [plan for plan in plan_of(model, removed.keep) if plan.block.name in names]
        self.changed: list[nn.Module] = []
        for plan in self._plans:
            # a layer that is passed over still answers: what takes its place is put behind it
            if plan.heads is not None and (attention := plan.parts.attention):
                self.changed.append(attention.out_proj)
            if plan.neurons is not None and (mlp := plan.parts.mlp):
                self.changed.append(mlp.fc2)

    @contextmanager
    def silenced(self) -> Iterator[None]:
        with ExitStack() as stack:
            for plan in self._plans:
                for hook in silence(plan):
                    stack.callback(hook.remove)
            yield
