"""Metrics against a brute-force numpy count, through a model that looks its embeddings up."""

import importlib
import json

import numpy as np
import pytest
import torch
from conftest import tiny_clip
from PIL import Image
from torch import nn

from vlprune.data import LabelledData, PairData
from vlprune.evaluate import Metrics, classifier, embed_images, embed_texts, evaluate, ranks


class Picture:
    """An image source whose pixels say which image it is."""

    def __init__(self, number, broken=False):
        self.number = number
        self.broken = broken
        self.name = f"picture {number}"

    def open(self):
        if self.broken:
            raise OSError("broken on purpose")
        return Image.new("RGB", (1, 1), (self.number // 256, self.number % 256, 0))


def preprocess(image):
    return torch.tensor(image.getpixel((0, 0))).float().reshape(3, 1, 1)


class Lookup(nn.Module):
    """Images by their pixel, texts by their token: both give rows of stored tables."""

    def __init__(self, images, texts):
        super().__init__()
        self.register_buffer("images", images)
        self.register_buffer("texts", texts)
        self.batches = []

    def encode_image(self, image, normalize=False):
        assert torch.is_inference_mode_enabled()
        assert not self.training
        self.batches.append(len(image))
        rows = (256 * image[:, 0] + image[:, 1]).long().flatten()
        return self._give(self.images[rows], normalize)

    def encode_text(self, text, normalize=False):
        return self._give(self.texts[text[:, 0]], normalize)

    def _give(self, rows, normalize):
        return nn.functional.normalize(rows, dim=1) if normalize else rows


class Words:
    """A tokenizer that numbers texts in the order it is told them."""

    def __init__(self, texts):
        self.numbers = {text: number for number, text in enumerate(texts)}

    def __call__(self, texts):
        return torch.tensor([[self.numbers[text]] for text in texts])


def pair_data(counts, broken=(), on_error="raise"):
    """Image i has counts[i] captions; caption texts are numbered through."""
    from vlprune.data.listing import Problems

    numbers = iter(range(sum(counts)))
    captions = [[f"caption {next(numbers)}" for _ in range(count)] for count in counts]
    words = Words([text for own in captions for text in own])
    sources = [Picture(n, n in broken) for n in range(len(counts))]
    return PairData(sources, captions, preprocess, words, Problems(on_error))


def labelled_data(labels, classes, templates=("a photo of a {}.",)):
    words = Words([template.replace("{}", name) for template in templates for name in classes])
    data = LabelledData([Picture(n) for n in range(len(labels))], labels, classes, preprocess, words)
    data.templates = list(templates)
    return data


def order_of(scores):
    """Items from the nearest to the farthest, equal ones by index."""
    return sorted(range(len(scores)), key=lambda item: (-scores[item], item))


def brute_retrieval(images, texts, counts):
    similarity = images @ texts.T
    owner = np.repeat(np.arange(len(counts)), counts)
    result = {}
    for k in (1, 5, 10):
        hits = [any(owner[t] == i for t in order_of(row)[:k]) for i, row in enumerate(similarity)]
        result[f"tr{k}"] = 100 * np.mean(hits)
        hits = [owner[t] in order_of(row)[:k] for t, row in enumerate(similarity.T)]
        result[f"ir{k}"] = 100 * np.mean(hits)
    return result | {"mean_recall": np.mean(list(result.values()))}


def whole_numbers(rows, columns, seed):
    """Embeddings of -0.5, 0, 0.5 and length one: similarities are exact, ties many."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.zeros(rows, columns)
    for row in table:
        places = torch.randperm(columns, generator=generator)[:4]
        row[places] = torch.randint(0, 2, (4,), generator=generator) - 0.5
    return table


def unit(table):
    return nn.functional.normalize(table, dim=1).numpy().astype(np.float64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "counts",
    [[1] * 40, [5] * 12, [1, 2, 3, 4, 5] * 5, [3], [30, 1, 1]],
    ids=["one", "five", "uneven", "single", "many"],
)
@pytest.mark.parametrize("values", ["random", "ties"])
def test_retrieval_equals_brute_force(counts, seed, values):
    if values == "random":
        generator = torch.Generator().manual_seed(seed)
        texts = torch.randn(sum(counts), 16, generator=generator)
        # Related, so that recalls lie between nothing and everything.
        images = torch.stack([own.mean(0) for own in texts.split(counts)]) + 0.4 * torch.randn(
            len(counts), 16, generator=generator
        )
    else:
        texts, images = whole_numbers(sum(counts), 8, seed), whole_numbers(len(counts), 8, seed + 50)
    metrics = evaluate(Lookup(images, texts), pair_data(counts), batch_size=7)
    expected = brute_retrieval(unit(images), unit(texts), counts)
    got = {name: getattr(metrics, name) for name in expected}
    assert got == pytest.approx(expected, abs=1e-9)
    assert (metrics.kind, metrics.count, metrics.captions) == ("pairs", len(counts), sum(counts))
    assert metrics.primary == metrics.mean_recall
    assert metrics.top1 is None
    assert metrics.top5 is None


def test_retrieval_by_hand():
    """Image 0 finds its second caption first; image 1 finds its only one third."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.8, 0.6]])
    metrics = evaluate(Lookup(images, texts), pair_data([2, 1]))
    assert (metrics.tr1, metrics.tr5) == (50.0, 100.0)
    assert metrics.ir1 == pytest.approx(100 / 3)  # captions 0 and 2 lie nearer to the other image
    assert metrics.mean_recall == pytest.approx((50 + 100 + 100 + 100 / 3 + 100 + 100) / 6)


def test_constant_model_scores_like_chance():
    model = Lookup(torch.ones(40, 4), torch.ones(80, 4))
    metrics = evaluate(model, pair_data([2] * 40))
    assert (metrics.tr1, metrics.tr5, metrics.tr10) == (2.5, 7.5, 12.5)  # images 0 | 0-2 | 0-4
    assert (metrics.ir1, metrics.ir5, metrics.ir10) == (2.5, 12.5, 25.0)
    metrics = evaluate(
        Lookup(torch.ones(40, 4), torch.ones(20, 4)),
        labelled_data([n % 20 for n in range(40)], list("abcdefghijklmnopqrst")),
    )
    assert (metrics.top1, metrics.top5) == (5.0, 25.0)


@pytest.mark.parametrize("entries", [1, 50, 333])
def test_blocks_do_not_change_the_ranks(monkeypatch, entries):
    counts = [1, 2, 3, 4, 5] * 6
    images, texts = whole_numbers(30, 16, 1), whole_numbers(90, 16, 2)
    model, data = Lookup(images, texts), pair_data(counts)
    whole = evaluate(model, data)
    monkeypatch.setattr(importlib.import_module("vlprune.evaluate"), "_BLOCK_ENTRIES", entries)
    assert evaluate(model, data, batch_size=4) == whole


def test_ranks_of_ties_and_of_several_correct_items():
    items = torch.tensor([[1.0], [2.0], [2.0], [0.0], [2.0]])
    query = torch.ones(5, 1)
    correct = torch.tensor([[0, -1], [2, -1], [4, 3], [3, 0], [4, 1]])
    assert ranks(query, items, correct).tolist() == [3, 1, 2, 3, 0]


@pytest.mark.parametrize(
    "templates", [("a photo of a {}.",), ("a {}", "the {}!", "{}")], ids=["one", "three"]
)
@pytest.mark.parametrize("values", ["random", "ties"])
def test_accuracy_equals_brute_force(values, templates):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 9, (50,), generator=generator).tolist()
    data = labelled_data(labels, [f"c{n}" for n in range(9)], templates)
    if values == "ties" and len(templates) == 1:
        images, texts = whole_numbers(50, 8, 4), whole_numbers(9, 8, 5)
    else:
        texts = torch.randn(9 * len(templates), 8, generator=generator)
        images = texts[labels] + 1.5 * torch.randn(50, 8, generator=generator)
    metrics = evaluate(Lookup(images, texts), data, batch_size=8)
    mean = unit(texts).reshape(len(templates), 9, 8).mean(0)
    similarity = unit(images) @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T
    for k, got in ((1, metrics.top1), (5, metrics.top5)):
        hits = [label in order_of(row)[:k] for label, row in zip(labels, similarity, strict=True)]
        assert got == pytest.approx(100 * np.mean(hits), abs=1e-9)
    assert (metrics.kind, metrics.count, metrics.primary) == ("labelled", 50, metrics.top1)
    assert metrics.tr1 is metrics.mean_recall is metrics.captions is None


def test_classifier_is_open_clips(clip):
    from open_clip import build_zero_shot_classifier

    classes, templates = ["dog", "cat", "great crane"], ["a photo of a {}.", "the {}"]

    def tokenizer(texts):
        return torch.tensor([[1 + sum(text.encode()) * (n + 3) % 49 for n in range(12)] for text in texts])

    data = LabelledData([], [], classes, preprocess, tokenizer)
    data.templates = templates
    expected = build_zero_shot_classifier(clip, tokenizer, classes, templates).T
    # The mean is summed in another order: a few last bits of a float32 of size below one.
    torch.testing.assert_close(classifier(clip, data), expected, rtol=0, atol=3e-7)


def test_skipped_images_take_their_captions_along():
    images, texts = torch.eye(4), torch.eye(4).repeat_interleave(2, 0)
    data = pair_data([2, 2, 2, 2], broken=[1], on_error="skip")
    metrics = evaluate(Lookup(images, texts), data)
    assert (metrics.count, metrics.captions, metrics.skipped) == (3, 6, 1)
    assert metrics.mean_recall == 100.0
    assert "3 images, 6 captions, 1 skipped" in str(metrics)


def test_broken_image_raises():
    data = pair_data([1, 1], broken=[1])
    with pytest.raises(ValueError, match="image picture 1 cannot be decoded: broken on purpose"):
        evaluate(Lookup(torch.eye(2), torch.eye(2)), data)


def test_nothing_decoded():
    data = pair_data([1, 1], broken=[0, 1], on_error="skip")
    with pytest.raises(ValueError, match="none of the 2 images could be decoded"):
        evaluate(Lookup(torch.eye(2), torch.eye(2)), data)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite(value):
    images, texts = torch.eye(3), torch.eye(3)
    images[1, 2] = value
    with pytest.raises(
        ValueError, match=r"the visual tower gave NaN or infinite .* for 1 of 3 inputs, first picture 1"
    ):
        evaluate(Lookup(images, texts), pair_data([1, 1, 1]))
    texts[2:] = value
    with pytest.raises(ValueError, match=r"the text tower gave NaN .* first 'caption 2'"):
        evaluate(Lookup(torch.eye(3), texts), pair_data([1, 1, 1]))
    with pytest.raises(ValueError, match=r"the text tower gave NaN .* first 'a photo of a c\.'"):
        evaluate(Lookup(torch.eye(3), texts), labelled_data([0, 1, 2], ["a", "b", "c"]))


@pytest.mark.parametrize("data", [None, [1], "demo"])
def test_wrong_data(data):
    with pytest.raises(ValueError, match="evaluate: data must come from load_data, got"):
        evaluate(Lookup(torch.eye(1), torch.eye(1)), data)


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_wrong_batch_size(size):
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        evaluate(Lookup(torch.eye(1), torch.eye(1)), pair_data([1]), batch_size=size)


def clip_data(count=6):
    def pixels(image):
        return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(image.getpixel((0, 0))[1]))

    def tokens(texts):
        return torch.tensor([[int(text.split()[1]) + 1 + n for n in range(12)] for text in texts])

    captions = [[f"caption {2 * n}", f"caption {2 * n + 1}"] for n in range(count)]
    return PairData([Picture(n) for n in range(count)], captions, pixels, tokens)


