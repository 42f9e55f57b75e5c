"""The folder that `save_pretrained` writes, read back.

``config.json`` says how to build the model, what was changed in it and which other files were written
(``files``: name -> SHA-256); ``model.safetensors`` holds the tensors. A weight listed under
``weights.packed`` is stored as ``NAME.values`` and ``NAME.meta``; one under ``weights.tied`` is the same
tensor as another.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor, nn

from .. import ops
from ..files import read_json
from ..nn.linear24 import Linear24
from ..nn.quantized24 import QuantizedLinear24
from ..ops.checks import wrong_indices
from .build import build_model
from .checks import contents_of, expect, first_line
from .tree import Changes, apply_changes, tensors

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "files_of",
    "foreign_entry",
    "is_saved_folder",
    "read_folder",
    "remember",
    "remembered",
]

FORMAT = "vlprune"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_KEYS = frozenset(
    {"format", "format_version", "vlprune_version", "open_clip_version", "model", "layers", "weights",
     "preprocess", "tokenizer", "source", "files"}
)  # fmt: skip
_OPTIONAL = frozenset({"source", "files", "open_clip_version", "vlprune_version"})
_WEIGHTS_KEYS = frozenset({"packed", "tied", "frozen"})


def remember(model: nn.Module, name: str | None, tokenizer: dict[str, Any]) -> None:
    """Leave on the model where it came from and how its texts are tokenized."""
    object.__setattr__(model, "_vlprune_source", {"name": name, "tokenizer": tokenizer})


def remembered(model: nn.Module) -> dict[str, Any]:
    """Return what `remember` left, empty if nothing."""
    return dict(getattr(model, "_vlprune_source", {}))


def is_saved_folder(folder: Path) -> bool:
    """Whether `folder` was written by `save_pretrained`."""
    try:
        config = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def files_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in `folder` but its config and its weights, by relative name."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file not in (folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    }


def foreign_entry(folder: Path) -> str | None:
    """Name an entry of a saved folder that `save_pretrained` did not write, or that was changed since."""
    written = read_json(folder / CONFIG_FILE).get("files")
    known: dict[str, str] = written if isinstance(written, dict) else {}
    places = {CONFIG_FILE, WEIGHTS_FILE, *known}
    places.update(str(above) for name in known for above in PurePosixPath(name).parents)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in places or path.is_symlink():
            return name
    return next((name for name, digest in files_of(folder).items() if known.get(name) != digest), None)


def read_folder(folder: Path, device: str = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """Build the saved model, in eval mode, and return it with the folder's config.

    Raises:
        ValueError: a file that is missing, cut short, of a newer format, or that contradicts the other.

    """
    from open_clip.model import set_model_preprocess_cfg

    config = _read_config(folder)
    recipe, weights = config["model"], config["weights"]
    with contents_of(folder / CONFIG_FILE):
        changes = Changes.from_dict(config["layers"])
        shapes = {name: [int(size) for size in shape] for name, shape in changes.shapes.items()}
        model = build_model(recipe["config"], folder, fp32_norms=recipe["fp32_norms"], device="meta")
        if any(isinstance(value, Tensor) for module in model.modules() for value in vars(module).values()):
            # such tensors are computed at construction and are in no file
            model = build_model(recipe["config"], folder, fp32_norms=recipe["fp32_norms"])
        apply_changes(model, changes)
        expected = tensors(model)
        named = (*weights["tied"], *weights["tied"].values(), *weights["packed"], *weights["frozen"])
        if strange := [name for name in named if name not in expected]:
            raise ValueError(f"weights: the model has no {strange[0]!r}")
        set_model_preprocess_cfg(model, config["preprocess"])
        tokenizer = dict(config["tokenizer"])
        if tokenizer.get("kind") == "hf" and (folder / tokenizer["name"]).is_dir():
            tokenizer["name"] = str((folder / tokenizer["name"]).resolve())
        remember(model, config.get("source"), tokenizer)
    _fill(model, folder / WEIGHTS_FILE, weights, shapes, device)
    return model.eval(), config


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    for needed in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / needed).is_file():
            raise ValueError(f"{folder}: {needed} is missing")
    config: Any = read_json(file)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f'{file}: expected "format": "{FORMAT}"; was this written by save_pretrained?')
    version = config.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{file}: format_version {version!r}, but this vlprune reads 1 to {FORMAT_VERSION}; "
            "install a newer vlprune"
        )
    with contents_of(file):
        _check_keys(config, _KEYS, "")
        for key in ("model", "layers", "weights", "preprocess", "tokenizer"):
            expect(config[key], dict, key)
        _check_keys(config["weights"], _WEIGHTS_KEYS, "weights.")
        for key, kind in (("packed", list), ("tied", dict), ("frozen", list)):
            expect(config["weights"][key], kind, f"weights.{key}")
        if not {"config", "fp32_norms"} <= config["model"].keys():
            raise ValueError("model: expected keys 'config' and 'fp32_norms'")
        expect(config["model"]["config"], dict, "model.config")
        expect(config["model"]["fp32_norms"], bool, "model.fp32_norms")
    return config


def _check_keys(found: dict[str, Any], known: frozenset[str], where: str) -> None:
    if unknown := sorted(found.keys() - known):
        raise ValueError(f"unknown key {where + unknown[0]!r}")
    if missing := sorted(known - found.keys() - _OPTIONAL):
        raise ValueError(f"key {where + missing[0]!r} is missing")


def _fill(
    model: nn.Module, file: Path, weights: dict[str, Any], shapes: dict[str, list[int]], device: str
) -> None:
    """Give every parameter and buffer its tensor from the file."""
    from safetensors import SafetensorError, safe_open

    from ..nn.blocks import fuse_

    expected, tied, packed = tensors(model), weights["tied"], set(weights["packed"])
    # Others may be stored in another precision than they are built in; here a dtype says what numbers mean.
    scaled = [(name, m) for name, m in model.named_modules() if isinstance(m, QuantizedLinear24)]
    exact = {f"{name}.{leaf}" for name, module in scaled for leaf in module._buffers}
    frozen = set(weights["frozen"])
    own = [name for name in expected if name not in tied]
    keys = {key for name in own for key in _stored_as(name, name in packed)}
    loaded: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt", device=str(device)) as stored:
            present = set(stored.keys())
            for what, names in (("missing", keys - present), ("unknown", present - keys)):
                if names:
                    raise ValueError(f"{file}: tensor {sorted(names)[0]!r} is {what}")
            for name in own:
                parts = [stored.get_tensor(key) for key in _stored_as(name, name in packed)]
                loaded[name] = _checked(file, name, parts, expected[name], shapes.get(name))
                if name in exact and loaded[name].dtype != expected[name].dtype:
                    got, wanted = loaded[name].dtype, expected[name].dtype
                    raise ValueError(f"{file}: {name}: expected dtype {wanted}, got {got}")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: damaged: {first_line(error)}") from error
    given = {name: _as_held(loaded[name], expected[name], name not in frozen) for name in own}
    for name in expected:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        held = module._parameters if leaf in module._parameters else module._buffers
        held[leaf] = given[tied.get(name, name)]  # type: ignore[assignment]
    for name, module in model.named_modules():
        if isinstance(module, Linear24 | QuantizedLinear24):
            if (reason := wrong_indices(module.meta, module.in_features)) is not None:
                raise ValueError(f"{file}: {name}.meta: {reason}")
            ops.prepare24(module.values, module.meta, module.backend)
    fuse_(model)


def _stored_as(name: str, packed: bool) -> list[str]:
    return [f"{name}.values", f"{name}.meta"] if packed else [name]


def _checked(file: Path, name: str, parts: list[Tensor], expected: Tensor, shape: list[int] | None) -> Tensor:
    try:
        tensor = ops.unpack24(*parts) if len(parts) == 2 else parts[0]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {name}: {error}") from error
    if len(parts) == 2 and (reason := wrong_indices(parts[1], tensor.shape[1])) is not None:
        raise ValueError(f"{file}: {name}.meta: {reason}")
    wanted = list(expected.shape) if shape is None else list(shape)
    if list(tensor.shape) != wanted:
        raise ValueError(f"{file}: {name}: expected shape {wanted}, got {list(tensor.shape)}")
    if tensor.is_floating_point() != expected.is_floating_point():
        raise ValueError(f"{file}: {name}: expected a dtype like {expected.dtype}, got {tensor.dtype}")
    return tensor


def _as_held(tensor: Tensor, expected: Tensor, trains: bool) -> Tensor:
    if not isinstance(expected, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=trains and tensor.is_floating_point())
