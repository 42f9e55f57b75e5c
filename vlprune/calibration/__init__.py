"""What the layers of a model see of real data: statistics streamed over batches, block by block."""

from .batches import Run, calibration_batches
from .order import block_by_block, collect, execution_order
from .stats import Calibration

__all__ = [
    "Calibration",
    "Run",
    "block_by_block",
    "calibration_batches",
    "collect",
    "execution_order",
]
