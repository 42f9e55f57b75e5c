"""The first verb: `prune_` sets weights to exact zero, in place, and says what was done."""

from .model import prune_
from .report import LayerReport, PruneReport

__all__ = ["LayerReport", "PruneReport", "prune_"]
