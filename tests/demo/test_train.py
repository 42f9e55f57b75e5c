import json

import pytest
import torch
from safetensors.torch import load_file

from vlprune import demo
from vlprune.data import scenes
from vlprune.demo import train as training
from vlprune.demo.tokenizer import WordTokenizer, caption_words

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1},
    "preprocess_cfg": {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}
SETTINGS = training.TrainSettings(steps=6, batch=8, warmup=2, save_every=3)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    straight = training.train(tmp_path / "straight", TINY, SETTINGS).state_dict()
    halfway = training.train(tmp_path / "resumed", TINY, SETTINGS, stop_after=3).state_dict()
    resumed = training.train(tmp_path / "resumed", TINY, SETTINGS).state_dict()
    assert any(not torch.equal(straight[name], halfway[name]) for name in straight)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    a, b = (load_file(tmp_path / run / "model.safetensors") for run in ("straight", "resumed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_it_writes_the_shipped_files_and_the_record(tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    training.main(
        [
            "--out",
            str(tmp_path / "out"),
            "--config",
            str(tmp_path / "tiny.json"),
            "--steps",
            "2",
            "--batch",
            "4",
        ]
    )
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"model.safetensors", "config.json", "vocab.txt", "training.json", "state.pt"}
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["steps_done"], record["batch"], record["test_pairs"]) == (2, 4, 500)
    assert 0 <= record["tr1"] <= 1
    model, preprocess, tokenizer = demo.load(tmp_path / "out")
    assert preprocess(scenes.draw(scenes.split_scenes("test", 1)[0])).shape == (3, 32, 32)
    assert model.encode_text(tokenizer("a red ring")).shape == (1, 16)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    training.train(tmp_path, TINY, SETTINGS, stop_after=1)
    with pytest.raises(ValueError, match="another run"):
        training.train(tmp_path, TINY, training.TrainSettings(steps=7, batch=8, warmup=2))


def test_batches_depend_on_seed_and_step_alone_and_hold_training_scenes():
    tokenizer = WordTokenizer(caption_words(), 20)
    batches = training.SceneBatches(SETTINGS, 32, tokenizer)
    again = training.SceneBatches(SETTINGS, 32, tokenizer)
    assert torch.equal(batches[4][0], again[4][0])
    assert torch.equal(batches[4][1], again[4][1])
    assert not torch.equal(batches[4][1], batches[5][1])
    contents = {s.content() for step in range(6) for s in batches.scenes_of(step)}
    assert len(contents) == 6 * 8
    assert {scenes.split_of(s) for step in range(6) for s in batches.scenes_of(step)} == {"train"}


def test_training_pixels_equal_the_shipped_preprocess():
    config = json.loads((demo.FOLDER / "config.json").read_text())
    size = config["preprocess_cfg"]["size"]
    batch = scenes.split_scenes("test", 3)
    preprocess = demo.preprocess_of(config)
    expected = torch.stack([preprocess(scenes.draw(scene, size)) for scene in batch])
    actual = training._normalise(training._pixels(batch, size), config)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)  # one rounding of x / 255


def test_learning_rate_warms_up_then_falls_to_two_percent():
    s = training.TrainSettings(steps=1000, warmup=100, learning_rate=1e-3)
    rates = [training._learning_rate(step, s) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[99] == pytest.approx(1e-3)
    assert rates[550] == pytest.approx(0.51e-3)
    assert rates[999] == pytest.approx(2e-5, rel=0.01)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_recall_counts_each_direction():
    class Fixed(torch.nn.Module):
        def encode_image(self, x, normalize):
            return x

        def encode_text(self, x, normalize):
            return x

    images = torch.eye(4)
    texts = torch.eye(4)[[0, 1, 3, 2]] + torch.eye(4) * torch.tensor([0.0, 0.0, 2.0, 0.0])
    # Picture 3 and caption 3 lose to number 2; picture 2 and caption 2 win by the added diagonal.
    assert training.recall_at_1(Fixed(), images, texts) == (0.75, 0.75)
