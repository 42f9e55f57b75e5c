"""Batches, limits, broken images: what all kinds of data share."""

import threading

import pytest
import torch
from data_files import direct, preprocess, save, tokenizer

from vlprune.data import FileImage, LabelledData, PairData, load_data


@pytest.fixture
def pairs(tmp_path):
    """Seven images, the third cut short, the sixth no image at all."""
    paths = [save(tmp_path / f"{n}.png", n, size=(40, 40)) for n in range(7)]
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: len(whole) // 2])
    paths[5].write_text("not an image")
    return paths


def pair_data(paths, on_error="raise"):
    table = paths[0].parent / "pairs.tsv"
    table.write_text("".join(f"{path.name}\tcaption {path.stem}\n" for path in paths))
    return load_data(f"pairs:{table}", preprocess, tokenizer, on_error=on_error)


@pytest.mark.parametrize("threads", [0, 1, 3, None])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_order_and_pixels(tmp_path, batch_size, threads):
    paths = [save(tmp_path / f"{n}.png", n) for n in range(7)]
    batches = list(pair_data(paths).batches(batch_size, threads=threads))
    assert [len(batch.index) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [i for batch in batches for i in batch.index] == list(range(7))
    assert torch.equal(torch.cat([b.images for b in batches]), torch.stack([direct(path) for path in paths]))
    assert torch.equal(torch.cat([b.texts for b in batches]), tokenizer([f"caption {n}" for n in range(7)]))
    assert all(batch.labels is None for batch in batches)


@pytest.mark.parametrize("threads", [0, 2])
def test_broken_image_raises_with_its_name(pairs, threads):
    with pytest.raises(ValueError, match=r"image .*2\.png cannot be decoded: .*truncated"):
        list(pair_data(pairs).batches(4, threads=threads))


@pytest.mark.parametrize("threads", [0, 2])
def test_broken_images_are_skipped_once_and_counted(pairs, threads):
    data = pair_data(pairs, on_error="skip")
    for _ in range(2):
        batches = list(data.batches(2, threads=threads))
        assert [batch.index for batch in batches] == [[0, 1], [3, 4], [6]]
        assert data.skipped == 2
    first, second = data.skip_reasons
    assert "2.png cannot be decoded" in first
    assert "5.png cannot be decoded: cannot identify image file" in second
    assert len(data) == 7


def test_truncated_jpeg_is_broken(tmp_path):
    path = save(tmp_path / "a" / "a.jpg", size=(64, 64))
    path.write_bytes(path.read_bytes()[:-400])
    data = load_data(f"folder:{tmp_path}", preprocess, tokenizer)
    with pytest.raises(ValueError, match=r"a\.jpg cannot be decoded: image file is truncated"):
        next(data.batches(1))


def test_image_that_vanishes_after_loading(tmp_path):
    paths = [save(tmp_path / f"{n}.png", n) for n in range(3)]
    data = pair_data(paths)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png does not exist"):
        list(data.batches(3))


def test_ten_reasons_are_kept(tmp_path):
    table = tmp_path / "pairs.tsv"
    save(tmp_path / "a.png")
    table.write_text("a.png\tfine\n" + "".join(f"gone{n}.png\ttext\n" for n in range(12)))
    data = load_data(f"pairs:{table}", preprocess, tokenizer, on_error="skip")
    assert data.skipped == 12
    assert len(data.skip_reasons) == 10
    assert "line 2: image" in data.skip_reasons[0]


def test_images_are_decoded_only_when_asked_for(tmp_path):
    paths = [save(tmp_path / f"{n}.png", n) for n in range(30)]
    seen = []

    def counting(image):
        seen.append(threading.get_ident())
        return preprocess(image)

    data = PairData([FileImage(str(p)) for p in paths], [["x"]] * 30, counting, tokenizer)
    assert seen == []
    stream = data.batches(2, threads=0)
    next(stream)
    assert seen == [threading.get_ident()] * 2
    stream = data.batches(2, threads=2)
    next(stream)
    stream.close()
    assert 2 + 2 <= len(seen) <= 2 + 6  # two batches ahead of the one handed out
    assert threading.get_ident() not in seen[2:]


def test_in_memory_prepares_each_image_once(tmp_path):
    paths = [save(tmp_path / f"{n}.png", n) for n in range(4)]
    calls = []

    def counting(image):
        calls.append(1)
        return preprocess(image)

    data = PairData([FileImage(str(p)) for p in paths], [["x"]] * 4, counting, tokenizer).in_memory()
    first = [batch.images for batch in data.batches(3)]
    again = [batch.images for batch in data.subset([3, 0]).batches(3)]
    assert len(calls) == 4
    assert torch.equal(again[0], torch.cat(first)[[3, 0]])


def labelled(counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    images = [FileImage(f"{n}.png") for n in range(len(labels))]
    return LabelledData(images, labels, [f"c{n}" for n in range(len(counts))], preprocess, tokenizer)


@pytest.mark.parametrize(
    ("counts", "limit", "kept"),
    [
        ([3, 3, 3], 6, [0, 1, 3, 4, 6, 7]),
        ([3, 3, 3], 2, [0, 3]),
        ([3, 3, 3], 4, [0, 1, 3, 6]),
        ([1, 4], 4, [0, 1, 2, 3]),
        ([2, 2], 100, [0, 1, 2, 3]),
        ([2, 2], None, [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_limit_spreads_over_classes(counts, limit, kept):
    data = labelled(counts)
    assert data.first(limit) == kept
    assert data.subset(limit).labels == [data.labels[i] for i in kept]


def test_limit_of_pairs_is_the_first(tmp_path):
    paths = [save(tmp_path / f"{n}.png", n) for n in range(5)]
    data = pair_data(paths)
    assert [batch.index for batch in data.batches(2, limit=3)] == [[0, 1], [2]]
    table = tmp_path / "pairs.tsv"
    limited = load_data(f"pairs:{table}", preprocess, tokenizer, limit=2)
    assert limited.captions == [["caption 0"], ["caption 1"]]
    assert len(limited) == 2


def test_subset_keeps_the_given_order_and_forgets_nothing(pairs):
    data = pair_data(pairs, on_error="skip")
    list(data.batches(8))
    part = data.subset([6, 5, 0])
    assert part.captions == [["caption 6"], ["caption 5"], ["caption 0"]]
    (batch,) = part.batches(8)
    assert batch.index == [0, 2]
    assert torch.equal(batch.images, torch.stack([direct(pairs[6]), direct(pairs[0])]))
    assert part.skipped == data.skipped == 2
    assert data.subset(None) is data


def test_templates():
    data = labelled([1])
    assert data.templates == ["a photo of a {}."]
    data.templates = ["a {} drawing", "{}"]
    assert data.text(0) == "a c0 drawing"
    assert data.prompts("{}!") == ["c0!"]


@pytest.mark.parametrize("bad", [[], "a {}", ["a photo"], ["{} and {}"], [3]], ids=str)
def test_bad_templates(bad):
    data = labelled([1])
    with pytest.raises(ValueError, match="template"):
        data.templates = bad
    assert data.templates == ["a photo of a {}."]


def test_class_names_with_braces_are_taken_as_they_are():
    data = labelled([1])
    data.classes = ["{x} {0}"]
    assert data.prompts("a {}.") == ["a {x} {0}."]


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "8"])
def test_bad_batch_size_and_limit(bad):
    data = labelled([2])
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        data.batches(bad)
    with pytest.raises(ValueError, match="limit must be a whole number of at least 1"):
        data.batches(1, limit=bad)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda image: image, r"must return a tensor \[C, H, W\], got Image"),
        (lambda image: torch.zeros(1, 3, 4, 4), r"got shape \(1, 3, 4, 4\)"),
    ],
    ids=["picture", "batch"],
)
def test_preprocess_that_returns_no_image_tensor(tmp_path, broken, message):
    save(tmp_path / "a" / "a.png")
    data = load_data(f"folder:{tmp_path}", broken, tokenizer, on_error="skip")
    with pytest.raises(ValueError, match=message):
        list(data.batches(1))


def test_preprocess_with_several_shapes(tmp_path):
    save(tmp_path / "a" / "a.png", size=(4, 5))
    save(tmp_path / "a" / "b.png", size=(6, 5))
    data = load_data(f"folder:{tmp_path}", preprocess, tokenizer)
    with pytest.raises(ValueError, match=r"every image one shape, got \[\(3, 5, 4\), \(3, 5, 6\)\]"):
        list(data.batches(2))


@pytest.mark.parametrize("spec", ["", "demos", "demo:", "folder", "folder:", "s3:bucket", "pairs:", None, 7])
def test_unknown_spec(spec):
    with pytest.raises(ValueError, match=r"is unknown; allowed: demo, folder:DIR, coco:FILE\.json:IMAGES"):
        load_data(spec, preprocess, tokenizer)


def test_bad_on_error(tmp_path):
    with pytest.raises(ValueError, match="on_error='ignore' is unknown; allowed"):
        load_data(f"folder:{tmp_path}", preprocess, tokenizer, on_error="ignore")


def test_uncallable_preprocess_and_tokenizer():
    with pytest.raises(ValueError, match="preprocess must be callable, got NoneType"):
        load_data("demo", None, tokenizer)
    with pytest.raises(ValueError, match="tokenizer must be callable, got str"):
        load_data("demo", preprocess, "ViT-B-32")
