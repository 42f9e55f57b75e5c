"""Training a pruned model back towards the dense one: adapters or weights, zeros held, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import models
from ..distributed import of_first_rank
from ..files import read_json, write_json
from ..fingerprint import fingerprint
from ..masks import masks
from ..models.running import model_device
from ..recovery import (
    DistillConfig,
    RecoverConfig,
    TrainReport,
    add_sparse_lora_,
    distill_,
    merge_sparse_lora_,
    recover_,
)
from ..recovery.batches import Source
from ..recovery.loop import LOG_FILE
from ..recovery.seeds import own_seeds
from ..recovery.state import FILE as CHECKPOINT_FILE
from .curves import curves
from .dense import holds_dense_weights, retained_layers, unpack_, was_pruned
from .recovery import Recovery

__all__ = ["check_trainable", "claim", "recover_pruned_"]

_RUN_FILE = "run.json"


def claim(
    folder: Path,
    model: nn.Module,
    dense: nn.Module,
    data: Any,
    recovery: Recovery,
    *,
    restart: bool = False,
) -> None:
    """Let a folder be that of this training, or go on with it where it is already.

    Args:
        folder: for `recover_pruned_`.
        model: as it was pruned.
        dense: what it was.
        data: of `load_data`.
        recovery: how it is going to be trained.
        restart: empty a folder that holds another training, instead of raising.

    Raises:
        ValueError: nothing was pruned, `check_trainable` finds a fault, or the folder holds the checkpoint of
            another training (what differs is named).

    """
    if not was_pruned(model, dense):
        raise ValueError("model: nothing was pruned: it has the size of its teacher, and no zeros")
    check_trainable(model, data, recovery)
    of_first_rank(lambda: _claim(folder, model, dense, data, recovery, restart))


def recover_pruned_(
    model: nn.Module,
    dense: nn.Module,
    data: Any,
    recovery: Recovery,
    folder: Path,
    *,
    retained: Mapping[str, tuple[int, ...]] | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train a pruned model, in place, and merge its adapters; returns what the record says of it.

    Packed layers become dense ones first. Under "sparselora" and "lora" a model whose remaining weights are
    those of the dense one learns from these, in its own memory; one whose weights were changed by pruning,
    that lost modules, or of whose pruned layers some get no adapter, learns from `dense` beside it, by a loss
    of the same gradient. A training that was killed goes on with the step after its last checkpoint in
    `folder`.

    Args:
        model: pruned, compacted or both.
        dense: what it was; unchanged.
        data: of `load_data`.
        recovery: how.
        folder: that `claim` was called for; checkpoint and ``log.jsonl`` are kept there.
        retained: tower -> numbers of the dense model's layers that are left; None finds them out.
        progress: None shows a bar on a terminal, False never, True always.

    Raises:
        ValueError: models that do not fit, or what `distill_` and `recover_` raise.
        RuntimeError: a zero did not stay one, which only plain LoRA may do.

    """
    unpack_(model, dense)
    split = models.split_attention_(model)
    try:
        before = masks(model)
        with _only_towers(model, recovery):
            taught, report = _train(model, dense, data, recovery, folder, retained, progress)
        after = masks(model)
    finally:
        models.merge_attention_(model, split)
    kept = before.keys() <= after.keys() and all(
        not bool((after[name] & ~keep).any()) for name, keep in before.items()
    )
    if not kept and recovery.method != "lora":
        raise RuntimeError(f"{recovery.method}: zeros of the model did not stay zero")
    rows = of_first_rank(lambda: _rows(folder / LOG_FILE))
    return {
        "config": recovery.to_dict(),
        "taught_by": taught,
        "steps": report.steps,
        "trained": report.trained,
        "seconds": report.seconds,
        "resumed": report.resumed,
        "zeros": {"before": _zeros(before), "after": _zeros(after), "kept": kept},
        "curves": curves(rows),
    }


def check_trainable(model: nn.Module, data: Any, recovery: Recovery) -> None:
    """Raise ValueError where weights of half precision would be trained, or data does not fit."""
    floating = (p.dtype for p in model.parameters() if p.requires_grad and p.is_floating_point())
    half = next((dtype for dtype in floating if dtype.itemsize < 4), None)
    if recovery.trains_weights and half is not None:
        raise ValueError(
            f"method: {recovery.method} trains weights, and {half} rounds small steps away; take the model "
            "to float32 (with amp bf16 for speed), or train adapters (sparselora)"
        )
    config = _towards(recovery.training)
    source = Source(data, config, config.needs_texts)
    if config.itc or config.sim:
        source.check_pairs(model)


