"""What a model makes of a batch: embeddings, similarities, and the outputs of its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import models
from ..models.running import image_dtype
from .batches import TrainBatch
from .gathered import gather_rows

__all__ = ["Outputs", "check_encoders", "checkpointed", "layer_map", "outputs_of"]


@dataclass
class Outputs:
    """Normalised embeddings [N, D] by tower, the logits' scale and bias, and hidden states by tower.

    With `shared_texts` every rank has the same texts, else its own.
    """

    features: dict[str, Tensor]
    scale: Tensor
    bias: Tensor | None
    hidden: dict[str, list[Tensor]] = field(default_factory=dict)
    shared_texts: bool = False

    @cached_property
    def logits(self) -> Tensor:
        """Scaled similarities [images, texts] of all ranks, at least float32."""
        image, text = gather_rows(self.features["visual"]), self.features["text"]
        text = text if self.shared_texts else gather_rows(text)
        wide = self.scale.float() if self.scale.dtype.itemsize < 4 else self.scale
        with torch.autocast(image.device.type, enabled=False):
            logits: Tensor = wide.exp() * image.to(wide.dtype) @ text.to(wide.dtype).T
        return logits


def outputs_of(model: nn.Module, batch: TrainBatch, hidden: Iterable[str] = ()) -> Outputs:
    """Run the towers; that of texts only where the batch has some.

    Args:
        model: an open_clip model.
        batch: of images in any dtype; they are taken to that of the model's image tower.
        hidden: towers whose blocks' outputs are wanted.

    """
    own: Any = model
    dtype = image_dtype(model)
    with _recording(model, hidden) as states:
        features = {"visual": own.encode_image(batch.images.to(dtype), normalize=True)}
        if batch.texts is not None:
            features["text"] = own.encode_text(batch.texts, normalize=True)
    bias = getattr(own, "logit_bias", None)
    return Outputs(features, own.logit_scale, bias, states, batch.labels is not None)


def check_encoders(who: str, model: nn.Module) -> None:
    """Raise ValueError unless a model is called as open_clip's are."""
    for name in ("encode_image", "encode_text", "logit_scale"):
        if not hasattr(model, name):
            raise ValueError(
                f"{who}: expected an open_clip model, got {type(model).__name__}, which has no {name}"
            )


def layer_map(
    student: nn.Module, teacher: nn.Module, towers: Sequence[str], retained: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Tower -> the teacher's layer for each of the student's.

    Raises:
        ValueError: a tower that a model lacks; depths that differ without `retained` to say which layers
            are left; or `retained` that does not fit.

    """
    mapped: dict[str, tuple[int, ...]] = {}
    own, other = models.view(student).towers, models.view(teacher).towers
    for name in towers:
        for who, found in (("student", own), ("teacher", other)):
            if name not in found:
                raise ValueError(f"towers: the {who} has no {name} tower of transformer blocks")
        depth, whole = len(own[name].blocks), len(other[name].blocks)
        layers = retained.get(name)
        if layers is None:
            if depth != whole:
                raise ValueError(
                    f"retained: the student's {name} tower has {depth} layers and the teacher's {whole}; "
                    f'say which are left, e.g. {{"{name}": report.keep_lists["{name}"]["layers"]}}'
                )
            layers = tuple(range(depth))
        if len(layers) != depth or layers[-1] >= whole:
            raise ValueError(
                f"retained: expected {depth} of the teacher's layers 0 to {whole - 1} for the student's "
                f"{name} tower, got {layers!r}"
            )
        mapped[name] = layers
    return mapped


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Let every block keep its inputs alone and compute the rest again in the backward pass."""
    blocks = [block.module for tower in models.view(model).towers.values() for block in tower.blocks]
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


@contextmanager
def _recording(model: nn.Module, towers: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    states: dict[str, list[Tensor]] = {}
    hooks = []
    known = models.view(model).towers if towers else {}
    for name in towers:
        states[name] = []

        def keep(_: nn.Module, __: Any, output: Any, into: list[Tensor] = states[name]) -> None:
            into.append(output[0] if isinstance(output, tuple) else output)

        hooks += [block.module.register_forward_hook(keep) for block in known[name].blocks]
    try:
        yield states
        for name, found in states.items():
            # CoCa's decoder belongs to the text tower, but encode_text does not run it
            if len(found) != (blocks := len(known[name].blocks)):
                raise ValueError(
                    f"hidden: {len(found)} of the {blocks} blocks of the {name} tower run when it encodes; "
                    f"set hidden=0, or leave {name!r} out of towers"
                )
    finally:
        for hook in hooks:
            hook.remove()
