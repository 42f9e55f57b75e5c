"""What `vlprune run` does: make variants of a model, and put every number of them into one record."""

from .job import RunOptions
from .run import RECORD_VERSION, run
from .variant import Variant

__all__ = ["RECORD_VERSION", "RunOptions", "Variant", "run"]
