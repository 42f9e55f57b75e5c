"""What a model is judged by while noise is added to its weights: losses, and the batches they run on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .allocation.ecoflap import LOSSES
from .calibration import calibration_batches
from .data import Batch, LabelledData
from .data.dataset import ImageData
from .models.running import image_dtype, model_device

__all__ = [
    "Loss",
    "captioning",
    "contrastive",
    "cross_entropy",
    "loss_and_batches",
    "matching_loss",
    "widened",
]

Loss = Callable[[nn.Module, Batch], Tensor]


def loss_and_batches(
    loss: str | Loss, model: nn.Module, calib: Any, *, samples: int, batch_size: int
) -> tuple[Loss, list[Batch]]:
    """Choose the loss and put the calibration data on the model's device.

    Args:
        loss: "contrastive", "captioning", "cross_entropy", "auto" (captioning for a model with a text
            decoder, else cross_entropy for labelled images, else contrastive), or a function
            ``(model, batch) -> scalar tensor`` that is returned as it is.
        model: an open_clip model.
        calib: data of `load_data`, or batches: an iterable of ``(images, texts)`` tensors.
        samples: at most this many images.
        batch_size: images a batch; larger batches are divided.

    Returns:
        The function and the batches. Their images keep their dtype; the built-in losses cast them to the
        model's when called, since that may change in between.

    Raises:
        ValueError: no usable data, or a loss that the model or the data cannot serve.

    """
    batches = _on(model_device(model), _batches(calib, samples, batch_size))
    if not batches:
        raise ValueError(f"calib: none of the {len(calib)} images could be decoded")
    if callable(loss):
        return loss, batches
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)} or a function, got {loss!r}")
    decodes = hasattr(model, "text_decoder")
    if loss == "auto":
        labelled = isinstance(calib, LabelledData)
        loss = "captioning" if decodes else "cross_entropy" if labelled else "contrastive"
    if loss == "captioning":
        if not decodes:
            raise ValueError(
                f"loss: captioning needs a model with a text decoder, got {type(model).__name__}"
            )
        return captioning, batches
    for name in ("encode_image", "encode_text", "logit_scale"):
        if not hasattr(model, name):
            raise ValueError(f"loss: {loss} needs a model with {name}, got {type(model).__name__}")
    if loss == "contrastive":
        if getattr(model, "logit_bias", None) is None and max(len(batch.images) for batch in batches) < 2:
            raise ValueError("loss: contrastive compares the pairs of a batch, but no batch has two")
        return contrastive, batches
    if not isinstance(calib, LabelledData):
        raise ValueError(f"loss: cross_entropy needs labelled images, got {type(calib).__name__}")
    return cross_entropy(calib, batches), batches


def contrastive(model: nn.Module, batch: Batch) -> Tensor:
    """Loss of matching images and texts within a batch, as the model was trained with: float32 scalar.

    `matching_loss`, which for a model with ``logit_bias`` is the sigmoid loss.
    """
    logits = _logits(model, batch.images, batch.texts)
    return matching_loss(logits, bias=getattr(model, "logit_bias", None))


def matching_loss(logits: Tensor, labels: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Loss of finding the text of each image, and of each text its image; in float32 or wider.

    The mean of both cross-entropies (CLIP, Radford et al. 2021) or, with `bias`, the pairwise sigmoid loss
    (SigLIP, Zhai et al. 2023, arXiv 2303.15343).

    Args:
        logits: scaled similarities [images, texts].
        labels: int64 [images], the text of each image where several share one: then only images look for
            texts. None: text i belongs to image i.
        bias: a SigLIP model's, added to the logits.

    """
    logits = widened(logits)
    own = torch.arange(len(logits), device=logits.device) if labels is None else labels
    if bias is not None:
        sign = 2 * F.one_hot(own, logits.shape[1]).to(logits.dtype) - 1
        return -F.logsigmoid(sign * (logits + widened(bias))).sum() / len(logits)
    if labels is not None:
        return F.cross_entropy(logits, own)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def widened(values: Tensor) -> Tensor:
    """Return values of half precision in float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def captioning(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the next token given image and caption so far, padding ignored: float32 scalar.

    The captioning half of CoCa's loss (Yu et al. 2022, arXiv 2205.01917). `model` has a text decoder; `batch`
    holds images and token ids.
    """
    decoded: Any = model(_cast(model, batch.images), batch.texts)
    logits = decoded["logits"].float()
    return F.cross_entropy(logits.flatten(0, 1), decoded["labels"].flatten(), ignore_index=_any(model).pad_id)


def cross_entropy(data: LabelledData, batches: Iterable[Batch]) -> Loss:
    """Loss of classifying images by the embeddings of their class prompts, the first template filled in.

    The prompts are embedded again in every call, because the text tower is part of what is judged. The
    classes are those that occur in the batches, so that a call embeds no more prompts than there are samples:
    32 images of a thousand classes are told from one another, not from the other 968.

    Args:
        data: labelled, with class names, templates and a tokenizer.
        batches: all that the loss will be called with.

    Raises:
        ValueError: images of fewer than two classes.

    """
    seen = sorted({int(label) for batch in batches if batch.labels is not None for label in batch.labels})
    if len(seen) < 2:
        raise ValueError(f"loss: cross_entropy needs images of two classes or more, got {len(seen)}")
    prompts = data.prompts(data.templates[0])
    tokens = data.tokenizer([prompts[label] for label in seen])
    place = torch.full((len(prompts),), -1)
    place[seen] = torch.arange(len(seen))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert batch.labels is not None
        logits = _logits(model, batch.images, tokens.to(batch.texts.device))
        return F.cross_entropy(logits, place.to(batch.labels.device)[batch.labels])

    return loss


def _logits(model: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """Scaled similarities [images, texts], float32 whatever the model's dtype."""
    image_features = _any(model).encode_image(_cast(model, images), normalize=True).float()
    text_features = _any(model).encode_text(texts, normalize=True).float()
    logits: Tensor = _any(model).logit_scale.float().exp() * image_features @ text_features.T
    return logits


def _cast(model: nn.Module, images: Tensor) -> Tensor:
    return images.to(image_dtype(model)) if images.is_floating_point() else images


def _any(model: nn.Module) -> Any:
    return model  # what a CLIP model has besides is no part of nn.Module's type


def _batches(calib: Any, samples: int, batch_size: int) -> list[Batch]:
    if isinstance(calib, ImageData):  # with their labels
        return list(calib.batches(batch_size, limit=samples))
    batches: list[Batch] = []
    start = 0
    for images, texts in calibration_batches(calib, samples, batch_size, "ECoFLaP"):
        for part, own in zip(torch.split(images, batch_size), torch.split(texts, batch_size), strict=True):
            batches.append(Batch(part, own, list(range(start, start + len(part))), None))
            start += len(part)
    return batches


def _on(device: torch.device, batches: Iterable[Batch]) -> list[Batch]:
    return [
        replace(
            batch,
            images=batch.images.to(device),
            texts=batch.texts.to(device),
            labels=None if batch.labels is None else batch.labels.to(device),
        )
        for batch in batches
    ]
