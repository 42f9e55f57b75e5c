"""What heads, neurons and layers are chosen by: the error without them, weights, gradients or chance."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..data import LabelledData
from ..distributed import of_first_rank
from ..losses import loss_and_batches
from ..models import Block
from ..models.parts import BlockParts, block_parts
from .gradients import mean_gradients
from .keep import StructuredConfig
from .modules import ModuleError, removable_layers
from .mope import module_pruning_errors
from .remove import check_linear
from .rewire import neuron_importance

__all__ = ["loss_for", "module_importance"]


def module_importance(
    model: nn.Module,
    data: Any,
    config: StructuredConfig,
    tower: str,
    kinds: Sequence[str],
    progress: bool | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> list[ModuleError]:
    """Judge the modules of one tower by the config's criterion; those with the lowest `error` go first.

    "mope" is `module_pruning_errors`: of labelled images by zero-shot accuracy, else by retrieval. The
    others judge every neuron by itself, and put into `error` instead:

    - "magnitude" (MagnCLIP): mean |w| of a head's rows of q, k and v and columns of the output projection;
      of a neuron's row and column; of all linear layers of a layer.
    - "gradient" (DynaCLIP), to first order how much the loss changes without the module, with the gradient
      averaged over the data: |sum w dL/dw| over a head's columns of the output projection, which is
      DynaBERT's gradient by the head's mask (arXiv 2004.04037, section 2.1); `neuron_importance`; over the
      output projection and the second MLP layer, with biases, of a layer. What the loss does not reach is
      left out. The loss is the contrastive one, of labelled images the cross-entropy of their classes.
    - "random": uniform numbers of the seed, each of its own place alone.

    Args:
        model: an open_clip model.
        data: of `load_data`; for "gradient" batches ``(images, texts)`` will do; else not used.
        config: criterion, groups and how they are judged, samples, batch size and seed.
        tower: "visual" or "text".
        kinds: some of "heads", "neurons" and "layers".
        progress: None shows a bar on a terminal, False never, True always.
        resume: JSON file of `module_pruning_errors`, for "mope"; the others are soon done.

    Raises:
        ValueError: data that the criterion cannot use; layers without plain weights; a gradient or weight
            that is not finite.

    """
    if config.criterion == "mope":
        return module_pruning_errors(
            model,
            data,
            kinds,
            "accuracy" if isinstance(data, LabelledData) else "retrieval",
            [tower],
            groups=config.groups,
            across_layers=config.neuron_groups == "rank",
            limit=config.samples,
            batch_size=config.batch_size,
            progress=progress,
            resume=resume,
        )
    # ranks may differ in their last bits, and must not choose differently
    return of_first_rank(partial(_judged, model, data, config, tower, kinds))


def loss_for(data: Any) -> str:
    """The loss by whose gradient modules are judged: "cross_entropy" of labelled images, or "contrastive"."""
    return "cross_entropy" if isinstance(data, LabelledData) else "contrastive"


def _judged(
    model: nn.Module, data: Any, config: StructuredConfig, tower: str, kinds: Sequence[str]
) -> list[ModuleError]:
    split = models.split_attention_(model)
    try:
        blocks = models.view(model).towers[tower].blocks
        layers = {block.index for block in removable_layers(blocks)}
        if config.criterion == "gradient":
            judged = _by_gradient(model, data, config, blocks, kinds)
        elif config.criterion == "magnitude":
            judged = [(b, kind, _magnitude(b, kind)) for b in blocks for kind in kinds]
        else:
            judged = [(b, kind, _chance(b, kind, config.seed)) for b in blocks for kind in kinds]
    finally:
        models.merge_attention_(model, split)
    for block, kind, errors in judged:
        if not all(map(math.isfinite, errors)):
            what = "the loss's gradient is" if config.criterion == "gradient" else "weights are"
            raise ValueError(f"{block.name}: {what} not finite, so {kind} cannot be judged")
    return [
        ModuleError(tower, block.index, kind, block.index if kind == "layers" else index, error)
        for block, kind, errors in judged
        if kind != "layers" or block.index in layers
        for index, error in enumerate(errors)
    ]


@torch.no_grad()
def _magnitude(block: Block, kind: str) -> list[float]:
    parts = block_parts(block)
    if kind == "layers":
        weights = [_weight(name, layer) for name, layer in block.linears().items()]
        total = sum(weight.numel() for weight in weights)
        return [sum(float(weight.float().abs().sum()) for weight in weights) / total] if total else [0.0]
    if kind == "heads":
        if (attention := parts.attention) is None:
            return []
        rows = [_weight(name, layer) for name, layer in attention.inputs.items()]
        # packed rows are q, then k, then v, each of all heads
        rows = [third for weight in rows for third in weight.chunk(3 // len(rows))]
        columns = _weight(attention.out_name, attention.out_proj)
        count = attention.num_heads
        return _mean_of_parts([*rows, columns.T], count)
    if (mlp := parts.mlp) is None:
        return []
    return _mean_of_parts([_weight(mlp.fc1_name, mlp.fc1), _weight(mlp.fc2_name, mlp.fc2).T], mlp.neurons)


def _mean_of_parts(weights: Sequence[Tensor], count: int) -> list[float]:
    """Mean |w| of each of `count` equal shares of the rows of all weights together."""
    if not count:
        return []
    shares = torch.cat([weight.float().abs().reshape(count, -1) for weight in weights], dim=1)
    return [float(mean) for mean in shares.mean(1)]


def _by_gradient(
    model: nn.Module, data: Any, config: StructuredConfig, blocks: Sequence[Block], kinds: Sequence[str]
) -> list[tuple[Block, str, list[float]]]:
    name = "cross_entropy" if isinstance(data, LabelledData) else "contrastive"
    loss, batches = loss_and_batches(name, model, data, samples=config.samples, batch_size=config.batch_size)
    wanted = [p for block in blocks for layer in _linears(block_parts(block)) for p in layer.parameters()]
    found = mean_gradients(model, loss, batches, wanted)
    gradients = {p: g for p, g in zip(wanted, found, strict=True) if g is not None}
    judged = []
    for block in blocks:
        parts = block_parts(block)
        if not all(layer.weight in gradients for layer in _linears(parts)):
            continue
        for kind in kinds:
            judged.append((block, kind, [float(e) for e in _sensitivity(parts, kind, gradients)]))
    return judged


@torch.no_grad()
def _sensitivity(parts: BlockParts, kind: str, gradients: dict[Any, Tensor]) -> Tensor:
    def product(parameter: Tensor) -> Tensor:
        return parameter.float() * gradients[parameter]

    attention, mlp = parts.attention, parts.mlp
    if kind == "heads":
        if attention is None or not attention.num_heads:
            return torch.empty(0)
        columns = product(_weight(attention.out_name, attention.out_proj)).sum(0)
        return columns.view(attention.num_heads, -1).sum(1).abs()
    if kind == "neurons":
        if mlp is None:
            return torch.empty(0)
        fc1, fc2 = _weight(mlp.fc1_name, mlp.fc1), _weight(mlp.fc2_name, mlp.fc2)
        bias: Any = mlp.fc1.bias
        return neuron_importance(
            fc1, fc2, gradients[fc1], gradients[fc2], bias, None if bias is None else gradients[bias]
        )
    total = torch.zeros(())
    for layer in ([attention.out_proj] if attention else []) + ([mlp.fc2] if mlp else []):
        for parameter in layer.parameters():
            total = total.to(parameter.device) + product(parameter).sum()
    return total.abs()[None]


def _linears(parts: BlockParts) -> Iterator[nn.Linear]:
    attention, mlp = parts.attention, parts.mlp
    named = {} if attention is None else {attention.out_name: attention.out_proj}
    named |= {} if mlp is None else {mlp.fc1_name: mlp.fc1, mlp.fc2_name: mlp.fc2}
    for name, layer in named.items():
        check_linear(name, layer)
        assert isinstance(layer, nn.Linear)
        yield layer


def _chance(block: Block, kind: str, seed: int) -> list[float]:
    parts = block_parts(block)
    counts = {
        "heads": parts.attention.num_heads if parts.attention else 0,
        "neurons": parts.mlp.neurons if parts.mlp else 0,
        "layers": 1,
    }
    draw = random.Random(f"{seed} {block.tower} {block.index} {kind}")
    return [draw.random() for _ in range(counts[kind])]


def _weight(name: str, layer: nn.Module) -> Tensor:
    check_linear(name, layer)
    assert isinstance(layer, nn.Linear)
    return layer.weight
