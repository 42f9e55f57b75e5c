"""Records as tables for the terminal, and as self-contained HTML pages with plots."""

from .page import write_html
from .recovered import training_table, write_training
from .study import STUDY_FORMAT, study_table, write_study
from .table import table

__all__ = [
    "STUDY_FORMAT",
    "study_table",
    "table",
    "training_table",
    "write_html",
    "write_study",
    "write_training",
]
