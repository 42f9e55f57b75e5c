"""Calibration data, in whatever form it is given, as a list of batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..distributed import same_on_ranks, world_size
from ..models.running import image_dtype, model_device

__all__ = ["Run", "calibration_batches"]


@dataclass(frozen=True)
class Run:
    """One batch and the model: a call runs the model's whole forward on it.

    Args:
        model: an open_clip model.
        images: [B, 3, H, W], on any device and of any floating dtype; texts: ids [B, L].

    """

    model: nn.Module
    images: Tensor
    texts: Tensor

    def __call__(self) -> Any:
        """Run the model on the batch, moved to its device (and the images to its dtype)."""
        device = model_device(self.model)
        return self.model(self.images.to(device, image_dtype(self.model)), self.texts.to(device))


def calibration_batches(
    calib: Any, samples: int, batch_size: int, needed_by: str
) -> list[tuple[Tensor, Tensor]]:
    """The first `samples` images with their texts, as batches (images, texts).

    Args:
        calib: data of `load_data`; an iterable of ``(images, texts)`` tensors, whose batches stay as
            they are; or one such pair.
        samples: images taken at most.
        batch_size: how many at once, for data of `load_data`.
        needed_by: what the error says that the data is for.

    Raises:
        ValueError: there is no data, or it is none of the above, or a batch has not as many texts as
            images, or none; or ranks have different data, as a random transform gives.

    """
    if calib is None:
        raise ValueError(f"calib: {needed_by} needs calibration data, e.g. vlprune.load_data(...)")
    if hasattr(calib, "batches"):
        given: Any = ((b.images, b.texts) for b in calib.batches(batch_size, limit=samples))
    else:
        given = [calib] if _is_pair(calib) else calib
    batches: list[tuple[Tensor, Tensor]] = []
    left = samples
    for number, batch in enumerate(given if isinstance(given, Iterable) else ()):
        if not _is_pair(batch):
            batches = []
            break
        images, texts = batch
        if not 0 < len(images) == len(texts):
            raise ValueError(
                f"calib: expected a text for every image and at least one of them, but batch {number} has "
                f"{len(images)} images and {len(texts)} texts"
            )
        batches.append((images[:left], texts[:left]))
        left -= len(images)
        if left <= 0:
            break
    if not batches:
        raise ValueError(
            "calib: expected data of load_data, or at least one batch (images, texts) of two tensors, "
            f"got {calib!r:.80}"
        )
    if world_size() > 1:
        # as text, in which nan equals nan: that is for pruning to refuse, which names the layer
        same_on_ranks("calib", repr([(float(x.double().sum()), int(ids.sum())) for x, ids in batches]))
    return batches


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(part, Tensor) and part.dim() > 0 for part in value)
    )
