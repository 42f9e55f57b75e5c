"""Adapters put on a model's linear layers, and merged into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..models.split import replace
from ..nn import Linear24
from ..targets import block_linears, match_layers, matches, require_linear
from .config import SparseLoRAConfig
from .sparselora import SparseLoRALinear

__all__ = ["Attached", "add_sparse_lora_", "attached", "layers_to_adapt", "merge_sparse_lora_"]

_ATTRIBUTE = "_vlprune_adapters"


@dataclass(frozen=True)
class Attached:
    """What merging has to undo: the config, attention that was split for it, parameters that were trained."""

    config: SparseLoRAConfig
    split: tuple[str, ...]
    trainable: tuple[str, ...]


def attached(model: nn.Module) -> Attached | None:
    """What `add_sparse_lora_` left on a model, None without adapters."""
    return vars(model).get(_ATTRIBUTE)


def add_sparse_lora_(
    model: nn.Module, config: SparseLoRAConfig | None = None, masks: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Replace linear layers by `SparseLoRALinear`, in place; only the adapters are left trainable.

    Each becomes ``(W + alpha / rank * B A) * M`` (He et al. 2024, arXiv 2404.02424). Given the dense
    model and masks of a pruned one, the dense weights stay in memory and `dense_teacher` switches to them:
    no second model is held. Given the pruned model, the teacher would be pruned as well, and another one
    is needed (`distill_`). Outputs are those of the masked model until something is trained.

    Args:
        model: any module with linear layers, those of nn.MultiheadAttention and nn.TransformerEncoderLayer
            apart. Of a CLIP-style model the layers inside the towers' blocks are adapted, and packed
            attention is split for it.
        config: rank, alpha and where.
        masks: parameter name -> keep mask (bool [out, in], True = stays), as `vlprune.masks(model)`
            returns them. A weight that they do not name keeps the zeros that it has, and so do all
            without masks.

    Returns:
        Qualified names of the adapted layers.

    Raises:
        ValueError: adapters are there already; a packed layer; a mask that fits no layer, or one of a
            layer that is not adapted and has not its zeros. The model is then as it was.
        NoMatchError: a pattern of the config matches no layer.

    """
    config = SparseLoRAConfig() if config is None else config
    if not isinstance(config, SparseLoRAConfig):
        raise ValueError(f"config: expected a SparseLoRAConfig, got {config!r:.80}")
    if attached(model) is not None:
        raise ValueError("model: it has adapters already; call merge_sparse_lora_ first")
    split = models.split_attention_(model) if _has_towers(model) else []
    try:
        chosen = layers_to_adapt(model, config)
        linears = {name: linear for name, (linear, *_) in chosen.items()}
        _refuse_shared(model, linears)
        keeps = _keep_masks(model, linears, {} if masks is None else masks)
        adapters = {
            name: SparseLoRALinear(linear, keeps[name], rank, alpha, sparse=config.sparse)
            for name, (linear, rank, alpha) in chosen.items()
        }
    except BaseException:
        models.merge_attention_(model, split)
        raise
    trainable = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    model.requires_grad_(False)
    for name, adapter in adapters.items():
        replace(model, name, adapter)
    setattr(model, _ATTRIBUTE, Attached(config, tuple(split), trainable))
    return list(chosen)


def layers_to_adapt(model: nn.Module, config: SparseLoRAConfig) -> dict[str, tuple[nn.Linear, int, float]]:
    """Qualified name -> layer, rank and alpha; of a CLIP-style model attention must be split.

    Raises:
        ValueError: see `add_sparse_lora_`.

    """
    found = _linears(model)
    return {
        name: (
            require_linear(name, module, "carry an adapter"),
            int(_of(config.rank, "rank", name, found[name][0])),
            _of(config.alpha, "alpha", name, found[name][0]),
        )
        for name, module in match_layers(found, config.targets, config.ignore).items()
    }


