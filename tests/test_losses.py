"""Losses against open_clip's own, in float32 whatever the model's dtype, and what they refuse."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from models import zoo
from PIL import Image

from vlprune import losses
from vlprune.data import Batch, LabelledData, PairData
from vlprune.losses import loss_and_batches


def chosen(loss, model, calib=None, samples=8, batch_size=8):
    calib = zoo.inputs(model, 4) if calib is None else calib
    return loss_and_batches(loss, model, calib, samples=samples, batch_size=batch_size)


@torch.no_grad()
def value(loss, model, calib=None):
    fn, batches = chosen(loss, model, calib)
    return fn(model, batches[0])


def labelled(count=6, classes=("cat", "dog", "owl"), labels=None):
    """Pictures of one colour, each the class of its position modulo the classes."""
    import numpy as np

    class Source:
        def __init__(self, shade):
            self.shade, self.name = shade, f"picture {shade}"

        def open(self):
            return Image.new("RGB", (32, 32), (self.shade, 10, 20))

    images = [Source(20 * i) for i in range(count)]
    labels = [i % len(classes) for i in range(count)] if labels is None else labels

    def preprocess(picture):
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255

    def tokenizer(texts):
        return torch.tensor([[1 + sum(map(ord, text)) % 40, len(text), 49] + [0] * 6 for text in texts])

    return LabelledData(images, labels, list(classes), preprocess, tokenizer)


@pytest.mark.parametrize("kind", ["clip", "siglip-like", "custom-text", "coca"])
@torch.no_grad()
def test_contrastive_is_open_clips(kind):
    from open_clip.loss import ClipLoss, SigLipLoss

    model = zoo.build(kind)
    images, texts = zoo.inputs(model, 4)
    features = [model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)]
    bias = getattr(model, "logit_bias", None)
    criterion = ClipLoss() if bias is None else SigLipLoss()
    extra = {} if bias is None else {"logit_bias": bias}
    expected = criterion(*features, model.logit_scale.exp(), **extra)
    # the same sums in another order
    torch.testing.assert_close(value("contrastive", model), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_captioning_is_open_clips():
    from open_clip.loss import CoCaLoss

    model = zoo.build("coca")
    images, texts = zoo.inputs(model, 4)
    texts[0, 4:] = texts[2, 1:3] = model.pad_id
    output = model(images, texts)
    _, expected = CoCaLoss(1.0, 0.0, pad_id=model.pad_id)(**output)
    got = value("captioning", model, (images, texts))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # another order of summing
    texts[1, 5] = 1 + texts[1, 5] % 48  # a caption that is no longer the decoder's input shifted by one
    assert value("captioning", model, (images, texts)) != got


@torch.no_grad()
def test_cross_entropy_by_the_definition():
    model, data = zoo.build("clip"), labelled(5, ("cat", "dog", "cow", "owl"), [2, 0, 2, 3, 0])
    fn, batches = chosen("cross_entropy", model, data, batch_size=3)
    prompts = data.tokenizer(["a photo of a cat.", "a photo of a cow.", "a photo of a owl."])
    text = F.normalize(model.encode_text(prompts), dim=-1)
    for batch, target in zip(batches, ([1, 0, 1], [2, 0]), strict=True):
        image = F.normalize(model.encode_image(batch.images), dim=-1)
        logits = (model.logit_scale.exp() * image @ text.T).double()
        expected = -logits.log_softmax(1)[range(len(target)), target].mean()
        # float32 logits of about ten
        assert float(fn(model, batch)) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("kind", ["clip", "coca"])
@torch.no_grad()
def test_float32_whatever_the_model_is(kind):
    model = zoo.build(kind)
    reference = value("auto", model)
    half = value("auto", copy.deepcopy(model).bfloat16())
    assert half.dtype == reference.dtype == torch.float32
    # three significant digits in every activation, of losses of 1.5 (clip) and 4 (coca)
    assert float(half) == pytest.approx(float(reference), abs=0.1)
    assert float(half) != float(half.bfloat16())


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("clip", None, losses.contrastive),
        ("siglip-like", None, losses.contrastive),
        ("coca", None, losses.captioning),
        ("coca", labelled(), losses.captioning),
    ],
    ids=["pairs", "siglip", "coca", "coca labelled"],
)
def test_auto(kind, data, expected):
    assert chosen("auto", zoo.build(kind), data)[0] is expected


def test_auto_classifies_labelled_images():
    model, data = zoo.build("clip"), labelled()
    assert value("auto", model, data) == value("cross_entropy", model, data)
    assert value("contrastive", model, data) != value("cross_entropy", model, data)


def test_a_function_is_taken_as_it_is():
    model = zoo.build("clip")

    def own(model, batch):
        return batch.images.sum()

    fn, batches = chosen(own, model)
    assert fn is own
    assert isinstance(batches[0], Batch)


@pytest.mark.parametrize(
    ("sizes", "samples", "batch_size", "expected"),
    [([4], 8, 8, [4]), ([4, 4, 3], 8, 8, [4, 4]), ([7], 6, 2, [2, 2, 2]), ([5, 4], 7, 3, [3, 2, 2])],
)
def test_pairs_are_divided_and_cut(sizes, samples, batch_size, expected):
    model = zoo.build("clip")
    given = [zoo.inputs(model, size) for size in sizes]
    _, batches = chosen("contrastive", model, iter(given), samples, batch_size)
    assert [len(batch.images) for batch in batches] == expected
    images, texts = (torch.cat(parts) for parts in zip(*given, strict=True))
    assert torch.equal(torch.cat([b.images for b in batches]), images[: sum(expected)])
    assert torch.equal(torch.cat([b.texts for b in batches]), texts[: sum(expected)])
    assert [i for b in batches for i in b.index] == list(range(sum(expected)))


def test_loaded_data_give_captions_and_labels():
    model, classes = zoo.build("clip"), labelled(6)
    _, batches = chosen("auto", model, classes, samples=4, batch_size=3)
    assert torch.cat([b.labels for b in batches]).tolist() == [0, 1, 2, 0]
    pairs = PairData(classes.images, [[f"no {i}"] for i in range(6)], classes.preprocess, classes.tokenizer)
    fn, batches = chosen("auto", model, pairs, samples=4, batch_size=3)
    assert fn is losses.contrastive
    assert torch.equal(batches[1].texts, classes.tokenizer(["no 3"]))
    assert batches[0].labels is None


def test_the_model_may_change_its_dtype_in_between():
    model = zoo.build("clip")
    fn, batches = chosen("contrastive", model)
    with torch.no_grad():
        assert math.isfinite(fn(model.bfloat16(), batches[0]))
        assert math.isfinite(fn(model.float(), batches[0]))
    assert batches[0].images.dtype == torch.float32


@pytest.mark.parametrize(
    ("loss", "kind", "calib", "message"),
    [
        ("captioning", "clip", None, "captioning needs a model with a text decoder, got CLIP"),
        ("cross_entropy", "clip", None, "cross_entropy needs labelled images, got tuple"),
        ("lm", "clip", None, "loss: expected one of auto, .* got 'lm'"),
        ("auto", "clip", [], r"calib: expected data of load_data, .* got \[\]"),
        ("auto", "clip", iter([]), "calib: expected data of load_data"),
        ("auto", "clip", 3, "calib: expected data of load_data, .* got 3"),
        ("auto", "clip", ["ab"], "calib: expected data of load_data, .*ab"),
        ("auto", "clip", labelled(3, labels=[1, 1, 1]), "images of two classes or more, got 1"),
        ("contrastive", "clip", (torch.zeros(1, 3, 32, 32), torch.ones(1, 9)), "no batch has two"),
    ],
)
def test_what_cannot_be_served_is_refused(loss, kind, calib, message):
    with pytest.raises(ValueError, match=message):
        chosen(loss, zoo.build(kind), calib)


def test_a_model_without_text_is_refused():
    with pytest.raises(ValueError, match="contrastive needs a model with encode_image, got Linear"):
        chosen("auto", torch.nn.Linear(2, 2), (torch.zeros(2, 2), torch.zeros(2, 2)))
