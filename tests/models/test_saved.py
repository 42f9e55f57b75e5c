"""Saved folders read back: what is damaged, contradictory or of a wrong kind is refused and named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlprune
from vlprune.models.build import quiet

from .zoo import build

NAME = "visual.transformer.resblocks.0.mlp.c_fc.weight"


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edit_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(config_of(folder) | changes))


@pytest.fixture
def saved(tmp_path):
    vlprune.save_pretrained(build("clip"), tmp_path / "saved")
    return tmp_path / "saved"


def test_a_newer_format_is_refused(saved):
    edit_config(saved, format_version=2)
    with pytest.raises(ValueError, match=r"config\.json: format_version 2.*newer"):
        vlprune.from_pretrained(saved)


@pytest.mark.parametrize("cut", [0, 5, 100, -1], ids=lambda n: f"at{n}")
def test_a_truncated_file_is_refused(saved, cut):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        vlprune.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        vlprune.from_pretrained(saved)


def test_other_folders_and_broken_json_are_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        vlprune.from_pretrained(tmp_path / "nowhere")
    for text, reason in (("{", "not valid JSON"), ("[]", "written by save_pretrained"), ("{}", '"format"')):
        (saved / "config.json").write_text(text)
        with pytest.raises(ValueError, match=reason):
            vlprune.from_pretrained(saved)


def test_unknown_and_missing_keys_are_named(saved):
    whole = config_of(saved)
    edit_config(saved, extra=1)
    with pytest.raises(ValueError, match="unknown key 'extra'"):
        vlprune.from_pretrained(saved)
    for key in ("model", "layers", "weights", "preprocess", "tokenizer"):
        (saved / "config.json").write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(ValueError, match=key):
            vlprune.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers": {"pruned": []}}, "pruned"),
        ({"layers": {"packed_attention": ["visual.nothing"]}}, "visual.nothing: expected packed attention"),
        ({"layers": {"packed_attention": ["visual.ln_post"]}}, "visual.ln_post: expected packed attention"),
        ({"layers": {"depth": {"visual.ln_post": 1}}}, "visual.ln_post: expected a stack"),
        ({"layers": {"attributes": {"visual": {"forward": 1}}}}, "visual.forward"),
        ({"layers": {"attributes": {"visual": {"_modules": None}}}}, "visual._modules"),
        ({"layers": {"shapes": {NAME: [1, 2]}}}, r"c_fc.weight: expected shape \[1, 2\]"),
        ({"weights": {"packed": ["strange"], "tied": {}, "frozen": []}}, "no 'strange'"),
        ({"weights": {"packed": [NAME], "tied": {}, "frozen": []}}, f"{NAME}.meta' is missing"),
        ({"weights": {"packed": [], "tied": {NAME: "logit_scale"}, "frozen": []}}, f"{NAME}' is unknown"),
        ({"model": {"config": {}, "fp32_norms": False}}, "'embed_dim' is missing"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_config_that_does_not_fit_is_refused(saved, change, reason):
    edit_config(saved, **change)
    with pytest.raises(ValueError, match=reason):
        vlprune.from_pretrained(saved)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(3, 4), r"expected shape \[256, 64\], got \[3, 4\]"),
        (torch.zeros(256, 64, dtype=torch.int32), "expected a dtype like torch.float32"),
        (None, "is missing"),
    ],
    ids=["shape", "dtype", "missing"],
)
def test_tensors_that_do_not_fit_are_named(saved, tensor, reason):
    state = load_file(saved / "model.safetensors")
    state.pop(NAME)
    save_file(state if tensor is None else state | {NAME: tensor}, saved / "model.safetensors")
    with pytest.raises(ValueError, match=f"{NAME}.*{reason}"):
        vlprune.from_pretrained(saved)


WEIGHTS = {"packed": [], "tied": {}, "frozen": []}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": []}, r"weights: expected an object, got \[\]"),
        ({"weights": WEIGHTS | {"packed": None}}, "weights.packed: expected a list, got None"),
        ({"weights": WEIGHTS | {"packed": [["a"]]}}, "TypeError: unhashable|unhashable"),
        ({"weights": WEIGHTS | {"tied": []}}, r"weights.tied: expected an object, got \[\]"),
        ({"weights": WEIGHTS | {"frozen": 1}}, "weights.frozen: expected a list, got 1"),
        ({"model": []}, r"model: expected an object, got \[\]"),
        ({"model": {"config": 3, "fp32_norms": False}}, "model.config: expected an object, got 3"),
        ({"model": {"config": {}, "fp32_norms": 0}}, "model.fp32_norms: expected true or false, got 0"),
        ({"layers": {"depth": 5}}, "layers.depth: expected an object, got 5"),
        ({"layers": {"depth": {"transformer.resblocks": "x"}}}, "TypeError"),
        ({"layers": {"identity": {}}}, r"layers.identity: expected a list, got \{\}"),
        ({"layers": {"linear24": {NAME.removesuffix(".weight"): {"in": 4}}}}, "TypeError.*'in'"),
        ({"layers": {"shapes": {NAME: 4}}}, "TypeError"),
        ({"preprocess": 5}, "preprocess: expected an object, got 5"),
        ({"preprocess": {}}, "KeyError: 'mean'"),
        ({"tokenizer": None}, "tokenizer: expected an object, got None"),
        ({"tokenizer": {"kind": "hf"}}, "KeyError: 'name'"),
    ],
    ids=lambda v: json.dumps(v) if isinstance(v, dict) else "",
)
def test_a_value_of_a_wrong_kind_is_one_error_that_names_the_file(saved, change, reason):
    edit_config(saved, **change)
    for load in (vlprune.from_pretrained, vlprune.load_model):
        with pytest.raises(ValueError, match=rf"^{saved}/config\.json: .*({reason})") as caught:
            load(str(saved))
        assert caught.value.__cause__ is not None
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"size": "x"}, {"size": []}, {"size": None}, {"size": [1, 2, 3]}, {"mean": "x"}, {"interpolation": "x"}],
    ids=str,
)
def test_preprocessing_that_cannot_be_built_names_the_file(saved, change):
    edit_config(saved, preprocess=config_of(saved)["preprocess"] | change)
    vlprune.from_pretrained(saved)
    with pytest.raises(ValueError, match=rf"^{saved}/config\.json: "), quiet():
        vlprune.load_model(str(saved))


@pytest.mark.parametrize("load", [vlprune.from_pretrained, vlprune.load_model])
def test_a_device_that_is_not_there_is_named_first(load, tmp_path):
    devices = ["foo", "cuda:99"] + ([] if torch.cuda.is_available() else ["cuda"])
    for device in devices:
        with pytest.raises(ValueError, match=f"^device: '{device}' cannot be used here; available: cpu"):
            load(str(tmp_path / "nowhere"), device=device)
