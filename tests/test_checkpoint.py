"""Saved folders: everything comes back, and nothing half-written or contradictory is accepted."""

import json
import os
import subprocess
import sys

import pytest
import torch
from models.zoo import KINDS, TEXT, VISION, assert_close, build, inputs, outputs
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import vlprune
from vlprune import models
from vlprune.nn import Linear24, PackedAttention


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edit_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(config_of(folder) | changes))


@torch.no_grad()
def prune_24(model, towers=("visual", "text")):
    """Zero half of every block weight in a 2:4 pattern that differs from group to group."""
    generator = torch.Generator().manual_seed(4)
    for tower in towers:
        for block in models.view(model).towers[tower].blocks:
            for parameter in block.module.parameters():
                if parameter.dim() == 2:
                    groups = parameter.view(-1, 4)
                    drop = torch.rand(groups.shape, generator=generator).argsort(1)[:, :2]
                    groups.scatter_(1, drop, 0.0)


def identical(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_same_model(ours, theirs):
    assert identical(outputs(ours), outputs(theirs))
    one, two = dict(ours.named_modules()), dict(theirs.named_modules())
    assert {n: type(m) for n, m in one.items()} == {n: type(m) for n, m in two.items()}
    one, two = ours.state_dict(), theirs.state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)
    flags = ({n: p.requires_grad for n, p in m.named_parameters()} for m in (ours, theirs))
    assert next(flags) == next(flags)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_comes_back(kind, split, tmp_path):
    model = build(kind, tmp_path)
    if split:
        models.split_attention_(model)
    prune_24(model, ["visual"])
    next(model.parameters()).requires_grad_(False)
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved")
    assert_same_model(back, model)
    assert not back.training
    assert sorted(models.merge_attention_(back)) == sorted(models.merge_attention_(model))
    assert_same_model(back, model)
    assert "changes" not in config_of(tmp_path / "saved")["layers"]


def test_no_transformers_folder_or_hub_is_needed_to_load(tmp_path):
    model = build("hf", tmp_path)
    expected = outputs(model)
    vlprune.save_pretrained(model, tmp_path / "saved")
    (tmp_path / "bert" / "config.json").unlink()
    (tmp_path / "saved").rename(tmp_path / "moved")
    assert identical(outputs(vlprune.from_pretrained(tmp_path / "moved")), expected)


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float32, 0.54), (torch.bfloat16, 0.57), (torch.float16, 0.57)]
)
def test_24_weights_are_stored_packed(dtype, share, tmp_path):
    model = build("clip")
    prune_24(model)
    model.to(dtype)
    vlprune.save_pretrained(model, tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    packed = config_of(tmp_path / "saved")["weights"]["packed"]
    assert len(packed) == 5 * 4
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in packed
    for name, weight in model.state_dict().items():
        if name in packed:
            size = sum(stored[f"{name}.{part}"].nbytes for part in ("values", "meta"))
            assert size <= share * weight.nbytes
            assert torch.equal(vlprune.ops.unpack24(stored[f"{name}.values"], stored[f"{name}.meta"]), weight)
        else:
            assert torch.equal(stored[name], weight)
    back = vlprune.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(back[n], w) and back[n].dtype == dtype for n, w in model.state_dict().items())


def test_other_sparsity_and_odd_widths_stay_dense(tmp_path):
    model = build("clip")
    with torch.no_grad():
        weight = model.visual.transformer.resblocks[0].mlp.c_fc.weight
        weight[:, ::3] = 0.0
    vlprune.save_pretrained(model, tmp_path / "saved")
    assert config_of(tmp_path / "saved")["weights"]["packed"] == []
    assert_same_model(vlprune.from_pretrained(tmp_path / "saved"), model)


def test_negative_zeros_come_back_as_zeros(tmp_path):
    model = build("clip")
    weight = model.visual.transformer.resblocks[0].mlp.c_fc.weight
    with torch.no_grad():
        weight.view(-1, 4)[:, 1:3] *= 0.0
    assert (weight.signbit() & (weight == 0)).any()
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved").visual.transformer.resblocks[0].mlp.c_fc.weight
    assert torch.equal(back, weight)
    assert not (back.signbit() & (back == 0)).any()


@pytest.mark.parametrize("kind", ["clip", "siglip-like", "timm"])
def test_packed_layers_with_fused_activations_come_back(kind, tmp_path):
    model = build(kind)
    prune_24(model)
    dense = outputs(model)
    vlprune.sparsify_(model, only_if_faster=False)
    vlprune.save_pretrained(model, tmp_path / "saved")
    layers = config_of(tmp_path / "saved")["layers"]
    kinds = {entry["activation"] for entry in layers["linear24"].values()}
    assert (
        kinds == {"clip": {None, "gelu"}, "siglip-like": {None, "quick_gelu"}, "timm": {None, "gelu"}}[kind]
    )
    assert layers["identity"]
    back = vlprune.from_pretrained(tmp_path / "saved")
    assert_same_model(back, model)
    assert_close(outputs(back), dense)
    assert sum(isinstance(m, Linear24) for m in back.modules()) == len(layers["linear24"])


