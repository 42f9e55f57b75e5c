"""The record of a run as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..files import write_text
from .modules import error_plots
from .plots import accuracy_against_speed, layer_sparsities, layer_times
from .table import conditions, metric_columns, rows, step_times, structured_lines
from .training import training_lines, training_plot, trainings_of

__all__ = ["write_html", "write_page"]


def write_html(record: Mapping[str, Any], path: Path) -> None:
    """Write the page: table, plots, what stayed of modules and what layers take; it needs nothing else."""
    sections = {
        "Sparsity of each layer": [(v["name"], layer_sparsities(v)) for v in record["variants"]],
        "Time of each layer": [(v["name"], layer_times(v)) for v in record["variants"]],
    }
    structured = [
        {
            "name": name,
            "lines": structured_lines(part),
            "about": _about(part),
            "errors": error_plots(part["errors"], part["keep_lists"]),
            "layers": part["layers"],
            "trained_only": "origin" in part,
        }
        for name, part in record.get("structured", {}).items()
    ]
    write_page(
        path,
        "page.html",
        record=record,
        columns=metric_columns(record),
        rows=rows(record),
        conditions=conditions(record).splitlines(),
        steps=step_times(record),
        structured=structured,
        trainings=[
            {"name": part["name"], "lines": training_lines(part), "plot": training_plot(part)}
            for part in trainings_of(record)
        ],
        scatter=accuracy_against_speed(record),
        sections={title: [(n, plot) for n, plot in plots if plot] for title, plots in sections.items()},
    )


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill in one of the templates beside this file."""
    from jinja2 import Environment, FunctionLoader

    def read(name: str) -> str:
        return files(__package__).joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    write_text(path, environment.get_template(template).render(values))


def _about(part: Mapping[str, Any]) -> str:
    """What the numbers of the error plots are."""
    criterion = part["config"]["criterion"]
    what = (
        "Score of the model in percent minus that without the module; neurons were sorted first, the most "
        "important ones are in group 0."
        if criterion == "mope"
        else f"Importance by criterion {criterion}."
    )
    return f"{what} What is crossed out or hatched was taken out."
