"""`distill_`: a pruned student learns to be like its teacher."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..masks import masks
from .batches import Source
from .config import DistillConfig
from .loop import fit
from .objective import Distillation
from .report import TrainReport

__all__ = ["distill_"]


def distill_(
    student: nn.Module,
    teacher: nn.Module,
    data: Any,
    config: DistillConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> TrainReport:
    """Train what is trainable of a student to be like its teacher, in place.

    ``itc * L_ITC + sim * L_sim + feat * L_feat + hidden * L_hidn``: MoPE-CLIP, arXiv 2403.07839. Block
    weights that are zero stay zero, through gradients, momentum and weight decay.

    Args:
        student: an open_clip model, pruned, compacted, or with adapters.
        teacher: the model that it was; it is not changed.
        data: of `load_data`; or batches ``(images, texts)``, or of images alone where no text is compared.
        config: weights of the terms, and how to train.
        out: folder for checkpoints and ``log.jsonl``; a run that was killed is resumed from it.
        progress: None shows a bar on a terminal, False never, True always.

    Raises:
        ValueError: models that cannot be compared, parameters of half precision to train, data that does
            not fit, a checkpoint of another run, or a loss that is not finite (with its step).

    """
    config = DistillConfig() if config is None else config
    if not isinstance(config, DistillConfig):
        raise ValueError(f"config: expected a DistillConfig, got {config!r:.80}")
    if student is teacher:
        raise ValueError("teacher: it is the student itself; for a teacher in its own weights see recover_")
    objective = Distillation(student, teacher, config)
    source = Source(data, config, config.needs_texts)
    if config.itc or config.sim:
        source.check_pairs(student)
    held = partial(masks, student) if config.hold_zeros else None
    folder = None if out is None else Path(out)
    return fit("distill", objective, source, config, held=held, out=folder, progress=progress)
