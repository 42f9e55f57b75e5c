"""Neurons put in order of importance, so that the last ones of every MLP can go first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..data.dataset import require_count
from ..distributed import of_first_rank
from ..losses import Loss, loss_and_batches
from ..models.parts import MlpParts, block_parts
from .gradients import mean_gradients
from .modules import check_names
from .remove import check_neurons

__all__ = ["neuron_importance", "restore_order_", "rewire_"]


@torch.inference_mode(False)
def rewire_(
    model: nn.Module,
    data: Any,
    *,
    towers: Sequence[str] = ("visual", "text"),
    loss: str | Loss = "contrastive",
    samples: int = 128,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """Sort the neurons of every MLP by falling importance, in place; outputs stay the same.

    Importance is `neuron_importance` of the loss's gradient, averaged over the data (DynaBERT,
    arXiv 2004.04037, as used by MoPE-CLIP, arXiv 2403.07839). Equally important neurons keep their
    order. Outputs differ by the rounding of sums in another order. Zeros move with their neurons: the
    second layers of MLPs pruned to 2:4 are not 2:4 any more. What an optimizer holds of them does not move.
    Under torchrun all ranks take the first one's order.

    Args:
        model: an open_clip model, not yet sparsified.
        data: data of `load_data`, or batches: an iterable of ``(images, texts)`` tensors.
        towers: which ones to sort.
        loss: "contrastive", another of `vlprune.ECoFLaP`'s, or a function ``(model, batch) -> scalar``.
        samples: at most this many images are used.
        batch_size: images at once; the contrastive loss compares the pairs of a batch.

    Returns:
        By the name of each MLP's first layer, the permutation [neurons], on the CPU: neuron j was number
        ``[j]``.

    Raises:
        ValueError: a tower that is not there, packed layers, a norm over all neurons, no usable data, a
            gradient that is not finite. The model is then as it was.

    """
    if data is None:
        raise ValueError("data: rewire_ needs data, for example of load_data")
    for name, count in (("samples", samples), ("batch_size", batch_size)):
        require_count(name, count)
    mlps = _mlps(model, towers)
    for mlp in mlps:
        check_neurons(mlp)
    orders = of_first_rank(partial(_orders, model, data, mlps, loss, samples, batch_size))
    _permute(mlps, orders)
    return orders


def restore_order_(model: nn.Module, orders: Mapping[str, Tensor]) -> None:
    """Undo `rewire_`, bit for bit, by what it returned."""
    every = [block_parts(b).mlp for tower in models.view(model).towers.values() for b in tower.blocks]
    mlps = [mlp for mlp in every if mlp is not None and mlp.fc1_name in orders]
    _permute(mlps, {name: order.argsort() for name, order in orders.items()})


def _orders(
    model: nn.Module, data: Any, mlps: Sequence[MlpParts], loss: str | Loss, samples: int, batch_size: int
) -> dict[str, Tensor]:
    fn, batches = loss_and_batches(loss, model, data, samples=samples, batch_size=batch_size)
    parameters = [p for mlp in mlps for p in _parameters(mlp) if p is not None]
    found = mean_gradients(model, fn, batches, parameters)
    if all(gradient is None for gradient in found):
        raise ValueError("loss: it does not depend on any MLP of the model")
    gradients = {p: torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)}
    orders: dict[str, Tensor] = {}
    for mlp in mlps:
        fc1, fc2, bias = _parameters(mlp)
        bias_grad = None if bias is None else gradients[bias]
        scores = neuron_importance(fc1, fc2, gradients[fc1], gradients[fc2], bias, bias_grad)
        if not bool(scores.isfinite().all()):
            raise ValueError(f"{mlp.fc1_name}: the loss's gradient is not finite")
        orders[mlp.fc1_name] = scores.argsort(descending=True, stable=True).cpu()
    return orders


def neuron_importance(
    fc1: Tensor,
    fc2: Tensor,
    fc1_grad: Tensor,
    fc2_grad: Tensor,
    bias: Tensor | None = None,
    bias_grad: Tensor | None = None,
) -> Tensor:
    """How much the loss changes, to first order, without what enters each neuron and without what leaves it.

    ``I_k = |sum_i W1[k,i] dW1[k,i] + b1[k] db1[k]| + |sum_o W2[o,k] dW2[o,k]|`` (DynaBERT, arXiv
    2004.04037, section 2.1).

    Args:
        fc1: weight of the first layer [neurons, in].
        fc2: weight of the second layer [out, neurons].
        fc1_grad: gradient of the loss by `fc1`.
        fc2_grad: gradient of the loss by `fc2`.
        bias: of the first layer [neurons], with its gradient.
        bias_grad: gradient of the loss by `bias`.

    Returns:
        float32 [neurons].

    """
    with torch.no_grad():
        entering = (fc1.float() * fc1_grad.float()).sum(1)
        if bias is not None and bias_grad is not None:
            entering += bias.float() * bias_grad.float()
        return entering.abs() + (fc2.float() * fc2_grad.float()).sum(0).abs()


def _mlps(model: nn.Module, towers: Sequence[str]) -> list[MlpParts]:
    known = models.view(model).towers
    check_names("towers", towers, tuple(known))
    parts = [block_parts(block).mlp for name in towers for block in known[name].blocks]
    return [mlp for mlp in parts if mlp is not None]


def _parameters(mlp: MlpParts) -> tuple[Tensor, Tensor, Tensor | None]:
    fc1, fc2 = mlp.fc1, mlp.fc2
    assert isinstance(fc1, nn.Linear)
    assert isinstance(fc2, nn.Linear)
    return fc1.weight, fc2.weight, fc1.bias


@torch.no_grad()
def _permute(mlps: Sequence[MlpParts], orders: Mapping[str, Tensor]) -> None:
    for mlp in mlps:
        for parameter, dim in zip(_parameters(mlp), (0, 1, 0), strict=True):
            if parameter is not None:
                parameter.copy_(parameter.index_select(dim, orders[mlp.fc1_name].to(parameter.device)))