def test_mode_of_every_module_is_restored(clip):
    clip.train()
    clip.visual.transformer.resblocks[1].eval()
    before = {name: part.training for name, part in clip.named_modules()}
    evaluate(clip, clip_data())
    assert {name: part.training for name, part in clip.named_modules()} == before
    clip.eval()
    evaluate(clip, clip_data())
    assert not any(part.training for part in clip.modules())


def test_mode_is_restored_after_an_error(clip):
    clip.train()
    with pytest.raises(ValueError, match="broken on purpose"):
        evaluate(clip, pair_data([1], broken=[0]))
    assert clip.training
    assert clip.visual.training


def test_model_can_be_trained_after_an_evaluation(clip):
    evaluate(clip, clip_data())
    batch = next(clip_data().batches(6))
    clip.encode_image(batch.images).sum().backward()
    assert clip.visual.conv1.weight.grad is not None


def test_embeddings_are_the_models_own(clip):
    data = clip_data()
    images, index = embed_images(clip, data, batch_size=4)
    batch = next(data.batches(6))
    with torch.no_grad():
        # Batches of 4 and 2 instead of 6 may run other kernels: last bits of a unit vector.
        torch.testing.assert_close(images, clip.encode_image(batch.images, normalize=True), rtol=0, atol=1e-6)
        expected = clip.encode_text(data.tokenizer(["caption 3", "caption 0"]), normalize=True)
    torch.testing.assert_close(
        embed_texts(clip, ["caption 3", "caption 0"], data.tokenizer, batch_size=1),
        expected,
        rtol=0,
        atol=1e-6,
    )
    assert index == list(range(6))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("how", ["whole model", "open_clip's conversion"])
