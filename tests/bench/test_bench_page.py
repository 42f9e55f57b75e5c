"""What is said of a benchmark: the crossover, the text, the page and its plots."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from bench.bench_records import bench_record, linear24_row
from matplotlib.axes import Axes

from vlprune.bench import bench_table, crossovers
from vlprune.bench.text import of_ceiling, seconds_text
from vlprune.report import bench_plots
from vlprune.report.bench_page import write_bench, write_plots


def test_crossover_has_every_cell_with_its_verdict():
    (one,) = crossovers(bench_record())
    assert (one.dtype, one.tokens) == ("fp32", (1, 16, 400))
    assert one.shapes == ((512, 2048), (768, 3072), (3072, 768))
    verdicts = {place: cell.verdict for place, cell in one.cells.items()}
    assert verdicts[1, (512, 2048)] == "slower"
    assert verdicts[16, (768, 3072)] == "even"
    assert verdicts[400, (3072, 768)] == "faster"
    assert one.counts == {"faster": 3, "even": 2, "slower": 2}


def test_crossover_leaves_out_activations_and_failures():
    record = bench_record()
    for row in record["rows"][:3]:
        row["sizes"]["activation"] = "gelu"
    record["rows"][3]["error"] = "why"
    (one,) = crossovers(record)
    assert set(one.cells) == {(16, (768, 3072)), (400, (768, 3072)), (400, (3072, 768))}


def test_text_fits_a_terminal_and_says_what_is_slower():
    text = bench_table(bench_record())
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^ +1 +0\.60x- +0\.60x- *$", text, re.M)
    assert re.search(r"^ +16 +1\.01x= +1\.01x= *$", text, re.M)
    assert re.search(r"^fp32 400 x 768 -> 3072 +1 ms +F\.linear +1\.8 ms +1\.80x$", text, re.M)
    assert "Faster in 3 of 7 cells, slower (-) in 2" in text
    assert "failed" in text
    assert "differs from <plain> PyTorch" in text
    assert "120 GFLOP/s" in text


def test_text_of_many_shapes_still_fits():
    record = bench_record()
    record["rows"] = [linear24_row(t, w, 4 * w, 2e-3, 1e-3) for w in range(128, 1408, 128) for t in (1, 4112)]
    assert max(map(len, bench_table(record).splitlines())) <= 80


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2 s"), (0.9996, "1000 ms"), (1.484e-3, "1.48 ms"), (5.1e-6, "5.1 us"), (2e-7, "0.2 us")],
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_share_of_the_ceiling():
    """400 x 512 -> 2048: compute-bound at 400 tokens, bound by the weight's bytes at one."""
    found = {"bandwidth": {"memory": 2e10}, "rate": {"fp32": 1.2e11}}
    many = linear24_row(400, 512, 2048, 0.02, 0.01)
    assert of_ceiling(many, found, "F.linear") == pytest.approx(2 * 400 * 512 * 2048 / 0.02 / 1.2e11)
    one = linear24_row(1, 512, 2048, 1e-3, 1e-3)
    assert of_ceiling(one, found, "F.linear") == pytest.approx(4 * (512 + 2048 + 512 * 2048) / 1e-3 / 2e10)
    assert of_ceiling({**one, "dtype": "bf16"}, found, "F.linear") is None


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_bench(bench_record(), folder / "bench.html")
    write_plots(bench_record(), folder)
    return folder


def test_page_needs_nothing_else(page):
    text = (page / "bench.html").read_text()
    assert "<script" not in text
    assert not re.search(r"(src|href)=[\"'](?!#)", text)
    assert '<meta name="viewport"' in text
    assert "@media print" in text
    # roofline, crossover, and the layers of the tower
    assert text.count("<svg") == 3


def test_page_marks_what_is_slower(page):
    text = (page / "bench.html").read_text()
    assert text.count('<td class="slow">0.60-</td>') == 2
    assert text.count('<td class="">1.01=</td>') == 2
    assert "differs from &lt;plain&gt; PyTorch" in text
    assert "faster in 3 of 7 sizes, even in 2, slower in 2" in text


def test_plots_are_svg_that_says_what_it_shows(page):
    assert sorted(path.name for path in page.glob("*.svg")) == ["crossover-fp32.svg", "roofline-fp32.svg"]
    for path in page.glob("*.svg"):
        ElementTree.parse(path)
    roofline = (page / "roofline-fp32.svg").read_text()
    for words in (
        "memory 20 GB/s",
        "caches 60 GB/s",
        "dense product 120",
        "twice: all of 2:4 240",
        "linear24",
    ):
        assert words in roofline
    assert "slower than dense" in (page / "crossover-fp32.svg").read_text()


def test_other_sparse_products_are_not_drawn_as_dense(monkeypatch):
    """Nor is one that converts: its bytes are not those of the dtype."""
    record = bench_record()
    points = []
    monkeypatch.setattr(Axes, "scatter", lambda self, xs, ys, label, **_: points.append((label, len(xs))))
    bench_plots.roofline(record, "fp32")
    before = dict(points)
    for row in record["rows"]:
        if row["op"] == "linear24":
            row["times"] |= dict.fromkeys(("cuSPARSELt", "dense fp32"), row["times"]["F.linear"])
            row["moved"]["cuSPARSELt"] = 1
    points.clear()
    bench_plots.roofline(record, "fp32")
    assert dict(points) == before == {"dense": 7, "linear24": 7}
    for row in record["rows"]:
        if row["op"] == "linear24":
            row["times"]["oneDNN"], row["moved"]["oneDNN"] = row["times"]["F.linear"], 1
    points.clear()
    bench_plots.roofline(record, "fp32")
    assert dict(points) == {"dense": 14, "linear24": 7}


def test_every_shape_has_a_line_however_many(monkeypatch):
    record = bench_record()
    widths = range(128, 1152, 128)
    record["rows"] = [linear24_row(t, w, 4 * w, 2e-3, 1e-3) for w in widths for t in (1, 16, 400)]
    (one,) = crossovers(record)
    text = bench_plots.crossover_plot(one)
    assert [width for width in widths if f"{width} -&gt; {4 * width}" not in text] == []


def test_page_without_ceilings_or_linear24(tmp_path):
    record = bench_record()
    record |= {"ceilings": None, "rows": record["rows"][-2:]}
    write_bench(record, tmp_path / "bench.html")
    write_plots(record, tmp_path)
    assert (tmp_path / "bench.html").read_text().count("<svg") == 1
    assert not list(tmp_path.glob("*.svg"))
