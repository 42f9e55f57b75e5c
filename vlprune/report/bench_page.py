"""The record of a benchmark as one self-contained HTML page, and its plots as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bench import OURS, bench_conditions, crossovers
from ..bench.text import MARKS, ceiling_lines, of_ceiling, seconds_text
from ..files import write_text
from .bench_plots import crossover_plot, roofline
from .page import write_page
from .plots import layer_times

__all__ = ["write_bench", "write_plots"]


def write_bench(record: Mapping[str, Any], path: Path) -> None:
    """Write the page: plots, the crossover table, every case beside its peers, and layers of towers."""
    conditions = [" ".join(text.split("\n")) for text in bench_conditions(record)]
    towers = [row for row in record["rows"] if row["op"] == "tower" and "error" not in row]
    write_page(
        path,
        "bench.html",
        record={"model": "benchmark"},
        machine=record["machine"],
        conditions=conditions,
        ceilings=ceiling_lines(record) if record["ceilings"] else [],
        rooflines=[(dtype, plot) for dtype in _dtypes(record) if (plot := roofline(record, dtype))],
        crossovers=[(one, crossover_plot(one)) for one in crossovers(record) if len(one.cells) > 1],
        marks=MARKS,
        groups=[_group(record, op) for op in dict.fromkeys(row["op"] for row in record["rows"])],
        layers=[(row["name"], plot) for row in towers if (plot := layer_times(row))],
    )


def write_plots(record: Mapping[str, Any], folder: Path) -> None:
    """Write ``roofline-<dtype>.svg`` and ``crossover-<dtype>.svg`` for each dtype that has them."""
    plots = {f"roofline-{dtype}": roofline(record, dtype) for dtype in _dtypes(record)}
    plots |= {f"crossover-{one.dtype}": crossover_plot(one) for one in crossovers(record)}
    for name, plot in plots.items():
        if plot is not None:
            write_text(folder / f"{name}.svg", plot + "\n")


def _dtypes(record: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["dtype"] for row in record["rows"]))


def _group(record: Mapping[str, Any], op: str) -> dict[str, Any]:
    """The table of one operator: a line a case, with all its peers; who they are if it is always the same."""
    lines: list[dict[str, Any]] = []
    for row in record["rows"]:
        if row["op"] != op:
            continue
        name = f"{row['dtype']} {row['label']}"
        if "error" in row:
            lines.append({"name": name, "error": row["error"]})
            continue
        share = of_ceiling(row, record["ceilings"], OURS) if record["ceilings"] else None
        lines.append(
            {
                "name": name,
                "ours": seconds_text(row["times"][OURS]["median"]),
                "peers": [
                    (peer, seconds_text(timing["median"]), row["ratios"][peer])
                    for peer, timing in row["times"].items()
                    if peer != OURS
                ],
                "share": share,
            }
        )
    peers = {peer for line in lines for peer, _, _ in line.get("peers", ())}
    return {"op": op, "lines": lines, "peer": peers.pop() if len(peers) == 1 else None}
