"""What all steps of a run share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import from_pretrained
from ..evaluate import evaluate
from .recovery import Recovery
from .train import claim, recover_pruned_

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
        train: spec of the training data shown in the report, None if nothing is trained.

    """

    model: str
    data: str
    calib: str
    limit: int | None = None
    batch: int = 8
    rounds: int = 20
    backend: str = "auto"
    train: str | None = None


@dataclass(frozen=True)
class Job:
    """One run: the dense model, its data, the options, the folder, and who is told about progress.

    `train` is what pruned models are trained by, None without training.
    """

    model: nn.Module
    data: Any
    calib: Any
    options: RunOptions
    out: Path
    say: Callable[[str], None]
    train: Any = None

    def load(self, folder: Path) -> nn.Module:
        """A model that a step saved, where the dense one is."""
        return from_pretrained(folder, str(next(self.model.parameters()).device))

    def score(self, model: nn.Module, name: str) -> dict[str, Any]:
        """Metrics of a model on the evaluation data."""
        metrics = evaluate(model, self.data.subset(self.options.limit))
        self.say(f"{name}: {metrics}")
        return metrics.to_dict()

    def recover_(
        self,
        model: nn.Module,
        recovery: Recovery,
        name: str,
        folder: str,
        retained: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, Any]:
        """Train a pruned model in place, with checkpoints below ``training``; what the record says of it."""
        self.say(f"{name}: training by {recovery.method}")
        place = self.out / "training" / folder
        claim(place, model, self.model, self.train, recovery, restart=True)
        part = recover_pruned_(model, self.model, self.train, recovery, place, retained=retained)
        losses = part["curves"]["loss"]
        self.say(
            f"{name}: {part['steps']} steps, {part['trained']:,} numbers trained, loss {losses[0]:.4g} -> "
            f"{losses[-1]:.4g}, {part['seconds']:.0f} s"
        )
        return {"name": name, **part}
