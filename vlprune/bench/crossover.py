"""Where 2:4 pays and where it does not: speed over dense by number of tokens and by shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Cell", "Crossover", "crossovers"]


@dataclass(frozen=True)
class Cell:
    """Dense over 2:4 time of one product: median and 20/80 percentiles over the rounds."""

    speedup: float
    p20: float
    p80: float

    @property
    def verdict(self) -> str:
        """One of "faster", "slower", and "even", where the percentiles lie on both sides of 1."""
        if self.p20 > 1.0:
            return "faster"
        return "slower" if self.p80 < 1.0 else "even"


@dataclass(frozen=True)
class Crossover:
    """Cells of one dtype by (tokens, (in, out)); the sizes ascend, not every cell was measured."""

    dtype: str
    tokens: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    cells: Mapping[tuple[int, tuple[int, int]], Cell]

    def from_tokens(self, shape: tuple[int, int]) -> int | None:
        """Tokens from which on 2:4 is faster at every measured number of them; None if at no end."""
        found = None
        for count in reversed(self.tokens):
            cell = self.cells.get((count, shape))
            if cell is None:
                continue
            if cell.verdict != "faster":
                break
            found = count
        return found

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
            sizes, ratio = row["sizes"], row["ratio"]
            shape = (sizes["in"], sizes["out"])
            cell = Cell(row["speedup"], ratio["p20"], ratio["p80"])
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
