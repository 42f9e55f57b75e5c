"""An open_clip model, its preprocessing and its tokenizer from a plain config, without registry or hub."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checks import UNUSABLE, expect, first_line

__all__ = ["build_model", "build_preprocess", "build_tokenizer", "quiet"]


def build_model(
    config: dict[str, Any], folder: Path | None = None, *, fp32_norms: bool = False, device: str = "cpu"
) -> nn.Module:
    """Construct an open_clip model, with whatever weights construction gives it.

    Args:
        config: open_clip's model config (embed_dim, vision_cfg, text_cfg, ...); keys that describe no
            architecture, such as preprocess_cfg, are ignored.
        folder: what a relative ``hf_model_name`` is resolved against.
        fp32_norms: use the layer norms that compute in float32, as open_clip does for half precision.
        device: "meta" constructs the shapes alone.

    Raises:
        ValueError: the config does not describe a model that the installed open_clip can build.

    """
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    config = {k: v for k, v in copy.deepcopy(config).items() if k not in ("preprocess_cfg", "hf_config")}
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ValueError(f"model config: {missing[0]!r} is missing")
    text = expect(config["text_cfg"], dict, "model config: text_cfg")
    expect(config["vision_cfg"], dict, "model config: vision_cfg").pop("timm_model_pretrained", None)
    custom = config.pop("custom_text", False) or bool(text.get("hf_model_name"))
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
        text["hf_model_name"] = _resolve(text["hf_model_name"], folder)
    kind = CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom else CLIP
    cast_dtype = torch.bfloat16 if fp32_norms else None
    try:
        with quiet(), torch.device(device):
            model: nn.Module = kind(**config, cast_dtype=cast_dtype)
    except (*UNUSABLE, OSError) as error:
        raise ValueError(f"model config: open_clip cannot build it: {first_line(error)}") from error
    return model.eval()


def build_preprocess(config: dict[str, Any]) -> Callable[..., Any]:
    """Make open_clip's inference transform from its preprocess_cfg; unknown keys are ignored."""
    from open_clip.transform import image_transform_v2

    transform: Callable[..., Any] = image_transform_v2(_preprocess_cfg(config), is_train=False)
    return transform


def complete_preprocess(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a preprocess_cfg leaves to open_clip's defaults."""
    return asdict(_preprocess_cfg(config))


def _preprocess_cfg(config: dict[str, Any]) -> Any:
    from open_clip.transform import PreprocessCfg

    known = {field.name for field in fields(PreprocessCfg)}
    cfg = PreprocessCfg(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
    )
    # torchvision would only notice when the first image comes
    for key, kind in (("size", Integral), ("mean", Real), ("std", Real)):
        value = getattr(cfg, key)
        parts = value if isinstance(value, tuple) else (value,)
        if not parts or not all(isinstance(part, kind) for part in parts):
            raise ValueError(f"preprocess: {key}: expected a number or a list of numbers, got {value!r:.60}")
    return cfg


def build_tokenizer(spec: dict[str, Any], folder: Path | None = None) -> Callable[..., Any]:
    """Make the tokenizer that a spec describes.

    Kinds: "simple" (open_clip's own), "hf" (``name``: a folder, maybe relative, or a hub name),
    "open_clip" (``name``: an open_clip model's), "demo".
    """
    import open_clip
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    kind, length = spec.get("kind"), spec.get("context_length")
    options: dict[str, Any] = dict(spec.get("options") or {})
    tokenizer: Callable[..., Any]
    if kind == "simple":
        tokenizer = SimpleTokenizer(context_length=length or 77, **options)
    elif kind == "hf":
        try:
            tokenizer = HFTokenizer(_resolve(spec["name"], folder), context_length=length or 77, **options)
        except ImportError as error:
            raise ValueError("this tokenizer needs transformers: pip install 'vlprune[hf]'") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"tokenizer {spec['name']!r}: {first_line(error)}") from error
    elif kind == "open_clip":
        with quiet():
            tokenizer = open_clip.get_tokenizer(spec["name"])
    elif kind == "demo":
        from ..demo.tokenizer import load_tokenizer

        tokenizer = load_tokenizer()
    else:
        return _no_tokenizer
    return tokenizer


def tokenizer_spec(text_cfg: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Describe the tokenizer that an open_clip text_cfg asks for."""
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    spec: dict[str, Any] = {"kind": "simple", "context_length": text_cfg.get("context_length", 77)}
    if name := text_cfg.get("hf_tokenizer_name"):
        spec |= {"kind": "hf", "name": _resolve(name, folder)}
        if text_cfg.get("tokenizer_mode"):
            options["tokenizer_mode"] = text_cfg["tokenizer_mode"]
    return spec | {"options": options} if options else spec


def _no_tokenizer(*_: Any, **__: Any) -> Any:
    raise ValueError(
        "the saved folder does not know this model's tokenizer; use open_clip.get_tokenizer with the "
        "original model's name"
    )


def _resolve(name: str, folder: Path | None) -> str:
    return str(folder / name) if folder is not None and (folder / name).is_dir() else name


@contextmanager
def quiet() -> Iterator[None]:
    """Keep logging off the screen: of weights that are missing on purpose, of every retry of a download."""
    # open_clip 3 logs through the root logger, later versions through their own
    loggers = [logging.getLogger(name) for name in (None, "open_clip", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    root, handlers = loggers[0], list(loggers[0].handlers)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        # logging.warning() on a bare root logger installs a handler as a side effect
        root.handlers[:] = handlers
