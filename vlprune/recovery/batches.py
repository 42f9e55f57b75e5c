"""Training data as a function of the step: whoever starts at a step sees what he would have seen then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.dataset import ImageData, LabelledData
from ..distributed import rank, world_size
from .config import TrainConfig

__all__ = ["Source", "TrainBatch"]


@dataclass(frozen=True)
class TrainBatch:
    """Images [N, C, H, W], token ids [M, L] or None, and of labelled images the row of their text [N].

    Without `labels` text i belongs to image i.
    """

    images: Tensor
    texts: Tensor | None
    labels: Tensor | None

    def to(self, device: torch.device) -> TrainBatch:
        """Move everything to a device."""
        moved = (None if part is None else part.to(device) for part in (self.images, self.texts, self.labels))
        return TrainBatch(*moved)  # type: ignore[arg-type]


class Source:
    """Batches in an order that the seed and the epoch decide; of an epoch, what fills none is left out.

    Where processes share the work, each has its part of the images of every batch.

    Args:
        data: of `load_data`; or batches, each ``(images, texts)`` or images alone, which stay as they are
            but for their order; or one such pair.
        config: batch size, samples, seed, steps.
        needs_texts: whether a batch must have texts.

    Raises:
        ValueError: no data, none of the above, batches without the texts that are needed, or of a size that
            the processes cannot share equally; `samples` of batches that are given.

    """

    def __init__(self, data: Any, config: TrainConfig, needs_texts: bool) -> None:
        self._seed, self._needs_texts = config.seed, needs_texts
        # here, because batches are made in another thread, which does not see `distributed.alone`
        self._rank, self._ranks = rank(), world_size()
        self._images: ImageData | None = None
        self._given: list[TrainBatch] = []
        if isinstance(data, ImageData):
            self._images = data.subset(config.samples)
            self._size = min(config.batch_size, len(self._images))
            self.length = len(self._images)
            self.steps_per_epoch = self.length // self._size if self._size else 0
        elif config.samples is not None:
            raise ValueError(
                f"samples: expected None with batches that are given, all are used; got {config.samples}"
            )
        else:
            self._given = _read(data, needs_texts)
            self.length = self.steps_per_epoch = len(self._given)
            self._size = 0
        if not self.steps_per_epoch:
            raise ValueError("data: expected at least one image, got none")
        sizes = {len(batch.images) for batch in self._given} or {self._size}
        if uneven := [size for size in sizes if size % self._ranks]:
            raise ValueError(f"batch_size: {self._ranks} processes cannot share {uneven[0]} images equally")
        self.largest = max(sizes)
        self.steps = config.steps or config.epochs * self.steps_per_epoch

    def check_pairs(self, model: nn.Module) -> None:
        """Raise ValueError where no batch has a wrong text for an image, so that softmax losses are zero."""
        if self.largest < 2 and getattr(model, "logit_bias", None) is None:
            raise ValueError("data: the pairs of a batch are compared, but no batch has two (batch_size)")

    def batch(self, step: int) -> TrainBatch:
        """Return the batch of a step; images that cannot be decoded are missing from it under "skip".

        Raises:
            ValueError: none could be decoded; or one could not, and processes share the batch.

        """
        epoch, place = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(self.length, generator=generator)
        if self._images is None:
            return self._share(self._given[int(order[place])])
        every = order[place * self._size : (place + 1) * self._size].tolist()
        own = every[self._part(self._size)]
        found = list(self._images.subset(own).batches(self._size))
        if not found:
            raise ValueError(f"data: none of the {len(own)} images of step {step} could be decoded")
        (batch,) = found
        if self._ranks > 1 and len(batch.index) < len(own):
            broken = own[min(set(range(len(own))) - set(batch.index))]
            raise ValueError(
                f"data: {self._images.images[broken].name} of step {step} could not be decoded; one process "
                f"skips it, {self._ranks} that share a batch equally cannot: take it out of the data"
            )
        if not self._needs_texts:
            return TrainBatch(batch.images, None, None)
        if not isinstance(self._images, LabelledData):
            return TrainBatch(batch.images, batch.texts, None)
        # several images of a class, and classes of one name, share a prompt: one row of texts for it, or they
        # would be each other's wrong answers
        data = self._images
        ordered = sorted(every, key=data.labels.__getitem__)
        rows = {text: row for row, text in enumerate(dict.fromkeys(map(data.text, ordered)))}
        labels = [rows[data.text(own[position])] for position in batch.index]
        return TrainBatch(batch.images, data.tokenizer(list(rows)), torch.tensor(labels))

    def _share(self, batch: TrainBatch) -> TrainBatch:
        part = self._part(len(batch.images))
        return TrainBatch(batch.images[part], None if batch.texts is None else batch.texts[part], None)

    def _part(self, size: int) -> slice:
        each = size // self._ranks
        return slice(self._rank * each, (self._rank + 1) * each)

    def ahead(self, start: int, end: int) -> Iterator[TrainBatch]:
        """Yield the batches of steps start to end, the next one being made while the caller works."""
        with ThreadPoolExecutor(1, thread_name_prefix="vlprune-train") as pool:
            waiting = pool.submit(self.batch, start) if start < end else None
            for step in range(start, end):
                assert waiting is not None
                ready = waiting.result()
                waiting = pool.submit(self.batch, step + 1) if step + 1 < end else None
                yield ready


def _read(data: Any, needs_texts: bool) -> list[TrainBatch]:
    two = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    if two and data[1].dim() < data[0].dim():
        data = [data]  # one pair, as `prune_` takes it; two tensors of images are two batches
    given = list(data) if isinstance(data, Iterable) and not isinstance(data, Tensor | dict | str) else None
    if not given:
        raise ValueError(
            "data: expected data of load_data, or batches (images, texts) or of images alone, got "
            f"{data!r:.80}"
        )
    batches = []
    for number, batch in enumerate(given):
        parts = batch if isinstance(batch, tuple | list) else (batch,)
        if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) for part in parts):
            raise ValueError(f"data: batch {number} is no pair (images, texts) and no tensor of images")
        images, texts = parts[0], parts[1] if len(parts) == 2 else None
        if texts is None and needs_texts:
            raise ValueError(
                f"data: batch {number} has no texts, which itc, sim and what is compared of the text tower "
                'need; set itc=0, sim=0 and towers=("visual",) to train on images alone'
            )
        if not len(images) or (texts is not None and len(texts) != len(images)):
            count = 0 if texts is None else len(texts)
            raise ValueError(f"data: batch {number} has {len(images)} images and {count} texts")
        batches.append(TrainBatch(images, texts if needs_texts else None, None))
    return batches
