"""Reports of modules: the values of a record in table and page, the curves of a benchmark's file."""

import copy
import json
import re
import statistics
from pathlib import Path

import pytest

from vlprune import report
from vlprune.cli import main
from vlprune.report.modules import error_plots
from vlprune.report.study import curves

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

ERRORS = [
    *(
        {"tower": "visual", "layer": n, "kind": kind, "index": i, "error": first + n + i / 8}
        for kind, first, count in (("heads", -0.75, 3), ("neurons", 7.25, 4))
        for n in range(2)
        for i in range(count)
    ),
    *({"tower": "visual", "layer": n, "kind": "layers", "index": n, "error": 33.25 + n} for n in range(2)),
    {"tower": "text", "layer": 0, "kind": "heads", "index": 0, "error": -0.001},
]
KEPT = {"visual": {"heads": {"0": [2], "1": [0, 1]}, "layers": [1]}}

NAME = "mope heads 50% neurons 25% layers 2"


def timing(**milliseconds):
    times = {name: {"median": ms / 1e3} for name, ms in milliseconds.items()}
    return times | {"speedup": milliseconds["dense"] / milliseconds["variant"]}


@pytest.fixture
def record():
    metrics = {"kind": "pairs", "count": 40, "tr1": 91.25, "ir1": 90.0, "mean_recall": 95.5}
    sizes = {"tower": "visual", "name": "blocks", "heads": [3, 2], "neurons": [1024, 272]}
    part = {
        "config": {"criterion": "mope"},
        "seconds": 12.0,
        "layers": [{**sizes, "layer": 0, "stays": False}, {**sizes, "layer": 1, "stays": True}],
        "parameters": [2000, 660],
        "notes": ["something was <rounded>"],
        "keep_lists": KEPT,
        "errors": ERRORS,
        "speedup": None,
        "saved": {"folder": "structured", "bytes": 7_300_000},
    }
    alone = {
        "name": NAME,
        "structured": NAME,
        "metrics": {**metrics, "mean_recall": 83.4},
        "timing": {tower: timing(dense=1120.5, variant=560.25) for tower in ("image", "text")},
    }
    both = {
        "name": f"{NAME} + wanda 2:4",
        "structured": NAME,
        "config": {},
        "prune": {"sparsity": 0.5, "layers": []},
        "metrics": {**metrics, "mean_recall": 71.2},
        "timing": {
            tower: timing(dense=1100.0, structured=550.0, variant=275.0) for tower in ("image", "text")
        },
    }
    return {
        "format": "vlprune-report", "version": 1, "model": "tiny", "data": "some", "calib": "others",
        "batch": 2, "dtype": "float32", "device": "cpu",
        "machine": {"cpu": "a cpu", "isa": "avx2", "threads": 1, "gpu": None, "torch": "2.15"},
        "dense": {"metrics": metrics, "bytes": 4000},
        "structured": {NAME: part},
        "variants": [alone, both],
    }  # fmt: skip


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_table_fits_a_terminal_and_holds_the_values(record):
    text = report.table(record)
    assert max(map(len, text.splitlines())) <= 80
    for value in ("83.4", "71.2", "33 %", "50 %", "1120.5 -> 560.2", "4.00x", "12 s", "<rounded>"):
        assert value in text, value
    rows = text.splitlines()
    first = next(i for i, line in enumerate(rows) if line.startswith("mope"))
    # a name that is broken is still all there, its numbers in its first line
    assert "83.4" in rows[first]
    assert " ".join(line[:14].strip() for line in rows[first : first + 3]) == NAME
    assert "image: dense 1100.0 ms, modules out 550.0 (2.00x)" in text
    assert "pruned too 275.0 (4.00x)" in text
    assert "image tower: 1 of 2 layers, 4 of 6 heads, 544 of 2,048 neurons" in text


def test_speedup_that_was_asked_for(record):
    record["structured"][NAME]["speedup"] = {
        "tower": "visual", "sparse": True, "target": 2.0, "predicted": 2.04, "measured": 1.97,
    }  # fmt: skip
    said = "image tower once 2:4: 2x asked for, 2.04x predicted, 1.97x measured"
    assert said in report.table(record)


