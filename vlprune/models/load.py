"""Models by name: open_clip's, the demo, a folder of ours, a folder in open_clip's form."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from . import saved
from .build import (
    build_model,
    build_preprocess,
    build_tokenizer,
    complete_preprocess,
    first_line,
    quiet,
    tokenizer_spec,
)

__all__ = ["LoadedModel", "load_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with what turns images and texts into its inputs."""

    model: nn.Module
    preprocess: Callable[..., Any]
    tokenizer: Callable[..., Any]
    name: str


def load_model(name: str, pretrained: str | None = None, device: str = "cpu") -> LoadedModel:
    """Load a model by name, with its preprocessing and tokenizer.

    Args:
        name: an open_clip model name; "demo"; or a folder, either written by `save_pretrained` or in
            open_clip's form (open_clip_config.json, or config.json with embed_dim, vision_cfg, text_cfg;
            beside model.safetensors).
        pretrained: for an open_clip name, a tag or a checkpoint file; None leaves the weights random.
        device: where the model goes.

    Raises:
        ValueError: an unknown name (the nearest are listed) or tag (all are listed), or a folder that
            cannot be loaded.
        OSError: the weights could not be downloaded.

    """
    if name == "demo" or Path(name).is_dir():
        if pretrained is not None:
            raise ValueError(
                f"pretrained: {name!r} comes with its weights; expected None, got {pretrained!r}"
            )
        loaded = _load_demo() if name == "demo" else _load_folder(Path(name), device)
    else:
        loaded = _load_open_clip(name, pretrained, device)
    loaded.model.to(device).eval()
    return loaded


def _load_demo() -> LoadedModel:
    from .. import demo

    model, preprocess, tokenizer = demo.load()
    config = json.loads((demo.FOLDER / "config.json").read_text())
    _remember(model, "demo", {"kind": "demo"}, config["preprocess_cfg"])
    return LoadedModel(model, preprocess, tokenizer, "demo")


def _load_folder(folder: Path, device: str) -> LoadedModel:
    if saved.is_saved_folder(folder):
        model, config = saved.read_folder(folder, device)
        preprocess = build_preprocess(config["preprocess"])
        return LoadedModel(model, preprocess, build_tokenizer(config["tokenizer"], folder), str(folder))
    config, preprocess_cfg = _open_clip_form(folder)
    model = build_model(config, folder)
    _load_weights(model, folder)
    spec = tokenizer_spec(config["text_cfg"], folder)
    # not the whole path, which says more about this machine than about the model
    _remember(model, folder.resolve().name, spec, preprocess_cfg)
    return LoadedModel(model, build_preprocess(preprocess_cfg), build_tokenizer(spec, folder), str(folder))


def _open_clip_form(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the model config and the preprocess config of a folder in open_clip's form."""
    for file in ("open_clip_config.json", "config.json"):
        if (folder / file).is_file():
            try:
                whole = json.loads((folder / file).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{folder / file}: not valid JSON: {error}") from error
            config = whole.get("model_cfg", whole)
            if {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
                size = config["vision_cfg"].get("image_size", 224)
                return config, {"size": size, **whole.get("preprocess_cfg", {})}
    raise ValueError(
        f"{folder}: no model folder: expected a config.json of vlprune, or open_clip_config.json or "
        "config.json with embed_dim, vision_cfg and text_cfg"
    )


def _load_weights(model: nn.Module, folder: Path) -> None:
    from open_clip.factory import load_checkpoint
    from safetensors import SafetensorError

    files = [folder / f for f in ("open_clip_model.safetensors", "model.safetensors")]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: model.safetensors is missing")
    try:
        with quiet():
            load_checkpoint(model, str(file))
    except (SafetensorError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{file}: does not fit its config: {reason}") from error


def _load_open_clip(name: str, pretrained: str | None, device: str) -> LoadedModel:
    import open_clip

    known = name.replace("/", "-")
    hub = name.startswith(("hf-hub:", "local-dir:"))
    if not hub and known not in open_clip.list_models():
        if name.startswith((".", "/", "~")):
            raise ValueError(f"model: {name}: no such folder")
        raise ValueError(f"model: {name!r} is no open_clip model and no folder; nearest: {_nearest(known)}")
    if not hub and pretrained is not None and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(known)
        # open_clip compares tags without regard to case and dashes
        if pretrained.lower().replace("-", "_") not in {tag.lower().replace("-", "_") for tag in tags}:
            raise ValueError(
                f"pretrained: {known} has no {pretrained!r}; its tags: {', '.join(tags) or 'none'}"
            )
    try:
        with quiet():
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, device=device, pretrained_hf=False
            )
            tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError) as error:
        what = f"{name} ({pretrained})" if pretrained else name
        raise OSError(f"could not get {what}: {first_line(error)}") from error
    _remember(model, f"{name}:{pretrained}" if pretrained else name, {"kind": "open_clip", "name": name})
    return LoadedModel(model, preprocess, tokenizer, name)


def _nearest(name: str) -> str:
    import open_clip

    names = {known.lower(): known for known in ("demo", *open_clip.list_models())}
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.0)
    return ", ".join(names[match] for match in near)


def _remember(
    model: nn.Module, name: str, tokenizer: dict[str, Any], preprocess: dict[str, Any] | None = None
) -> None:
    """Leave on the model what `save_pretrained` cannot find out from it."""
    from open_clip.model import set_model_preprocess_cfg

    saved.remember(model, name, tokenizer)
    if preprocess is not None:
        set_model_preprocess_cfg(model, complete_preprocess(preprocess))
