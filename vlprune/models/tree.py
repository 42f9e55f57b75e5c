"""A module tree written down as the differences from a freshly built one, and put back from them.

Behaviour of a module is its class, its tensors and its plain attributes. So a model is restored when the
fresh tree has had the same classes put in, the same attributes set, and tensors of the same shapes given:
that covers split attention, packed layers, and heads, neurons or layers that were removed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from .. import ops
from ..nn.attention import PackedAttention, SplitAttention, is_splittable
from ..nn.linear24 import Linear24
from ..nn.quantized24 import QuantizedLinear24
from .checks import expect
from .split import replace, split_one
from .view import view

__all__ = ["Changes", "apply_changes", "find_changes", "tensors"]

# The preprocessing has a place of its own in the folder; name_or_path is where transformers found a model.
_SKIPPED = frozenset({"training", "preprocess_cfg", "image_mean", "image_std", "name_or_path"})


@dataclass
class Changes:
    """Differences of a model from the one its config builds, by qualified name.

    depth: stacks of blocks that are shorter -> their length. packed_attention, split_attention: attention
    made of linear layers. linear24, quantized24: packed layers -> their arguments. identity: modules that
    do nothing any more. attributes: module -> plain attributes. shapes: tensor -> its shape.
    """

    depth: dict[str, int] = field(default_factory=dict)
    packed_attention: list[str] = field(default_factory=list)
    split_attention: list[str] = field(default_factory=list)
    linear24: dict[str, dict[str, Any]] = field(default_factory=dict)
    quantized24: dict[str, dict[str, Any]] = field(default_factory=dict)
    identity: list[str] = field(default_factory=list)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that say something, as JSON can hold them."""
        return {key: value for key, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Changes:
        """Read what `to_dict` returned; unknown keys and values of another kind raise ValueError."""
        try:
            changes = cls(**data)
        except TypeError as error:
            raise ValueError(f"layers: {error}") from error
        for name, empty in vars(cls()).items():
            expect(getattr(changes, name), type(empty), f"layers.{name}")
        return changes


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name, the non-persistent and the shared ones too."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def find_changes(fresh: nn.Module, model: nn.Module) -> tuple[Changes, list[str]]:
    """Find what makes `model` out of `fresh`, and what cannot be explained; `fresh` is changed on the way."""
    changes = Changes()
    for name, module in model.named_modules():
        if isinstance(module, PackedAttention):
            changes.packed_attention.append(name)
        elif isinstance(module, SplitAttention):
            changes.split_attention.append(name)
        elif isinstance(module, Linear24):
            changes.linear24[name] = _arguments(module)
        elif isinstance(module, QuantizedLinear24):
            dtypes = {"dtype": module.values.dtype, "original_dtype": module.original_dtype}
            named = {key: str(dtype).removeprefix("torch.") for key, dtype in dtypes.items()}
            changes.quantized24[name] = _arguments(module) | named
        elif isinstance(module, nn.ModuleList | nn.Sequential):
            whole = _get(fresh, name)
            if type(whole) is type(module) and len(module) < len(whole):
                changes.depth[name] = len(module)
        elif isinstance(module, nn.Identity):
            replaced = _get(fresh, name)
            # what an activation did may have moved into a packed layer; nothing with weights may vanish
            if replaced is not None and type(replaced) is not nn.Identity and not list(replaced.parameters()):
                changes.identity.append(name)
    try:
        apply_changes(fresh, changes)
    except ValueError as error:
        return changes, [str(error)]
    problems = _compare_modules(fresh, model, changes)
    problems += _compare_tensors(fresh, model, changes)
    return changes, problems


def apply_changes(fresh: nn.Module, changes: Changes) -> None:
    """Make the changes to a freshly built model, all but the tensors' shapes, in place.

    Raises:
        ValueError: a name that the model does not have, or that is something else there.

    """
    for name, length in changes.depth.items():
        stack: Any = _expect(fresh, name, "a stack of blocks", nn.ModuleList, nn.Sequential)
        del stack[length:]
    for name in (*changes.packed_attention, *changes.split_attention):
        module = _expect(fresh, name, "packed attention", nn.Module)
        if not is_splittable(module):
            raise ValueError(f"{name}: expected packed attention, got {type(module).__name__}")
        replace(fresh, name, split_one(module, cross=name in changes.split_attention))
    for name, arguments in changes.linear24.items():
        _expect(fresh, name, "a linear layer", nn.Linear)
        replace(fresh, name, Linear24(**arguments, device="meta"))
    for name, arguments in changes.quantized24.items():
        _expect(fresh, name, "a linear layer", nn.Linear)
        kinds = {"dtype": ops.SCALED_DTYPES, "original_dtype": ops.FLOAT_DTYPES}
        dtypes = {key: _dtype(f"{name}.{key}", arguments.get(key), kinds[key]) for key in kinds}
        replace(fresh, name, QuantizedLinear24(**{**arguments, **dtypes}, device="meta"))
    for name in changes.identity:
        replace(fresh, name, nn.Identity().train(_expect(fresh, name, "a module", nn.Module).training))
    for name, attributes in changes.attributes.items():
        module = _expect(fresh, name, "a module", nn.Module)
        for key, value in attributes.items():
            if key.startswith("_") or key in module._modules or not _is_plain(getattr(module, key, None)):
                raise ValueError(f"{name}.{key}: no plain attribute of {type(module).__name__}")
            setattr(module, key, _decode(value))


def _arguments(module: Linear24 | QuantizedLinear24) -> dict[str, Any]:
    arguments = ("in_features", "out_features", "activation", "backend")
    return {key: getattr(module, key) for key in arguments} | {"bias": module.bias is not None}


def _dtype(name: str, value: Any, kinds: tuple[torch.dtype, ...]) -> torch.dtype:
    allowed = {str(dtype).removeprefix("torch."): dtype for dtype in kinds}
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    return allowed[value]


def _get(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _expect(model: nn.Module, name: str, what: str, *kinds: type[nn.Module]) -> nn.Module:
    module = _get(model, name)
    if not isinstance(module, kinds):
        raise ValueError(f"{name}: expected {what}, got {type(module).__name__ if module else 'nothing'}")
    return module


def _compare_modules(fresh: nn.Module, model: nn.Module, changes: Changes) -> list[str]:
    ours = dict(fresh.named_modules(remove_duplicate=False))
    theirs = dict(model.named_modules(remove_duplicate=False))
    problems: list[str] = []
    for name in [name for name in theirs if name in ours]:
        module, expected = theirs[name], ours[name]
        if _kind(module) != _kind(expected):
            problems.append(f"{name}: {type(module).__name__}, expected {type(expected).__name__}")
            continue
        before, after = vars(expected), vars(module)
        for key, value in after.items():
            if key.startswith("_") or key in _SKIPPED:
                continue
            if _is_plain(value) and _is_plain(before.get(key)):
                if key not in before or not _same(before[key], value):
                    changes.attributes.setdefault(name, {})[key] = _encode(value)
            elif _function(before.get(key)) != _function(value):
                problems.append(f"{name}.{key}: {value!r}, expected {before.get(key)!r}")
    for name in sorted(theirs.keys() ^ ours.keys()):
        kind = type(theirs[name] if name in theirs else ours[name]).__name__
        problems.append(f"{name}: {kind}, not in its config" if name in theirs else f"{name}: missing {kind}")
    return problems


def _compare_tensors(fresh: nn.Module, model: nn.Module, changes: Changes) -> list[str]:
    ours, theirs = tensors(fresh), tensors(model)
    problems = [f"{name}: tensor not in its config" for name in theirs if name not in ours]
    problems += [f"{name}: missing tensor" for name in ours if name not in theirs]
    blocks = tuple(f"{block.name}." for tower in view(model).towers.values() for block in tower.blocks)
    for name in [name for name in theirs if name in ours and theirs[name].shape != ours[name].shape]:
        if name.startswith(blocks):
            changes.shapes[name] = list(theirs[name].shape)
        else:
            shapes = tuple(theirs[name].shape), tuple(ours[name].shape)
            problems.append(f"{name}: shape {shapes[0]}, expected {shapes[1]}")
    return problems


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """The class, or that in whose place `vlprune.nn.blocks` put one of ours: loading finds out itself."""
    cls = type(module)
    return cls.__base__ if cls.__module__ in ("vlprune.nn.blocks", "vlprune.nn.patches") else cls


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _function(value: Any) -> str | None:
    name = getattr(value, "__qualname__", None)
    return None if name is None else f"{value.__module__}.{name}"


def _encode(value: Any) -> Any:
    """Keep tuples apart from lists, which JSON does not."""
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    return [_encode(item) for item in value] if isinstance(value, list) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(_decode(item) for item in value["tuple"])
    return [_decode(item) for item in value] if isinstance(value, list) else value
