"""prune_: which weights go, by which statistics, and that nothing else changes."""

import copy

import pytest
import torch
from conftest import TINY_CLIP
from torch import nn

import vlprune
from vlprune import MagnitudeConfig, NoMatchError, PatternError, PerTower, WandaConfig, models, ops


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def linears(model):
    return {
        n: m for t in models.view(model).towers.values() for b in t.blocks for n, m in b.linears().items()
    }


@pytest.mark.parametrize("activations", ["sequential", "dense"])
@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", None), ("1:4", None), ("unstructured", 0.6)])
def test_counts_are_exact_and_the_rest_untouched(clip, batches, pattern, sparsity, activations):
    before = weights(clip)
    report = vlprune.prune_(
        clip, WandaConfig(pattern=pattern, sparsity=sparsity, activations=activations), batches
    )
    masks = vlprune.masks(clip)
    assert len(masks) == 5 * 4  # five blocks: in_proj, out_proj, c_fc, c_proj
    for name, keep in masks.items():
        rows, columns = keep.shape
        expected = {"2:4": columns // 2, "1:4": columns // 4 * 3}.get(pattern, int(columns * 0.6))
        assert (~keep).sum(1).tolist() == [expected] * rows, name
        assert torch.equal(clip.get_parameter(name)[keep], before[name][keep])
    assert sum(layer.zeros for layer in report.layers) == sum(int((~k).sum()) for k in masks.values())
    for name, value in before.items():
        if name not in masks:
            assert torch.equal(clip.get_parameter(name), value), name


def test_model_stays_what_it_was(clip, batches):
    modules = [(n, type(m)) for n, m in clip.named_modules()]
    keys = list(clip.state_dict())
    clip.train()
    vlprune.prune_(clip, WandaConfig(), batches)
    assert [(n, type(m)) for n, m in clip.named_modules()] == modules
    assert list(clip.state_dict()) == keys
    assert clip.training


def brute_force_inputs(model, name, batches):
    """Concatenated inputs [sequence, token, in] of one linear, by a plain hook."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for images, texts in batches:
            model(images, texts)
    hook.remove()
    return torch.cat(seen)


def test_dense_activations_are_those_of_the_dense_model(clip, batches):
    reference = copy.deepcopy(clip)
    models.split_attention_(reference)
    vlprune.prune_(clip, WandaConfig(activations="dense"), batches)
    models.split_attention_(clip)
    for name, layer in linears(clip).items():
        x = brute_force_inputs(reference, name, batches).double()
        norm = (x.square().sum((0, 1)) / len(x)).sqrt().float()
        expected = ops.select(reference.get_submodule(name).weight.abs() * norm, "2:4")
        agreement = ((layer.weight != 0) == expected).float().mean()
        assert agreement > 0.999, name  # float rounding of the norm may flip a near tie


def test_sequential_activations_come_from_pruned_predecessors(clip, batches):
    """Each block's mask follows from the inputs it gets once all blocks before it are pruned."""
    dense = copy.deepcopy(clip)
    models.split_attention_(dense)
    vlprune.prune_(clip, WandaConfig(), batches)
    models.split_attention_(clip)
    assert_masks_follow(clip, dense, batches)


@pytest.mark.parametrize(
    "targets", [("text",), ("visual.transformer.resblocks.[02].*",)], ids=["text", "gaps"]
)
def test_untargeted_blocks_are_passed_through(clip, batches, targets):
    dense = copy.deepcopy(clip)
    models.split_attention_(dense)
    vlprune.prune_(clip, WandaConfig(targets=targets), batches)
    models.split_attention_(clip)
    assert_masks_follow(clip, dense, batches)


def test_block_that_writes_into_its_input(clip, batches):
    """An in-place residual must not reach what the next block is calibrated on."""

    def in_place(block):
        def forward(x, attn_mask=None, **_):
            y = block.ln_1(x)
            x += block.attn(y, y, y, need_weights=False, attn_mask=attn_mask)[0]
            x += block.mlp(block.ln_2(x))
            return x

        return forward

    dense = copy.deepcopy(clip)
    models.split_attention_(dense)
    for block in clip.visual.transformer.resblocks:
        block.forward = in_place(block)
    vlprune.prune_(clip, WandaConfig(), batches)
    assert all("forward" in vars(block) for block in clip.visual.transformer.resblocks)
    for block in clip.visual.transformer.resblocks:
        del block.forward
    models.split_attention_(clip)
    assert_masks_follow(clip, dense, batches)


def assert_masks_follow(pruned, dense, batches):
    """Each layer's mask is Wanda's on the inputs it gets with its own block dense, all before it pruned."""
    differs = 0
    for tower in models.view(pruned).towers.values():
        for block in tower.blocks:
            partly = copy.deepcopy(pruned)
            partly.get_submodule(block.name).load_state_dict(dense.get_submodule(block.name).state_dict())
            for name in block.linears():
                keep = pruned.get_submodule(name).weight != 0
                if keep.all():
                    continue
                assert (keep == mask_from(partly, name, batches)).float().mean() > 0.999, name
                differs += int((keep != mask_from(dense, name, batches)).sum())
    assert differs > 0  # otherwise this could not tell sequential from dense


def mask_from(model, name, batches):
    x = brute_force_inputs(model, name, batches).double()
    norm = (x.square().sum((0, 1)) / len(x)).sqrt().float()
    return ops.select(model.get_submodule(name).weight.abs() * norm, "2:4")


def test_sequential_reaches_both_towers_of_a_model_with_cross_attention():
    from open_clip.coca_model import CoCa

    coca = CoCa(
        48,
        multimodal_cfg={"context_length": 12, "vocab_size": 50, "width": 48, "heads": 3, "layers": 2},
        text_cfg={
            "context_length": 13, "vocab_size": 50, "width": 48, "heads": 3, "layers": 2, "embed_cls": True,
            "output_tokens": True,
        },
        vision_cfg={
            "image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16,
            "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True,
        },
    ).eval()  # fmt: skip
    batches = [(torch.randn(3, 3, 32, 32), torch.randint(1, 50, (3, 13))) for _ in range(2)]
    dense = copy.deepcopy(coca)
    models.split_attention_(dense)
    report = vlprune.prune_(coca, WandaConfig(), batches)
    assert report.sparsity == 0.5
    assert any("cross_attn" in layer.name for layer in report.layers)
    models.split_attention_(coca)
    assert_masks_follow(coca, dense, batches)


def test_magnitude_needs_no_data_and_keeps_the_largest(clip):
    before = weights(clip)
    vlprune.prune_(clip, MagnitudeConfig(pattern="unstructured", sparsity=0.25, scope="layer"))
    for name, keep in vlprune.masks(clip).items():
        size = before[name].abs()
        assert (~keep).sum() == int(keep.numel() * 0.25)
        assert size[keep].min() >= size[~keep].max()


def test_token_weight_takes_tokens_out_of_the_norm(clip, batches):
    """With all weight on the class token, the other tokens' inputs must not matter."""

    def first_token_only(name, x):
        weight = torch.zeros(x.shape[:-1])
        weight[:, 0] = 1.0
        return weight

    reference = copy.deepcopy(clip)
    models.split_attention_(reference)
    vlprune.prune_(clip, WandaConfig(activations="dense", token_weight=first_token_only), batches)
    models.split_attention_(clip)
    name = "visual.transformer.resblocks.1.mlp.c_fc"
    x = brute_force_inputs(reference, name, batches)[:, 0]
    expected = ops.select(reference.get_submodule(name).weight.abs() * x.square().mean(0).sqrt(), "2:4")
    assert ((clip.get_submodule(name).weight != 0) == expected).float().mean() > 0.999


def test_targets_ignore_and_filter(clip, batches):
    config = WandaConfig(targets=("visual",), ignore=("*.c_proj",))
    vlprune.prune_(clip, config, batches, filter_fn=lambda module, name: ".0." not in name)
    assert set(vlprune.masks(clip)) == {
        f"visual.transformer.resblocks.{i}.{w}"
        for i in (1, 2)
        for w in ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight")
    }


def test_target_that_matches_nothing_lists_the_nearest(clip, batches):
    with pytest.raises(NoMatchError, match=r"'visual\.\*\.fc1' matches no layer; nearest: visual\."):
        vlprune.prune_(clip, WandaConfig(targets=("visual.*.fc1",)), batches)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_named_and_nothing_changes(clip, batches, bad):
    with torch.no_grad():
        clip.visual.transformer.resblocks[2].mlp.c_proj.weight[5, 7] = bad
    before = weights(clip)
    with pytest.raises(
        ValueError, match=r"visual\.transformer\.resblocks\.2\.mlp\.c_proj: weight \[5, 7\] is"
    ):
        vlprune.prune_(clip, WandaConfig(), batches)
    for name, value in before.items():
        assert torch.equal(clip.get_parameter(name).nan_to_num(), value.nan_to_num()), name


def test_input_that_is_not_finite_is_named_and_everything_put_back(clip, batches):
    """The bias makes block 1's MLP overflow, when block 0 has been pruned already."""
    with torch.no_grad():
        clip.visual.transformer.resblocks[1].mlp.c_fc.bias.fill_(float("inf"))
    before = weights(clip)
    with pytest.raises(ValueError, match=r"resblocks\.1\.mlp\.c_proj: calibration input 0 is not finite"):
        vlprune.prune_(clip, WandaConfig(), batches)
    for name, value in before.items():
        assert torch.equal(clip.get_parameter(name), value), name
    assert isinstance(clip.visual.transformer.resblocks[0].attn, nn.MultiheadAttention)


def test_width_that_groups_do_not_tile_is_named(batches):
    from conftest import tiny_clip

    clip = tiny_clip(width=66, head_width=22)
    with pytest.raises(PatternError, match=r'resblocks\.0\.attn\.qkv: pattern "2:4" .* got 66'):
        vlprune.prune_(clip, WandaConfig(), batches)


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        (WandaConfig(), None, "wanda needs calibration data"),
        (WandaConfig(), [], "at least one batch"),
        (WandaConfig(), "demo", r"expected data of load_data, .* got 'demo'"),
        (WandaConfig(), 3, "expected data of load_data, .* got 3"),
        (WandaConfig(), [torch.zeros(2, 3, 32, 32)], "expected data of load_data"),
        ("2:4", None, "config: expected a config such as WandaConfig"),
    ],
    ids=["no data", "empty data", "a spec", "a number", "images alone", "no config"],
)
def test_missing_data(clip, config, data, message):
    with pytest.raises(ValueError, match=message):
        vlprune.prune_(clip, config, data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "4:2"}, "0 < n < m, got '4:2'"),
        ({"pattern": "unstructured"}, "sparsity: required"),
        ({"pattern": "unstructured", "sparsity": 1.5}, r"in \[0, 1\], got 1.5"),
        ({"pattern": "1:4", "sparsity": 0.5}, 'pattern "1:4" means 0.75, got 0.5'),
        ({"scope": "column"}, "scope: expected one of row, layer, got 'column'"),
        ({"activations": "both"}, "activations: expected one of sequential, dense"),
        ({"targets": "visual"}, "targets: expected a sequence"),
        ({"samples": 0}, "samples: expected a whole number of at least 1, got 0"),
        ({"pattern": "unstructured", "sparsity": "0.5"}, "got '0.5'"),
        ({"samples": "5"}, "samples: expected a whole number of at least 1, got '5'"),
        ({"allocation": PerTower(visual=0.4)}, '"2:4" fixes every sparsity, PerTower cannot'),
        ({"pattern": "unstructured", "allocation": PerTower(visual=0.4)}, "sparsity: required"),
        ({"allocation": 0.5}, "allocation: expected an allocation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_config_fails_at_once(fields, message):
    with pytest.raises(ValueError, match=message):
        WandaConfig(**fields)


def test_bf16_model(clip, batches):
    clip = clip.bfloat16()
    vlprune.prune_(clip, WandaConfig(), batches)
    keep = vlprune.masks(clip)["transformer.resblocks.1.mlp.c_fc.weight"]
    assert (keep.reshape(-1, 4).sum(1) == 2).all()


def test_half_precision_model_with_float32_norms(batches):
    """open_clip's own bf16 form keeps some parameters, the first among them, in float32."""
    from open_clip.model import CLIP, convert_weights_to_lp

    clip = CLIP(**TINY_CLIP, cast_dtype=torch.bfloat16).eval()
    convert_weights_to_lp(clip, torch.bfloat16)
    assert vlprune.prune_(clip, WandaConfig(), batches).sparsity == 0.5
    vlprune.sparsify_(clip, example=2)


def test_modes_of_single_modules_stay(clip):
    clip.train()
    clip.visual.eval()
    vlprune.prune_(clip, MagnitudeConfig())
    vlprune.sparsify_(clip, example=2)
    assert clip.training
    assert not clip.visual.training
    assert clip.transformer.training


def test_samples_bound_what_is_used(clip, batches):
    few, all_of_it = copy.deepcopy(clip), copy.deepcopy(clip)
    vlprune.prune_(few, WandaConfig(samples=6), batches)
    vlprune.prune_(all_of_it, WandaConfig(), [batches[0], (batches[1][0][:2], batches[1][1][:2])])
    for a, b in zip(few.parameters(), all_of_it.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_batch_alone_is_data(clip, batches):
    assert vlprune.prune_(clip, WandaConfig(), batches[0]).sparsity == 0.5


def test_per_tower_sparsities(clip):
    allocation = PerTower(visual=0.25, text=0.75)
    vlprune.prune_(clip, MagnitudeConfig(pattern="unstructured", allocation=allocation))
    for name, keep in vlprune.masks(clip).items():
        share = 0.25 if name.startswith("visual.") else 0.75
        assert (~keep).sum(1).tolist() == [int(keep.shape[1] * share)] * len(keep)


def test_parametrized_weight_is_refused(clip):
    nn.utils.parametrizations.weight_norm(clip.visual.transformer.resblocks[1].mlp.c_fc)
    with pytest.raises(ValueError, match=r"resblocks\.1\.mlp\.c_fc: its weight is computed"):
        vlprune.prune_(clip, MagnitudeConfig())
    assert vlprune.masks(clip) == {}


def test_packed_layers_are_refused_by_name(clip):
    vlprune.prune_(clip, MagnitudeConfig())
    vlprune.sparsify_(clip, only_if_faster=False, filter_fn=lambda module, name: name.endswith("c_proj"))
    with pytest.raises(ValueError, match=r"resblocks\.0\.mlp\.c_proj: a Linear24 cannot be pruned"):
        vlprune.prune_(clip, MagnitudeConfig(pattern="1:4"))


def test_pruning_inside_inference_mode_leaves_a_model_that_trains(clip, batches):
    with torch.inference_mode():
        vlprune.prune_(clip, WandaConfig(), batches)
        vlprune.sparsify_(clip, only_if_faster=False)
    clip(*batches[0])[0].sum().backward()


def test_masks_move_to_another_model(clip, batches):
    other = copy.deepcopy(clip)
    vlprune.prune_(clip, WandaConfig(), batches)
    masks = vlprune.masks(clip)
    assert vlprune.masks(other) == {}
    vlprune.apply_masks_(other, masks)
    for (name, a), b in zip(clip.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("bad", ["name", "shape", "dtype"])
def test_bad_mask_changes_nothing(clip, bad):
    good, name = (
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "visual.transformer.resblocks.1.mlp.c_fc.weight",
    )
    masks = {good: torch.zeros(256, 64, dtype=torch.bool)}
    masks[name + "x" if bad == "name" else name] = {
        "name": torch.ones(256, 64, dtype=torch.bool),
        "shape": torch.ones(255, 64, dtype=torch.bool),
        "dtype": torch.ones(256, 64),
    }[bad]
    with pytest.raises(ValueError, match=r"resblocks\.1"):
        vlprune.apply_masks_(clip, masks)
    assert bool((clip.get_parameter(good) != 0).all())
