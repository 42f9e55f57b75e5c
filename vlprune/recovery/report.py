"""What a training did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["TrainReport"]


@dataclass(frozen=True)
class TrainReport:
    """One training.

    Args:
        kind: "distill" or "recover".
        steps: optimizer steps in all.
        trained: numbers that were trained.
        losses: the loss of every step, also of those before an interruption.
        terms: its terms, weighted, by name, of every step.
        seconds: of this call.
        resumed: the step at which this call took over, 0 if it began.

    """

    kind: str
    steps: int
    trained: int
    losses: tuple[float, ...]
    terms: dict[str, tuple[float, ...]]
    seconds: float
    resumed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        tail = max(1, self.steps // 10)
        first = sum(self.losses[:tail]) / tail
        last = sum(self.losses[-tail:]) / tail
        return (
            f"{self.kind}: {self.steps} steps, {self.trained:,} numbers trained, loss {first:.4f} -> "
            f"{last:.4f} (means of the first and last {tail}), {self.seconds:.1f} s"
        )
