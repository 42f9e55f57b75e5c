"""The record of a run as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..files import write_text
from .plots import accuracy_against_speed, layer_sparsities, layer_times
from .table import conditions, metric_columns, rows

__all__ = ["write_html"]


def write_html(record: Mapping[str, Any], path: Path) -> None:
    """Write the page: table, accuracy against speed, sparsity and time of layers; it needs nothing else."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    sections = {
        "Sparsity of each layer": [(v["name"], layer_sparsities(v)) for v in record["variants"]],
        "Time of each layer": [(v["name"], layer_times(v)) for v in record["variants"]],
    }
    write_text(
        path,
        template.render(
            record=record,
            columns=metric_columns(record),
            rows=rows(record),
            conditions=conditions(record).splitlines(),
            scatter=accuracy_against_speed(record),
            sections={title: [(n, plot) for n, plot in plots if plot] for title, plots in sections.items()},
        ),
    )