def test_a_fresh_process_computes_the_same(tmp_path):
    model = build("clip")
    prune_24(model)
    vlprune.sparsify_(model, only_if_faster=False)
    vlprune.save_pretrained(model, tmp_path / "saved")
    images, texts = inputs(model)
    save_file({"images": images, "texts": texts}, tmp_path / "inputs.safetensors")
    program = f"""
import torch, vlprune
from PIL import Image
from safetensors.torch import load_file, save_file
torch.set_num_threads({torch.get_num_threads()})
given = load_file({str(tmp_path / "inputs.safetensors")!r})
model = vlprune.from_pretrained({str(tmp_path / "saved")!r})
with torch.no_grad():
    found = {{"0": model.encode_image(given["images"]), "1": model.encode_text(given["texts"])}}
save_file(found, {str(tmp_path / "outputs.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=os.getcwd())
    found = load_file(tmp_path / "outputs.safetensors")
    assert_close([found["0"], found["1"]], outputs(model))


@torch.no_grad()
def remove_modules(model):
    """Physically remove a head, neurons and a layer, as structured pruning does."""
    models.split_attention_(model)
    blocks = model.visual.transformer.resblocks
    attention, kept, hd = blocks[0].attn, (0, 2, 3), 16
    rows = torch.cat([torch.arange(h * hd, (h + 1) * hd) for h in kept])
    qkv = torch.cat([rows + part * 64 for part in range(3)])
    small = PackedAttention(64, 3, hd)
    small.qkv.weight.copy_(attention.qkv.weight[qkv])
    small.qkv.bias.copy_(attention.qkv.bias[qkv])
    small.out_proj.weight.copy_(attention.out_proj.weight[:, rows])
    small.out_proj.bias.copy_(attention.out_proj.bias)
    small.kept_heads, small.returns_tuple = kept, attention.returns_tuple
    small.true_blocks = attention.true_blocks
    for name in ("ln_q", "ln_k", "ln_inner", "out_drop"):
        setattr(small, name, getattr(attention, name))
    blocks[0].attn = small.eval()
    for block, width in ((blocks[0], 100), (blocks[2], 64)):
        fc, proj = nn.Linear(64, width), nn.Linear(width, 64)
        fc.weight.copy_(block.mlp.c_fc.weight[:width])
        fc.bias.copy_(block.mlp.c_fc.bias[:width])
        proj.weight.copy_(block.mlp.c_proj.weight[:, :width])
        proj.bias.copy_(block.mlp.c_proj.bias)
        block.mlp.c_fc, block.mlp.c_proj = fc, proj
    del blocks[1]


def test_removed_heads_neurons_and_layers_come_back(tmp_path):
    model = build("clip")
    remove_modules(model)
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved")
    assert_same_model(back, model)
    attention = back.visual.transformer.resblocks[0].attn
    assert (attention.num_heads, attention.kept_heads) == (3, (0, 2, 3))
    assert back.visual.transformer.resblocks[1].mlp.c_fc.out_features == 64


def test_removed_timm_and_transformers_layers_come_back(tmp_path):
    vision, text = build("timm"), build("hf", tmp_path)
    del vision.visual.trunk.blocks[9:]
    del text.text.transformer.encoder.layer[1:]
    for number, model in enumerate((vision, text)):
        vlprune.save_pretrained(model, tmp_path / str(number))
        assert config_of(tmp_path / str(number))["layers"]["depth"]
        assert_same_model(vlprune.from_pretrained(tmp_path / str(number)), model)


def test_tied_parameters_stay_tied(tmp_path):
    model = build("clip")
    blocks = model.visual.transformer.resblocks
    blocks[1].mlp.c_fc.weight = blocks[0].mlp.c_fc.weight
    blocks[2].attn = blocks[0].attn
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved")
    again = back.visual.transformer.resblocks
    assert again[1].mlp.c_fc.weight is again[0].mlp.c_fc.weight
    assert again[2].attn.in_proj_weight is again[0].attn.in_proj_weight
    assert again[2].mlp.c_fc.weight is not again[0].mlp.c_fc.weight
    assert identical(outputs(back), outputs(model))


def test_attributes_changed_by_hand_come_back(tmp_path):
    model = build("clip")
    model.visual.transformer.resblocks[1].ln_2.eps = 0.1
    model.text_pool_type = "last"
    model.visual.image_mean = (0.1, 0.2, 0.3)
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved")
    assert back.visual.transformer.resblocks[1].ln_2.eps == 0.1
    assert identical(outputs(back), outputs(model))


def test_what_it_cannot_rebuild_is_named(tmp_path):
    model = build("clip")
    model.visual.transformer.resblocks[1].mlp.c_fc = nn.Sequential(nn.Linear(64, 256))
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.c_fc: Sequential, expected Linear"):
        vlprune.save_pretrained(model, tmp_path / "saved")
    model = build("clip")
    model.visual.ln_post.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"visual\.ln_post\.extra"):
        vlprune.save_pretrained(model, tmp_path / "saved")
    with pytest.raises(ValueError, match="Linear"):
        vlprune.save_pretrained(nn.Linear(2, 2), tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_given_config_is_checked_and_used(tmp_path):
    model = build("clip")
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
    vlprune.save_pretrained(model, tmp_path / "saved", config=config)
    assert config_of(tmp_path / "saved")["model"]["config"] == config
    with pytest.raises(ValueError, match=r"given config.*shape"):
        vlprune.save_pretrained(model, tmp_path / "other", config=config | {"embed_dim": 48})
    with pytest.raises(ValueError, match="ViT-B-32"):
        vlprune.save_pretrained(model, tmp_path / "other", config="ViT-B-23")
    with pytest.raises(ValueError, match="embed_dim"):
        vlprune.save_pretrained(model, tmp_path / "other", config={"vision_cfg": VISION})


@pytest.fixture
def saved(tmp_path):
    vlprune.save_pretrained(build("clip"), tmp_path / "saved")
    return tmp_path / "saved"


def test_the_card_says_what_was_done(tmp_path):
    model = build("clip")
    prune_24(model)
    vlprune.sparsify_(model, only_if_faster=False)
    vlprune.save_pretrained(model, tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vlprune\n")
    assert "tags:\n- clip\n" in card
    assert f"{len(config_of(tmp_path / 'saved')['layers']['linear24'])} layers run as packed" in card


def test_load_model_gives_a_saved_folder_its_preprocessing_and_tokenizer(tmp_path):
    loaded = vlprune.load_model("demo")
    vlprune.save_pretrained(loaded.model, tmp_path / "saved")
    back = vlprune.load_model(str(tmp_path / "saved"))
    image = Image.effect_noise((90, 70), 60)
    assert torch.equal(back.preprocess(image), loaded.preprocess(image))
    text = "a large red circle"
    assert torch.equal(back.tokenizer([text]), loaded.tokenizer([text]))
    vlprune.save_pretrained(back.model, tmp_path / "again")
    assert config_of(tmp_path / "again") == config_of(tmp_path / "saved")


def test_the_demo_is_recognized_without_load_model(tmp_path):
    from vlprune import demo

    model, _, tokenizer = demo.load()
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = vlprune.load_model(str(tmp_path / "saved"))
    assert torch.equal(back.tokenizer("a red circle"), tokenizer("a red circle"))


def test_an_unknown_tokenizer_is_an_error_when_used(saved):
    with pytest.raises(ValueError, match="tokenizer"):
        vlprune.load_model(str(saved)).tokenizer(["a dog"])


@pytest.mark.slow
def test_vit_b_32_at_its_real_size(tmp_path):
    loaded = vlprune.load_model("ViT-B-32")
    prune_24(loaded.model)
    vlprune.save_pretrained(loaded.model, tmp_path / "saved")
    stored = (tmp_path / "saved" / "model.safetensors").stat().st_size
    state = loaded.model.state_dict()
    packed = config_of(tmp_path / "saved")["weights"]["packed"]
    assert len(packed) == 24 * 4
    dense = sum(state[name].nbytes for name in packed)
    assert stored <= sum(t.nbytes for t in state.values()) - 0.46 * dense
    back = vlprune.load_model(str(tmp_path / "saved"))
    image, texts = Image.effect_noise((300, 250), 60), ["a diagram", "a dog"]
    assert torch.equal(back.tokenizer(texts), loaded.tokenizer(texts))
    assert torch.equal(back.preprocess(image), loaded.preprocess(image))
    with torch.no_grad():
        batch = loaded.preprocess(image)[None]
        assert torch.equal(back.model.encode_image(batch), loaded.model.encode_image(batch))


@pytest.mark.data
def test_real_towers_come_back_with_their_tokenizer(photographs, tmp_path):
    loaded = vlprune.load_model(str(photographs / "lit-vits14"))
    prune_24(loaded.model)
    vlprune.sparsify_(loaded.model, only_if_faster=False)
    vlprune.save_pretrained(loaded.model, tmp_path / "saved")
    back = vlprune.load_model(str(tmp_path / "saved"))
    texts = ["a photo of a dog.", "two cats"]
    assert torch.equal(back.tokenizer(texts), loaded.tokenizer(texts))
    assert str(back.preprocess) == str(loaded.preprocess)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(back.model.encode_image(images), loaded.model.encode_image(images))
        tokens = loaded.tokenizer(texts)
        assert torch.equal(back.model.encode_text(tokens), loaded.model.encode_text(tokens))
    written = (tmp_path / "saved" / "config.json").read_text() + (
        tmp_path / "saved/text/config.json"
    ).read_text()
    assert str(photographs) not in written
