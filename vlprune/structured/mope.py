"""Modules judged by what the whole model scores without them (MoPE-CLIP's metric)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from .. import models
from ..data import LabelledData, PairData
from ..data.dataset import ImageData, require_count
from ..distributed import hides_progress, on_all_ranks, own_share
from ..evaluate import evaluate
from ..fingerprint import fingerprint
from ..models.running import evaluating
from .ablated import EmbeddedData, share_of_layers
from .mask import mask_modules
from .modules import ModuleError, Removable, removable_modules
from .progress import KeptScores

__all__ = ["Metric", "module_pruning_errors"]

Metric = Callable[[nn.Module, Any], float]

METRICS: dict[str, type[Any]] = {"retrieval": PairData, "accuracy": LabelledData}

# Modules lost at most when a job is killed; each time, a few forwards more to remember the activations.
_CHUNK_MODULES = 64


@torch.inference_mode(False)
def module_pruning_errors(
    model: nn.Module,
    data: Any,
    modules: Sequence[str] = ("heads", "neurons", "layers"),
    metric: str | Metric = "retrieval",
    towers: Sequence[str] = ("visual", "text"),
    *,
    groups: int = 8,
    across_layers: bool = False,
    limit: int | None = None,
    batch_size: int = 64,
    progress: bool | None = None,
    resume: str | os.PathLike[str] | None = None,
    reuse: bool = True,
) -> list[ModuleError]:
    """Score the model without each head, group of neurons and layer: full score minus score without it.

    The error of MoPE-CLIP (arXiv 2403.07839, section 3.2); what is missing is silent as in `mask_modules`.
    The published procedure runs both towers for every module. Here, for the metrics that have a name, the
    other tower is embedded once and the tower in question runs from the module on, to the same numbers.
    Under torchrun the ranks share the modules, and each returns the errors of all, equal to one process's.

    Args:
        model: an open_clip model; unchanged afterwards. It runs in eval mode with its attention split.
        data: data of `load_data`; with a function as `metric`, whatever that takes.
        modules: some of "heads", "neurons" and "layers".
        metric: "retrieval" (mean recall of pairs), "accuracy" (zero-shot top-1 of labelled images), both in
            percent, or a function ``(model, data) -> float``, larger is better, which runs the whole model.
        towers: some of "visual" and "text".
        groups: neurons of a layer are judged in this many groups of neighbours. `rewire_` makes neighbours
            of equally important ones.
        across_layers: False judges a group in each layer by itself; True, as published, the same group of
            all layers at once, with `layer` None: fewer evaluations, and no telling of layers apart.
        limit: at most this many images.
        batch_size: images, or texts, at once.
        progress: None shows a bar on a terminal, False never, True always.
        resume: JSON file in which scores are kept, so that a killed job continues when it is called again
            with the same model, data and arguments. A function is known by its name alone. All ranks but the
            first keep theirs in files beside it until the job is done.
        reuse: False runs both towers every time, as published: for comparison.

    Returns:
        By tower, kind and layer. Left out are layers that the metric does not run, such as CoCa's decoder,
        and the only layer of a tower.

    Raises:
        ValueError: a name that is not known, data that the metric cannot use, a score or embedding that is
            not finite (the module is named), ranks with different models or data.
        RuntimeError: another rank failed.

    """
    data = _checked(data, metric, limit, resume)
    require_count("batch_size", batch_size)
    listed = removable_modules(model, modules, towers, groups, across_layers)
    name = metric if isinstance(metric, str) else _name(metric)
    settings = (name, sorted(module.key for module in listed), groups, batch_size)
    kept = KeptScores(resume, "" if resume is None else fingerprint(model, [data], settings))
    with ExitStack() as stack:
        stack.callback(models.merge_attention_, model, models.split_attention_(model))
        stack.enter_context(evaluating(model))
        whole: Callable[[], float]
        scores: Callable[[Sequence[Removable], Callable[[float], object]], Iterator[dict[str, float]]]
        share: Callable[[Sequence[Removable]], list[Removable]]
        if reuse and isinstance(metric, str):
            embedded = EmbeddedData(model, data, batch_size, _CHUNK_MODULES if resume else None)
            whole, scores, share = embedded.score, embedded.scores_without, partial(share_of_layers, model)
        else:
            score: Metric = partial(_evaluated, batch_size) if isinstance(metric, str) else metric
            whole, scores = partial(score, model, data), partial(scores_of_whole_models, model, data, score)
            share = own_share
        # a file that cannot be written is an error now, not after the first modules
        on_all_ranks(partial(kept.add, {}))
        full, ran = _agreed(on_all_ranks(partial(_watched, model, whole)))
        listed = [module for module in listed if _runs(module, ran)]
        left = [module for module in listed if module.key not in kept.scores]
        own = share(left)
        bar = stack.enter_context(
            tqdm(
                total=len(listed) - len(left) + len(own),
                initial=len(listed) - len(left),
                desc="module errors",
                disable=hides_progress(progress),
                # a batch without a module is a fraction of it
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            )
        )

        def work() -> dict[str, float]:
            mine: dict[str, float] = {}
            for found in scores(own, bar.update):
                kept.add(found)
                mine |= found
            return mine

        kept.finish({key: score for found in on_all_ranks(work) for key, score in found.items()})
    return [module.costing(full - kept.scores[module.key]) for module in listed]


def _runs(module: Removable, ran: set[str]) -> bool:
    """Whether the blocks that a module is in are among those that ran."""
    missing = [block.name for block in module.blocks if block.name not in ran]
    if 0 < len(missing) < len(module.blocks):
        raise ValueError(
            f"across_layers (neuron_groups='rank'): the metric does not run {missing[0]}, so that it cannot "
            "be judged together with the other layers; judge a layer at a time"
        )
    return not missing


def _agreed(watched: Sequence[tuple[float, set[str]]]) -> tuple[float, set[str]]:
    """What `_watched` found on every rank."""
    if any(found != watched[0] for found in watched):
        scores = ", ".join(str(score) for score, _ in watched)
        raise ValueError(f"model: expected the same model and data on every rank, got full scores {scores}")
    return watched[0]


def scores_of_whole_models(
    model: nn.Module,
    data: Any,
    score: Metric,
    removed: Sequence[Removable],
    advance: Callable[[float], object],
) -> Iterator[dict[str, float]]:
    """Run the whole model without each module, as published; yield the scores by the modules' keys."""
    for module in removed:
        with mask_modules(model, module.keep):
            found = {module.key: _number(score(model, data), f"without {module.key}")}
        advance(1)
        yield found


