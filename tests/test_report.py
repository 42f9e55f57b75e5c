"""The plots of a run, read back from their SVG."""

import re

import pytest

from vlprune.report.plots import layer_sparsities

SHAPE = (8, 16)


def variant(*zeros):
    places = [("visual", 0), ("visual", 1), ("text", 0)]
    layers = [
        {
            "name": f"{tower}.{block}.fc",
            "shape": SHAPE,
            "zeros": count,
            "target": count / 128,
            "tower": tower,
            "block": block,
        }
        for (tower, block), count in zip(places, zeros, strict=True)
    ]
    return {"prune": {"layers": layers, "sparsity": sum(zeros) / (3 * 128)}}


def test_bars_are_as_high_as_the_layers_are_sparse():
    svg = layer_sparsities(variant(32, 64, 96))
    place = r"([\d.]+) ([\d.]+) \n"
    corners = re.findall(rf'<path d="M {place}L {place}L {place}L {place}z\n"\s*clip-path', svg)
    heights = [float(numbers[1]) - float(numbers[5]) for numbers in corners]
    assert [height / heights[0] for height in heights] == pytest.approx([1, 2, 3], rel=1e-4)
    for label in ("image 0", "image 1", "text 0", "image tower", "text tower"):
        assert f">{label}<" in svg


def test_no_plot_where_the_allocation_made_no_difference():
    assert layer_sparsities(variant(64, 64, 64)) is None
