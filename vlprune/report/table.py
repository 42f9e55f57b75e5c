"""The record of a run as a table for the terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .training import training_lines, trainings_of

__all__ = ["Row", "columns_of", "conditions", "fitted", "metric_columns", "rows", "step_times",
           "structured_lines", "table"]  # fmt: skip

_WIDTH = 80
# Where lines would be longer, headings longer than this are broken, and names, to columns no narrower.
_HEADING, _NAME = 8, 14

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
    `parameters` is the fraction of the dense model's that is left, `sparsity` that of zeros in pruned layers.
    """

    name: str
    metrics: Mapping[str, float]
    parameters: float
    sparsity: float
    image_ms: tuple[float, float] | None
    image_speedup: float
    text_speedup: float
    megabytes: float | None


def metric_columns(record: Mapping[str, Any]) -> dict[str, str]:
    """Metric key -> heading, for the kind of data that the run evaluated."""
    return columns_of(record["dense"]["metrics"]["kind"])


def columns_of(kind: str) -> dict[str, str]:
    """Metric key -> heading, for "pairs" or "labelled"."""
    return _COLUMNS[kind]


def rows(record: Mapping[str, Any]) -> list[Row]:
    """Dense first, then the variants in the order they ran."""
    dense = record["dense"]
    result = [Row("dense", dense["metrics"], 1.0, 0.0, None, 1.0, 1.0, dense["bytes"] / 1e6)]
    for variant in record["variants"]:
        image, part = variant["timing"]["image"], _structured(record, variant)
        # modules alone are saved when they are taken out, and nothing is saved twice
        saved = variant.get("saved") or (part and part["saved"] if "prune" not in variant else None)
        result.append(
            Row(
                variant["name"],
                variant.get("packed_metrics", variant["metrics"]),
                part["parameters"][1] / part["parameters"][0] if part else 1.0,
                variant["prune"]["sparsity"] if "prune" in variant else 0.0,
                (_ms(image, "dense"), _ms(image, "variant")),
                image["speedup"],
                variant["timing"]["text"]["speedup"],
                saved["bytes"] / 1e6 if saved else None,
            )
        )
    return result


def table(record: Mapping[str, Any]) -> str:
    """The record as text: accuracy in percent, time a batch in milliseconds, speed-up over dense.

    It fits 80 columns: where it would not, headings and names take several lines.
    """
    columns, structured = metric_columns(record), record.get("structured", {})
    head = [
        "",
        *columns.values(),
        *(["params"] if structured else []),
        "zeros",
        "image ms",
        "speed",
        "text speed",
    ]
    body = [
        [
            row.name,
            *(f"{row.metrics[key]:.1f}" for key in columns),
            *([f"{100 * row.parameters:.0f} %"] if structured else []),
            f"{100 * row.sparsity:.0f} %",
            "{:.1f} -> {:.1f}".format(*row.image_ms) if row.image_ms else "",
            f"{row.image_speedup:.2f}x",
            f"{row.text_speedup:.2f}x",
        ]
        for row in rows(record)
    ]
    lines = [fitted(head, body)]
    lines += ["\n".join([f"{name}:", *structured_lines(part)]) for name, part in structured.items()]
    lines += ["\n".join([f"{part['name']}:", *training_lines(part)]) for part in trainings_of(record)]
    if times := step_times(record):
        lines.append("\n".join(times))
    return "\n\n".join([*lines, conditions(record)])


