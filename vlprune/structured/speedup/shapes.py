"""Copies of a real block with fewer heads or neurons, or with 2:4 weights, to be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ... import ops
from ...fusion import find_activation
from ...models import Block
from ...models.parts import BlockParts, block_parts
from ...models.split import replace, split_one
from ...nn import Linear24
from ...nn.attention import is_splittable
from ..keep import NEURON_MULTIPLE
from ..remove import check_heads, check_neurons, keep_heads_, keep_neurons_

__all__ = ["Shape", "cut_block", "neuron_counts", "pack_part_", "shapes_of"]

# Counts of heads, and of neurons, that are measured at most; between them time is taken to be linear.
_HEAD_POINTS, _NEURON_POINTS = 16, 12
# Wide layers are left a multiple of this many neurons, a tile of most matrix kernels.
_WIDE, _WIDE_MULTIPLE = 1024, 64


@dataclass(frozen=True)
class Shape:
    """A block with so many heads or neurons left and all of the other; `packed` makes that part 2:4."""

    part: str
    kept: int
    packed: bool = False

    def __str__(self) -> str:
        return f"{self.part} {self.kept}" + (" 2:4" if self.packed else "")


def shapes_of(block: Block, sparse: bool) -> list[Shape]:
    """List the shapes of a block that are worth measuring, besides the whole one.

    None are listed of attention or an MLP from which nothing can be taken; `sparse` lists those with 2:4
    weights as well.
    """
    parts, found = block_parts(block), []
    for part, total, counts in (
        ("heads", parts.attention.num_heads if parts.attention else 0, _head_counts(parts)),
        ("neurons", parts.mlp.neurons if parts.mlp else 0, _neuron_points(parts)),
    ):
        found += [Shape(part, count) for count in counts]
        if sparse and counts:
            found += [Shape(part, count, True) for count in (*counts, total) if count]
    return found


def neuron_counts(total: int) -> list[int]:
    """Counts of neurons that a layer may be left with: multiples that run fast, none, and all."""
    step = _WIDE_MULTIPLE if total >= _WIDE else NEURON_MULTIPLE
    return [*range(0, total, step), total]


def cut_block(block: Block, shape: Shape) -> nn.Module:
    """Return a copy of the block in this shape."""
    module = copy.deepcopy(block.module)
    if shape.part == "heads":
        for name, child in list(module.named_modules()):
            if is_splittable(child):
                # open_clip's blocks have a norm for keys and values where these come from elsewhere
                replace(module, name, split_one(child, cross=hasattr(module, "ln_1_kv")))
        if (attention := block_parts(module).attention) and shape.kept < attention.num_heads:
            keep_heads_(attention, range(shape.kept))
    elif (mlp := block_parts(module).mlp) and shape.kept < mlp.neurons:
        keep_neurons_(mlp, range(shape.kept))
    if shape.packed:
        pack_part_(module, shape.part)
    return module


@torch.no_grad()
def pack_part_(module: nn.Module, part: str) -> None:
    """Make the linear layers of a block's attention ("heads") or MLP ("neurons") 2:4 and packed, in place.

    The larger two of every four weights stay: which ones does not matter to the time. Attention must be
    split.
    """
    for name, layer in _linears(block_parts(module), part):
        fused = find_activation(module, name)
        layer.weight.mul_(ops.select(layer.weight.abs(), "2:4"))
        replace(module, name, Linear24.from_linear(layer, fused.kind if fused else None))
        if fused:
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, fused.attribute, nn.Identity())


def _linears(parts: BlockParts, part: str) -> Iterator[tuple[str, nn.Linear]]:
    named: dict[str, nn.Module] = {}
    if part == "heads" and parts.attention:
        named = {**parts.attention.inputs, parts.attention.out_name: parts.attention.out_proj}
    elif part == "neurons" and parts.mlp:
        named = {parts.mlp.fc1_name: parts.mlp.fc1, parts.mlp.fc2_name: parts.mlp.fc2}
    for name, layer in named.items():
        if isinstance(layer, nn.Linear) and layer.out_features and _in_fours(layer.in_features):
            yield name, layer


def _in_fours(count: int) -> bool:
    return count > 0 and count % 4 == 0


def _head_counts(parts: BlockParts) -> list[int]:
    if (attention := parts.attention) is None:
        return []
    least = next((n for n in (0, 1) if _allowed(partial(check_heads, attention, n))), None)
    return [] if least is None else _thin(range(least, attention.num_heads), _HEAD_POINTS)


def _neuron_points(parts: BlockParts) -> list[int]:
    mlp = parts.mlp
    if mlp is None or not _allowed(partial(check_neurons, mlp)):
        return []
    return _thin(neuron_counts(mlp.neurons)[:-1], _NEURON_POINTS)


def _allowed(check: Callable[[], None]) -> bool:
    try:
        check()
    except ValueError:
        return False
    return True


def _thin(counts: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly spread, the first and the last among them."""
    if len(counts) <= most:
        return list(counts)
    return [counts[round(i * (len(counts) - 1) / (most - 1))] for i in range(most)]
