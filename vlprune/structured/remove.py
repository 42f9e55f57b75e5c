"""The cuts themselves: rows, columns and blocks that stay, and what stands in the way of a cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models import Block
from ..models.parts import AttentionParts, MlpParts
from ..nn import Linear24
from ..nn.attention import is_splittable
from ..nn.attention_core import AttentionCore
from .plan import BlockPlan

__all__ = ["check_heads", "check_layers", "check_linear", "check_neurons", "keep_heads_", "keep_layers_",
           "keep_neurons_", "partners_of"]  # fmt: skip

# A subclass may compute anything from its weight; this one only differs under quantization.
_DENSE = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


def check_linear(name: str, layer: nn.Module) -> None:
    """Raise ValueError unless rows and columns of this layer can be taken out or moved."""
    if isinstance(layer, Linear24):
        raise ValueError(f"{name}: packed 2:4; take modules out, or rewire, before sparsify_")
    if type(layer) not in _DENSE or "weight" not in layer._parameters:
        raise ValueError(f"{name}: expected a plain nn.Linear, got {type(layer).__name__}")


def check_heads(attention: AttentionParts, kept: int) -> None:
    """Raise ValueError if heads cannot be taken out of this attention so that `kept` are left."""
    module = attention.module
    ours = isinstance(module, AttentionCore) or is_splittable(module)
    if not ours and not _is_timm(module):
        raise ValueError(
            f"{attention.name}: heads can be taken out of open_clip's and timm's attention, "
            f"not of {type(module).__name__}"
        )
    if attention.shared:
        raise ValueError(
            f"{attention.shared[0]}: works on all heads at once, so none of them can be taken out"
        )
    if not ours and not kept:
        raise ValueError(f"{attention.name}: timm's attention needs at least one head")
    for name, layer in {**attention.inputs, attention.out_name: attention.out_proj}.items():
        check_linear(name, layer)


def check_neurons(mlp: MlpParts) -> None:
    """Raise ValueError if neurons cannot be taken out of this MLP, or change places."""
    if mlp.shared:
        raise ValueError(f"{mlp.shared[0]}: works on all neurons at once, so none can be taken out or moved")
    check_linear(mlp.fc1_name, mlp.fc1)
    check_linear(mlp.fc2_name, mlp.fc2)


def check_layers(model: nn.Module, plans: Sequence[BlockPlan]) -> None:
    """Raise ValueError if a block that is to go cannot be missing."""
    partners = partners_of([plan.block for plan in plans])
    for plan in plans:
        if plan.stays:
            continue
        if partner := partners.get(plan.block.name):
            raise ValueError(
                f"{plan.block.name}: cannot be taken out, it runs in step with the blocks of {partner}"
            )
        stack = _stack_of(plan.block)
        if not any(other.stays for other in plans if _stack_of(other.block) == stack):
            raise ValueError(f"{stack}: at least one layer must stay")


def partners_of(blocks: Sequence[Block]) -> dict[str, str]:
    """Names of blocks that cannot be missing, each with the stack in step with which it runs.

    Such are the blocks of CoCa's decoder: self- and cross-attention in turn, from two stacks.
    """
    stacks = dict.fromkeys(_stack_of(block) for block in blocks)
    found: dict[str, str] = {}
    for block in blocks:
        stack = _stack_of(block)
        parent = stack.rpartition(".")[0]
        if partners := [s for s in stacks if s != stack and s.rpartition(".")[0] == parent]:
            found[block.name] = partners[0]
    return found


@torch.no_grad()
def keep_heads_(attention: AttentionParts, kept: Sequence[int]) -> None:
    """Take all but the kept heads out of split attention, in place."""
    module, width, heads = attention.module, attention.head_dim, attention.num_heads
    packed = 3 if len(attention.inputs) == 1 else 1
    starts = [(part * heads + head) * width for part in range(packed) for head in kept]
    rows = [start + i for start in starts for i in range(width)]
    for layer in attention.inputs.values():
        _keep_rows(layer, rows)
    _keep_columns(attention.out_proj, [head * width + i for head in kept for i in range(width)])
    module.num_heads = len(kept)  # type: ignore[assignment]
    if isinstance(module, AttentionCore):
        for name in ("logit_scale", "head_scale"):
            if (scale := getattr(module, name)) is not None:
                setattr(module, name, _selected(scale, 0, kept))
        numbers = module.kept_heads or tuple(range(heads))
        module.kept_heads = tuple(numbers[head] for head in kept)
        # there is no way back to a module with all heads, so nothing needs to be held for it
        module._origin = ()
    else:
        module.attn_dim = len(kept) * width  # type: ignore[assignment]


@torch.no_grad()
def keep_neurons_(mlp: MlpParts, kept: Sequence[int]) -> None:
    """Let the MLP have just these neurons, in this order, in place."""
    _keep_rows(mlp.fc1, kept)
    _keep_columns(mlp.fc2, kept)


def keep_layers_(model: nn.Module, plans: Sequence[BlockPlan]) -> None:
    """Take the blocks that do not stay out of their stacks, in place."""
    gone: dict[str, list[str]] = {}
    for plan in plans:
        if not plan.stays:
            gone.setdefault(_stack_of(plan.block), []).append(plan.block.name.rpartition(".")[2])
    for name, keys in gone.items():
        stack = model.get_submodule(name)
        assert isinstance(stack, nn.ModuleList | nn.Sequential)
        before = len(stack)
        # those behind a deleted one move up and change their keys
        for position in sorted((list(stack._modules).index(key) for key in keys), reverse=True):
            del stack[position]
        owner = model.get_submodule(name.rpartition(".")[0])
        if getattr(owner, "layers", None) == before:
            # open_clip's transformers say how deep they are
            owner.layers = len(stack)  # type: ignore[assignment]


def _is_timm(module: nn.Module) -> bool:
    # versions without attn_dim take the width of the heads for that of the stream
    cls = type(module)
    return cls.__module__.startswith("timm.") and cls.__name__ == "Attention" and hasattr(module, "attn_dim")


def _stack_of(block: Block) -> str:
    return block.name.rpartition(".")[0]


def _keep_rows(layer: nn.Module, rows: Sequence[int]) -> None:
    assert isinstance(layer, nn.Linear)
    layer.weight = _selected(layer.weight, 0, rows)
    if layer.bias is not None:
        layer.bias = _selected(layer.bias, 0, rows)
    layer.out_features = len(rows)


def _keep_columns(layer: nn.Module, columns: Sequence[int]) -> None:
    assert isinstance(layer, nn.Linear)
    layer.weight = _selected(layer.weight, 1, columns)
    layer.in_features = len(columns)


def _selected(parameter: Tensor, dim: int, kept: Sequence[int]) -> nn.Parameter:
    index = torch.tensor(list(kept), dtype=torch.long, device=parameter.device)
    return nn.Parameter(parameter.detach().index_select(dim, index), parameter.requires_grad)