def _checked(data: Any, metric: str | Metric, limit: int | None, resume: Any) -> Any:
    own = isinstance(data, ImageData)
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)} or a function, got {metric!r}")
        if not isinstance(data, METRICS[metric]):
            what = "pairs" if metric == "retrieval" else "labelled images"
            raise ValueError(f"metric: {metric} needs {what} of load_data, got {type(data).__name__}")
    elif not callable(metric):
        raise ValueError(f"metric: expected one of {', '.join(METRICS)} or a function, got {metric!r}")
    for name, value in (("limit", limit), ("resume", resume)):
        if value is not None and not own:
            raise ValueError(f"{name}: needs data of load_data, got {type(data).__name__}")
    return data if limit is None else data.subset(require_count("limit", limit))


def _name(function: Metric) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _evaluated(batch_size: int, model: nn.Module, data: Any) -> float:
    return evaluate(model, data, batch_size=batch_size, progress=False).primary


def _watched(model: nn.Module, whole: Callable[[], float]) -> tuple[float, set[str]]:
    """The full model's score, and the names of the blocks that ran for it."""
    ran: set[str] = set()
    with ExitStack() as stack:
        for tower in models.view(model).towers.values():
            for block in tower.blocks:
                hook = block.module.register_forward_pre_hook(lambda *_, name=block.name: ran.add(name))
                stack.callback(hook.remove)
        return _number(whole(), "of the full model"), ran


def _number(score: Any, whose: str) -> float:
    number = float(score)
    if not math.isfinite(number):
        raise ValueError(f"metric: expected a finite score {whose}, got {number}")
    return number
