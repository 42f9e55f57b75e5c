import pytest
import torch
from data_files import direct, preprocess, save, tokenizer

from vlprune.data import LabelledData, load_data


def load(folder, **options):
    return load_data(f"folder:{folder}", preprocess, tokenizer, **options)


def test_classes_labels_and_pixels(tmp_path):
    paths = [
        save(tmp_path / "n01440764 tench" / "b.png", 1),
        save(tmp_path / "n01440764 tench" / "c.JPEG", 2),
        save(tmp_path / "n02012849_great_crane" / "deep" / "a.PnG", 3, "L"),
        save(tmp_path / "zebra_fish" / "x.webp", 4),
        save(tmp_path / "zebra_fish" / "y.png", 5, "RGBA"),
    ]
    (tmp_path / "zebra_fish" / "notes.txt").write_text("no image")
    save(tmp_path / "zebra_fish" / "._y.png", 6)
    save(tmp_path / ".hidden" / "z.png", 7)
    save(tmp_path / "outside.png", 8)
    data = load(tmp_path)
    assert isinstance(data, LabelledData)
    assert data.kind == "labelled"
    assert data.classes == ["tench", "great crane", "zebra fish"]
    assert data.labels == [0, 0, 1, 2, 2]
    assert [image.name for image in data.images] == [str(path) for path in paths]
    (batch,) = data.batches(10)
    assert torch.equal(batch.images, torch.stack([direct(path) for path in paths]))
    assert batch.index == [0, 1, 2, 3, 4]
    assert batch.labels.tolist() == data.labels
    assert torch.equal(
        batch.texts, tokenizer([f"a photo of a {data.classes[label]}." for label in data.labels])
    )
    assert data.skipped == 0


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("n01440764 tench", "tench"),
        ("n01440764_great_white_shark", "great white shark"),
        ("n01440764", "n01440764"),
        ("n0144076 short id", "n0144076 short id"),
        ("CD player", "CD player"),
        ("_private_", "private"),
    ],
)
def test_class_name(tmp_path, folder, name):
    save(tmp_path / folder / "a.png")
    assert load(tmp_path).classes == [name]


def test_two_folders_of_one_name_stay_two_classes(tmp_path):
    save(tmp_path / "n02012849 crane" / "a.png")
    save(tmp_path / "n03126707 crane" / "a.png")
    data = load(tmp_path)
    assert data.classes == ["crane", "crane"]
    assert data.labels == [0, 1]


def test_orientation_tag_is_ignored(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    path = save(tmp_path / "a" / "a.png", exif=exif)
    (batch,) = load(tmp_path).batches(1)
    assert batch.images.shape == (1, 3, 7, 9)
    assert torch.equal(batch.images[0], direct(path))


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected folder:DIR"):
        load(tmp_path / "nowhere")


def test_file_instead_of_folder(tmp_path):
    path = save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        load(path)


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no class folders; expected folder:DIR"):
        load(tmp_path)


def test_flat_folder(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds images but no class folders"):
        load(tmp_path)


def test_empty_class_folder(tmp_path):
    save(tmp_path / "b" / "a.png")
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*a holds no images; allowed: .*\.jpg"):
        load(tmp_path)
    data = load(tmp_path, on_error="skip")
    assert data.classes == ["b"]
    assert data.labels == [0]
    assert data.skipped == 1
    assert "holds no images" in data.skip_reasons[0]


def test_nothing_left(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="holds no images; 1 skipped, first: class folder"):
        load(tmp_path, on_error="skip")
