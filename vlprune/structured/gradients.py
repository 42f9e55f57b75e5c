"""The gradient of a loss by some parameters, averaged over data, without a trace on the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import Loss
from ..models.running import evaluating

__all__ = ["mean_gradients"]


def mean_gradients(
    model: nn.Module, loss: Loss, batches: Sequence[Any], parameters: Sequence[Tensor]
) -> list[Tensor | None]:
    """Mean over all samples of the loss's gradient, float32; None for what the loss does not depend on.

    Args:
        model: runs in eval mode.
        loss: ``(model, batch) -> scalar``.
        batches: with ``images``; a batch counts by how many there are.
        parameters: of the model.

    """
    total = sum(len(batch.images) for batch in batches)
    means: list[Tensor | None] = [None] * len(parameters)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for every in model.parameters():
            stack.callback(every.requires_grad_, every.requires_grad)
            every.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        for batch in batches:
            value = loss(model, batch)
            found: Sequence[Tensor | None] = [None] * len(parameters)
            if value.requires_grad:
                found = torch.autograd.grad(value, parameters, allow_unused=True)
            for i, gradient in enumerate(found):
                if gradient is not None:
                    share = gradient.float() * (len(batch.images) / total)
                    before = means[i]
                    means[i] = share if before is None else before.add_(share)
    return means
