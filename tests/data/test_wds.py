import tracemalloc

import pytest
import torch
from data_files import encoded, picture, preprocess, tokenizer, write_tar

from vlprune.data import load_data
from vlprune.data.shards import expand_braces


def load(pattern, **options):
    return load_data(f"wds:{pattern}", preprocess, tokenizer, **options)


def test_captions_of_every_form(tmp_path):
    write_tar(
        tmp_path / "a-000.tar",
        {
            "0001.png": encoded(1),
            "0001.txt": "one line",
            "sub/0001.txt": "first\n\n second \n",
            "sub/0001.PNG": encoded(2),
            "0003.json": {"caption": "from json", "width": 9},
            "0003.webp": b"ignored: png comes first",
            "0003.png": encoded(3),
            "readme": "no key",
        },
    )
    write_tar(tmp_path / "a-001.tar", {"0001.png": encoded(4), "0001.json": {"caption": ["b", "a"]}})
    data = load(tmp_path / "a-*.tar")
    assert data.captions == [["one line"], ["first", "second"], ["from json"], ["b", "a"]]
    assert data.images[1].name == f"{tmp_path}/a-000.tar:sub/0001.PNG"
    (batch,) = data.batches(9)
    assert torch.equal(batch.images, torch.stack([preprocess(picture(seed)) for seed in (1, 2, 3, 4)]))
    assert torch.equal(batch.texts, tokenizer(["one line", "first", "from json", "b"]))


def test_jpeg_decodes_as_pil_does(tmp_path):
    import io

    from PIL import Image

    raw = encoded(5, "JPEG")
    write_tar(tmp_path / "a.tar", {"k.jpg": raw, "k.txt": "x"})
    (batch,) = load(tmp_path / "a.tar").batches(1)
    assert torch.equal(batch.images[0], preprocess(Image.open(io.BytesIO(raw))))


def test_long_names_and_other_tar_dialects(tmp_path):
    key = "d" * 90 + "/" + "k" * 150
    write_tar(tmp_path / "a.tar", {f"{key}.png": encoded(1), f"{key}.txt": "x"})
    data = load(tmp_path / "a.tar")
    assert data.images[0].member == f"{key}.png"
    (batch,) = data.batches(1)
    assert torch.equal(batch.images[0], preprocess(picture(1)))


@pytest.mark.parametrize("place", [".", ".."], ids=["beside", "one folder up"])
def test_numbered_classes(tmp_path, place):
    folder = tmp_path / "test"
    write_tar(folder / "0.tar", {"a.png": encoded(1), "a.cls": "1", "b.png": encoded(2), "b.cls": "0\n"})
    write_tar(folder / "1.tar", {"a.png": encoded(3), "a.cls": "2", "a.json": {"width": 3}})
    (folder / place / "classnames.txt").write_text("tench\ngreat white shark\ncrane\n")
    data = load(folder / "{0,1}.tar")
    assert data.kind == "labelled"
    assert data.classes == ["tench", "great white shark", "crane"]
    assert data.labels == [1, 0, 2]
    (batch,) = data.batches(3)
    assert batch.labels.tolist() == [1, 0, 2]
    assert torch.equal(batch.images[2], preprocess(picture(3)))


@pytest.mark.parametrize("place", [".", ".."], ids=["beside", "one folder up"])
def test_class_names_that_are_no_text_name_the_file(tmp_path, place):
    write_tar(tmp_path / "test" / "0.tar", {"a.png": encoded(1), "a.cls": "0"})
    (tmp_path / "test" / place / "classnames.txt").write_bytes("grüner Hai\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classnames\.txt: not UTF-8 text \(byte 2\)"):
        load(tmp_path / "test" / "0.tar")


def test_named_classes(tmp_path):
    write_tar(
        tmp_path / "0.tar",
        {
            "a.png": encoded(1),
            "a.cls": "dog",
            "b.png": encoded(2),
            "b.cls": "cat",
            "c.png": encoded(2),
            "c.cls": "dog",
        },
    )
    data = load(tmp_path / "0.tar")
    assert data.classes == ["cat", "dog"]
    assert data.labels == [1, 0, 1]


