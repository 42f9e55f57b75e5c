import json

import pytest
import torch
from data_files import direct, preprocess, save, tokenizer

from vlprune.data import load_data


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for number in range(3):
        save(folder / f"{number}.png", number)
    return folder


def load(images, content, **options):
    file = images.parent / "captions.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return load_data(f"coco:{file}:{images}", preprocess, tokenizer, **options)


def official(images=(7, 3, 5), captions=((3, "three"), (7, "seven"), (3, " third "), (5, "five"))):
    return {
        "info": {},
        "images": [{"id": key, "file_name": f"{n}.png", "height": 7} for n, key in enumerate(images)],
        "annotations": [
            {"id": n, "image_id": key, "caption": text} for n, (key, text) in enumerate(captions)
        ],
    }


def test_official_form(images):
    data = load(images, official())
    assert data.captions == [["seven"], ["three", "third"], ["five"]]
    (batch,) = data.batches(3)
    assert torch.equal(batch.images, torch.stack([direct(images / f"{n}.png") for n in range(3)]))
    assert torch.equal(batch.texts, tokenizer(["seven", "three", "five"]))


def test_plain_mapping(images):
    data = load(images, {"2.png": ["b", "a"], "0.png": ["c"]})
    assert data.captions == [["b", "a"], ["c"]]
    assert [image.name for image in data.images] == [str(images / "2.png"), str(images / "0.png")]


def test_colon_in_the_file_but_not_in_the_folder(images):
    file = images.parent / "v1:2.json"
    file.write_text(json.dumps({"0.png": ["c"]}))
    assert load_data(f"coco:{file}:{images}/", preprocess, tokenizer).captions == [["c"]]


def changed(key, number, **fields):
    content = official()
    content[key][number] = {**content[key][number], **fields}
    return content


FAULTS = {
    "missing image": (
        changed("images", 1, file_name="gone.png"),
        FileNotFoundError,
        r"gone\.png does not exist",
    ),
    "no caption": (
        official(captions=((3, "three"), (7, "seven"))),
        ValueError,
        r"captions\.json: image 2\.png has no caption",
    ),
    "empty caption": (
        changed("annotations", 2, caption=" "),
        ValueError,
        r"annotations\[2\]: the caption is empty",
    ),
    "caption no text": (
        changed("annotations", 2, caption=None),
        ValueError,
        r"annotations\[2\]: the caption must be text, got NoneType",
    ),
    "unknown image": (
        changed("annotations", 2, image_id=99),
        ValueError,
        r"annotations\[2\]: image_id 99 is not",
    ),
    "no image_id": (
        changed("annotations", 2, image_id=None),
        ValueError,
        r'annotations\[2\]: expected .*"image_id"',
    ),
    "twice": (changed("images", 1, id=7), ValueError, r"images\[1\]: id 7 appears twice"),
    "no file name": (changed("images", 1, file_name=""), ValueError, r'images\[1\]: expected .*"file_name"'),
    "mapping to text": (
        {"0.png": "text", "1.png": ["x"]},
        ValueError,
        "'0.png' must map to a list of captions, got str",
    ),
    "mapping to nothing": ({"0.png": [], "1.png": ["x"]}, ValueError, r"image 0\.png has no caption"),
}


@pytest.mark.parametrize(("content", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_fault_raises(images, content, error, message):
    with pytest.raises(error, match=message):
        load(images, content)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_skipped(images, name):
    data = load(images, FAULTS[name][0], on_error="skip")
    assert data.skipped >= 1
    assert 1 <= len(data) <= 3
    assert all(captions and all(captions) for captions in data.captions)


def test_skip_leaves_out_one_caption_only(images):
    data = load(images, changed("annotations", 2, caption=" "), on_error="skip")
    assert data.captions == [["seven"], ["three"], ["five"]]
    assert data.skipped == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [,]}', r"captions\.json line 1 column 13: not valid JSON"),
        (b'{\n "a": [\n', r"captions\.json line 3 column 1: not valid JSON"),
        (b'{"a": "\xff"}', r"captions\.json: not UTF-8 text"),
        (b"[" * 200_000, r"captions\.json: not valid JSON"),
        (b"", r"captions\.json line 1 column 1: not valid JSON"),
        ([1, 2], r"captions\.json holds a list; expected"),
        ({"images": {}, "annotations": []}, '"images" must be a list, got dict'),
        ({"images": [], "annotations": 3}, '"annotations" must be a list, got int'),
        ({}, "holds no images"),
    ],
    ids=[
        "comma",
        "cut short",
        "not text",
        "deep",
        "empty",
        "list",
        "images dict",
        "annotations int",
        "nothing",
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_unreadable_file_always_raises(images, content, message, on_error):
    with pytest.raises(ValueError, match=message):
        load(images, content, on_error=on_error)


def test_missing_parts(tmp_path, images):
    file = tmp_path / "captions.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"lacks the file or the folder; expected coco:FILE\.json:IMAGES"):
        load_data(f"coco:{file}", preprocess, tokenizer)
    with pytest.raises(ValueError, match="lacks the file or the folder"):
        load_data(f"coco:{file}:", preprocess, tokenizer)
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist; expected coco:"):
        load_data(f"coco:{tmp_path}/none.json:{images}", preprocess, tokenizer)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; expected coco:"):
        load_data(f"coco:{file}:{tmp_path}/nowhere", preprocess, tokenizer)
