"""What all steps of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..evaluate import evaluate

__all__ = ["Job", "RunOptions"]


@dataclass(frozen=True)
class RunOptions:
    """What `run` needs to know besides the model, the data and the variants.

    Args:
        model: name shown in the report.
        data: evaluation spec shown in the report.
        calib: calibration spec shown in the report.
        limit: at most this many evaluation images, None for all.
        batch: images (and texts) a call when timing.
        rounds: timed rounds of every comparison.
        backend: for `sparsify_`.

    """

    model: str
    data: str
    calib: str
    limit: int | None = None
    batch: int = 8
    rounds: int = 20
    backend: str = "auto"


@dataclass(frozen=True)
class Job:
    """One run: the dense model, its data, the options, the folder, and who is told about progress."""

    model: nn.Module
    data: Any
    calib: Any
    options: RunOptions
    out: Path
    say: Callable[[str], None]

    def score(self, model: nn.Module, name: str) -> dict[str, Any]:
        """Metrics of a model on the evaluation data."""
        metrics = evaluate(model, self.data.subset(self.options.limit))
        self.say(f"{name}: {metrics}")
        return metrics.to_dict()
