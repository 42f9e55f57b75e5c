"""Reordering the inputs of a linear layer where the layer that feeds it can be reordered alike.

An MLP's hidden neurons may stand in any order, and so may the value channels of each attention head, as
long as both layers that touch them agree: the model then computes what it did. That frees n:m to group
inputs that go well together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ..models import Block
from ..models.parts import block_parts

__all__ = ["Feed", "feeds", "input_order", "reorder_inputs_"]


@dataclass(frozen=True)
class Feed:
    """Where a layer's inputs come from.

    Args:
        layer: its rows from `first_row` on are the inputs, in order.
        first_row: see there.
        segment: inputs may only change places within segments of so many.

    """

    layer: nn.Linear
    first_row: int
    segment: int


def feeds(block: Block) -> dict[str, Feed]:
    """Qualified names of the block's layers whose inputs can be reordered, and what feeds them.

    Those are the second layer of the MLP (fed by its first) and the output projection of attention (fed
    by the values, head by head), unless something between looks at several inputs at once, such as a
    norm.
    """
    parts = block_parts(block)
    found: dict[str, Feed] = {}
    attention, mlp = parts.attention, parts.mlp
    if attention is not None and attention.inputs and not attention.shared:
        values = list(attention.inputs.values())[-1]
        width = attention.num_heads * attention.head_dim
        if _is_plain(values) and _is_plain(attention.out_proj):
            first = values.out_features - width
            found[attention.out_name] = Feed(values, first, attention.head_dim)
    if mlp is not None and not mlp.shared and _is_plain(mlp.fc1) and _is_plain(mlp.fc2):
        found[mlp.fc2_name] = Feed(mlp.fc1, 0, mlp.neurons)
    return found


def input_order(scores: Tensor, segment: int, permute: Callable[[Tensor], Tensor]) -> Tensor:
    """The order int64 [in] that `permute` gives each segment of the columns of `scores` [out, in]."""
    starts = range(0, scores.shape[1], segment)
    return torch.cat([start + permute(scores[:, start : start + segment]) for start in starts])


def reorder_inputs_(layer: nn.Linear, feed: Feed, order: Tensor) -> None:
    """Put the inputs of a layer, and the rows of the layer that feeds it, in this order (int64 [in])."""
    layer.weight.data.copy_(layer.weight.data[:, order])
    rows = slice(feed.first_row, feed.first_row + len(order))
    for parameter in (feed.layer.weight, feed.layer.bias):
        if parameter is not None:
            parameter.data[rows] = parameter.data[rows][order]


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether its rows and columns can be moved: a linear layer with nothing computed in between."""
    return isinstance(module, nn.Linear) and "weight" in module._parameters
