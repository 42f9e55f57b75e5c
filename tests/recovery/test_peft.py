"""Adapters alone on disk: the form, the way back, what is refused."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import vlprune
from vlprune.recovery import (
    SparseLoRAConfig,
    SparseLoRALinear,
    add_sparse_lora_,
    load_adapters_,
    merge_sparse_lora_,
    save_adapters,
)


def trained(model, **config):
    add_sparse_lora_(model, SparseLoRAConfig(**config))
    for module in model.modules():
        if isinstance(module, SparseLoRALinear):
            nn.init.normal_(module.lora_B)
    return model


def test_way_back_onto_dense_weights(clip, tmp_path):
    dense = copy.deepcopy(clip)
    vlprune.prune_(clip, vlprune.MagnitudeConfig(pattern="2:4"))
    masks = vlprune.masks(clip)
    trained(clip, rank={"visual": 3, "text": 2}, alpha={"*.c_fc": 5, "*": 16})
    save_adapters(clip, tmp_path / "adapters")
    # the masks are in the folder, so that the weights may be dense
    names = load_adapters_(dense, tmp_path / "adapters")
    assert len(names) == 20
    merge_sparse_lora_(clip)
    merge_sparse_lora_(dense)
    after = vlprune.masks(dense)
    assert all(torch.equal(after[name], masks[name]) for name in masks)
    for (name, p), q in zip(clip.named_parameters(), dense.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_plain_lora_stays_plain(tmp_path):
    model = nn.Sequential(nn.Linear(8, 6))
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    other = copy.deepcopy(model)
    trained(model, rank=2, sparse=False)
    save_adapters(model, tmp_path)
    load_adapters_(other, tmp_path)
    x = torch.randn(3, 8)
    assert torch.equal(other(x), model(x))


def test_names_and_shapes_are_those_of_peft(clip, tmp_path):
    trained(clip, rank={"visual": 3, "text": 2}, alpha=6, targets=("*.c_fc", "*.c_proj"))
    save_adapters(clip, tmp_path / "adapters")
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 3, 6, "none")
    assert config["alpha_pattern"] == {}
    assert "vlprune" not in config
    # as PEFT finds the layers and the rank of each; "visual.NAME" ends like "NAME" of the text tower
    meant = [name for name, _ in clip.named_modules() if re.fullmatch(config["target_modules"], name)]
    assert meant == [name for name, m in clip.named_modules() if isinstance(m, SparseLoRALinear)]
    for name in meant:
        fits = [r for p, r in config["rank_pattern"].items() if re.match(rf"(.*\.)?({p})$", name)]
        assert (fits or [config["r"]])[0] == clip.get_submodule(name).rank, name
    weights = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    assert len(weights) == 2 * 10
    prefix = "base_model.model.visual.transformer.resblocks.0.mlp.c_fc"
    assert weights[f"{prefix}.lora_A.weight"].shape == (3, 64)
    assert weights[f"{prefix}.lora_B.weight"].shape == (256, 3)
    layer = clip.visual.transformer.resblocks[0].mlp.c_fc
    assert torch.equal(weights[f"{prefix}.lora_B.weight"], layer.lora_B)
    bits = load_file(tmp_path / "adapters" / "keep_masks.safetensors")
    assert bits["visual.transformer.resblocks.0.mlp.c_fc.weight"].nbytes == 64 * 256 // 8


def test_adapters_of_peft_itself(clip, tmp_path):
    # as peft writes them: no masks, nothing of vlprune's
    a, b = torch.randn(2, 64), torch.randn(256, 2)
    prefix = "base_model.model.visual.transformer.resblocks.0.mlp.c_fc.lora_"
    save_file({f"{prefix}A.weight": a, f"{prefix}B.weight": b}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": ["c_fc"]}
    # the ends of names are patterns
    config |= {"rank_pattern": None, "alpha_pattern": {"fc": 64, "mlp.c_fc": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    vlprune.prune_(clip, vlprune.MagnitudeConfig(pattern="2:4"))
    weight = clip.visual.transformer.resblocks[0].mlp.c_fc.weight.detach().clone()
    load_adapters_(clip, tmp_path)
    merge_sparse_lora_(clip)
    expected = (weight + 4 * b @ a) * (weight != 0)
    found = clip.visual.transformer.resblocks[0].mlp.c_fc.weight
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found != 0, weight != 0)


def test_folder_is_replaced_whole_and_never_someone_elses(clip, tmp_path):
    target = tmp_path / "adapters"
    trained(clip, rank=1)
    save_adapters(clip, target)
    nn.init.ones_(clip.visual.transformer.resblocks[0].mlp.c_fc.lora_B)
    save_adapters(clip, target)
    weights = load_file(target / "adapter_model.safetensors")
    assert (weights["base_model.model.visual.transformer.resblocks.0.mlp.c_fc.lora_B.weight"] == 1).all()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something other than adapters"):
        save_adapters(clip, target)
    assert (target / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["adapters"]


def damage_shape(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if name.endswith("lora_A.weight"))
    save_file({**weights, name: weights[name][:, :3].contiguous()}, folder / "adapter_model.safetensors")


def damage_names(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name.replace("c_fc", "c_nowhere"): t for name, t in weights.items()},
        folder / "adapter_model.safetensors",
    )


def damage_config(folder, **change):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))


DAMAGE = {
    "cut weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"1234567890"),
        "no tensors can be read from it",
    ),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no such file"),
    "shape": (damage_shape, "expects lora_A and lora_B of"),
    "names": (damage_names, "the model has no weight"),
    "rank": (lambda folder: damage_config(folder, r=7), "expects lora_A and lora_B of"),
    "kind": (lambda folder: damage_config(folder, peft_type="IA3"), 'expected "peft_type": "LORA"'),
    "dora": (lambda folder: damage_config(folder, use_dora=True), "use_dora is not supported"),
    "pattern": (lambda folder: damage_config(folder, rank_pattern={"(": 2}), r"rank_pattern: '\(' is no"),
    "patterns": (lambda folder: damage_config(folder, alpha_pattern=["c_fc"]), "alpha_pattern: expected"),
    "alpha": (lambda folder: damage_config(folder, lora_alpha=None), "lora_alpha: expected a number"),
    "cut masks": (
        lambda folder: (folder / "keep_masks.safetensors").write_bytes(b"12345678"),
        "no tensors can be read from it",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_folders_are_refused_and_change_nothing(clip, tmp_path, damage, message):
    fresh = copy.deepcopy(clip)
    trained(clip, targets=("visual.*.c_fc",))
    save_adapters(clip, tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_adapters_(fresh, tmp_path)
    assert not any(isinstance(module, SparseLoRALinear) for module in fresh.modules())
    assert all(p.requires_grad for p in fresh.parameters())


def test_model_without_adapters_has_nothing_to_save(clip, tmp_path):
    with pytest.raises(ValueError, match="has no adapters"):
        save_adapters(clip, tmp_path / "adapters")
    assert not list(tmp_path.iterdir())