def test_page_holds_every_error_and_every_value(record, tmp_path):
    report.write_html(record, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    drawn = texts(page)
    for error in ERRORS:
        value = f"{error['error']:.2f}".replace("-0.00", "0.00")
        assert any(text.split()[:1] == [value] for text in drawn), value
    for value in ("83.4", "71.2", "33 %", "272 of 1024", "taken out", "7.3", "&lt;rounded&gt;"):
        assert value in page, value
    for outside in ("<script", "<link", "src=", "@import"):
        assert outside not in page


def test_what_went_is_crossed_out():
    whole, cut = (error_plots(ERRORS, kept)[0] for kept in (None, KEPT))
    # heads 0 and 1 of the first layer and 2 of the second, two strokes each; one bar is hatched
    assert cut.count('id="line2d') - whole.count('id="line2d') == 2 * 3
    assert ("<pattern" in whole, "<pattern" in cut) == (False, True)
    assert [text for text in texts(cut) if text.endswith("out")] == ["33.25 out"]


def test_a_tower_is_a_plot():
    image, text = error_plots(ERRORS)
    assert {"heads", "groups of neurons", "layers", "image tower, layer"} <= set(texts(image))
    assert "text tower, layer" in texts(text)
    assert "layers" not in texts(text)


def places(svg, *values):
    """Height of each text of a plot."""
    found = re.findall(r'<text[^>]*?(?:translate\([\d.-]+ ([\d.-]+)\)|y="([\d.-]+)")[^>]*>([^<]*)<', svg)
    return [next(float(a or b) for a, b, text in found if text == value) for value in values]


def test_errors_of_all_layers_at_once_have_a_row_of_their_own():
    rank = [
        {"tower": "visual", "layer": None, "kind": "neurons", "index": i, "error": 50.5 + i} for i in (0, 1)
    ]
    heads = [error for error in ERRORS if error["kind"] == "heads" and error["tower"] == "visual"]
    (alone,) = error_plots(rank)
    (beside,) = error_plots(heads + rank)
    for plot in (alone, beside):
        row, first, second = places(plot, "all", "50.50", "51.50")
        assert first == second == pytest.approx(row, abs=4)
    assert max(places(beside, "-0.75", "0.25")) < places(beside, "all")[0]


def test_errors_stand_beside_the_number_of_their_layer():
    rows = [
        {"tower": "visual", "layer": n, "kind": "layers", "index": n, "error": 30.0 + n} for n in range(3)
    ]
    # nothing is known of the heads of layer 0
    rows += [{"tower": "visual", "layer": n, "kind": "heads", "index": 0, "error": 60.0 + n} for n in (1, 2)]
    (plot,) = error_plots(rows)
    for layer in (1, 2):
        head, whole = places(plot, f"{60 + layer}.00", f"{30 + layer}.00")
        assert head == pytest.approx(whole, abs=4)


@pytest.fixture
def study():
    return {
        "format": "vlprune-mope", "model": "tiny", "data": "some", "calib": "others", "images": 40,
        "samples": 20, "metric": "accuracy", "towers": ["visual"],
        "errors": {"0": {"seconds": 1.0, "modules": ERRORS}},
        "rows": {
            "full": 90.0,
            # a share that was added later stands last
            "heads mope -50%": {"0": 60.0, "1": 70.0},
            "heads mope -25%": {"0": 80.0, "1": 84.0},
            "layers mope -25%": {"0": 55.5},
            "heads random -25%": {"0": 50.0, "1": 40.0},
            "heads random -50%": {"0": 20.0, "1": 30.0},
        },
    }  # fmt: skip


def line(svg, color):
    """Heights of the points of the first line of a colour."""
    path = re.search(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke[^"]*: {color}', svg).group(1)
    return [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]


def test_curves_go_through_the_means(study):
    svg = curves(study)
    for color, means in (("#0072b2", [90, 82, 65]), ("#d55e00", [90, 45, 25])):
        heights = line(svg, color)
        slope = (heights[2] - heights[0]) / (means[2] - means[0])
        assert (heights[1] - heights[0]) / (means[1] - means[0]) == pytest.approx(slope, rel=1e-4)
    assert {"heads", "layers", "mope", "random", "top-1, %", "removed, %"} <= set(texts(svg))


def test_table_of_a_benchmark(study):
    rows = [line.split() for line in report.study_table(study).splitlines()]
    deviation = f"{statistics.stdev([80.0, 84.0]):.2f}"
    assert ["heads", "mope", "82.00", "±", deviation, "65.00", "±", "7.07"] in rows
    assert ["layers", "mope", "55.50"] in rows
    kinds = [row[0] for row in rows if row[1:2] in (["mope"], ["random"])]
    assert kinds == ["heads", "heads", "layers"]


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/mope-demo*.json")), ids=lambda path: path.stem)
def test_report_draws_the_file_of_a_benchmark(file, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(file), "--out", str(page)]) == 0
    said, content = capsys.readouterr().out, json.loads(file.read_text())
    for name, draws in content["rows"].items():
        value = draws if name == "full" else statistics.mean(draws.values())
        assert f"{value:.2f}" in said, name
        assert f"{value:.2f}" in page.read_text(), name
    assert f"Report: {page}" in said


def test_page_lies_beside_the_record(record, study, tmp_path, capsys):
    for content, path in ((study, tmp_path / "curves.json"), (record, tmp_path / "run" / "report.json")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        assert main(["report", str(path)]) == 0
        assert path.with_suffix(".html").is_file()
    assert main(["report", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("fault", ["another format", "no format", "no rows", "no metric", "version"])
def test_files_that_cannot_be_shown(record, study, fault, tmp_path, capsys):
    content = copy.deepcopy(record if fault == "version" else study)
    if fault == "no rows":
        del content["rows"]
    else:
        content |= {"format": "else"} if fault == "another format" else {}
        content = [] if fault == "no format" else content
    if fault == "no metric":
        del content["metric"]
    if fault == "version":
        content["version"] = 7
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    assert main(["report", str(path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert str(path) in err
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