def _train(
    model: nn.Module,
    dense: nn.Module,
    data: Any,
    recovery: Recovery,
    folder: Path,
    retained: Mapping[str, tuple[int, ...]] | None,
    progress: bool | None,
) -> tuple[str, TrainReport]:
    config = recovery.training
    own = recovery.adapters is not None and _add_adapters(model, dense, recovery)
    if own and isinstance(config, RecoverConfig):
        taught = "its own dense weights" if config.lam else "captions alone"
        report = recover_(model, data, config, out=folder, progress=progress)
    else:
        towards = _mapped(_towards(config), model, dense, retained)
        taught = "the dense model" if towards.sim or towards.feat or towards.hidden else "captions alone"
        report = distill_(model, dense, data, towards, out=folder, progress=progress)
    if recovery.adapters is not None:
        merge_sparse_lora_(model)
    return taught, report


def _add_adapters(model: nn.Module, dense: nn.Module, recovery: Recovery) -> bool:
    """Put adapters on a pruned model, with the dense weights under them where they are then its teacher."""
    pruned = {name.removesuffix(".weight") for name in masks(model)}
    own = isinstance(recovery.training, RecoverConfig) and _takes_dense_weights(model, dense)
    with own_seeds(model_device(model)) as seed:
        seed(recovery.training.seed)
        adapted = add_sparse_lora_(model, recovery.adapters)
    # what has no adapter stays pruned, and would be so in the teacher too
    own = own and pruned <= set(adapted)
    if own:
        _copy_weights(dense, model)
    return own


def _towards(config: RecoverConfig | DistillConfig) -> DistillConfig:
    """The loss of adapters with a teacher beside them, of the same gradient.

    Cross-entropy with the teacher and divergence from it differ by the teacher's entropy, a constant.
    """
    if isinstance(config, DistillConfig):
        return config
    common = config.to_dict()
    lam = common.pop("lam")
    return DistillConfig.from_dict(common | {"itc": 1 - lam, "sim": lam, "feat": 0.0, "hidden": 0.0})


def _takes_dense_weights(model: nn.Module, dense: nn.Module) -> bool:
    """`holds_dense_weights` of a model whose attention is split."""
    split = models.split_attention_(dense)
    try:
        return holds_dense_weights(model, dense)
    finally:
        models.merge_attention_(dense, split)


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    split = models.split_attention_(source)
    try:
        # adapters and masks are the target's own
        target.load_state_dict(source.state_dict(), strict=False)
    finally:
        models.merge_attention_(source, split)


def _mapped(
    config: DistillConfig,
    model: nn.Module,
    dense: nn.Module,
    retained: Mapping[str, tuple[int, ...]] | None,
) -> DistillConfig:
    """Say which of the dense model's layers are left, where layers are compared and nobody said it."""
    if not config.hidden or config.retained:
        return config
    found = retained_layers(model, dense) if retained is None else retained
    return replace(config, retained={t: tuple(found[t]) for t in config.towers if t in found})


@contextmanager
def _only_towers(model: nn.Module, recovery: Recovery) -> Iterator[None]:
    """Leave the other tower as it is, where all weights of one are to be trained."""
    towers = getattr(recovery.training, "towers", ())
    frozen: list[nn.Parameter] = []
    if recovery.trains_weights and len(towers) == 1:
        visual = set(getattr(model, "visual", nn.Module()).parameters())
        for parameter in model.parameters():
            if parameter.requires_grad and (parameter in visual) != (towers == ("visual",)):
                parameter.requires_grad_(False)
                frozen.append(parameter)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _claim(
    folder: Path, model: nn.Module, dense: nn.Module, data: Any, recovery: Recovery, restart: bool
) -> None:
    """Let the folder be that of this training, or go on with it."""
    settings = json.loads(json.dumps(recovery.to_dict()))
    for name in ("save_every", "shard"):
        settings.pop(name)
    given = {
        "model": fingerprint(model, [], "model"),
        "teacher": fingerprint(dense, [], "teacher"),
        "data": fingerprint(nn.Module(), [data], "data"),
    }
    wanted = given | {"settings": settings}
    kept: Any = None
    if (folder / _RUN_FILE).exists():
        try:
            kept = read_json(folder / _RUN_FILE)
        except ValueError:
            kept = None
    if kept != wanted:
        if restart:
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder / CHECKPOINT_FILE).exists():
            raise ValueError(f"{folder}: it holds {_difference(kept, wanted)}; give another folder")
        write_json(folder / _RUN_FILE, wanted)


def _difference(kept: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(kept, dict) or kept.keys() != wanted.keys() or not isinstance(kept["settings"], dict):
        return f"a training of which {_RUN_FILE} does not tell"
    for name in ("model", "teacher", "data"):
        if kept[name] != wanted[name]:
            return f"a training with another {name}"
    then, now = kept["settings"], wanted["settings"]
    name = next(n for n in {**now, **then} if n not in then or n not in now or then[n] != now[n])
    return f"a training with {name} {then.get(name)!r}, now {now.get(name)!r}"


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _zeros(keeps: Mapping[str, Tensor]) -> int:
    return sum(int((~keep).sum()) for keep in keeps.values())
