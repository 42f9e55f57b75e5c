"""Image-caption pairs and labelled images, decoded a batch at a time."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor

from .images import ImageSource, decode
from .listing import Problems

DEFAULT_TEMPLATES = ("a photo of a {}.",)

A = TypeVar("A")
R = TypeVar("R")
Preprocess = Callable[[Any], Any]
Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images of a data set with their texts.

    Args:
        images: preprocessed, [B, C, H, W].
        texts: token ids [B, L] of the first caption of each image, or of the prompt of its class.
        index: positions in the data.
        labels: [B], or None without classes.

    """

    images: Tensor
    texts: Tensor
    index: list[int]
    labels: Tensor | None


class ImageData(ABC):
    """What both kinds of data share: lazy decoding, skipping, subsets.

    `preprocess` turns a PIL image into a tensor [C, H, W]; `tokenizer` turns texts into ids [B, L].
    """

    kind: Literal["pairs", "labelled"]

    def __init__(
        self,
        images: Sequence[ImageSource],
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        problems: Problems | None = None,
    ) -> None:
        for name, value in (("preprocess", preprocess), ("tokenizer", tokenizer)):
            if not callable(value):
                raise ValueError(f"load_data: {name} must be callable, got {type(value).__name__}")
        self.images = images
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self._problems = Problems() if problems is None else problems
        self._broken: set[int] = set()
        self._memory: dict[ImageSource, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def skipped(self) -> int:
        """How many entries (images, captions, lines) were left out under on_error="skip"."""
        return self._problems.count

    @property
    def skip_reasons(self) -> list[str]:
        """The first ten reasons."""
        return list(self._problems.reasons)

    @abstractmethod
    def text(self, index: int) -> str:
        """Return the text that stands for image `index` in a batch."""

    @abstractmethod
    def first(self, limit: int | None) -> list[int]:
        """Return the positions that `limit` keeps, ascending."""

    def subset(self, which: int | Sequence[int] | None) -> Self:
        """Return new data with these positions in this order, or with those that a number keeps as limit.

        None is no limit and returns the data itself. Images kept by `in_memory` are shared.
        """
        if which is None:
            return self
        chosen = self.first(which) if isinstance(which, int) else list(which)
        other = self._copy()
        other._take(chosen)
        other._broken = {place for place, position in enumerate(chosen) if position in self._broken}
        return other

    def _take(self, chosen: list[int]) -> None:
        self.images = [self.images[position] for position in chosen]

    def batches(
        self, batch_size: int, limit: int | None = None, *, threads: int | None = None
    ) -> Iterator[Batch]:
        """Yield the images in a fixed order, `batch_size` at a time; only the last batch may be smaller.

        Decoding and preprocessing run ahead of the caller in `threads` threads (default: at most four);
        0 does them in the caller's thread, which makes a random `preprocess` reproducible.
        An image that cannot be decoded raises ValueError or, under on_error="skip", is counted and left out.
        """
        require_count("batches: batch_size", batch_size)
        if threads is None:
            threads = min(4, os.cpu_count() or 1)
        order = [index for index in self.first(limit) if index not in self._broken]
        return self._collect(order, batch_size, threads)

    def in_memory(self) -> Self:
        """Return the same data that keeps every preprocessed image once made, for use over and over.

        `preprocess` must not be random; a 224 x 224 image takes 0.6 MB.
        """
        other = self._copy()
        other._memory = {}
        return other

    def _copy(self) -> Self:
        other = copy.copy(self)
        other._problems = self._problems.copy()
        other._broken = set(self._broken)
        return other

    def _collect(self, order: list[int], batch_size: int, threads: int) -> Iterator[Batch]:
        loaded = _ahead(self._load, order, threads, 2 * batch_size) if threads else map(self._load, order)
        index: list[int] = []
        images: list[Tensor] = []
        for position, image in zip(order, loaded, strict=True):
            if isinstance(image, Tensor):
                index.append(position)
                images.append(image)
                if len(index) == batch_size:
                    yield self._batch(images, index)
                    index, images = [], []
            elif position not in self._broken:
                self._problems.report(image)
                self._broken.add(position)
        if index:
            yield self._batch(images, index)

    def _batch(self, images: list[Tensor], index: list[int]) -> Batch:
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(f"load_data: preprocess must give every image one shape, got {sorted(shapes)}")
        texts = self.tokenizer([self.text(position) for position in index])
        return Batch(torch.stack(images), texts, index, self._labels(index))

    def _labels(self, index: list[int]) -> Tensor | None:
        return None

    def _load(self, position: int) -> Tensor | ValueError | FileNotFoundError:
        source = self.images[position]
        if self._memory is not None and source in self._memory:
            return self._memory[source]
        try:
            picture = decode(source)
        except (ValueError, FileNotFoundError) as error:
            return error
        image = self.preprocess(picture)
        if not isinstance(image, Tensor) or image.dim() != 3:
            got = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"load_data: preprocess must return a tensor [C, H, W], got {got}")
        if self._memory is not None:
            self._memory[source] = image
        return image


