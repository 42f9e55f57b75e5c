"""A model seen as towers, blocks and linear layers, whatever library its parts come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

__all__ = ["Block", "ModelView", "Tower", "view"]

# Where the two towers hang: open_clip's names, then those of transformers' CLIP and SigLIP models.
_VISUAL = ("visual", "vision_model")
_TEXT = ("text", "text_model")


@dataclass(frozen=True)
class Block:
    """One of a tower's repeated blocks.

    Args:
        name: qualified, in the model.
        module: the block.
        tower: "visual" or "text".
        index: its number in the tower, from the input.

    """

    name: str
    module: nn.Module
    tower: str
    index: int

    def linears(self) -> dict[str, nn.Module]:
        """Qualified name -> every linear layer inside, in order of registration.

        Linear is what maps ``in_features`` to ``out_features``: nn.Linear, its subclasses, Linear24
        and wrappers around them. Attention with a bare ``in_proj_weight`` contributes nothing until
        `split_attention_` has given its projections layers of their own; nor do layers that were left
        without inputs or outputs when all heads or neurons were removed.
        """
        return dict(_linears(self.module, self.name))


@dataclass(frozen=True)
class Tower:
    """One of the two encoders.

    Args:
        name: "visual" or "text".
        module: what it hangs on.
        prefix: starts the qualified name of everything in it.
        blocks: in the order they run.

    """

    name: str
    module: nn.Module
    prefix: str
    blocks: list[Block]


@dataclass(frozen=True)
class ModelView:
    """The towers that were found, by name: "visual", "text" or both."""

    towers: dict[str, Tower]


def view(model: nn.Module) -> ModelView:
    """Find the towers of a CLIP-style model and the blocks in them, in the order they run.

    Known are open_clip's CLIP (whose text tower lies bare on the model, prefix ""), CustomTextCLIP and
    CoCa (its decoder's blocks follow those of the text tower, self- and cross-attention in turn), with
    open_clip, timm or transformers towers. A tower without transformer blocks, such as a ResNet, is
    left out.

    Raises:
        ValueError: `model` has no tower with transformer blocks, or is no module.

    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected an nn.Module, got {type(model).__name__}")
    children = dict(model.named_children())
    visual = next((name for name in _VISUAL if name in children), None)
    text = next((name for name in _TEXT if name in children), None)
    towers: dict[str, Tower] = {}
    if visual is not None:
        blocks = _blocks(children[visual], visual)
        towers["visual"] = Tower("visual", children[visual], visual, _number(blocks, "visual"))
    if text is not None:
        blocks = _blocks(children[text], text)
        if "text_decoder" in children:
            blocks += _blocks(children["text_decoder"], "text_decoder")
        towers["text"] = Tower("text", children[text], text, _number(blocks, "text"))
    elif visual is not None and "transformer" in children:
        blocks = _blocks(children["transformer"], "transformer")
        towers["text"] = Tower("text", model, "", _number(blocks, "text"))
    towers = {name: tower for name, tower in towers.items() if tower.blocks}
    if not towers:
        raise ValueError(
            f"model: {type(model).__name__} has no tower with transformer blocks; expected an open_clip "
            "model with .visual and .text (or .transformer)"
        )
    return ModelView(towers)


def _number(blocks: list[tuple[str, nn.Module]], tower: str) -> list[Block]:
    return [Block(name, module, tower, index) for index, (name, module) in enumerate(blocks)]


def _blocks(tower: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """List the items of the deepest containers of repeated blocks, with their qualified names."""
    stacks = {
        name: module
        for name, module in tower.named_modules(prefix=prefix)
        if isinstance(module, nn.ModuleList | nn.Sequential) and _is_stack(module)
    }
    deepest = [name for name in stacks if not any(other.startswith(f"{name}.") for other in stacks)]
    found: list[tuple[str, nn.Module]] = []
    for name in deepest:
        items = [(f"{name}.{key}", child) for key, child in stacks[name].named_children()]
        self_stack = f"{name.rpartition('.')[0]}.resblocks"
        if name.endswith(".cross_attn") and self_stack in deepest:
            # CoCa's decoder runs block i of both lists before block i + 1 of either
            before = [i for i, (key, _) in enumerate(found) if key.startswith(f"{self_stack}.")]
            own = found[before[0] :]
            del found[before[0] :]
            for i in range(max(len(own), len(items))):
                found += own[i : i + 1] + items[i : i + 1]
        else:
            found += items
    return found


def _is_stack(container: nn.Module) -> bool:
    """Whether most items are of one class that has attention inside: repeated transformer blocks.

    Most and not all, because a block may have been replaced by something smaller.
    """
    children = list(container.children())
    classes = [type(child) for child in children]
    for cls in set(classes):
        same = [child for child in children if type(child) is cls]
        if 2 * len(same) > len(children) and any(_has_attention(child) for child in same):
            return True
    return False


def _has_attention(module: nn.Module) -> bool:
    inside = (child for child in module.modules() if child is not module)
    return any("attention" in type(child).__name__.lower() for child in inside)


def _linears(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if _is_linear(module):
        if module.in_features and module.out_features:
            yield name, module
    elif not hasattr(module, "in_proj_weight"):
        for key, child in module.named_children():
            yield from _linears(child, f"{name}.{key}")


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes)
