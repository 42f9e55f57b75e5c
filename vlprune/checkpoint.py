"""Save a pruned model as a folder of safetensors, a JSON config and a model card; load it from that alone."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from ._version import __version__
from .files import put_in_place
from .models.build import build_model
from .models.card import model_card
from .models.checks import check_device
from .models.hints import preprocess_hint, tokenizer_hint, write_text_config
from .models.recipe import Recipe, candidates, recover, uses_fp32_norms
from .models.saved import (
    CONFIG_FILE,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    files_of,
    foreign_entry,
    is_saved_folder,
    read_folder,
    remembered,
)
from .models.tree import Changes, find_changes, tensors
from .patterns import Pattern

__all__ = ["check_target", "from_pretrained", "save_pretrained"]

_PATTERN = Pattern.parse("2:4")


def save_pretrained(
    model: nn.Module, directory: str | os.PathLike[str], *, config: dict[str, Any] | str | None = None
) -> None:
    """Write everything that `from_pretrained` needs to `directory`; weights that are 2:4 are stored packed.

    The folder appears whole or not at all: an interrupted save leaves what was there before. Zeros come
    back as +0.0, even where they were -0.0.

    Args:
        model: an open_clip model, pruned, sparsified or neither.
        directory: a new or empty folder, or one that `save_pretrained` wrote, with nothing of anyone
            else's in it, and that is replaced.
        config: the open_clip config or model name to build from, where it cannot be read off the model.

    Raises:
        ValueError: the folder holds something else; or the model is not what its config builds plus the
            changes that vlprune makes (the first differences are named).
        PermissionError: no folder can be made there.

    """
    check_target(directory)
    target = Path(directory).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.saving-{uuid.uuid4().hex[:8]}")
    work.mkdir()
    try:
        _write(model, work, config)
        # what was put there meanwhile is not to be lost either
        check_target(target)
        put_in_place(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_target(directory: str | os.PathLike[str]) -> None:
    """Raise what `save_pretrained` would raise over this directory; nothing is written.

    Raises:
        ValueError: it is a file, or it holds something that `save_pretrained` did not write and would
            have to delete, which is named.
        PermissionError: no folder can be made there.

    """
    target = Path(directory).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"directory: {target} is a file")
    if target.is_dir() and any(target.iterdir()):
        if not is_saved_folder(target):
            raise ValueError(
                f"directory: {target} is not empty and holds no saved model; it is left as it is"
            )
        if (foreign := foreign_entry(target)) is not None:
            raise ValueError(
                f"directory: {target / foreign} is not as save_pretrained wrote it; move it away, or save "
                "elsewhere"
            )
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"directory: {target} cannot be made, {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"directory: {target} cannot be written, {above} is read-only")


def from_pretrained(directory: str | os.PathLike[str], device: str = "cpu") -> nn.Module:
    """Load a folder that `save_pretrained` wrote; the model is in eval mode.

    Zeros, packed layers, split attention, removed heads, neurons and layers, dtypes and frozen parameters
    come back as they were.

    Args:
        directory: the folder; nothing else is needed.
        device: where the model goes.

    Raises:
        ValueError: a device that is not there; a file that is missing, cut short, of a newer format, or
            that contradicts the other.

    """
    check_device(device)
    return read_folder(Path(directory), device)[0]


def _write(model: nn.Module, folder: Path, config: dict[str, Any] | str | None) -> None:
    import open_clip
    from safetensors.torch import save_file

    write_text_config(model, folder)
    recipe, changes = _describe(model, folder, config)
    stored, weights = _pack(model)
    tokenizer = tokenizer_hint(model, recipe, folder)
    described = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "vlprune_version": __version__,
        "open_clip_version": open_clip.__version__,
        "source": remembered(model).get("name"),
        "model": {"config": recipe.config, "fp32_norms": recipe.fp32_norms},
        "layers": changes.to_dict(),
        "weights": weights,
        "preprocess": preprocess_hint(model),
        "tokenizer": tokenizer,
    }
    save_file(stored, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / "README.md").write_text(model_card(described, model, recipe), encoding="utf-8")
    described["files"] = files_of(folder)
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    # safetensors makes its file private to the user
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    for file in folder.rglob("*"):
        if file.is_file():
            # the rename that follows must not reach the disk before the contents do
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _describe(model: nn.Module, folder: Path, config: dict[str, Any] | str | None) -> tuple[Recipe, Changes]:
    """Find a config that builds this model, up to recorded changes."""
    first: list[str] = []
    if config is not None:
        recipes: Iterable[Recipe] = [Recipe(_given(config), uses_fp32_norms(model))]
    else:
        # lazily: the registry is only searched where the model itself did not tell
        recipes = itertools.chain([recover(model)], candidates(model))
    for recipe in recipes:
        if (folder / "text" / "config.json").is_file() and "text_cfg" in recipe.config:
            recipe.config["text_cfg"]["hf_model_name"] = "text"
        try:
            fresh = build_model(recipe.config, folder, fp32_norms=recipe.fp32_norms, device="meta")
            changes, problems = find_changes(fresh, model)
        except ValueError as error:
            problems = [str(error)]
        if not problems:
            return recipe, changes
        first = first or problems
    shown = "; ".join(first[:3]) + (f"; and {len(first) - 3} more" if len(first) > 3 else "")
    how = (
        "the given config" if config is not None else "what it tells of its config (config= can give another)"
    )
    raise ValueError(f"model: cannot be rebuilt from {how}: {shown}")


def _given(config: dict[str, Any] | str) -> dict[str, Any]:
    import open_clip

    if isinstance(config, dict):
        return json.loads(json.dumps(config))  # type: ignore[no-any-return]
    known: dict[str, Any] | None = open_clip.get_model_config(config)
    if known is None:
        near = difflib.get_close_matches(config, open_clip.list_models(), n=3, cutoff=0.0)
        raise ValueError(f"config: {config!r} is no open_clip model; nearest: {', '.join(near)}")
    return known


@torch.no_grad()
def _pack(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors to store, and what the config has to say about them."""
    stored: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    packed: list[str] = []
    tied: dict[str, str] = {}
    every = tensors(model)
    for name, tensor in every.items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        held = tensor.detach().cpu()
        if held.dtype in ops.FLOAT_DTYPES and held.numel() and _PATTERN.holds(held):
            packed.append(name)
            stored[f"{name}.values"], stored[f"{name}.meta"] = ops.pack24(held.contiguous())
        else:
            # a copy of its own: safetensors refuses views into a shared storage
            shared = held.untyped_storage().nbytes() != held.nbytes
            stored[name] = held.clone(memory_format=torch.contiguous_format) if shared else held.contiguous()
    frozen = [n for n, t in every.items() if isinstance(t, nn.Parameter) and not t.requires_grad]
    return stored, {"packed": packed, "tied": tied, "frozen": frozen}
