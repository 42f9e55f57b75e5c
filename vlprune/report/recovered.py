"""The record of `vlprune recover` as table and page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .page import write_page
from .table import columns_of, fitted
from .training import training_lines, training_plot

__all__ = ["training_table", "write_training"]


def training_table(record: Mapping[str, Any]) -> str:
    """The record as text: scores before and after, if any were asked for, and what the training did."""
    lines = []
    if columns := _columns(record):
        body = [[name, *(f"{value:.1f}" for value in values)] for name, values in _rows(record)]
        lines += [fitted(["", *columns.values()], body), ""]
    return "\n".join([*lines, *training_lines(record["training"]), "", *_conditions(record)])


def write_training(record: Mapping[str, Any], path: Path) -> None:
    """Write the page: scores, plots of the training, and its settings; it needs nothing else."""
    config = record["training"]["config"]
    write_page(
        path,
        "training.html",
        record=record,
        conditions=_conditions(record),
        columns=_columns(record),
        rows=_rows(record),
        lines=training_lines(record["training"]),
        plot=training_plot(record["training"]),
        settings={name: value for name, value in config.items() if name != "version"},
    )


def _columns(record: Mapping[str, Any]) -> dict[str, str]:
    return columns_of(record["metrics"]["recovered"]["kind"]) if record["metrics"] else {}


def _rows(record: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    columns = _columns(record)
    return [(name, [own[key] for key in columns]) for name, own in (record["metrics"] or {}).items()]


def _conditions(record: Mapping[str, Any]) -> list[str]:
    machine = record["machine"]
    device = machine["gpu"] if record["device"].startswith("cuda") else machine["cpu"]
    ranks = f"{record['ranks']} processes, " if record["ranks"] > 1 else ""
    lines = [
        f"{record['model']}, teacher {record['teacher']}, trained on {record['data']}, "
        f"{record['images']:,} images"
    ]
    if record["metrics"]:
        same = " (which it was trained on)" if record["test"] == record["data"] else ""
        count = record["metrics"]["recovered"]["count"]
        lines.append(f"evaluated on {record['test']}{same}, {count:,} images")
    return [*lines, f"{record['dtype']}, {ranks}{device}, torch {machine['torch']}"]
