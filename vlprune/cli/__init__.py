"""The command line: run, prune, eval, bench, report, info."""

from .main import main

__all__ = ["main"]
