"""Zero-shot classification and image-text retrieval, as CLIP is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import LabelledData, PairData
from .data.dataset import require_count
from .distributed import hides_progress, on_all_ranks, own_share, world_size
from .models.running import evaluating, image_dtype, model_device

__all__ = [
    "Metrics",
    "classifier",
    "embed_images",
    "embed_texts",
    "evaluate",
    "ranks",
    "score_embeddings",
    "texts_to_embed",
]

_BLOCK_ENTRIES = 1 << 22  # similarities held at once: 16 MB of float32


@dataclass(frozen=True)
class Metrics:
    """Scores in percent; those of the other kind of data are None.

    Retrieval ("pairs"): tr@k is image to text, ir@k text to image. Zero-shot classification ("labelled"):
    top-k. `count` and `captions` say how many were used, `skipped` how many images could not be decoded.
    """

    kind: Literal["pairs", "labelled"]
    count: int
    captions: int | None = None
    skipped: int = 0
    tr1: float | None = None
    tr5: float | None = None
    tr10: float | None = None
    ir1: float | None = None
    ir5: float | None = None
    ir10: float | None = None
    mean_recall: float | None = None
    top1: float | None = None
    top5: float | None = None

    @property
    def primary(self) -> float:
        """The one number to compare models by: mean_recall or top1."""
        value = self.mean_recall if self.kind == "pairs" else self.top1
        assert value is not None
        return value

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that apply, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        if self.kind == "labelled":
            return f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} % ({self.count} images{skipped})"
        return (
            f"mean recall {self.mean_recall:.2f} % ({self.count} images, {self.captions} captions{skipped})\n"
            f"  image to text  R@1 {self.tr1:6.2f}  R@5 {self.tr5:6.2f}  R@10 {self.tr10:6.2f}\n"
            f"  text to image  R@1 {self.ir1:6.2f}  R@5 {self.ir5:6.2f}  R@10 {self.ir10:6.2f}"
        )


def evaluate(
    model: nn.Module,
    data: PairData | LabelledData,
    *,
    batch_size: int = 64,
    progress: bool | None = None,
    device: torch.device | str | None = None,
) -> Metrics:
    """Score a CLIP-style model: retrieval recall on pairs, zero-shot accuracy on labelled images.

    The protocol is CLIP's (Radford et al. 2021). An image counts for tr@k when any of its captions is among
    the k nearest; ir@k counts captions. Equal similarities rank the lower index first, so a model that sees
    no difference scores like chance. Classes are the normalised mean of their normalised prompt embeddings,
    one for each of `data.templates`, as in open_clip's build_zero_shot_classifier.

    Under torchrun the ranks share the images and texts, and each returns the metrics of one process.

    Args:
        model: has `encode_image` and `encode_text` with `normalize=True`; it runs in eval mode and keeps its
            own mode afterwards.
        data: of `load_data`.
        batch_size: images, or texts, at once.
        progress: None shows bars on a terminal, False never, True always.
        device: where inputs go; None is where the model's parameters are.

    Raises:
        ValueError: an embedding is not finite (the tower is named), or no image could be decoded.

    """
    if not isinstance(data, PairData | LabelledData):
        raise ValueError(f"evaluate: data must come from load_data, got {type(data).__name__}")
    images, index = embed_images(model, data, batch_size=batch_size, progress=progress, device=device)
    texts = [
        embed_texts(model, own, data.tokenizer, batch_size=batch_size, progress=progress, device=device)
        for own in texts_to_embed(data, index)
    ]
    return score_embeddings(data, images, index, texts)


def texts_to_embed(data: PairData | LabelledData, index: Sequence[int]) -> list[list[str]]:
    """Every caption of the images at `index` in one list; of labelled data, a list of prompts a template."""
    if isinstance(data, LabelledData):
        return [data.prompts(template) for template in data.templates]
    return [[text for i in index for text in data.captions[i]]]


def score_embeddings(
    data: PairData | LabelledData, images: Tensor, index: Sequence[int], texts: Sequence[Tensor]
) -> Metrics:
    """Score embeddings, as `evaluate` does with those of a model.

    Args:
        data: what they are of.
        images: normalised, float32 [N, D].
        index: the position of each image in the data.
        texts: normalised, float32 [M, D] for each list of `texts_to_embed`.

    """
    skipped = len(data) - len(index)
    if isinstance(data, PairData):
        return _retrieval(images, texts[0], [len(data.captions[i]) for i in index], skipped)
    labels = torch.tensor([data.labels[i] for i in index], device=images.device)
    rank = ranks(images, _class_embeddings(texts), labels[:, None])
    return Metrics("labelled", len(index), skipped=skipped, top1=_within(rank, 1), top5=_within(rank, 5))


def embed_images(
    model: nn.Module,
    data: PairData | LabelledData,
    *,
    batch_size: int = 64,
    progress: bool | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, list[int]]:
    """Return the normalised image embeddings, float32 [N, D], and the position of each in the data.

    Ranks share the batches, and each returns all: the embeddings of one process bit for bit. `model`,
    `batch_size`, `progress` and `device` are those of `evaluate`.

    Raises:
        ValueError: no image could be decoded, or an embedding is not finite.

    """
    require_count("evaluate: batch_size", batch_size)
    device = torch.device(device or model_device(model))
    embed = partial(_embed_images, model, batch_size=batch_size, progress=progress, device=device)
    parts: list[Tensor] = []
    index: list[int] = []
    if world_size() > 1:
        starts = own_share(range(0, len(data), batch_size))
        own = [i for start in starts for i in range(start, min(start + batch_size, len(data)))]
        for found, places in on_all_ranks(lambda: _of(embed(data.subset(own)), own)):
            parts += found
            index += places
    # where images are missing those behind them move up into other batches: then every rank embeds all
    if len(index) < len(data):
        parts, index = embed(data)
    if not parts:
        raise ValueError(f"evaluate: none of the {len(data)} images could be decoded")
    embeddings = torch.cat(parts).to(device)
    return _finite(embeddings, "visual", lambda row: data.images[index[row]].name), index


def _embed_images(
    model: nn.Module,
    data: PairData | LabelledData,
    batch_size: int,
    progress: bool | None,
    device: torch.device,
) -> tuple[list[Tensor], list[int]]:
    dtype = image_dtype(model)
    parts: list[Tensor] = []
    index: list[int] = []
    with evaluating(model), torch.inference_mode(), _bar(len(data), "images", progress) as bar:
        for batch in data.batches(batch_size):
            images = batch.images.to(device, dtype if batch.images.is_floating_point() else None)
            parts.append(_model(model).encode_image(images, normalize=True).float())
            index += batch.index
            bar.update(len(batch.index))
    return parts, index


def _of(found: tuple[list[Tensor], list[int]], own: list[int]) -> tuple[list[Tensor], list[int]]:
    """What was found of a subset, to be sent to other ranks: on the CPU, by positions in the whole."""
    parts, index = found
    return [part.cpu() for part in parts], [own[i] for i in index]


def embed_texts(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: Any,
    *,
    batch_size: int = 64,
    progress: bool | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the normalised embeddings of `texts`, float32 [N, D]; ranks share the batches as of images.

    `tokenizer` maps a list of them to ids [N, L]; `model`, `batch_size`, `progress` and `device` are those of
    `evaluate`.
    """
    require_count("evaluate: batch_size", batch_size)
    device = torch.device(device or model_device(model))
    starts = own_share(range(0, len(texts), batch_size))

    def embed() -> list[Tensor]:
        parts: list[Tensor] = []
        with evaluating(model), torch.inference_mode(), _bar(len(texts), "texts", progress) as bar:
            for start in starts:
                chunk = list(texts[start : start + batch_size])
                parts.append(_model(model).encode_text(tokenizer(chunk).to(device), normalize=True).float())
                bar.update(len(chunk))
        return parts

    if world_size() == 1:
        parts = embed()
    else:
        found = on_all_ranks(lambda: [part.cpu() for part in embed()])
        parts = [part for own in found for part in own]
    return _finite(torch.cat(parts).to(device), "text", lambda row: repr(texts[row]))


