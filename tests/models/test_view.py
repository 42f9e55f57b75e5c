"""Towers, blocks and linear layers of every kind of model."""

import pytest
from torch import nn

from vlprune import models

from .zoo import KINDS, build

OPEN_CLIP = ["attn.qkv", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"]
TIMM = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_named_and_numbered_from_the_input(kind, tmp_path):
    model = build(kind, tmp_path)
    towers = models.view(model).towers
    assert list(towers) == ["visual", "text"]
    for tower in towers.values():
        assert [b.index for b in tower.blocks] == list(range(len(tower.blocks)))
        assert all(model.get_submodule(b.name) is b.module for b in tower.blocks)
        assert all(b.tower == tower.name for b in tower.blocks)
        assert model.get_submodule(tower.prefix) is tower.module


def test_text_tower_of_clip_lies_on_the_model():
    tower = models.view(build("clip")).towers["text"]
    assert tower.prefix == ""
    assert [b.name for b in tower.blocks] == ["transformer.resblocks.0", "transformer.resblocks.1"]


def test_decoder_blocks_follow_the_text_blocks_in_the_order_they_run():
    model = build("coca")
    names = [b.name for b in models.view(model).towers["text"].blocks]
    ran = []
    for name, module in model.named_modules():
        if name in names:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    from .zoo import outputs

    outputs(model)
    assert len(names) == 6
    assert ran[-len(names) :] == names


@pytest.mark.parametrize(
    ("kind", "tower", "unsplit", "split"),
    [
        ("clip", "visual", OPEN_CLIP[2:], OPEN_CLIP),
        ("custom-blocks", "text", OPEN_CLIP[2:], OPEN_CLIP),
        ("timm", "visual", TIMM, TIMM),
        ("timm-map", "visual", TIMM, TIMM),
    ],
)
def test_linears_of_a_block(kind, tower, unsplit, split):
    model = build(kind)

    def relative():
        block = models.view(model).towers[tower].blocks[1]
        assert all(model.get_submodule(name) is m for name, m in block.linears().items())
        return [name.removeprefix(f"{block.name}.") for name in block.linears()]

    assert relative() == unsplit
    models.split_attention_(model)
    assert relative() == split


def test_linears_of_a_transformers_block(tmp_path):
    block = models.view(build("hf", tmp_path)).towers["text"].blocks[0]
    assert block.name == "text.transformer.encoder.layer.0"
    attention = [f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
    expected = [*attention, "intermediate.dense", "output.dense"]
    assert list(block.linears()) == [f"{block.name}.{name}" for name in expected]


def test_cross_attention_has_four_linears_when_split():
    model = build("coca")
    models.split_attention_(model)
    block = models.view(model).towers["text"].blocks[3]
    assert block.name == "text_decoder.cross_attn.0"
    names = [name.removeprefix("text_decoder.cross_attn.0.attn.") for name in block.linears()]
    assert names[:4] == ["q_proj", "k_proj", "v_proj", "out_proj"]


def test_embeddings_projections_and_poolers_are_in_no_block():
    model = build("timm-map")
    inside = {n for t in models.view(model).towers.values() for b in t.blocks for n in b.linears()}
    assert not any("attn_pool" in name or "head" in name for name in inside)
    assert len(inside) == 12 * 4 + 2 * 2


def test_a_replaced_block_does_not_hide_the_others():
    model = build("clip")
    model.visual.transformer.resblocks[1] = nn.Identity()
    assert len(models.view(model).towers["visual"].blocks) == 3


def test_resnet_tower_is_left_out():
    from open_clip.model import CLIP

    from .zoo import TEXT

    model = CLIP(64, {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "head_width": 16}, TEXT)
    assert list(models.view(model).towers) == ["text"]


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), nn.TransformerEncoderLayer(8, 2)], ids=lambda m: type(m).__name__
)
def test_a_model_without_towers_is_named(model):
    with pytest.raises(ValueError, match=type(model).__name__):
        models.view(model)


@pytest.mark.parametrize("model", [None, "ViT-B-32", {"visual": 1}])
def test_what_is_no_module_is_told(model):
    with pytest.raises(ValueError, match=f"model: expected an nn.Module, got {type(model).__name__}"):
        models.view(model)
