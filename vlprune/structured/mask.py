"""The model as it would be without some heads, neurons and layers, which are all still there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from .plan import BlockPlan, KeepLists, plan_of

__all__ = ["mask_modules", "silence"]


@contextmanager
def mask_modules(model: nn.Module, keep_lists: KeepLists) -> Iterator[None]:
    """Run without what keep lists leave out, inside of a ``with``; afterwards all is as it was.

    A head's output is zero before the output projection, a neuron is zero after the activation, a layer
    hands its input on (MoPE-CLIP, arXiv 2403.07839, section 3.2). Any model whose parts are known will do,
    packed layers included. Attention is split while this holds.

    Args:
        model: the model to run.
        keep_lists: what stays, as `compact_` takes it.

    Raises:
        ValueError: keep lists that do not fit the model.

    """
    plans = plan_of(model, keep_lists)
    with ExitStack() as stack:
        stack.callback(models.merge_attention_, model, models.split_attention_(model))
        for plan in plans:
            for hook in silence(plan):
                stack.callback(hook.remove)
        yield


def silence(plan: BlockPlan) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Silence what does not stay of one block, whose attention is split, until the hooks are removed."""
    if not plan.stays:
        yield plan.block.module.register_forward_hook(_hand_on)
        return
    attention, mlp = plan.parts.attention, plan.parts.mlp
    if plan.heads is not None and attention is not None:
        columns = _gone(plan.heads, attention.num_heads).repeat_interleave(attention.head_dim)
        yield attention.out_proj.register_forward_pre_hook(_zero(columns))
    if plan.neurons is not None and mlp is not None:
        yield mlp.fc2.register_forward_pre_hook(_zero(_gone(plan.neurons, mlp.neurons)))


def _hand_on(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
    return (args[0], *out[1:]) if isinstance(out, tuple) else args[0]


def _zero(gone: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        return args[0].masked_fill(gone.to(args[0].device), 0.0)

    return hook


def _gone(kept: tuple[int, ...], total: int) -> Tensor:
    gone = torch.ones(total, dtype=torch.bool)
    gone[list(kept)] = False
    return gone