@torch.no_grad()
def merge_sparse_lora_(model: nn.Module) -> list[str]:
    """Put every adapter into its weight, in place and in the weight's dtype; the zeros are the mask's.

    The layers and the attention modules from before come back, and what was trainable is so again. With
    ``sparse=False`` the zeros are filled.

    Returns:
        Qualified names of the layers that were merged.

    Raises:
        ValueError: the model has no adapters, or one that makes a weight not finite (nothing is merged).

    """
    state = attached(model)
    adapted = {name: m for name, m in model.named_modules() if isinstance(m, SparseLoRALinear)}
    if state is None or not adapted:
        raise ValueError("model: it has no adapters; add_sparse_lora_ adds them")
    for name, layer in adapted.items():
        if not bool(layer.merged().isfinite().all()):
            raise ValueError(f"{name}: with its adapter it holds values that are not finite")
    for name, layer in adapted.items():
        replace(model, name, layer.merge_())
    delattr(model, _ATTRIBUTE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in state.trainable)
    models.merge_attention_(model, state.split)
    return list(adapted)


def _has_towers(model: nn.Module) -> bool:
    try:
        models.view(model)
    except ValueError:
        return False
    return True


def _linears(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Qualified name -> tower ("" without towers) and linear layer."""
    if _has_towers(model):
        return block_linears(model)
    return {name: ("", module) for name, module in _generic(model, "")}


def _generic(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    # these multiply with their layers' weights and do not call them, the second one in eval mode
    if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        return
    for key, child in module.named_children():
        if isinstance(child, nn.Linear | Linear24):
            yield f"{prefix}{key}", child
        else:
            yield from _generic(child, f"{prefix}{key}.")


def _refuse_shared(model: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
    owners: dict[Tensor, str] = {}
    weights = {linear.weight for linear in chosen.values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in weights and parameter in owners:
            raise ValueError(
                f"{name}: it is also {owners[parameter]}; a shared weight cannot carry an adapter"
            )
        owners[parameter] = name


def _keep_masks(
    model: nn.Module, chosen: Mapping[str, nn.Linear], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    given: dict[str, Tensor] = {}
    for name, keep in _of_split(masks, parameters).items():
        weight = parameters.get(name)
        if weight is None:
            raise ValueError(f"masks: {name!r} is no parameter of this model")
        if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != weight.shape:
            got = f"{keep.dtype} {tuple(keep.shape)}" if isinstance(keep, Tensor) else f"{keep!r:.40}"
            raise ValueError(f"masks: {name} expects bool {tuple(weight.shape)}, got {got}")
        layer = name.removesuffix(".weight")
        if layer in chosen:
            given[layer] = keep
        elif bool((weight.detach()[~keep.to(weight.device)] != 0).any()):
            raise ValueError(
                f"masks: {name} is not zero where its mask is False, and its layer is not among the targets; "
                "adapt it as well, or apply its mask first (apply_masks_)"
            )
    return {
        name: given[name].clone() if name in given else linear.weight.detach() != 0
        for name, linear in chosen.items()
    }


def _of_split(masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name masks after the layers that attention was split into, where they are of attention that was not."""
    found: dict[str, Tensor] = {}
    for name, keep in masks.items():
        base, _, own = name.rpartition(".")
        thirds = [f"{base}.{part}_proj.weight" for part in "qkv"]
        if name in parameters or not own.endswith("proj_weight"):
            found[name] = keep
        elif own != "in_proj_weight":
            found[f"{base}.{own.replace('_weight', '.weight')}"] = keep
        elif thirds[0] in parameters and isinstance(keep, Tensor) and len(keep.shape) == 2:
            found.update(zip(thirds, keep.tensor_split(3), strict=True))
        else:
            found[f"{base}.qkv.weight"] = keep
    return found


def _of(value: Any, field: str, name: str, tower: str) -> float:
    if not isinstance(value, Mapping):
        return float(value)
    fits = [entry for pattern, entry in value.items() if matches(pattern, name, tower)]
    if not fits:
        raise ValueError(f"{field}: none of {', '.join(map(repr, value))} fits layer {name}")
    return float(fits[0])
