"""Where 2:4 pays and where it does not: speed over dense by number of tokens and by shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Cell", "Crossover", "crossovers"]


@dataclass(frozen=True)
class Cell:
    """Dense over 2:4 time of one product: median over the rounds, and its 95 % interval if there is one."""

    speedup: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """One of "faster", "slower", and "even", which the rounds do not tell from 1."""
        if self.low is not None and self.low > 1.0:
            return "faster"
        return "slower" if self.high is not None and self.high < 1.0 else "even"


@dataclass(frozen=True)
class Crossover:
    """Cells of one dtype by (tokens, (in, out)); the sizes ascend, not every cell was measured."""

    dtype: str
    tokens: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    cells: Mapping[tuple[int, tuple[int, int]], Cell]

    @property
    def counts(self) -> dict[str, int]:
        """How many cells are faster, even and slower."""
        verdicts = [cell.verdict for cell in self.cells.values()]
        return {verdict: verdicts.count(verdict) for verdict in ("faster", "even", "slower")}


def crossovers(record: Mapping[str, Any]) -> list[Crossover]:
    """One for each dtype of the record's plain `linear24` rows; none where there are no such rows."""
    by_dtype: dict[str, dict[tuple[int, tuple[int, int]], Cell]] = {}
    for row in record["rows"]:
        if row["op"] == "linear24" and "error" not in row and row["sizes"]["activation"] is None:
            sizes, ratio = row["sizes"], row["ratios"][row["peer"]]
            shape = (sizes["in"], sizes["out"])
            cell = Cell(ratio["median"], ratio["low"], ratio["high"])
            by_dtype.setdefault(row["dtype"], {})[sizes["tokens"], shape] = cell
    return [
        Crossover(
            dtype,
            tuple(sorted({tokens for tokens, _ in cells})),
            tuple(sorted({shape for _, shape in cells})),
            cells,
        )
        for dtype, cells in by_dtype.items()
    ]
