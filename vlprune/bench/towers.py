"""Cases of whole towers: open_clip's model with 2:4 zeros, dense, and with packed layers where they win."""

from __future__ import annotations

import copy
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import measure
from ..config import MagnitudeConfig
from ..example import example_inputs
from ..models import split_attention_
from ..prune import prune_
from ..sparsify import sparsify_
from .case import DTYPES, OURS, Call, Case, Work
from .onednn import ONEDNN, has_onednn, onednn_
from .ops_cases import DENSE32

__all__ = ["tower_case"]

# As it is; without the work that no result needs, as the packed one.
DENSE, FUSED = "dense", "dense, fused"


def tower_case(model: str, tower: str, batch: int, dtype: str = "fp32", **more: bool) -> Case:
    """The image or the text tower of an open_clip model, weights random: their values cost no time.

    What `sparsify_` leaves out around packed layers it leaves out of a dense image tower too: beside that
    one stands what 2:4 alone gains.
    """

    def make(device: torch.device) -> Work:
        dense, packed, layers = _pair(model, dtype, device, batch)
        images, texts = example_inputs(dense, batch)
        inputs = images if tower == "image" else texts
        assert inputs is not None

        @torch.inference_mode()
        def encode(of: Any, kind: torch.dtype = DTYPES[dtype]) -> Tensor:
            given = inputs.to(kind) if tower == "image" else inputs
            features: Tensor = of.encode_image(given) if tower == "image" else of.encode_text(given)
            return features

        # Made when first called: an older version, which is timed without its peers, need not know how. Not
        # in inference mode, in which PyTorch runs some copies half as fast.
        @cache
        @torch.inference_mode(False)
        def fused() -> nn.Module:
            return _fused(dense)

        @cache
        @torch.inference_mode(False)
        def exact() -> nn.Module:
            return copy.deepcopy(dense).float()

        @cache
        @torch.inference_mode(False)
        def by_onednn() -> nn.Module:
            model = _fused(dense)
            onednn_(model)
            return model

        def check() -> float:
            peer = encode(dense)
            right = peer if dtype == "fp32" else encode(exact(), torch.float32)
            if by in calls:
                measure.check_close(f"{by} {tower} tower", encode(by_onednn()), right, peer)
            return measure.check_close(f"{model} {tower} tower", encode(packed), right, peer)

        own = [layer for layer in layers if layer["name"].startswith("visual.") == (tower == "image")]
        calls: dict[str, Call] = {OURS: partial(encode, packed), DENSE: partial(encode, dense)}
        if tower == "image":
            calls[FUSED] = lambda: encode(fused())
        if device.type == "cpu" and dtype != "fp32":
            calls[DENSE32] = lambda: encode(exact(), torch.float32).to(DTYPES[dtype])
        if has_onednn(DTYPES[dtype], device):
            calls[by] = lambda: encode(by_onednn())
        return Work(
            calls,
            check,
            _operations(dense, encode),
            more={"sparsify": {"layers": own}},
            against=(DENSE, DENSE32, by),
        )

    # without the work that no result needs, GELU in the epilogue, and attention by `head_attention`
    by = f"{DENSE}, {ONEDNN}"
    sizes = {"model": model, "tower": tower, "batch": batch}
    unit = "image" if tower == "image" else "text"
    label = f"{model} {tower}, {batch} {unit}{'s' if batch > 1 else ''}"
    peers = (DENSE, FUSED) if tower == "image" else (DENSE,)
    return Case("tower", sizes, label, dtype, peers, make, **more)


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


def _fused(dense: nn.Module) -> nn.Module:
    from ..nn.blocks import fuse_

    fused = copy.deepcopy(dense)
    fuse_(fused, dense=True)
    return fused


def _operations(model: nn.Module, encode: Any) -> float:
    """Of matrix products in one forward, with attention in operators that the counter knows."""
    counted = copy.deepcopy(model)
    split_attention_(counted)
    return float(measure.flops_of(lambda: encode(counted))[0])
