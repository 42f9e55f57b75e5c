"""The demo: a small open_clip model trained on the drawn scenes, shipped with the package.

`load()` needs no network. The files beside this one were written by `python -m vlprune.demo.train`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    from vlprune.demo.tokenizer import WordTokenizer

FOLDER = Path(__file__).parent

Preprocess = Callable[[Image.Image], Tensor]


def load(folder: Path = FOLDER) -> tuple[nn.Module, Preprocess, WordTokenizer]:
    """Return the trained model (float32, eval mode, on the CPU), its preprocess and its tokenizer.

    The model is an `open_clip.model.CLIP`; preprocess maps any PIL image to a float tensor [3, size, size].
    """
    from safetensors.torch import load_file

    from vlprune.demo.tokenizer import WordTokenizer

    config = json.loads((folder / "config.json").read_text())
    words = (folder / "vocab.txt").read_text().split()
    model = build(config)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    tokenizer = WordTokenizer(words, config["text_cfg"]["context_length"])
    return model.eval(), preprocess_of(config), tokenizer


def build(config: dict[str, Any]) -> nn.Module:
    """Return a freshly initialised open_clip model of a config's embed_dim, vision_cfg and text_cfg."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    return cast(nn.Module, CLIP(config["embed_dim"], vision, text))


def preprocess_of(config: dict[str, Any]) -> Preprocess:
    """Return open_clip's inference transform for a config's preprocess_cfg."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return cast(Preprocess, image_transform_v2(PreprocessCfg(**config["preprocess_cfg"]), is_train=False))


def to_half(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's weights as they are shipped: contiguous float16."""
    return {
        name: tensor.detach().to(torch.float16).contiguous() for name, tensor in model.state_dict().items()
    }
