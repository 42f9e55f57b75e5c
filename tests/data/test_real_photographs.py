"""Real photographs and a real model: what the readers and the evaluation make of them."""

import importlib.util
import shutil
import tarfile

import pytest
import torch
from data_files import direct, preprocess, tokenizer

from vlprune.data import load_data
from vlprune.evaluate import evaluate

pytestmark = pytest.mark.data
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="session")
def unpack(photographs, tmp_path_factory):
    """Unpack every n-th file of an archive or skip; the folder goes when the tests end."""
    folder = tmp_path_factory.mktemp("photographs")

    def unpack(name, every=1):
        archive = photographs / name
        if not archive.is_file():
            pytest.skip(f"no {archive}")
        place = folder / name.split(".")[0]
        if not place.exists():
            with tarfile.open(archive) as tar:
                files = [member for member in tar if member.isfile()]
                tar.extractall(place, files[::every], filter="data")
        return place

    yield unpack
    shutil.rmtree(folder)


def test_coco(unpack):
    folder = unpack("coco-val2017-20.tar")
    (table,) = folder.rglob("captions.json")
    images = next(folder.rglob("*.jpg")).parent
    data = load_data(f"coco:{table}:{images}", preprocess, tokenizer)
    assert len(data) == 20
    assert [len(own) for own in data.captions] == [5] * 20
    assert data.captions[0][2] == "A man cutting a ribbon at a ceremony"
    for batch in data.batches(1):
        assert torch.equal(batch.images[0], direct(data.images[batch.index[0]].name))


def test_imagenet_names(unpack):
    folder = unpack("imagenet-1000-photos.tar")
    data = load_data(f"folder:{folder}", preprocess, tokenizer)
    assert len(data) == len(data.classes) == 1000
    assert data.classes[:3] == ["tench", "goldfish", "great white shark"]
    assert not any(name.startswith("n0") or "_" in name for name in data.classes)


def test_cifar10(unpack):
    (folder,) = unpack("cifar10-images.tar.gz", every=50).rglob("test")
    data = load_data(f"folder:{folder}", preprocess, tokenizer)
    assert len(data) == 200
    assert data.classes == CIFAR10
    assert [data.subset(100).labels.count(label) for label in range(10)] == [10] * 10
    assert sum(len(batch.index) for batch in data.batches(64)) == 200


@pytest.mark.slow
def test_zero_shot_accuracy_of_a_pretrained_model(photographs, unpack):
    """The same images through plain PyTorch: PIL, the model, a matrix product and topk."""
    pytest.importorskip("transformers")
    loader = photographs / "lit-vits14" / "load.py"
    if not loader.is_file():
        pytest.skip(f"no {loader}")
    spec = importlib.util.spec_from_file_location("lit_vits14", loader)
    lit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lit)
    model, words, transform = lit.load()
    data = load_data(
        f"folder:{unpack('tiny-imagenet-val-5k.tar.xz', every=5) / 'val'}", transform, words, limit=200
    )
    assert len(data.classes) == 200
    metrics = evaluate(model, data)

    from PIL import Image

    with torch.no_grad():
        texts = model.encode_text(words([f"a photo of a {name}." for name in data.classes]), normalize=True)
        inputs = [transform(Image.open(image.name).convert("RGB")) for image in data.images]
        images = torch.cat([model.encode_image(x[None], normalize=True) for x in inputs])
    best = (images @ texts.T).topk(5).indices == torch.tensor(data.labels)[:, None]
    # One image is half a percent; batches of another size may turn one near tie.
    assert metrics.top1 == pytest.approx(100 * best[:, 0].float().mean().item(), abs=0.51)
    assert metrics.top5 == pytest.approx(100 * best.any(1).float().mean().item(), abs=0.51)
    assert metrics.top1 > 20
