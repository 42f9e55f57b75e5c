"""The towers of a model run side by side with those of others: what they give, and how long they take."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import measure
from ..example import example_inputs
from ..sparsify import sparsify_
from .job import Job

__all__ = ["example", "pack_", "time_towers"]

# For every round asked for: the shorter a call, the more its time scatters, and the more rounds fit.
_SECONDS = 0.05


def example(job: Job) -> tuple[Tensor, Tensor]:
    """A batch of exactly the size to time from the data, repeated if there is less of it."""
    batch = job.options.batch
    images, texts = example_inputs(job.model, next(iter(job.data.batches(batch))))
    assert texts is not None
    rows = torch.arange(batch, device=images.device) % len(images)
    return images[rows], texts[rows]


def pack_(job: Job, model: nn.Module, name: str, images: Tensor, texts: Tensor) -> dict[str, Any]:
    """`sparsify_` a 2:4 model in place, and check what its towers give against what they gave."""
    peers = _outputs(model, images, texts)
    exact = peers
    if images.dtype != torch.float32:
        exact = _outputs(copy.deepcopy(model).float(), images.float(), texts)
    sparsified = sparsify_(model, backend=job.options.backend, example=(images, texts))
    job.say(f"{name}: {sparsified}")
    after = _outputs(model, images, texts)
    errors = {
        tower: measure.check_close(f"{name}: {tower} tower", after[tower], exact[tower], peers[tower])
        for tower in after
    }
    return {"sparsify": sparsified.to_dict(), "packed_error": errors}


@torch.inference_mode()
def time_towers(
    job: Job, models: Mapping[str, nn.Module], name: str, images: Tensor, texts: Tensor
) -> dict[str, Any]:
    """Time the towers of these models, interleaved; the first is the dense one, the last the variant."""
    result: dict[str, Any] = {}
    for tower, inputs in (("image", images), ("text", texts)):
        calls = {key: partial(_encoder(model, tower), inputs) for key, model in models.items()}
        rounds = job.options.rounds
        times = measure.compare(
            calls, device=images.device, rounds=rounds, min_seconds=_SECONDS * rounds, max_seconds=60
        )
        speedup = times["dense"].median / times["variant"].median
        result[tower] = {key: timing.to_dict() for key, timing in times.items()} | {"speedup": speedup}
        job.say(f"{name}: {tower} tower, batch {job.options.batch}: {speedup:.2f}x dense")
    return result


@torch.inference_mode()
def _outputs(model: nn.Module, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    return {"image": _encoder(model, "image")(images), "text": _encoder(model, "text")(texts)}


def _encoder(model: Any, tower: str) -> Any:
    return model.encode_image if tower == "image" else model.encode_text
