import pytest
import torch
from data_files import preprocess, tokenizer

from vlprune.data import load_data
from vlprune.data.scenes import caption, draw, split_scenes


@pytest.mark.parametrize(
    ("spec", "split", "count"),
    [
        ("demo", "test", 500),
        ("demo:test:3", "test", 3),
        ("demo:train", "train", 2000),
        ("demo:train:12", "train", 12),
    ],
)
def test_scenes_with_their_captions(spec, split, count):
    data = load_data(spec, preprocess, tokenizer)
    scenes = split_scenes(split, count)
    assert data.kind == "pairs"
    assert data.captions == [[caption(scene)] for scene in scenes]
    batch = next(data.batches(3))
    assert torch.equal(batch.images, torch.stack([preprocess(draw(scene)) for scene in scenes[:3]]))


@pytest.mark.parametrize("spec", ["demo:x", "demo:train:", "demo:train:0", "demo:train:-3", "demo:test:1:2"])
def test_bad_spec(spec):
    with pytest.raises(ValueError, match=rf"spec '{spec}' is unknown; allowed: demo, demo:test:N"):
        load_data(spec, preprocess, tokenizer)