def test_half_precision(precision, how):
    from open_clip.model import convert_weights_to_lp

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    torch.manual_seed(1)
    reference, model = tiny_clip(), tiny_clip()
    model.load_state_dict(reference.state_dict())
    if how == "whole model":
        model.to(dtype)
    else:
        convert_weights_to_lp(model, dtype)
        assert model.visual.class_embedding.dtype == torch.float32
    images, _ = embed_images(model, clip_data())
    expected, _ = embed_images(reference, clip_data())
    assert images.dtype == torch.float32
    # Three blocks in a format with 8 (bf16) or 11 (fp16) bits; entries of a unit vector of 32 are about 0.2.
    torch.testing.assert_close(images, expected, rtol=0, atol=0.03 if precision == "bf16" else 0.004)
    assert evaluate(model, clip_data()).count == 6


def test_device_argument():
    seen = []

    class Meta(Lookup):
        def encode_text(self, text, normalize=False):
            seen.append(text.device)
            return super().encode_text(text, normalize)

    evaluate(Meta(torch.eye(2), torch.eye(2)), pair_data([1, 1]), device="cpu")
    assert seen == [torch.device("cpu")]


def test_progress_bars(capsys):
    model, data = Lookup(torch.eye(3), torch.eye(3)), pair_data([1, 1, 1])
    evaluate(model, data)
    evaluate(model, data, progress=False)
    assert capsys.readouterr().err == ""
    evaluate(model, data, progress=True)
    shown = capsys.readouterr().err
    assert "images" in shown
    assert "texts" in shown


def test_metrics_as_text_and_json():
    metrics = Metrics("pairs", 4, 8, 0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 3.5)
    assert str(metrics).splitlines() == [
        "mean recall 3.50 % (4 images, 8 captions)",
        "  image to text  R@1   1.00  R@5   2.00  R@10   3.00",
        "  text to image  R@1   4.00  R@5   5.00  R@10   6.00",
    ]
    assert json.loads(json.dumps(metrics.to_dict())) == {
        "kind": "pairs", "count": 4, "captions": 8, "skipped": 0, "mean_recall": 3.5,
        "tr1": 1.0, "tr5": 2.0, "tr10": 3.0, "ir1": 4.0, "ir5": 5.0, "ir10": 6.0,
    }  # fmt: skip
    metrics = Metrics("labelled", 9, skipped=2, top1=25.0, top5=50.0)
    assert str(metrics) == "top-1 25.00 %, top-5 50.00 % (9 images, 2 skipped)"
    assert metrics.to_dict() == {"kind": "labelled", "count": 9, "skipped": 2, "top1": 25.0, "top5": 50.0}
