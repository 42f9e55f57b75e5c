"""`recover_`: the adapters of a pruned model are trained against its own dense weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from .adapters import attached
from .batches import Source
from .config import RecoverConfig
from .loop import fit
from .objective import SelfDistillation
from .report import TrainReport
from .sparselora import SparseLoRALinear

__all__ = ["recover_"]


def recover_(
    model: nn.Module,
    data: Any,
    config: RecoverConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> TrainReport:
    """Train the adapters that `add_sparse_lora_` put on a model, in place.

    ``(1 - lam) * task + lam * KL(teacher || student)``: the task is to match images and texts, the teacher
    the same model without masks and adapters (He et al. 2024, arXiv 2404.02424). Call `merge_sparse_lora_`
    afterwards.

    Args:
        model: an open_clip model with adapters over dense weights (see `add_sparse_lora_`).
        data: of `load_data`, or batches ``(images, texts)``.
        config: lam, and how to train.
        out: folder for checkpoints and ``log.jsonl``; a run that was killed is resumed from it.
        progress: None shows a bar on a terminal, False never, True always.

    Raises:
        ValueError: no adapters, or with `lam` none over dense weights; data that does not fit; a checkpoint
            of another run; a loss that is not finite (with its step).

    """
    config = RecoverConfig() if config is None else config
    if not isinstance(config, RecoverConfig):
        raise ValueError(f"config: expected a RecoverConfig, got {config!r:.80}")
    if attached(model) is None:
        raise ValueError("model: it has no adapters; call add_sparse_lora_(model, config, masks) first")
    if config.lam and _is_pruned(model):
        raise ValueError(
            "model: its adapters lie on weights that are pruned already, so that its dense teacher is the "
            "pruned model; call add_sparse_lora_ on the dense model with masks, or set lam=0, or use distill_"
        )
    source = Source(data, config, needs_texts=True)
    source.check_pairs(model)
    folder = None if out is None else Path(out)
    objective = SelfDistillation(model, config)
    return fit("recover", objective, source, config, out=folder, progress=progress)


def _is_pruned(model: nn.Module) -> bool:
    """Whether weights are masked, and nothing is under the masks that a dense teacher could know."""
    layers = [m for m in model.modules() if isinstance(m, SparseLoRALinear)]
    masked = sum(int((~m.keep).sum()) for m in layers)
    # a few weights of any model that was stored in half precision are zero
    if masked * 100 < sum(m.keep.numel() for m in layers):
        return False
    return not any(bool((m.weight.detach()[~m.keep] != 0).any()) for m in layers)
