"""Models by name, and the one clear error when there is none."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from vlprune import models
from vlprune.models.build import build_model

from .zoo import TEXT, VISION, build, outputs

CONFIG = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def write_folder(folder, file, whole, model):
    folder.mkdir()
    (folder / file).write_text(json.dumps(whole))
    save_file(model.state_dict(), folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("form", ["open_clip_config.json", "config.json"])
def test_a_folder_in_open_clips_form(form, tmp_path):
    model = build("clip")
    whole = {**CONFIG, "preprocess_cfg": PREPROCESS}
    if form == "open_clip_config.json":
        whole = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    loaded = models.load_model(write_folder(tmp_path / "model", form, whole, model))
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded.model), outputs(model), strict=True))
    assert not loaded.model.training
    assert not loaded.random_weights
    assert loaded.model.visual.preprocess_cfg["mean"] == (0.1, 0.2, 0.3)
    assert "CenterCrop(size=(32, 32))" in str(loaded.preprocess)
    assert loaded.tokenizer(["a dog"]).shape == (1, 9)


def test_half_precision_weights_are_loaded_into_float32(tmp_path):
    folder = write_folder(tmp_path / "model", "config.json", CONFIG, build("clip").half())
    assert models.load_model(folder).model.logit_scale.dtype == torch.float32


def test_a_text_tower_is_found_beside_the_config(tmp_path):
    model = build("hf", tmp_path)
    config = {
        **CONFIG,
        "text_cfg": {"hf_model_name": "text", "hf_model_pretrained": True, "hf_proj_type": "mlp"},
    }
    folder = write_folder(tmp_path / "model", "config.json", config, model)
    (tmp_path / "bert").rename(tmp_path / "model" / "text")
    loaded = models.load_model(folder)
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded.model), outputs(model), strict=True))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no model folder"),
        ({"config.json": "{"}, "not valid JSON"),
        ({"config.json": json.dumps({"embed_dim": 4})}, "no model folder"),
        ({"config.json": json.dumps(CONFIG)}, "model.safetensors is missing"),
        (
            {"config.json": json.dumps(CONFIG), "model.safetensors": "short"},
            "model.safetensors: does not fit",
        ),
        ({"config.json": json.dumps(CONFIG | {"depth": 3})}, "config.json: .*cannot build it.*depth"),
        ({"config.json": "[1]"}, r"config.json: expected an object, got \[1\]"),
        (
            {"open_clip_config.json": '{"model_cfg": 1}'},
            "open_clip_config.json: model_cfg: expected an object",
        ),
        (
            {"config.json": json.dumps(CONFIG | {"vision_cfg": 5})},
            "config.json: vision_cfg: expected an object",
        ),
        (
            {"config.json": json.dumps(CONFIG | {"text_cfg": []})},
            "config.json: .*text_cfg: expected an object",
        ),
        ({"config.json": json.dumps(CONFIG | {"embed_dim": "x"})}, "config.json: .*cannot build it"),
        (
            {"config.json": json.dumps(CONFIG | {"vision_cfg": VISION | {"patch_size": 0}})},
            "config.json: .*zero",
        ),
        (
            {"config.json": json.dumps(CONFIG | {"preprocess_cfg": 1})},
            "config.json: preprocess_cfg: expected an",
        ),
        (
            {"config.json": json.dumps(CONFIG | {"preprocess_cfg": {"size": "x"}})},
            "config.json: .*size: expected",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_folder_that_cannot_be_loaded(files, reason, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=reason):
        models.load_model(str(tmp_path))


def test_weights_of_other_sizes_are_refused(tmp_path):
    folder = write_folder(tmp_path / "model", "config.json", CONFIG | {"embed_dim": 48}, build("clip"))
    with pytest.raises(ValueError, match=r"model\.safetensors: does not fit.*text_projection"):
        models.load_model(folder)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("ViT-B-23", "ViT-B-32"), ("vit-b/32", "ViT-B-32"), ("demoo", "demo"), ("RN500", "RN50")],
)
def test_an_unknown_name_lists_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"{name}.*nearest: .*{nearest}"):
        models.load_model(name)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where"])
def test_a_missing_folder_is_not_taken_for_a_name(name):
    with pytest.raises(ValueError, match="no such folder"):
        models.load_model(name)


def test_an_unknown_tag_lists_the_tags():
    with pytest.raises(ValueError, match=r"ViT-B-32 has no 'laion'; its tags: openai, .*laion2b_s34b_b79k"):
        models.load_model("ViT-B-32", "laion")


def test_demo_takes_no_tag():
    with pytest.raises(ValueError, match="comes with its weights"):
        models.load_model("demo", "openai")


def test_demo():
    loaded = models.load_model("demo")
    assert loaded.name == "demo"
    assert not loaded.random_weights
    assert list(models.view(loaded.model).towers) == ["visual", "text"]
    assert loaded.model.visual.preprocess_cfg["size"] == loaded.model.visual.image_size[0]


def test_a_failed_download_is_one_error(monkeypatch):
    import open_clip

    def offline(*_, **__):
        raise RuntimeError("Failed to download weights: no route\nmore\nlines")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", offline)
    with pytest.raises(OSError, match=r"could not get ViT-B-32 \(openai\): Failed.*no route$"):
        models.load_model("ViT-B-32", "openai")


@pytest.fixture
def registered(tmp_path):
    """A tiny architecture in open_clip's registry."""
    import open_clip
    from open_clip import factory

    (tmp_path / "tiny-for-test.json").write_text(json.dumps(CONFIG))
    paths = list(factory._MODEL_CONFIG_PATHS)
    open_clip.add_model_config(tmp_path)
    yield "tiny-for-test"
    factory._MODEL_CONFIG_PATHS[:] = paths
    del factory._MODEL_CONFIGS["tiny-for-test"]


