"""The config read off a model builds that model."""

import pytest
import torch

from vlprune.models import split_attention_
from vlprune.models.build import build_model
from vlprune.models.recipe import candidates, known_name, recover
from vlprune.models.tree import find_changes

from .zoo import KINDS, build


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hf"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_it_needs_no_corrections(kind, split):
    model = build(kind)
    if split:
        split_attention_(model)
    recipe = recover(model)
    fresh = build_model(recipe.config, fp32_norms=recipe.fp32_norms, device="meta")
    changes, problems = find_changes(fresh, model)
    assert problems == []
    assert set(changes.to_dict()) <= {"packed_attention", "split_attention"}
    assert recipe.fp32_norms is (kind == "half")


REGISTERED = [
    "ViT-B-32",
    "ViT-B-16-quickgelu",
    "ViT-L-14-336",
    "RN50",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP-i18n-256",
    "coca_ViT-B-32",
    "ViT-S-32-alt",
    "convnext_base",
    "ViT-H-14-CLIPA",
    "ViT-bigG-14-CLIPA",
    "MobileCLIP-S1",
]


@pytest.mark.parametrize("name", REGISTERED)
def test_open_clips_own_configs_are_recovered(name):
    import open_clip

    config = open_clip.get_model_config(name)
    model = build_model(config, device="meta")
    recipe = recover(model)
    changes, problems = find_changes(build_model(recipe.config, device="meta"), model)
    assert problems == []
    assert changes.to_dict() == {}
    assert known_name(recipe) == name


def test_candidates_have_the_sizes_of_the_model():
    import open_clip

    model = build_model(open_clip.get_model_config("ViT-B-32"), device="meta")
    configs = [recipe.config for recipe in candidates(model)]
    assert open_clip.get_model_config("ViT-B-32") in configs
    assert open_clip.get_model_config("ViT-B-16") not in configs
    assert {c["vision_cfg"].get("width", 768) for c in configs} == {768}


def test_other_mlp_widths_survive_truncation():
    model = build("clip")
    for block in model.visual.transformer.resblocks:
        # 64 * (77 / 64) is whole, 64 * (x / 64) need not be for every x
        block.mlp.c_fc, block.mlp.c_proj = torch.nn.Linear(64, 77), torch.nn.Linear(77, 64)
    config = recover(model).config
    assert int(64 * config["vision_cfg"]["mlp_ratio"]) == 77
    for width in (49, 98, 103, 196, 1408):
        for hidden in range(width, 5 * width, 7):
            ratio = hidden / width
            ratio = ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
            assert int(width * ratio) == hidden
