"""What the documents say of the committed result files: single numbers, and tables as Markdown.

The expressions in README.md and docs/ name these functions (`benchmarks/documented.py`).
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlprune import report
from vlprune.bench import OURS, crossovers
from vlprune.files import read_json
from vlprune.report.frontier import frontier_table
from vlprune.report.study import study_table

from .frontier import split_way

__all__ = [
    "accuracy",
    "accuracy_table",
    "case",
    "crossover_table",
    "frontier_text",
    "linear24",
    "linear24_mean",
    "linear24_rate",
    "linear24_ratios",
    "linear24_table",
    "mope",
    "mope_text",
    "mope_unclear",
    "recovery_table",
    "result",
    "run_text",
    "scoring",
    "split_table",
]

RESULTS = Path(__file__).parent / "results"
# Folders of results: everything on the first, and what depends on the processor on the second too.
MACHINES = {"zen3": "amd-epyc-zen3-2core", "zen5": "amd-epyc-zen5-2core"}

# Rows of the accuracy benchmark, as the documents name them.
METHODS = {
    "magnitude": "magnitude",
    "RIA": "ria",
    "Wanda": "wanda",
    "Wanda + OWL": "wanda owl",
    "Wanda + ECoFLaP": "wanda ecoflap",
    "SparseGPT": "sparsegpt",
    "SparseGPT + ECoFLaP": "sparsegpt ecoflap",
}


@functools.cache
def result(name: str, machine: str = "zen3") -> Any:
    """A result file by its name without ``.json``."""
    return read_json(RESULTS / MACHINES[machine] / f"{name}.json")


def run_text(name: str) -> str:
    """The record of `vlprune run` as the command prints it."""
    return report.table(result(name))


def case(name: str, peer: str, machine: str = "zen3") -> float:
    """Speed of a case of `vlprune bench` over one of its peers."""
    (row,) = (row for row in result("bench", machine)["rows"] if row["name"] == name)
    return float(row["ratios"][peer]["median"])


def frontier_text(name: str) -> str:
    """The Pareto front of accuracy against speed as the benchmark prints it."""
    return frontier_table(result(name))


def mope_text(name: str) -> str:
    """What is left after heads, neurons and layers go, by who chose them, as `vlprune report` prints it."""
    return study_table(result(name))


def accuracy(name: str, row: str) -> float:
    """Mean over draws of the figure that models are compared by, in percent."""
    return statistics.mean(_primaries(name, row))


def mope(name: str, row: str) -> float:
    """Mean over draws of a score after modules were removed, in percent."""
    found = result(name)["rows"][row]
    return statistics.mean(found.values()) if isinstance(found, dict) else float(found)


def mope_unclear(name: str, kind: str) -> float:
    """Percent of the modules of a kind whose mean error over draws is within its standard deviation."""
    errors: dict[tuple[Any, ...], list[float]] = {}
    for draw in result(name)["errors"].values():
        for module in draw["modules"]:
            if module["kind"] == kind:
                place = (module["tower"], module["layer"], module["index"])
                errors.setdefault(place, []).append(module["error"])
    unclear = [abs(statistics.mean(each)) <= statistics.stdev(each) for each in errors.values()]
    return 100 * statistics.mean(unclear)


def linear24(dtype: str, inputs: int, outputs: int, tokens: int, machine: str = "zen3") -> float:
    """Speed of `linear24` over the fastest dense layer."""
    return float(_linear24_row(dtype, inputs, outputs, tokens, machine)["speedup"])


def linear24_rate(dtype: str, inputs: int, outputs: int, tokens: int, machine: str = "zen3") -> float:
    """GFLOP/s of `linear24`, counted as if the zeros were multiplied too."""
    seconds = _linear24_row(dtype, inputs, outputs, tokens, machine)["seconds"]
    return 2e-9 * tokens * inputs * outputs / float(seconds)


def linear24_mean(dtype: str, machine: str = "zen3", peer: str | None = None) -> float:
    """Geometric mean of these speeds over all shapes and numbers of tokens; over one dense form if named."""
    if peer is not None:
        return statistics.geometric_mean(linear24_ratios(dtype, peer, machine))
    rows = _linear24_rows(machine)
    return statistics.geometric_mean(row["speedup"] for row in rows if row["dtype"] == dtype)


def linear24_ratios(dtype: str, peer: str, machine: str = "zen3") -> list[float]:
    """Speeds over one of the dense forms, by its name in the file."""
    return [row["ratios"][peer]["median"] for row in _linear24_rows(machine) if row["dtype"] == dtype]


def scoring(figure: str, cases: Iterable[str], machine: str = "zen3") -> list[float]:
    """A figure of the scoring benchmark ("speedup", "of_copy") for all sizes and dtypes of some cases."""
    wanted = set(cases)
    return [row[figure] for row in result("scoring", machine)["rows"] if row["case"] in wanted]


def linear24_table(dtype: str, machine: str = "zen3") -> str:
    """Speed over the fastest dense form: a row a shape, a column a number of tokens."""
    rows = [row for row in _linear24_rows(machine) if row["dtype"] == dtype]
    counts = list(dict.fromkeys(row["tokens"] for row in rows))
    shapes = dict.fromkeys((row["in"], row["out"]) for row in rows)
    head = ["speed over dense", f"{counts[0]} tokens", *map(str, counts[1:])]
    speeds = {(i, o): [f"{linear24(dtype, i, o, n, machine):.2f}x" for n in counts] for i, o in shapes}
    body = [[f"{i} -> {o}", *cells] for (i, o), cells in speeds.items()]
    return markdown(head, body)


def crossover_table(name: str, dtype: str, machine: str = "zen3") -> str:
    """Where 2:4 pays: tokens down, shapes across; what is even within the noise, or slower, says so."""
    (one,) = (found for found in crossovers(result(name, machine)) if found.dtype == dtype)
    said = {"faster": "", "even": ", even", "slower": ", **slower**"}
    body = []
    for tokens in one.tokens:
        cells = [one.cells.get((tokens, shape)) for shape in one.shapes]
        shown = [f"{cell.speedup:.2f}x{said[cell.verdict]}" if cell else "" for cell in cells]
        body.append([str(tokens), *shown])
    return markdown(["tokens", *(f"{i} -> {o}" for i, o in one.shapes)], body)


def accuracy_table(name: str, columns: Sequence[str], digits: int) -> str:
    """Every method against sparsity or pattern, the best of each column in bold; spreads over draws."""
    rows = result(name)["rows"]
    best = {
        column: max(
            accuracy(name, f"{row} {column}") for row in METHODS.values() if f"{row} {column}" in rows
        )
        for column in columns
    }
    body = []
    for shown, row in METHODS.items():
        cells = [shown]
        for column in columns:
            key = f"{row} {column}"
            cell = ""
            if key in rows:
                cell = _spread(name, key, digits)
                cell = f"**{cell}**" if accuracy(name, key) == best[column] else cell
            cells.append(cell)
        body.append(cells)
    return markdown(["", *(column.replace("%", " %") for column in columns)], body)


def split_table(name: str) -> str:
    """Sparsity shared out between the towers: what is zero in all, and what is left."""
    rows = {key: row for key, row in result(name)["rows"].items() if key != "dense"}
    scores = {key: accuracy(name, key) for key in rows}
    best = max(scores, key=lambda key: scores[key])
    zeros = [f"{100 * next(iter(row.values()))['zeros']:.0f} %" for row in rows.values()]
    means = [f"**{scores[key]:.1f}**" if key == best else f"{scores[key]:.1f}" for key in rows]
    return markdown(["image : text", *rows], [["zeros in all", *zeros], ["mean recall", *means]])


def recovery_table(name: str, digits: int) -> str:
    """What each training wins back: a row for what was removed, a column for each training."""
    rows = {split_way(row): row for row in result(name)["rows"] if row != "dense"}
    ways = list(dict.fromkeys(way for _, way in rows))
    body = [
        [plan, *(_spread(name, rows[plan, way], digits) if (plan, way) in rows else "" for way in ways)]
        for plan in dict.fromkeys(plan for plan, _ in rows)
    ]
    return markdown(["", *(f"+ {way}" if way else "nothing trained" for way in ways)], body)


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)


def _spread(name: str, row: str, digits: int) -> str:
    """Mean over draws and, of several, their standard deviation."""
    values = _primaries(name, row)
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _primaries(name: str, row: str) -> list[float]:
    return [float(draw["primary"]) for draw in result(name)["rows"][row].values()]


def _linear24_rows(machine: str) -> list[dict[str, Any]]:
    """The products of `vlprune bench --tokens`; a speed is that over the fastest dense form."""
    full = {"fp32": "float32", "bf16": "bfloat16"}
    return [
        {
            "dtype": full[row["dtype"]],
            **{key: row["sizes"][key] for key in ("tokens", "in", "out")},
            "speedup": row["speedup"],
            "ratios": row["ratios"],
            "seconds": row["times"][OURS]["median"],
        }
        for row in result("linear24", machine)["rows"]
        if row["op"] == "linear24" and row["dtype"] in full and row["sizes"]["activation"] is None
    ]


def _linear24_row(dtype: str, inputs: int, outputs: int, tokens: int, machine: str) -> dict[str, Any]:
    wanted = (dtype, inputs, outputs, tokens)
    keys = ("dtype", "in", "out", "tokens")
    (row,) = (row for row in _linear24_rows(machine) if tuple(row[key] for key in keys) == wanted)
    return row
