"""A model made smaller: by keep lists, or by how much is to stay."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .. import models
from ..calibration import calibration_batches
from ..data.dataset import ImageData
from ..distributed import of_first_rank
from ..models.parts import block_parts
from .choose import choose, counts_of
from .criteria import loss_for, module_importance
from .cut import CompactReport, check_cut, cut_
from .keep import StructuredConfig
from .modules import KINDS, ModuleError, check_names, removable_layers, removable_modules
from .plan import KeepLists
from .rewire import restore_order_, rewire_
from .speedup.choice import Speedup, check_reachable
from .speedup.timing import measure_costs
from .speedup.verify import choose_and_verify

__all__ = ["compact_"]

_NEEDS_DATA = ("mope", "gradient")
# The report says so where layers measured alone and in their tower differ by more.
_AGREE = 0.1


def compact_(
    model: nn.Module,
    config: StructuredConfig | KeepLists,
    data: Any = None,
    *,
    notes: Sequence[str] = (),
    recover: Callable[[nn.Module], object] | None = None,
    progress: bool | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> CompactReport:
    """Take heads, neurons and layers out of a model, in place; outputs equal those inside `mask_modules`.

    A head takes its rows of q, k and v and its columns of the output projection with it, a neuron its row
    of the first and its column of the second MLP layer, a layer everything. A layer without heads or
    neurons still adds the bias of its attention or MLP. Weights that are zero stay zero. Attention that
    loses heads becomes `vlprune.nn.PackedAttention` (timm's stays timm's). Parameters that shrink are new
    objects: make optimizers afterwards.

    With a `StructuredConfig` the modules are chosen (MoPE-CLIP, arXiv 2403.07839): under "mope" the neurons
    are sorted (`rewire_`), errors measured (`module_pruning_errors`), and what is needed least is taken
    out. With stage "pretrain" that is done once; with "finetune" first for heads and neurons, then, with
    the errors of what is left, for layers. Given a target speed-up, what layers cost is measured
    (`measure_costs`), and heads, neurons and layers are taken out at once so that it is reached at the least
    summed error (`choose_for_speed`, `choose_and_verify`).

    Args:
        model: an open_clip model, pruned or not, not yet sparsified.
        config: how much stays; or keep lists, ``{"visual": {"heads": {layer: [kept, ...]}, "neurons":
            {layer: [kept, ...]}, "layers": [kept, ...]}, "text": {...}}``. What is not named stays. Numbers
            are those before this call; a second call counts what the first one left.
        data: of `load_data`, to choose by: other than what the result will be evaluated on.
        notes: sentences to put into the report.
        recover: with stage "finetune" called with the model between width and depth, to train it; None with
            a target speed-up, which has no such steps.
        progress: None shows a bar on a terminal, False never, True always.
        resume: JSON file in which the scores behind the errors are kept, so that a killed job that is called
            again with the same model, data and arguments does not measure them again.

    Returns:
        A report. Its `keep_lists` count heads, neurons and layers as they were before this call; its
        `errors` are what they were chosen by, of groups of neurons after sorting.

    Raises:
        ValueError: keep lists or counts that do not fit the model; packed layers; a norm over all heads or
            neurons; layers that run in step with others; no data where it is needed; a speed-up out of
            reach. The model is then as it was. Only what `recover` raises, or the choice of layers after it,
            comes when the width is gone.

    """
    if not isinstance(config, StructuredConfig):
        return cut_(model, config, notes)
    _rehearse(model, config)
    if config.criterion in _NEEDS_DATA and data is None:
        raise ValueError(f"data: criterion {config.criterion} needs data (`load_data`, or --data), got None")
    if config.criterion == "mope" and not isinstance(data, ImageData):
        raise ValueError(f"data: criterion mope needs data of load_data, got {type(data).__name__}")
    if config.criterion == "gradient" and not isinstance(data, ImageData):
        # each tower and step wants them again
        data = calibration_batches(data, config.samples, config.batch_size, "criterion gradient")
    if config.target_speedup is not None:
        if recover is not None:
            raise ValueError("recover: expected None with target_speedup, which takes everything out at once")
        return _faster_(model, config, data, notes, progress, resume)
    wanted = [kind for kind in KINDS if _towers(model, config, kind)]
    width = [kind for kind in wanted if kind != "layers"]
    said = [*notes, *_rounded(model, config)]
    if config.stage == "pretrain" or not width or "layers" not in wanted:
        return _step_(model, config, data, wanted, said, progress, resume)
    first = _step_(model, config, data, width, said, progress, resume)
    if recover is not None:
        recover(model)
    return _joined(first, _step_(model, config, data, ["layers"], [], progress, resume))


def _faster_(
    model: nn.Module,
    config: StructuredConfig,
    data: Any,
    notes: Sequence[str],
    progress: bool | None,
    resume: str | os.PathLike[str] | None,
) -> CompactReport:
    """Take out what the target speed-up asks for."""
    # clocks of ranks differ, and they must not choose differently
    costs = of_first_rank(
        lambda: measure_costs(
            model, config.towers, batch=config.timed_batch, sparse=config.sparse, progress=progress
        )
    )
    assert config.target_speedup is not None
    listed = removable_modules(model, KINDS, config.towers, 1, False)
    check_reachable(model, costs, [module.costing(0.0) for module in listed], config.target_speedup)
    said = [
        f"{cost.tower}: layers measured alone take {cost.agreement:.0%} of what they take in the tower; "
        "their costs are scaled to that"
        for cost in costs
        if abs(cost.agreement - 1) > _AGREE
    ]
    reached: list[Speedup] = []

    def by_speed(errors: Sequence[ModuleError]) -> KeepLists:
        lists, speedup = of_first_rank(lambda: choose_and_verify(model, config, costs, errors))
        reached.append(speedup)
        return lists

    report = _step_(model, config, data, KINDS, [*notes, *said], progress, resume, by_speed)
    return replace(report, speedup=reached[0])


def _step_(
    model: nn.Module,
    config: StructuredConfig,
    data: Any,
    kinds: Sequence[str],
    notes: Sequence[str],
    progress: bool | None,
    resume: str | os.PathLike[str] | None,
    chooser: Callable[[Sequence[ModuleError]], KeepLists] | None = None,
) -> CompactReport:
    """Judge, choose and take out these kinds at once."""
    orders: dict[str, Tensor] = {}
    if config.criterion == "mope" and "neurons" in kinds:
        orders = rewire_(
            model,
            data,
            towers=_towers(model, config, "neurons"),
            loss=loss_for(data),
            samples=config.samples,
            batch_size=config.batch_size,
        )
    errors: list[ModuleError] = []
    try:
        for tower in ("visual", "text"):
            if own := [kind for kind in kinds if tower in _towers(model, config, kind)]:
                errors += module_importance(model, data, config, tower, own, progress, resume)
        lists = chooser(errors) if chooser else choose(model, config, errors, kinds)
    except BaseException:
        restore_order_(model, orders)
        raise
    places = _original_places(model, orders)
    report = cut_(model, lists, notes)
    for (tower, layer), order in places.items():
        neurons = report.keep_lists.get(tower, {}).get("neurons", {})
        if layer in neurons:
            neurons[layer] = sorted(order[neurons[layer]].tolist())
    return replace(report, errors=tuple(errors))


def _towers(model: nn.Module, config: StructuredConfig, kind: str) -> list[str]:
    """Towers of which a kind is to be chosen; an only layer leaves no choice."""
    known = models.view(model).towers
    return [
        name
        for name in config.towers
        if config.target_speedup is not None or getattr(getattr(config, name), kind) is not None
        if name in known and (kind != "layers" or removable_layers(known[name].blocks))
    ]


def _rehearse(model: nn.Module, config: StructuredConfig) -> None:
    """Raise ValueError if what the config leaves cannot be what is left."""
    if config.target_speedup is not None:
        check_names("tower", config.towers, tuple(models.view(model).towers))
        return
    errors: list[ModuleError] = []
    for kind in KINDS:
        if towers := _towers(model, config, kind):
            errors += [m.costing(0.0) for m in removable_modules(model, [kind], towers, 1, False)]
    check_cut(model, choose(model, config, errors))


def _rounded(model: nn.Module, config: StructuredConfig) -> list[str]:
    """Say once what was rounded."""
    said: dict[str, None] = {}
    for name, keep in (("visual", config.visual), ("text", config.text)):
        if keep is not None:
            blocks = models.view(model).towers[name].blocks
            for block in blocks:
                said |= dict.fromkeys(f"{name}: {note}" for note in counts_of(keep, block, len(blocks)).notes)
    return list(said)


def _original_places(model: nn.Module, orders: dict[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """The permutations of `rewire_` by tower and layer."""
    blocks = [block for tower in models.view(model).towers.values() for block in tower.blocks]
    return {
        (block.tower, block.index): orders[mlp.fc1_name]
        for block in blocks
        if (mlp := block_parts(block).mlp) and mlp.fc1_name in orders
    }


def _joined(width: CompactReport, depth: CompactReport) -> CompactReport:
    """One report of both steps."""
    layers = tuple(
        replace(
            before,
            stays=after.stays,
            heads=None if before.heads is None or after.heads is None else (before.heads[0], after.heads[1]),
            neurons=None
            if before.neurons is None or after.neurons is None
            else (before.neurons[0], after.neurons[1]),
        )
        for before, after in zip(width.layers, depth.layers, strict=True)
    )
    towers = [tower for tower in ("visual", "text") if tower in {**width.keep_lists, **depth.keep_lists}]
    lists: dict[str, dict[str, Any]] = {
        t: {**width.keep_lists.get(t, {}), **depth.keep_lists.get(t, {})} for t in towers
    }
    return CompactReport(
        layers,
        (width.parameters[0], depth.parameters[1]),
        (*width.notes, *depth.notes),
        lists,
        (*width.errors, *depth.errors),
    )