def test_random_weights_on_purpose_are_not_warned_of(registered, capfd):
    level, handlers = logging.getLogger().level, list(logging.getLogger().handlers)
    loaded = models.load_model(registered)
    assert loaded.name == registered
    assert loaded.random_weights
    assert loaded.tokenizer(["a dog"]).shape == (1, 9)
    assert not loaded.model.training
    assert capfd.readouterr() == ("", "")
    assert (logging.getLogger().level, logging.getLogger().handlers) == (level, handlers)


def test_weights_from_a_file(registered, tmp_path):
    model = build("clip")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = models.load_model(registered, str(tmp_path / "weights.pt"))
    assert not loaded.random_weights
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded.model), outputs(model), strict=True))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda f: f.write_bytes(b"garbage"), "no weights can be read from it"),
        (lambda f: f.write_bytes(b""), "no weights can be read from it"),
        (lambda f: torch.save([1, 2], f), "no weights can be read from it"),
        (lambda f: torch.save({"a": torch.zeros(1)}, f), "Missing key"),
    ],
    ids=["garbage", "empty", "list", "other-keys"],
)
def test_a_file_that_is_no_checkpoint_is_named(registered, tmp_path, write, reason):
    file = tmp_path / "bad.pt"
    write(file)
    with pytest.raises(ValueError, match=f"^{file}: does not fit {registered}: .*{reason}") as caught:
        models.load_model(registered, str(file))
    assert caught.value.__cause__ is not None
    assert "weights_only" not in str(caught.value)


def test_a_name_of_a_hub_brings_its_weights(monkeypatch):
    import open_clip

    monkeypatch.setattr(
        open_clip, "create_model_and_transforms", lambda *_, **__: (build("clip"), None, "preprocess")
    )
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: name)
    loaded = models.load_model("hf-hub:some/model")
    assert (loaded.tokenizer, loaded.preprocess) == ("hf-hub:some/model", "preprocess")
    assert not loaded.random_weights


def test_a_saved_model_of_the_registry_names_it(registered, tmp_path):
    import vlprune

    loaded = models.load_model(registered)
    folder = tmp_path / "saved"
    vlprune.save_pretrained(loaded.model, folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["source"] == registered
    assert config["tokenizer"] == {"kind": "open_clip", "name": registered}
    assert f"architecture {registered}" in (folder / "README.md").read_text()
    assert models.load_model(str(folder)).tokenizer(["a dog"]).shape == (1, 9)


def test_building_takes_no_note_of_what_it_is_given():
    config = json.loads(json.dumps(CONFIG))
    build_model(config, device="meta")
    assert config == CONFIG
