"""A run's record as a table for the terminal, and as one self-contained HTML page with plots."""

from .page import write_html
from .table import table

__all__ = ["table", "write_html"]
