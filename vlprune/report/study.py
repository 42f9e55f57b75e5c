"""Scores after removing more and more modules by several criteria: a benchmark's file as table and page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figure import LINES, panels, svg
from .modules import error_plots
from .page import write_page

__all__ = ["STUDY_FORMAT", "curves", "study_table", "write_study"]

STUDY_FORMAT = "vlprune-mope"

_MEASURES = {"retrieval": "mean recall, %", "accuracy": "top-1, %"}


def study_table(study: Mapping[str, Any]) -> str:
    """Scores of every kind and criterion as text: mean and standard deviation over the draws."""
    shares = _shares(study)
    lines = [
        *_conditions(study),
        "",
        f"{'removed':22}" + "".join(f"{f'{share:g} %':>15}" for share in shares),
    ]
    lines += [
        f"{kind:10}{criterion:12}" + "".join(f"{cell:>15}" for cell in cells)
        for kind, criterion, cells in _rows(study)
    ]
    return "\n".join(lines)


def write_study(study: Mapping[str, Any], path: Path) -> None:
    """Write the page: curves, table, and the errors of the first draw; it needs nothing else."""
    modules: list[Any] = next((draw["modules"] for draw in study["errors"].values()), [])
    write_page(
        path,
        "study.html",
        record=study,
        conditions=_conditions(study),
        measure=_MEASURES[study["metric"]].partition(",")[0].capitalize(),
        curves=curves(study),
        shares=_shares(study),
        rows=_rows(study),
        errors=error_plots(modules),
    )


def curves(study: Mapping[str, Any]) -> str:
    """A panel for each kind: share removed across, score up, a line a criterion, a band over the draws.

    Each kind has a scale of its own: layers cost so much more than neurons.
    """
    scores = _scores(study)
    kinds = dict.fromkeys(kind for kind, _ in scores)
    full = study["rows"]["full"]
    made, axes = panels(8.6, 3.6, len(kinds))
    for i, kind in enumerate(kinds):
        one = axes[i]
        own = {criterion: found for (k, criterion), found in scores.items() if k == kind}
        for (criterion, found), (color, marker, dashes) in zip(own.items(), LINES, strict=False):
            shares = [0.0, *found]
            draws = [[full], *found.values()]
            means = [statistics.mean(values) for values in draws]
            one.plot(
                shares, means, color=color, marker=marker, linestyle=dashes, markersize=5, label=criterion
            )
            low, high = [min(values) for values in draws], [max(values) for values in draws]
            one.fill_between(shares, low, high, color=color, alpha=0.15, linewidth=0)
        one.set_title(kind, fontsize=10)
        one.set_xticks([0.0, *_shares(study)])
        one.set_xlabel("removed, %")
    axes[0].set_ylabel(_MEASURES[study["metric"]])
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return svg(made)


def _scores(study: Mapping[str, Any]) -> dict[tuple[str, str], dict[float, list[float]]]:
    """Scores by kind and criterion, then by percentage removed, ascending: one a draw."""
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for name, draws in study["rows"].items():
        if name != "full":
            kind, criterion, share = name.split()
            found.setdefault((kind, criterion), {})[float(share.strip("-%"))] = list(draws.values())
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    in_order = sorted(found.items(), key=lambda item: kinds.index(item[0][0]))
    # a run that was continued with further shares has them last
    return {key: dict(sorted(by_share.items())) for key, by_share in in_order}


def _shares(study: Mapping[str, Any]) -> list[float]:
    return sorted({share for found in _scores(study).values() for share in found})


def _rows(study: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    shares = _shares(study)
    return [
        (kind, criterion, [_cell(found.get(share, [])) for share in shares])
        for (kind, criterion), found in _scores(study).items()
    ]


def _cell(draws: list[float]) -> str:
    if len(draws) < 2:
        return "".join(f"{value:.2f}" for value in draws)
    return f"{statistics.mean(draws):.2f} ± {statistics.stdev(draws):.2f}"


def _conditions(study: Mapping[str, Any]) -> list[str]:
    towers = " and ".join("image" if tower == "visual" else tower for tower in study["towers"])
    measure, unit = _MEASURES[study["metric"]].split(", ")
    plural = "s" if len(study["errors"]) > 1 else ""
    return [
        f"{study['model']} on {study['data']}, {study['images']} images: {measure} "
        f"{study['rows']['full']:.2f} {unit}; {towers} tower{'s' if len(study['towers']) > 1 else ''}",
        f"modules chosen on {study['samples']} images of {study['calib']}, {len(study['errors'])} "
        f"draw{plural}; nothing retrained",
    ]
