"""The picture of accuracy against speed: which points are there, which are on the front, what is written."""

import re

import pytest

from vlprune.report.frontier import (
    FRONTIER_FORMAT,
    Point,
    front,
    frontier_plot,
    frontier_table,
    points_of,
    write_frontier,
)


def row(name, shape, scores, recovered=None, dense=90.0):
    return {"name": name, "shape": shape, "recovered": recovered, "scores": scores, "dense": dense}


@pytest.fixture
def record():
    return {
        "format": FRONTIER_FORMAT,
        "model": "small",
        "data": "few images",
        "kind": "pairs",
        "batch": 8,
        "dense": 90.0,
        "points": [
            row("wanda 2:4", "2:4", [80.0, 84.0]),
            row("wanda 2:4", "2:4", [89.0], "distilled"),
            row("wanda 2:4", "dense", [90.5], "LoRA"),
            row("wanda 60%", "unstructured", [70.0]),
            # of other images, on which the dense model scores less
            row("mope heads -50%", "heads -50%", [60.0], dense=65.0),
            row("mope layers -50%", "layers -50%", [30.0]),
            row("mope layers -90%", "layers -90%", [1.0]),
            row("mope heads neurons -50% 2:4", "heads neurons -50% 2:4", [40.0]),
            row("dense, fused blocks", "fused blocks", [90.0]),
        ],
        "speeds": {
            "2:4": {"speedup": 1.5},
            "fused blocks": {"speedup": 1.1},
            "heads -50%": {"speedup": 1.25},
            "layers -50%": {"speedup": 2.0},
            "heads neurons -50% 2:4": {"speedup": 3.0},
        },
        "machine": {"cpu": "some CPU", "gpu": None, "threads": 2, "torch": "2.15"},
    }


def test_points_have_the_speed_of_their_shape_and_the_change_against_their_own_dense(record):
    found = {(p.name, p.recovered): p for p in points_of(record)}
    assert found["wanda 2:4", None] == Point("wanda 2:4", "2:4", None, 1.5, 82.0, -8.0, 2)
    assert found["mope heads -50%", None].change == -5.0
    assert found["wanda 60%", None].speedup == 1.0
    assert found["wanda 2:4", "LoRA"].kind == "zeros filled"
    assert found["wanda 2:4", "LoRA"].speedup == 1.0
    assert found["mope heads neurons -50% 2:4", None].kind == "structure and 2:4"
    # its speed is not known
    assert ("mope layers -90%", None) not in found
    assert len(found) == len(record["points"])


def test_the_front_equals_a_comparison_of_all_pairs(record):
    points = points_of(record)

    def beaten(point):
        return any(
            (o.speedup, o.change) != (point.speedup, point.change)
            and o.speedup >= point.speedup
            and o.change >= point.change
            for o in points
        )

    assert front(points) == [p for p in points if not beaten(p)]
    assert [p.name for p in front(points)] == [
        "mope heads neurons -50% 2:4",
        "wanda 2:4",
        "dense, fused blocks",
        "wanda 2:4",
    ]


def test_the_table(record):
    lines = frontier_table(record).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-4:] == [
        "   3.00x   40.00  -50.00  mope heads neurons -50% 2:4",
        "   1.50x   89.00   -1.00  wanda 2:4, distilled",
        "   1.10x   90.00   +0.00  dense, fused blocks",
        "   1.00x   90.50   +0.50  wanda 2:4, LoRA",
    ]


def test_the_page_and_the_picture(record, tmp_path):
    write_frontier(record, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "wanda 60%" in page
    assert "stand at 1x, 1 here" in page
    picture = frontier_plot(record)
    assert picture == frontier_plot(record)
    names = re.findall(r">([^<>]*(?:mope|wanda|fused)[^<>]*)</text>", picture)
    assert sorted(names) == [
        "dense, fused blocks",
        "mope heads neurons -50% 2:4",
        "wanda 2:4, LoRA",
        "wanda 2:4, distilled",
    ]
