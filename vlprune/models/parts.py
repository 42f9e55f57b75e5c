"""What a transformer block is made of: attention and MLP, and which of their linear layers feeds which.

Known are the blocks of open_clip (its attention as it is or split, its self- and cross-attention), of
timm's vision transformers, and of transformers' CLIP, SigLIP and BERT families.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .view import Block

__all__ = ["AttentionParts", "BlockParts", "MlpParts", "block_parts"]

# Where attention and its layers lie: a path to the module that has the sizes, and from the same place
# to the input projections (one for q, k and v together, or three) and to the output projection.
_ATTENTION = (
    ("attn", ("attn.qkv",), "attn.out_proj"),  # split by vlprune
    ("attn", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), "attn.out_proj"),  # split by vlprune
    ("attn", (), "attn.out_proj"),  # open_clip: the projections are a bare parameter
    ("attn", ("attn.qkv",), "attn.proj"),  # timm
    ("self_attn", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.out_proj"),
    (
        "attention.self",
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
    ),
)
_MLP = (
    ("mlp", "mlp.c_fc", "mlp.gelu", "mlp.c_proj"),  # open_clip
    ("mlp", "mlp.fc1", "mlp.act", "mlp.fc2"),  # timm
    ("mlp", "mlp.fc1", "mlp.activation_fn", "mlp.fc2"),  # transformers' CLIP
    ("intermediate", "intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),  # BERT
)
# Parameters with one entry a head.
_PER_HEAD = ("logit_scale", "head_scale")


@dataclass(frozen=True)
class AttentionParts:
    """Attention of a block; every name is as qualified as the block's.

    `inputs` maps names to the linear layers of q, k and v: one for all three (its rows are q, then k,
    then v), three, or none where they are a bare parameter until `split_attention_`. Head i owns the
    columns ``i * head_dim`` to ``(i + 1) * head_dim`` of `out_proj` and the same rows of q, k and v.
    `shared` names what looks at several heads at once, without which no head can be removed and leave
    the others as they are.
    """

    name: str
    module: nn.Module
    inputs: dict[str, nn.Module]
    out_name: str
    out_proj: nn.Module
    num_heads: int
    head_dim: int
    shared: tuple[str, ...]


@dataclass(frozen=True)
class MlpParts:
    """The MLP of a block: neuron k is row k of `fc1`, goes through `activation`, and is column k of `fc2`.

    `shared` names what looks at several neurons at once, between the activation and `fc2`.
    """

    fc1_name: str
    fc1: nn.Module
    activation_name: str
    activation: nn.Module
    fc2_name: str
    fc2: nn.Module
    neurons: int
    shared: tuple[str, ...]


@dataclass(frozen=True)
class BlockParts:
    """Attention and MLP of a block, None where it has none that is known."""

    attention: AttentionParts | None
    mlp: MlpParts | None


def block_parts(block: Block | nn.Module) -> BlockParts:
    """Find the parts of one transformer block.

    Args:
        block: one of `view(model)`'s blocks, or the module alone: names then start inside the block.

    """
    module, name = (block.module, block.name) if isinstance(block, Block) else (block, "")
    prefix = f"{name}." if name else ""
    attentions = (_attention(module, prefix, *row) for row in _ATTENTION)
    mlps = (_mlp(module, prefix, *row) for row in _MLP)
    return BlockParts(next(filter(None, attentions), None), next(filter(None, mlps), None))


def _attention(
    block: nn.Module, prefix: str, path: str, inputs: tuple[str, ...], out: str
) -> AttentionParts | None:
    attention, out_proj = _get(block, path), _get(block, out)
    projections = {name: _get(block, name) for name in inputs}
    heads, width = _size(attention, "num_heads", "num_attention_heads"), _size(out_proj, "in_features")
    head_dim = _size(attention, "head_dim", "attention_head_size")
    if attention is None or out_proj is None or heads is None or head_dim is None:
        return None
    if width != heads * head_dim:
        return None
    found = {prefix + name: layer for name, layer in projections.items() if layer is not None}
    rows = {_size(layer, "out_features") for layer in found.values()}
    if len(found) < len(inputs) or rows - {3 * width // max(len(inputs), 1)}:
        return None
    if not inputs and not hasattr(attention, "in_proj_weight"):
        return None
    own = {*inputs, out}
    shared = [prefix + name for name in _shared(attention, path, own, heads, head_dim)]
    return AttentionParts(
        prefix + path, attention, found, prefix + out, out_proj, heads, head_dim, tuple(shared)
    )


def _mlp(block: nn.Module, prefix: str, path: str, fc1: str, act: str, fc2: str) -> MlpParts | None:
    first, activation, second = _get(block, fc1), _get(block, act), _get(block, fc2)
    neurons = _size(first, "out_features")
    if first is None or activation is None or second is None or neurons is None:
        return None
    if _size(second, "in_features") != neurons:
        return None
    shared = [
        f"{prefix}{path}.{name}"
        for name, child in block.get_submodule(path).named_children()
        if f"{path}.{name}" not in (fc1, fc2) and next(child.parameters(), None) is not None
    ]
    names = prefix + fc1, prefix + act, prefix + fc2
    return MlpParts(names[0], first, names[1], activation, names[2], second, neurons, tuple(shared))


def _shared(attention: nn.Module, path: str, own: set[str], heads: int, head_dim: int) -> Iterator[str]:
    for name, child in attention.named_children():
        # norms of q and k know one head's width, and are the same for every head
        per_head = all(p.numel() == head_dim for p in child.parameters())
        if f"{path}.{name}" not in own and not per_head:
            yield f"{path}.{name}"
    for name, parameter in attention.named_parameters(recurse=False):
        projection = name.startswith("in_proj_") or name.endswith("_proj_weight")
        per_head = name in _PER_HEAD and parameter.shape[0] == heads
        if not projection and not per_head:
            yield f"{path}.{name}"


def _get(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _size(module: nn.Module | None, *names: str) -> int | None:
    found: list[Any] = [getattr(module, name, None) for name in names]
    return next((size for size in found if isinstance(size, int)), None)