class PairData(ImageData):
    """Images with one or more captions each, as `load_data` makes them.

    Args:
        images: opened when a batch is asked for.
        captions: `captions[i]` belongs to image i.
        preprocess: maps a PIL image to a tensor [C, H, W].
        tokenizer: maps a list of texts to ids [N, L].
        problems: what was left out and why, and what to do with images that cannot be decoded.

    """

    kind: Literal["pairs"] = "pairs"

    def __init__(
        self,
        images: Sequence[ImageSource],
        captions: Sequence[list[str]],
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        problems: Problems | None = None,
    ) -> None:
        super().__init__(images, preprocess, tokenizer, problems)
        if len(images) != len(captions):
            raise ValueError(f"PairData: {len(images)} images but {len(captions)} lists of captions")
        self.captions: list[list[str]] = [list(own) for own in captions]

    def text(self, index: int) -> str:
        """Return the first caption of the image."""
        return self.captions[index][0]

    def first(self, limit: int | None) -> list[int]:
        """Return the first `limit` positions."""
        return list(range(len(self) if limit is None else min(require_count("limit", limit), len(self))))

    def _take(self, chosen: list[int]) -> None:
        super()._take(chosen)
        self.captions = [self.captions[position] for position in chosen]


class LabelledData(ImageData):
    """Images with one class each: `labels[i]` indexes `classes`.

    Two classes may carry the same name (ImageNet has two cranes); they stay two classes.
    `limit` takes an even spread: the first image of every class, then the second of every class, and so on,
    so that 2000 of 200 classes means the first ten of each.

    Args:
        images: opened when a batch is asked for.
        labels: `labels[i]` is the class of image i.
        classes: names, by label.
        preprocess: maps a PIL image to a tensor [C, H, W].
        tokenizer: maps a list of texts to ids [N, L].
        problems: as of `PairData`.

    """

    kind: Literal["labelled"] = "labelled"

    def __init__(
        self,
        images: Sequence[ImageSource],
        labels: Sequence[int],
        classes: Sequence[str],
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        problems: Problems | None = None,
    ) -> None:
        super().__init__(images, preprocess, tokenizer, problems)
        if len(images) != len(labels):
            raise ValueError(f"LabelledData: {len(images)} images but {len(labels)} labels")
        self.labels: list[int] = list(labels)
        self.classes: list[str] = list(classes)
        self._templates: list[str] = list(DEFAULT_TEMPLATES)

    @property
    def templates(self) -> list[str]:
        """The prompt templates of zero-shot classification; "{}" stands for the class name."""
        return list(self._templates)

    @templates.setter
    def templates(self, templates: Sequence[str]) -> None:
        if isinstance(templates, str) or not templates:
            raise ValueError(f"templates must be a non-empty list of texts, got {templates!r}")
        for template in templates:
            if not isinstance(template, str) or template.count("{}") != 1:
                raise ValueError(f'template {template!r} must be text with "{{}}" once, for the class name')
        self._templates = list(templates)

    def prompts(self, template: str) -> list[str]:
        """Return the template filled in for every class."""
        return [template.replace("{}", name) for name in self.classes]

    def text(self, index: int) -> str:
        """Return the first template filled in with the image's class."""
        return self._templates[0].replace("{}", self.classes[self.labels[index]])

    def first(self, limit: int | None) -> list[int]:
        """Return `limit` positions spread evenly over the classes, ascending."""
        if limit is None:
            return list(range(len(self)))
        require_count("limit", limit)
        seen: Counter[int] = Counter()
        turns = []
        for position, label in enumerate(self.labels):
            turns.append((seen[label], position))
            seen[label] += 1
        return sorted(position for _, position in sorted(turns)[:limit])

    def _take(self, chosen: list[int]) -> None:
        super()._take(chosen)
        self.labels = [self.labels[position] for position in chosen]

    def _labels(self, index: list[int]) -> Tensor | None:
        return torch.tensor([self.labels[position] for position in index])


def require_count(name: str, value: int) -> int:
    """Return a positive whole number or raise ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _ahead(function: Callable[[A], R], items: Sequence[A], threads: int, window: int) -> Iterator[R]:
    """Map in order with up to `window` calls under way or finished before they are asked for."""
    source = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="vlprune-data")
    try:
        waiting = deque(pool.submit(function, item) for item in islice(source, window))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(source, 1))
            yield result
    finally:
        # No waiting: an abandoned generator may be collected in one of the pool's own threads.
        pool.shutdown(wait=False, cancel_futures=True)