def structured_lines(part: Mapping[str, Any]) -> list[str]:
    """What is left of heads, neurons and layers, a line a tower, and what there is to know about it."""
    if "origin" in part:
        return [f"what is left of {part['origin']}, trained"]
    before, after = part["parameters"]
    lines = [f"{before:,} -> {after:,} parameters ({after / before:.1%}), chosen in {part['seconds']:.0f} s"]
    for tower in dict.fromkeys(layer["tower"] for layer in part["layers"]):
        own = [layer for layer in part["layers"] if layer["tower"] == tower]
        counts = [f"{sum(layer['stays'] for layer in own)} of {len(own)} layers"]
        for kind in ("heads", "neurons"):
            sizes = [layer[kind] for layer in own if layer[kind] is not None]
            counts.append(
                f"{sum(kept for _, kept in sizes):,} of {sum(total for total, _ in sizes):,} {kind}"
            )
        lines.append(f"{'image' if tower == 'visual' else tower} tower: {', '.join(counts)}")
    if (speedup := part["speedup"]) is not None:
        where = {"visual": "image tower", "text": "text tower"}.get(speedup["tower"], "both towers")
        lines.append(
            f"{where}{' once 2:4' if speedup['sparse'] else ''}: {speedup['target']:g}x asked for, "
            f"{speedup['predicted']:.2f}x predicted, {speedup['measured']:.2f}x measured"
        )
    return [*lines, *part["notes"]]


def step_times(record: Mapping[str, Any]) -> list[str]:
    """Of what was pruned in two steps, the time of each step in one run."""
    lines = []
    for variant in record["variants"]:
        if "structured" not in variant["timing"]["image"]:
            continue
        lines += [f"{variant['name']}, in one run:"]
        for tower, timing in variant["timing"].items():
            dense, first, both = (_ms(timing, which) for which in ("dense", "structured", "variant"))
            lines.append(
                f"  {tower}: dense {dense:.1f} ms, modules out {first:.1f} ({dense / first:.2f}x), "
                f"pruned too {both:.1f} ({dense / both:.2f}x)"
            )
    return lines


def conditions(record: Mapping[str, Any]) -> str:
    """Where and how the numbers were measured."""
    machine = record["machine"]
    device = machine["gpu"] if record["device"].startswith("cuda") else f"{machine['cpu']} ({machine['isa']})"
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    count = record["dense"]["metrics"]["count"]
    calib = "images of the same set" if record["calib"] == record["data"] else record["calib"]
    trained = record.get("train")
    if trained is not None:
        calib += "; trained on " + ("images of the same set" if trained == record["data"] else trained)
    return (
        f"{record['model']} on {record['data']}, {count} images; calibrated on {calib}\n"
        f"{record['dtype']}, batch {record['batch']}, {threads}, {device}, torch {machine['torch']}\n"
        "Medians in ms, dense -> this, interleaved in one run; a speed is their ratio."
    )


def _ms(timing: Mapping[str, Any], which: str) -> float:
    return 1e3 * float(timing[which]["median"])


def _structured(record: Mapping[str, Any], variant: Mapping[str, Any]) -> Any:
    """What was taken out before, None if nothing was."""
    return record["structured"][variant["structured"]] if "structured" in variant else None


def fitted(head: list[str], body: list[list[str]]) -> str:
    """Lay out a table, its headings and names broken at spaces if it were wider than a terminal."""
    split: list[list[list[str]]] = [[[cell] for cell in line] for line in (head, *body)]
    if sum(_widths(split)) + 2 * (len(head) - 1) > _WIDTH:
        split[0] = [cell.split() if len(cell) > _HEADING else [cell] for cell in head]
        rest = _widths([line[1:] for line in split])
        room = max(_NAME, _WIDTH - sum(rest) - 2 * len(rest))
        for line in split[1:]:
            # numbers stay with what they are of, and a plus with what follows
            tied = re.sub(r" (?=\d)|(?<=\+) ", "\xa0", line[0][0])
            line[0] = [text.replace("\xa0", " ") for text in textwrap.wrap(tied, room)]
    widths = _widths(split)
    lines = [_block(line, widths) for line in split]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def _widths(lines: Sequence[Sequence[Sequence[str]]]) -> list[int]:
    return [max(len(text) for cell in column for text in (*cell, "")) for column in zip(*lines, strict=True)]


def _block(cells: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """One row of a table; a heading ends on its last line, a name starts on its first."""
    height = max(len(cell) for cell in cells)
    lines = []
    for i in range(height):
        texts = [cell[i] if i < len(cell) else "" for cell in cells]
        first, *rest = [
            t.ljust(w) if j == 0 else t.rjust(w) for j, (t, w) in enumerate(zip(texts, widths, strict=True))
        ]
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)
