"""Models by name: open_clip's, the demo, a folder of ours, a folder in open_clip's form."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..files import read_json
from . import saved
from .build import (
    build_model,
    build_preprocess,
    build_tokenizer,
    complete_preprocess,
    quiet,
    tokenizer_spec,
)
from .checks import bad_weights, check_device, contents_of, expect, first_line

__all__ = ["LoadedModel", "load_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with what turns images and texts into its inputs.

    Args:
        model: on the device asked for.
        preprocess: maps a PIL image to a tensor [C, H, W].
        tokenizer: maps a list of texts to ids [N, L].
        name: what it was loaded by.
        random_weights: whether it is an architecture alone, whose weights nobody trained.

    """

    model: nn.Module
    preprocess: Callable[..., Any]
    tokenizer: Callable[..., Any]
    name: str
    random_weights: bool = False


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
            cannot be loaded, or a device that is not there.
        OSError: the weights could not be downloaded.

    """
    check_device(device)
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
    config = read_json(demo.FOLDER / "config.json")
    _remember(model, "demo", {"kind": "demo"}, config["preprocess_cfg"])
    return LoadedModel(model, preprocess, tokenizer, "demo")


def _load_folder(folder: Path, device: str) -> LoadedModel:
    if saved.is_saved_folder(folder):
        model, config = saved.read_folder(folder, device)
        with contents_of(folder / saved.CONFIG_FILE):
            preprocess = build_preprocess(config["preprocess"])
            tokenizer = build_tokenizer(config["tokenizer"], folder)
        return LoadedModel(model, preprocess, tokenizer, str(folder))
    file, config, preprocess_cfg = _open_clip_form(folder)
    with contents_of(file):
        model = build_model(config, folder)
        spec = tokenizer_spec(config["text_cfg"], folder)
        # not the whole path, which says more about this machine than about the model
        _remember(model, folder.resolve().name, spec, preprocess_cfg)
        preprocess, tokenizer = build_preprocess(preprocess_cfg), build_tokenizer(spec, folder)
    _load_weights(model, folder)
    return LoadedModel(model, preprocess, tokenizer, str(folder))


def _open_clip_form(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return the file that describes a folder in open_clip's form, its model config and preprocess config."""
    for file in (folder / "open_clip_config.json", folder / "config.json"):
        if file.is_file():
            whole = read_json(file)
            with contents_of(file):
                config = expect(expect(whole, dict).get("model_cfg", whole), dict, "model_cfg")
                if {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
                    size = expect(config["vision_cfg"], dict, "vision_cfg").get("image_size", 224)
                    given = expect(whole.get("preprocess_cfg", {}), dict, "preprocess_cfg")
                    return file, config, {"size": size, **given}
    raise ValueError(
        f"{folder}: no model folder: expected a config.json of vlprune, or open_clip_config.json or "
        "config.json with embed_dim, vision_cfg and text_cfg"
    )


def _load_weights(model: nn.Module, folder: Path) -> None:
    from open_clip.factory import load_checkpoint

    files = [folder / f for f in ("open_clip_model.safetensors", "model.safetensors")]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: model.safetensors is missing")
    try:
        with quiet():
            load_checkpoint(model, str(file))
    except Exception as error:
        raise bad_weights(file, "its config", error) from error


def _load_open_clip(name: str, pretrained: str | None, device: str) -> LoadedModel:
    import open_clip

    known = name.replace("/", "-")
    hub = name.startswith(("hf-hub:", "local-dir:"))
    if not hub and known not in open_clip.list_models():
        if name.startswith((".", "/", "~")):
            raise ValueError(f"model: {name}: no such folder")
        raise ValueError(f"model: {name!r} is no open_clip model and no folder; nearest: {_nearest(known)}")
    file = Path(pretrained) if pretrained is not None and Path(pretrained).is_file() else None
    if not hub and pretrained is not None and file is None:
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
    except Exception as error:
        # unpickling what is no checkpoint raises anything
        if file is not None and not isinstance(error, OSError):
            raise bad_weights(file, name, error) from error
        raise _not_got(name, pretrained, error) from error
    try:
        with quiet():
            tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError) as error:
        raise _not_got(name, pretrained, error) from error
    _remember(model, f"{name}:{pretrained}" if pretrained else name, {"kind": "open_clip", "name": name})
    return LoadedModel(model, preprocess, tokenizer, name, random_weights=pretrained is None and not hub)


def _not_got(name: str, pretrained: str | None, error: Exception) -> OSError:
    what = f"{name} ({pretrained})" if pretrained else name
    return OSError(f"could not get {what}: {first_line(error)}")


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
