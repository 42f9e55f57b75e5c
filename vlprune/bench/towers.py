"""Cases of whole towers: open_clip's model with 2:4 zeros, dense, and with packed layers where they win."""

from __future__ import annotations

import copy
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .. import measure
from ..config import MagnitudeConfig
from ..example import example_inputs
from ..models import split_attention_
from ..prune import prune_
from ..sparsify import sparsify_
from .case import DTYPES, OURS, Call, Case, Work

__all__ = ["tower_case"]

DENSE = "dense"


def tower_case(model: str, tower: str, batch: int, dtype: str = "fp32", **more: bool) -> Case:
    """The image or the text tower of an open_clip model, weights random: their values cost no time."""

    def make(device: torch.device) -> Work:
        dense, packed, layers = _pair(model, dtype, device, batch)
        images, texts = example_inputs(dense, batch)
        inputs = images if tower == "image" else texts
        assert inputs is not None

        @torch.inference_mode()
        def encode(of: Any, exactly: bool = False) -> Tensor:
            given = inputs.float() if exactly and tower == "image" else inputs
            features: Tensor = of.encode_image(given) if tower == "image" else of.encode_text(given)
            return features

        def check() -> float:
            peer = encode(dense)
            exact = peer if dtype == "fp32" else encode(copy.deepcopy(dense).float(), exactly=True)
            return measure.check_close(f"{model} {tower} tower", encode(packed), exact, peer)

        own = [layer for layer in layers if layer["name"].startswith("visual.") == (tower == "image")]
        calls: dict[str, Call] = {OURS: partial(encode, packed), DENSE: partial(encode, dense)}
        operations = _operations(dense, encode)
        return Work(calls, check, operations, more={"sparsify": {"layers": own}})

    sizes = {"model": model, "tower": tower, "batch": batch}
    unit = "image" if tower == "image" else "text"
    label = f"{model} {tower}, {batch} {unit}{'s' if batch > 1 else ''}"
    return Case("tower", sizes, label, dtype, (DENSE,), make, **more)


@lru_cache(maxsize=1)
def _pair(
    name: str, dtype: str, device: torch.device, batch: int
) -> tuple[nn.Module, nn.Module, list[dict[str, Any]]]:
    """The model with zeros, the same packed for this batch, and what was measured of its layers."""
    import open_clip

    torch.manual_seed(0)
    dense = open_clip.create_model(name).eval().to(device, DTYPES[dtype])
    prune_(dense, MagnitudeConfig(pattern="2:4"))
    packed = copy.deepcopy(dense)
    images, texts = example_inputs(packed, batch)
    report = sparsify_(packed, example=(images, texts))
    return dense, packed, report.to_dict()["layers"]


def _operations(model: nn.Module, encode: Any) -> float:
    """Of matrix products in one forward, with attention in operators that the counter knows."""
    counted = copy.deepcopy(model)
    split_attention_(counted)
    with FlopCounterMode(display=False) as counter:
        encode(counted)
    return float(counter.get_total_flops())
