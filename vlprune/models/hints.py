"""What goes with a model but is not in it: preprocessing, tokenizer, the text tower's own config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from ..files import read_json
from .build import complete_preprocess, tokenizer_spec
from .recipe import Recipe, known_name
from .saved import remembered

__all__ = ["preprocess_hint", "tokenizer_hint", "write_text_config"]

_SIMPLE_VOCABULARY = 49408
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
)  # fmt: skip


def preprocess_hint(model: nn.Module) -> dict[str, Any]:
    """Return the preprocess_cfg that open_clip left on the model, else its defaults at this image size."""
    visual: Any = model.visual
    config = getattr(visual, "preprocess_cfg", None) or {"size": visual.image_size}
    return complete_preprocess(config)


def write_text_config(model: nn.Module, folder: Path) -> None:
    """Write the config of a transformers text tower to `folder`/text, so that building needs no hub."""
    config = getattr(getattr(model, "text", None), "config", None)
    if config is not None:
        (folder / "text").mkdir()
        # where it was found is of no use to others
        written = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
        (folder / "text" / "config.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def tokenizer_hint(model: nn.Module, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Describe the model's tokenizer for `build_tokenizer`, and copy its files where there are any."""
    spec = remembered(model).get("tokenizer") or _guess(model, recipe)
    if spec.get("kind") != "hf":
        return dict(spec)
    source = Path(spec["name"])
    if source.is_dir():
        files = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
        (folder / "text").mkdir(exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / "text" / file.name)
        return {**spec, "name": "text"} if files else {"kind": "unknown"}
    return {**spec, "name": "text"} if _copy_cached(spec["name"], folder / "text") else dict(spec)


def _guess(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Tell the tokenizer from the model alone; "unknown" rather than a wrong one."""
    m: Any = model
    text_cfg = recipe.config["text_cfg"]
    if "hf_model_name" in text_cfg:
        source = getattr(m.text.config, "_name_or_path", "")
        length = text_cfg.get("context_length", 77)
        return {"kind": "hf", "name": source, "context_length": length} if source else {"kind": "unknown"}
    if name := known_name(recipe):
        return {"kind": "open_clip", "name": name}
    if text_cfg.get("hf_tokenizer_name"):
        return tokenizer_spec(text_cfg)
    if text_cfg.get("vocab_size", _SIMPLE_VOCABULARY) == _SIMPLE_VOCABULARY:
        return {"kind": "simple", "context_length": text_cfg.get("context_length", 77)}
    return {"kind": "demo"} if _is_demo(recipe) else {"kind": "unknown"}


def _is_demo(recipe: Recipe) -> bool:
    """Whether the sizes that pruning leaves alone are the demo's."""
    from .. import demo

    if not (demo.FOLDER / "config.json").is_file():
        return False
    config = read_json(demo.FOLDER / "config.json")
    keys = ("context_length", "vocab_size", "width")
    same = all(recipe.config["text_cfg"].get(key) == config["text_cfg"][key] for key in keys)
    return same and recipe.config["embed_dim"] == config["embed_dim"]


def _copy_cached(name: str, folder: Path) -> bool:
    """Copy a hub tokenizer that is in the local cache; saving must not need a network."""
    try:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(name, local_files_only=True).save_pretrained(str(folder))
    except (ImportError, OSError, ValueError):
        return False
    return True
