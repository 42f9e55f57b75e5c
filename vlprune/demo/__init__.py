"""The demo: a small open_clip model trained on the drawn scenes, shipped with the package.

`load()` needs no network. The files beside this one were written by `python -m vlprune.demo.train`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlprune.files import read_json
from vlprune.models.build import build_model, build_preprocess

if TYPE_CHECKING:
    from vlprune.demo.tokenizer import WordTokenizer

FOLDER = Path(__file__).parent

Preprocess = Callable[[Image.Image], Tensor]


def load(folder: Path = FOLDER) -> tuple[nn.Module, Preprocess, WordTokenizer]:
    """Return the trained model (float32, eval mode, on the CPU), its preprocess and its tokenizer.

    The model is an `open_clip.model.CLIP`; preprocess maps any PIL image to a float tensor [3, size, size].
    """
    from safetensors.torch import load_file

    from vlprune.demo.tokenizer import load_tokenizer

    config = read_json(folder / "config.json")
    model = build(config)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval(), preprocess_of(config), load_tokenizer(folder)


def build(config: dict[str, Any]) -> nn.Module:
    """Return a freshly initialised open_clip model of a config's embed_dim, vision_cfg and text_cfg."""
    return build_model(config)


def preprocess_of(config: dict[str, Any]) -> Preprocess:
    """Return open_clip's inference transform for a config's preprocess_cfg."""
    return build_preprocess(config["preprocess_cfg"])


def to_half(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's weights as they are shipped: contiguous float16."""
    return {
        name: tensor.detach().to(torch.float16).contiguous() for name, tensor in model.state_dict().items()
    }
