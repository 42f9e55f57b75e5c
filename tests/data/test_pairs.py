import csv

import pytest
import torch
from data_files import direct, preprocess, save, tokenizer

from vlprune.data import PairData, load_data


def load(table, text, **options):
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_data(f"pairs:{table}", preprocess, tokenizer, **options)


@pytest.fixture
def table(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "sub dir" / "b.png", 2)
    return tmp_path / "pairs.tsv"


def test_several_captions_in_the_order_of_the_lines(table):
    other = save(table.parent / "far" / "c.png", 3)
    data = load(table, f"a.png\tone\nsub dir/b.png\t two \r\n\na.png\tthree\n{other}\tvier ä\n")
    assert isinstance(data, PairData)
    assert data.kind == "pairs"
    assert data.captions == [["one", "three"], ["two"], ["vier ä"]]
    (batch,) = data.batches(5)
    assert torch.equal(batch.images[1], direct(table.parent / "sub dir" / "b.png"))
    assert torch.equal(batch.images[2], direct(other))
    assert torch.equal(batch.texts, tokenizer(["one", "two", "vier ä"]))


def test_no_newline_at_the_end(table):
    assert load(table, "a.png\tone").captions == [["one"]]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
def test_header_of_open_clip(table, mark):
    text = b'filepath\ttitle\na.png\t"say ""no"" twice"\na.png\t"go" and "stop"\n'
    assert load(table, mark + text).captions == [['say "no" twice', '"go" and "stop"']]


def test_csv_writer_writes_what_is_read(table):
    captions = ['a "quoted" word', '"all"', "plain", "it's; fine, too"]
    with table.open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["filepath", "title"])
        rows.writerows(["a.png", caption] for caption in captions)
    assert load(table, table.read_bytes()).captions == [captions]


def test_quotes_without_header_stay(table):
    assert load(table, 'a.png\t"Stop"\n').captions == [['"Stop"']]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png\tone\na.png two\n", r"pairs\.tsv line 2: expected image path, tab, caption; got 1 column"),
        ("a.png\tone\ttwo\n", r"pairs\.tsv line 1: expected image path, tab, caption; got 3 column"),
        ("\tone\n", r"pairs\.tsv line 1: expected image path"),
        ("a.png\tone\n\na.png\t  \n", r"pairs\.tsv line 3: the caption is empty"),
        (b"a.png\tone\na.png\t\xff\xfe\n", r"pairs\.tsv line 2: not UTF-8 text"),
    ],
    ids=["one column", "three columns", "no path", "empty caption", "not text"],
)
def test_malformed_line(table, text, message):
    with pytest.raises(ValueError, match=message):
        load(table, text)


def test_missing_image(table):
    with pytest.raises(FileNotFoundError, match=r"pairs\.tsv line 2: image .*gone\.png does not exist"):
        load(table, "a.png\tone\ngone.png\ttwo\n")


def test_skip_counts_each_fault(table):
    text = (
        b"a.png\tone\nno tab\na.png\t\nsub dir/b.png\ttwo\n\xff\tx\ngone.png\ty\ngone.png\tz\na.png\tthree\n"
    )
    data = load(table, text, on_error="skip")
    assert data.captions == [["one", "three"], ["two"]]
    assert data.skipped == 4
    assert [reason.split(": ")[0].rsplit(" ", 1)[1] for reason in data.skip_reasons] == ["2", "3", "5", "6"]


@pytest.mark.parametrize("text", ["", "filepath\ttitle\n", "\n\n"], ids=["empty", "header", "blank"])
def test_no_lines(table, text):
    with pytest.raises(ValueError, match=r"pairs:.*pairs\.tsv holds no images"):
        load(table, text)


def test_missing_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tsv does not exist; expected pairs:FILE\.tsv"):
        load_data(f"pairs:{tmp_path / 'none.tsv'}", preprocess, tokenizer)
    with pytest.raises(FileNotFoundError, match="is a folder, not a file"):
        load_data(f"pairs:{tmp_path}", preprocess, tokenizer)
