"""The record of a run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Row", "metric_columns", "rows", "table"]

# Metric keys shown, by kind of data, and what the reader sees above them.
_COLUMNS = {
    "pairs": {"tr1": "tr@1", "ir1": "ir@1", "mean_recall": "mean recall"},
    "labelled": {"top1": "top-1", "top5": "top-5"},
}


@dataclass(frozen=True)
class Row:
    """One line: a model's accuracy, and the speed of its towers against dense.

    `image_ms` is the pair that the speed-up is the ratio of: the dense model's milliseconds and this
    one's, interleaved. Pairs of different lines were timed at different moments and do not compare.
    """

    name: str
    metrics: Mapping[str, float]
    sparsity: float
    image_ms: tuple[float, float] | None
    image_speedup: float
    text_speedup: float
    megabytes: float | None


def metric_columns(record: Mapping[str, Any]) -> dict[str, str]:
    """Metric key -> heading, for the kind of data that the run evaluated."""
    return _COLUMNS[record["dense"]["metrics"]["kind"]]


def rows(record: Mapping[str, Any]) -> list[Row]:
    """Dense first, then the variants in the order they ran."""
    dense = record["dense"]
    result = [Row("dense", dense["metrics"], 0.0, None, 1.0, 1.0, dense["bytes"] / 1e6)]
    for variant in record["variants"]:
        image, saved = variant["timing"]["image"], variant.get("saved")
        result.append(
            Row(
                variant["name"],
                variant.get("packed_metrics", variant["metrics"]),
                variant["prune"]["sparsity"],
                (_ms(image, "dense"), _ms(image, "variant")),
                image["speedup"],
                variant["timing"]["text"]["speedup"],
                saved["bytes"] / 1e6 if saved else None,
            )
        )
    return result


def table(record: Mapping[str, Any]) -> str:
    """The record as text: accuracy in percent, time a batch in milliseconds, speed-up over dense.

    Rows of retrieval and of accuracy fit 80 columns as long as the names are those of this package.
    """
    columns = metric_columns(record)
    head = ["", *columns.values(), "zeros", "image ms", "speed", "text speed"]
    body = [
        [
            row.name,
            *(f"{row.metrics[key]:.1f}" for key in columns),
            f"{100 * row.sparsity:.0f} %",
            "{:.1f} -> {:.1f}".format(*row.image_ms) if row.image_ms else "",
            f"{row.image_speedup:.2f}x",
            f"{row.text_speedup:.2f}x",
        ]
        for row in rows(record)
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = [_line(head, widths), "-" * (sum(widths) + 2 * (len(widths) - 1))]
    lines += [_line(line, widths) for line in body]
    return "\n".join([*lines, "", conditions(record)])


def conditions(record: Mapping[str, Any]) -> str:
    """Where and how the numbers were measured."""
    machine = record["machine"]
    device = machine["gpu"] if record["device"].startswith("cuda") else f"{machine['cpu']} ({machine['isa']})"
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    count = record["dense"]["metrics"]["count"]
    calib = "images of the same set" if record["calib"] == record["data"] else record["calib"]
    return (
        f"{record['model']} on {record['data']}, {count} images; calibrated on {calib}\n"
        f"{record['dtype']}, batch {record['batch']}, {threads}, {device}, torch {machine['torch']}\n"
        "Milliseconds are medians, dense -> this, interleaved in one run; a speed is their ratio."
    )


def _ms(timing: Mapping[str, Any], which: str) -> float:
    return 1e3 * float(timing[which]["median"])


def _line(cells: list[str], widths: list[int]) -> str:
    first, *rest = [
        cell.ljust(w) if i == 0 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join([first, *rest]).rstrip()