def test_numbers_without_names(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": encoded(1), "a.cls": "4"})
    with pytest.raises(ValueError, match=r"number their classes but there is no classnames\.txt"):
        load(tmp_path / "0.tar")


@pytest.mark.parametrize("label", ["3", "-1", "dog", ""])
def test_bad_class(tmp_path, label):
    write_tar(tmp_path / "0.tar", {"a.png": encoded(1), "a.cls": "2", "b.png": encoded(1), "b.cls": label})
    (tmp_path / "classnames.txt").write_text("x\ny\nz")
    with pytest.raises(
        ValueError, match=rf"0\.tar:b\.png: the class must be a number from 0 to 2 .*, got '{label}'"
    ):
        load(tmp_path / "0.tar")
    data = load(tmp_path / "0.tar", on_error="skip")
    assert data.labels == [2]
    assert data.skipped == 1


def test_missing_class(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": encoded(1), "a.cls": "dog", "b.png": encoded(1)})
    with pytest.raises(ValueError, match=r"b\.png: the class must be a class name, got nothing"):
        load(tmp_path / "0.tar")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, r"0\.tar:b\.png has no caption"),
        ({"b.txt": " \n"}, r"0\.tar:b\.txt: the caption is empty"),
        ({"b.txt": b"\xff"}, r"0\.tar:b\.txt: not UTF-8 text"),
        ({"b.json": b"{"}, r"0\.tar:b\.json line 1 column 2: not valid JSON"),
        ({"b.json": {"title": "x"}}, r"0\.tar:b\.png has no caption"),
        ({"b.json": {"caption": None}}, r"0\.tar:b\.json: the caption must be text, got NoneType"),
        ({"b.json": [1]}, r"0\.tar:b\.png has no caption"),
    ],
    ids=["nothing", "empty", "not text", "malformed", "other key", "null", "list"],
)
def test_caption_faults(tmp_path, extra, message):
    write_tar(tmp_path / "0.tar", {"a.png": encoded(1), "a.txt": "fine", "b.png": encoded(2), **extra})
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "0.tar")
    data = load(tmp_path / "0.tar", on_error="skip")
    assert data.captions == [["fine"]]
    assert data.skipped >= 1


def test_tar_without_images(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": encoded(1), "a.txt": "fine"})
    write_tar(tmp_path / "1.tar", {"a.txt": "x", "a.gif": b"x"})
    with pytest.raises(ValueError, match=r"1\.tar holds no images; expected tar shards with key\.jpg"):
        load(tmp_path / "*.tar")
    data = load(tmp_path / "*.tar", on_error="skip")
    assert data.captions == [["fine"]]
    assert data.skipped == 1


def damaged(whole):
    """The second header is overwritten: a member takes two blocks, header and content."""
    return whole[:1024] + b"\x01" * 512 + whole[1536:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:700], "not a whole, uncompressed tar: unexpected end of data"),
        (lambda whole: whole[:1400], "is damaged at byte 1024"),
        (lambda whole: whole[:300], "not a whole, uncompressed tar"),
        (damaged, "is damaged at byte 1024"),
        (lambda whole: b"text, no tar " * 100, "not a whole, uncompressed tar"),
        (lambda whole: b"", "not a whole, uncompressed tar"),
    ],
    ids=["cut in an image", "cut in a header", "cut in the first header", "bad header", "no tar", "empty"],
)
def test_damaged_tar(tmp_path, damage, message):
    path = write_tar(
        tmp_path / "0.tar", {"a.png": encoded(1), "b.png": encoded(2), "a.txt": "x", "b.txt": "y"}
    )
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_compressed_tar(tmp_path):
    path = write_tar(tmp_path / "0.tar", {"a.png": encoded(1), "a.txt": "x"}, "w:gz")
    with pytest.raises(ValueError, match=r"0\.tar is not a whole, uncompressed tar"):
        load(path)


def test_broken_image_in_tar(tmp_path):
    path = write_tar(
        tmp_path / "0.tar", {"a.png": encoded(1)[:40], "a.txt": "x", "b.png": encoded(2), "b.txt": "y"}
    )
    with pytest.raises(ValueError, match=r"image .*0\.tar:a\.png cannot be decoded"):
        list(load(path).batches(2))
    data = load(path, on_error="skip")
    assert [batch.index for batch in data.batches(2)] == [[1]]
    assert data.skipped == 1


@pytest.mark.parametrize("pattern", ["none.tar", "none-*.tar", "{a,none}.tar"])
def test_no_match(tmp_path, pattern):
    write_tar(tmp_path / "a.tar", {"a.png": encoded(1), "a.txt": "x"})
    with pytest.raises(FileNotFoundError, match=r"wds: no file matches .*none"):
        load(tmp_path / pattern)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{x,y{0..1}}", ["x", "y0", "x", "y1"]),
        ("{a}", ["a"]),
        ("a{,b}", ["a", "ab"]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


def test_backward_range():
    with pytest.raises(ValueError, match=r"the range \{3\.\.1\} in x-\{3\.\.1\}\.tar runs backwards"):
        expand_braces("x-{3..1}.tar")


def test_only_places_are_held(tmp_path):
    members = {}
    for n in range(100):
        members |= {f"{n:03}.png": encoded(n) + bytes(100_000), f"{n:03}.txt": f"caption {n}"}
    path = write_tar(tmp_path / "0.tar", members)
    tracemalloc.start()
    data = load(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) == 100
    assert held < 200_000  # 10 MB of images
    assert peak < 1_000_000
