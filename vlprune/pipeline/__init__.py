"""What `vlprune run` and `vlprune recover` do: models made, trained and measured, and their records."""

from .job import RunOptions
from .recover import TRAINING_FORMAT, TRAINING_VERSION, recover
from .recovery import RECOVERY_METHODS, Recovery
from .run import RECORD_VERSION, run
from .variant import Variant

__all__ = [
    "RECORD_VERSION",
    "RECOVERY_METHODS",
    "TRAINING_FORMAT",
    "TRAINING_VERSION",
    "Recovery",
    "RunOptions",
    "Variant",
    "recover",
    "run",
]
