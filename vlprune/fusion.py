"""Activations that can move into the epilogue of the linear layer before them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["FusedActivation", "find_activation"]


@dataclass(frozen=True)
class FusedActivation:
    """An activation that does nothing but follow one linear layer, and its place in their parent."""

    attribute: str
    module: nn.Module
    kind: str


# Parents whose forward is known to run this child's output straight through that one: timm's Mlp.
_FOLLOWERS = {("Mlp", "fc1"): "act"}


def find_activation(model: nn.Module, name: str) -> FusedActivation | None:
    """The activation that directly follows layer `name` in an MLP, if `linear24` has it; else None."""
    path, _, child = name.rpartition(".")
    parent = model.get_submodule(path)
    if isinstance(parent, nn.Sequential):
        names = list(dict(parent.named_children()))
        position = names.index(child) + 1
        attribute = names[position] if position < len(names) else None
    else:
        attribute = _FOLLOWERS.get((type(parent).__name__, child))
    module = getattr(parent, attribute, None) if attribute else None
    kind = _kind(module)
    return FusedActivation(attribute, module, kind) if attribute and module and kind else None


def _kind(module: nn.Module | None) -> str | None:
    # open_clip, timm and transformers each define their own QuickGELU, all x * sigmoid(1.702 x)
    if type(module).__name__ in ("QuickGELU", "QuickGELUActivation"):
        return "quick_gelu"
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "gelu"
    return None