def classifier(
    model: nn.Module,
    data: LabelledData,
    *,
    batch_size: int = 64,
    progress: bool | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return one normalised embedding a class, float32 [classes, D]: the mean over `data.templates`.

    `model`, `batch_size`, `progress` and `device` are those of `evaluate`.
    """
    return _class_embeddings(
        [
            embed_texts(model, own, data.tokenizer, batch_size=batch_size, progress=progress, device=device)
            for own in texts_to_embed(data, ())
        ]
    )


def ranks(queries: Tensor, items: Tensor, correct: Tensor) -> Tensor:
    """Return the rank of each query's best correct item, 0 for the nearest: int64 [N].

    queries [N, D], items [M, D], correct [N, K] holds item indices, -1 for fewer than K. An item stands
    before another when its similarity is higher, or equal and its index lower. Works in blocks of queries, so
    that no [N, M] matrix is held.
    """
    result = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    order = torch.arange(len(items), device=queries.device)
    rows = max(1, _BLOCK_ENTRIES // len(items))
    for start in range(0, len(queries), rows):
        own = correct[start : start + rows]
        similarity = queries[start : start + rows] @ items.T
        scores = similarity.gather(1, own.clamp(min=0)).masked_fill(own < 0, -torch.inf)
        best = scores.amax(1, keepdim=True)
        tied = own.masked_fill((own < 0) | (scores < best), len(items))
        first = tied.amin(1, keepdim=True)
        ahead = (similarity > best) | ((similarity == best) & (order < first))
        result[start : start + rows] = ahead.sum(1)
    return result


def _class_embeddings(texts: Sequence[Tensor]) -> Tensor:
    """The normalised mean over templates."""
    total = texts[0].clone()
    for own in texts[1:]:
        total += own
    return F.normalize(total, dim=1)


def _retrieval(images: Tensor, texts: Tensor, captions_of: list[int], skipped: int) -> Metrics:
    counts = torch.tensor(captions_of, device=images.device)
    first = counts.cumsum(0) - counts
    place = torch.arange(int(counts.max()), device=images.device)
    own_texts = (first[:, None] + place).masked_fill(place >= counts[:, None], -1)
    own_image = torch.arange(len(images), device=images.device).repeat_interleave(counts)
    to_text = ranks(images, texts, own_texts)
    to_image = ranks(texts, images, own_image[:, None])
    tr1, tr5, tr10, ir1, ir5, ir10 = recalls = [
        _within(rank, k) for rank in (to_text, to_image) for k in (1, 5, 10)
    ]
    mean = sum(recalls) / len(recalls)
    return Metrics("pairs", len(images), len(texts), skipped, tr1, tr5, tr10, ir1, ir5, ir10, mean)


def _within(rank: Tensor, k: int) -> float:
    return 100.0 * int((rank < k).sum()) / len(rank)


def _finite(embeddings: Tensor, tower: str, describe: Any) -> Tensor:
    bad = (~embeddings.isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(
            f"evaluate: the {tower} tower gave NaN or infinite embeddings for {len(bad)} of "
            f"{len(embeddings)} inputs, first {describe(bad[0])}"
        )
    return embeddings


def _model(model: nn.Module) -> Any:
    return model  # encode_image and encode_text are no part of nn.Module's type


def _bar(total: int, what: str, progress: bool | None) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit=what, desc=what, leave=False, disable=hides_progress(progress))
