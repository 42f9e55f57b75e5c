"""A model's score without each of several modules, each tower run from the missing module on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..data import LabelledData, PairData
from ..distributed import own_share
from ..evaluate import embed_images, embed_texts, score_embeddings, texts_to_embed
from ..models.running import image_dtype, model_device
from ..reuse import Memory, inside, outside
from .mask import silence
from .modules import Removable
from .plan import plan_of
from .reading import read_tokens

__all__ = ["EmbeddedData", "embeddings_without", "share_of_layers"]

Advance = Callable[[float], object]

# Embeddings held at once.
_CHUNK_BYTES = 1 << 29


class EmbeddedData:
    """Data embedded by the full model once, of which one tower's embeddings are exchanged at a time.

    Args:
        model: in eval mode, its attention split.
        data: of `load_data`.
        batch_size: images, or texts, at once.
        chunk: modules judged before their scores are yielded; None takes what memory allows.

    """

    def __init__(
        self, model: nn.Module, data: PairData | LabelledData, batch_size: int, chunk: int | None
    ) -> None:
        self._model, self._data, self._batch_size, self._chunk = model, data, batch_size, chunk
        self._images = torch.empty(0)
        self._index: list[int] = []
        self._texts: list[Tensor] = []
        self._lists: list[list[str]] = []

    def score(self) -> float:
        """Embed everything, and score the full model; this comes first."""
        model, data, size = self._model, self._data, self._batch_size
        self._images, self._index = embed_images(model, data, batch_size=size, progress=False)
        self._lists = texts_to_embed(data, self._index)
        self._texts = [
            embed_texts(model, own, data.tokenizer, batch_size=size, progress=False) for own in self._lists
        ]
        return score_embeddings(data, self._images, self._index, self._texts).primary

    def scores_without(self, removed: Sequence[Removable], advance: Advance) -> Iterator[dict[str, float]]:
        """Yield scores by the keys of the modules, some at a time.

        Args:
            removed: modules of both towers.
            advance: told how many modules, or which fraction of one, are done.

        """
        model, rows = self._model, [len(own) for own in self._lists]
        for tower, inputs, counts in (
            ("visual", self._pictures, [len(self._images)]),
            ("text", self._sentences, rows),
        ):
            own = _by_layer(removed, tower)
            size = max(1, _CHUNK_BYTES // (4 * self._images.shape[1] * sum(counts)))
            size = size if self._chunk is None else min(size, self._chunk)
            tick = partial(advance, 1 / sum(-(-count // self._batch_size) for count in counts))
            for start in range(0, len(own), size):
                chunk = own[start : start + size]
                found = embeddings_without(model, partial(_encode, model, tower), inputs(), chunk, tick)
                yield {m.key: self._score(m, e) for m, e in zip(chunk, found, strict=True)}

    def _score(self, module: Removable, embeddings: Tensor) -> float:
        if not bool(embeddings.isfinite().all()):
            raise ValueError(
                f"without {module.key}: the {module.tower} tower gives NaN or infinite embeddings"
            )
        if module.tower == "visual":
            return score_embeddings(self._data, embeddings, self._index, self._texts).primary
        texts = torch.split(embeddings, [len(own) for own in self._lists])
        return score_embeddings(self._data, self._images, self._index, texts).primary

    def _pictures(self) -> Iterator[Tensor]:
        device, dtype = model_device(self._model), image_dtype(self._model)
        for batch in self._data.batches(self._batch_size):
            yield batch.images.to(device, dtype if batch.images.is_floating_point() else None)

    def _sentences(self) -> Iterator[Tensor]:
        device = model_device(self._model)
        for own in self._lists:
            for start in range(0, len(own), self._batch_size):
                yield self._data.tokenizer(own[start : start + self._batch_size]).to(device)


def share_of_layers(model: nn.Module, removed: Sequence[Removable]) -> list[Removable]:
    """Modules for this rank: of every tower neighbours, which cost as many layers as every other rank's."""
    own: list[Removable] = []
    for name, tower in models.view(model).towers.items():
        modules = _by_layer(removed, name)
        own += own_share(modules, [len(tower.blocks) - module.blocks[0].index for module in modules])
    return own


def _by_layer(removed: Sequence[Removable], tower: str) -> list[Removable]:
    """Those of one layer together; one that is in all layers starts with the first."""
    own = [module for module in removed if module.tower == tower]
    return sorted(own, key=lambda module: (module.blocks[0].index, len(module.blocks)))


def embeddings_without(
    model: nn.Module,
    encode: Callable[[Tensor], Tensor],
    inputs: Iterable[Tensor],
    removed: Sequence[Removable],
    tick: Callable[[], object],
) -> Tensor:
    """Embed the inputs once without each module; equal to a full forward inside `mask_modules`, bit for bit.

    Of each batch the unchanged model's activations are remembered (`vlprune.reuse`), so that a head costs
    its layer's output projection and MLP and the layers behind, neurons the second layer of the MLP and the
    layers behind, a layer only those behind it. They are kept for a batch at a time. Where the embedding is
    read from one token, the last layer computes little for the others (`read_tokens`).

    Args:
        model: in eval mode, its attention split.
        encode: from a batch of one tower's inputs to embeddings [B, D].
        inputs: all batches.
        removed: modules of that tower; those of one layer should follow on one another.
        tick: called after each module and batch.

    Returns:
        The embeddings [modules, N, D].

    """
    towers = {name: [block.module for block in t.blocks] for name, t in models.view(model).towers.items()}
    blocks = [block for own in towers.values() for block in own]
    around = Memory(outside(model, blocks))
    ablations = [_Ablation(model, module) for module in removed]
    parts: list[Tensor] = []
    for batch in inputs:
        run = partial(encode, batch)
        full = around.record(run)
        read = read_tokens(towers[removed[0].tower], run, full, around)
        found: list[Tensor] = []
        for block, group in itertools.groupby(ablations, key=lambda ablation: ablation.first):
            within = Memory([block, *inside(block)])
            with around.answering([block]):
                within.record(run)
            for ablation in group:
                with (
                    read.alone() if read else nullcontext(),
                    ablation.silenced(),
                    around.answering(ablation.blocks),
                    within.answering(ablation.changed),
                ):
                    found.append(run())
                tick()
        parts.append(torch.stack(found))
    return torch.cat(parts, dim=1)


class _Ablation:
    """One missing module: the first block in which it is, and what then computes something else."""

    def __init__(self, model: nn.Module, removed: Removable) -> None:
        self.blocks = [block.module for block in removed.blocks]
        self.first = self.blocks[0]
        names = {block.name for block in removed.blocks}
        self._plans = [plan for plan in plan_of(model, removed.keep) if plan.block.name in names]
        self.changed: list[nn.Module] = []
        for plan in self._plans:
            # a layer that is passed over still answers: what takes its place is put behind it
            if plan.heads is not None and (attention := plan.parts.attention):
                self.changed.append(attention.out_proj)
            if plan.neurons is not None and (mlp := plan.parts.mlp):
                self.changed.append(mlp.fc2)

    @contextmanager
    def silenced(self) -> Iterator[None]:
        with ExitStack() as stack:
            for plan in self._plans:
                for hook in silence(plan):
                    stack.callback(hook.remove)
            yield


def _encode(model: Any, tower: str, batch: Tensor) -> Tensor:
    encode = model.encode_image if tower == "visual" else model.encode_text
    embeddings: Tensor = encode(batch, normalize=True).float()
    return embeddings
