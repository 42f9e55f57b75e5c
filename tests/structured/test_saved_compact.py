"""Models with modules taken out, saved and loaded; packed 2:4 as well."""

import pytest
import torch
from models.zoo import assert_close, build, inputs, outputs

import vlprune
from vlprune import models
from vlprune.nn import Linear24, PackedAttention
from vlprune.structured import compact_

from .cases import uneven
from .test_compact import WHAT

# what is left has to come in fours for 2:4
FOURS = {
    "visual": {
        "heads": {0: [], 1: [0, 3], 2: [2]},
        "neurons": {0: range(7, 71), 1: [], 2: range(252)},
        "layers": [0, 1, 2],
    },
    "text": {"heads": {1: [1]}, "neurons": {1: range(20, 40)}, "layers": [1]},
}


def assert_same(ours, theirs):
    assert {n: type(m) for n, m in ours.named_modules()} == {n: type(m) for n, m in theirs.named_modules()}
    one, two = ours.state_dict(), theirs.state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(a, b) for a, b in zip(outputs(ours), outputs(theirs), strict=True))


@pytest.mark.parametrize("kind", WHAT)
def test_every_kind_of_model_comes_back(kind, tmp_path):
    model = build(kind, tmp_path)
    compact_(model, uneven(model, **WHAT[kind]))
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved")
    assert_same(back, model)
    for block in (b for tower in models.view(back).towers.values() for b in tower.blocks):
        attention, other = (m.get_submodule(f"{block.name}") for m in (back, model))
        if isinstance(getattr(other, "attn", None), PackedAttention):
            assert attention.attn.kept_heads == other.attn.kept_heads
            assert not attention.attn.can_merge()


def test_what_came_back_can_lose_more(tmp_path):
    model = build("clip")
    compact_(model, {"visual": {"heads": {1: [0, 2, 3]}, "layers": [1, 2]}})
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved")
    for one in (model, back):
        compact_(one, {"visual": {"heads": {0: [1, 2]}, "neurons": {1: [5]}}})
    assert back.visual.transformer.resblocks[0].attn.kept_heads == (2, 3)
    vlprune.save_pretrained(back, tmp_path / "again")
    assert_same(vlprune.from_pretrained(tmp_path / "again"), model)


@pytest.mark.parametrize("kind", ["clip", "custom-text", "timm"])
def test_pruned_to_24_and_packed(kind, tmp_path):
    model = build(kind)
    lists = FOURS if kind != "timm" else {"visual": {"heads": {2: [1]}, "neurons": {5: range(0, 768, 2)}}}
    compact_(model, lists)
    vlprune.prune_(model, vlprune.WandaConfig(), [inputs(model)])
    pruned = outputs(model)
    vlprune.save_pretrained(model, tmp_path / "zeros")
    assert_same(vlprune.from_pretrained(tmp_path / "zeros"), model)
    report = vlprune.sparsify_(model, only_if_faster=False)
    assert report.packed == len(report.layers) > 0
    assert_close(outputs(model), pruned)
    vlprune.save_pretrained(model, tmp_path / "packed")
    back = vlprune.from_pretrained(tmp_path / "packed")
    assert sum(isinstance(m, Linear24) for m in back.modules()) == report.packed
    assert_same(back, model)


def test_layers_with_nothing_left_are_neither_pruned_nor_packed():
    model = build("clip")
    compact_(model, {"visual": FOURS["visual"]})
    report = vlprune.prune_(model, vlprune.WandaConfig(), [inputs(model)])
    names = {layer.name.removeprefix("visual.transformer.resblocks.") for layer in report.layers}
    assert not names & {"0.attn.qkv", "0.attn.out_proj", "1.mlp.c_fc", "1.mlp.c_proj"}
    assert {"0.mlp.c_fc", "1.attn.qkv", "1.attn.out_proj"} <= names


def test_a_file_whose_sizes_contradict_the_config_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = build("clip")
    compact_(model, {"visual": {"heads": {1: [0, 2]}}})
    vlprune.save_pretrained(model, tmp_path / "saved")
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    name = "visual.transformer.resblocks.1.attn.qkv.weight"
    weights[name] = weights[name][:48].contiguous()
    save_file(weights, tmp_path / "saved" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{name}: expected shape \[96, 64\], got \[48, 64\]"):
        vlprune.from_pretrained(tmp_path / "saved")
