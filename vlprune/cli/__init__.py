"""The command line: run, prune, recover, eval, bench, report, info."""

from .main import main

__all__ = ["main"]
