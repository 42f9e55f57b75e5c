"""Adapters on whole models: what they compute, what merging leaves, what is refused."""

import copy

import pytest
import torch
from common import pruned
from models import zoo
from torch import nn

import vlprune
from vlprune.nn import Linear24, PackedAttention
from vlprune.recovery import (
    SparseLoRAConfig,
    SparseLoRALinear,
    add_sparse_lora_,
    dense_teacher,
    merge_sparse_lora_,
)

PATTERNS = {
    "2:4": {"pattern": "2:4"},
    "1:4": {"pattern": "1:4"},
    "4:8": {"pattern": "4:8"},
    "unstructured": {"pattern": "unstructured", "sparsity": 0.7},
}


def outputs(model, images, texts):
    """Both towers' embeddings."""
    return torch.cat([model.encode_image(images), model.encode_text(texts)])


def adapters(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLoRALinear)}


def train_a_little(model, scale=0.3):
    """Give every adapter values, as training would."""
    for layer in adapters(model).values():
        nn.init.normal_(layer.lora_B, std=scale)


@pytest.fixture
def batch():
    return torch.randn(3, 3, 32, 32), torch.randint(1, 50, (3, 12))


@pytest.mark.parametrize("config", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("base", ["dense weights", "pruned weights"])
def test_merge_keeps_the_zero_set(clip, batch, config, base):
    small = pruned(clip, **config)
    masks = vlprune.masks(small)
    model = clip if base == "dense weights" else small
    before = {name: p.clone() for name, p in model.named_parameters()}
    add_sparse_lora_(model, SparseLoRAConfig(rank=3), masks if base == "dense weights" else None)
    train_a_little(model)
    trained = outputs(model, *batch)
    merge_sparse_lora_(model)
    after = vlprune.masks(model)
    assert after.keys() == masks.keys()
    assert all(torch.equal(after[name], masks[name]) for name in masks)
    # merged and adapted layers multiply with the same weights, bit for bit
    assert torch.equal(outputs(model, *batch), trained)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(masks)
    kept = [(p - before[name])[masks[name]] for name, p in model.named_parameters() if name in masks]
    assert all((difference != 0).float().mean() > 0.99 for difference in kept)


def test_plain_lora_loses_the_zeros_and_is_the_sum_it_says(clip):
    layer = nn.Linear(8, 6)
    model = nn.Sequential(layer)
    weight, keep = layer.weight.detach().clone(), torch.rand(6, 8) < 0.5
    add_sparse_lora_(model, SparseLoRAConfig(rank=2, alpha=3, sparse=False), {"0.weight": keep})
    train_a_little(model)
    a, b = model[0].lora_A.detach().clone(), model[0].lora_B.detach().clone()
    x = torch.randn(5, 8)
    found = model(x)
    expected = weight * keep + 1.5 * b @ a
    torch.testing.assert_close(found, x @ expected.T + layer.bias, rtol=1e-5, atol=1e-5)
    merge_sparse_lora_(model)
    torch.testing.assert_close(model[0].weight, expected, rtol=1e-6, atol=1e-6)
    assert (model[0].weight == 0).sum() == 0


def test_student_and_teacher_in_one_module(clip, batch):
    small = pruned(clip, pattern="2:4")
    dense = copy.deepcopy(clip)
    names = add_sparse_lora_(clip, SparseLoRAConfig(rank=2), vlprune.masks(small))
    # three image and two text blocks with qkv, out_proj, c_fc and c_proj
    assert len(names) == 20
    # B = 0: the student is the pruned model; only the order of sums in attention may differ
    torch.testing.assert_close(outputs(clip, *batch), outputs(small, *batch), rtol=1e-4, atol=1e-5)
    train_a_little(clip)
    student = outputs(clip, *batch)
    with pytest.raises(KeyError), dense_teacher(clip):
        {}["an error inside"]
    assert torch.equal(outputs(clip, *batch), student)
    with dense_teacher(clip), dense_teacher(clip):
        torch.testing.assert_close(outputs(clip, *batch), outputs(dense, *batch), rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs(clip, *batch), student)
    assert (student - outputs(dense, *batch)).abs().max() > 0.1


def test_only_adapters_train_and_merging_gives_back_what_did(clip, batch):
    clip.logit_scale.requires_grad_(False)
    weight = clip.visual.transformer.resblocks[0].attn.in_proj_weight
    kinds = {name: type(m) for name, m in clip.named_modules()}
    add_sparse_lora_(clip, SparseLoRAConfig(targets=("visual",)))
    trainable = {name for name, p in clip.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.lora_{side}" for name in adapters(clip) for side in "AB"}
    outputs(clip, *batch).square().sum().backward()
    assert {name for name, p in clip.named_parameters() if p.grad is not None} == trainable
    merge_sparse_lora_(clip)
    assert {name: type(m) for name, m in clip.named_modules()} == kinds
    assert clip.visual.transformer.resblocks[0].attn.in_proj_weight is weight
    assert [name for name, p in clip.named_parameters() if not p.requires_grad] == ["logit_scale"]


def test_initial_values(clip):
    add_sparse_lora_(clip, SparseLoRAConfig(rank=6))
    for layer in adapters(clip).values():
        # Kaiming-uniform with a = sqrt 5: bound sqrt(6 / ((1 + 5) fan_in)) = 1 / sqrt(in)
        bound = layer.in_features**-0.5
        assert layer.lora_A.abs().max() <= bound
        # of 6 * 48 or more uniform draws the largest is near the bound
        assert layer.lora_A.abs().max() > 0.95 * bound
        assert (layer.lora_B == 0).all()
        assert layer.keep.dtype == torch.bool


def test_rank_and_alpha_by_tower_and_layer(clip):
    config = SparseLoRAConfig(
        rank={"*.c_fc": 5, "visual": 4, "text": 2}, alpha={"visual": 16, "*": 8}, ignore=("*.out_proj",)
    )
    add_sparse_lora_(clip, config)
    found = {name: (layer.rank, layer.scale) for name, layer in adapters(clip).items()}
    assert found["visual.transformer.resblocks.2.mlp.c_fc"] == (5, 16 / 5)
    assert found["visual.transformer.resblocks.0.attn.qkv"] == (4, 4.0)
    assert found["transformer.resblocks.1.mlp.c_fc"] == (5, 8 / 5)
    assert found["transformer.resblocks.1.mlp.c_proj"] == (2, 4.0)
    assert not any("out_proj" in name for name in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_weights_with_float32_adapters(dtype):
    model = nn.Sequential(nn.Linear(32, 24)).to(dtype)
    weight, keep = model[0].weight, torch.rand(24, 32) < 0.5
    dense = weight.detach().double()
    add_sparse_lora_(model, SparseLoRAConfig(rank=2, alpha=2), {"0.weight": keep})
    train_a_little(model)
    a, b = model[0].lora_A, model[0].lora_B
    assert a.dtype == torch.float32
    expected = (dense + b.detach().double() @ a.detach().double()) * keep
    x = torch.randn(3, 32, dtype=dtype)
    student = model(x)
    student.float().sum().backward()
    assert b.grad.dtype == torch.float32
    merge_sparse_lora_(model)
    assert model[0].weight is weight
    assert weight.dtype == dtype
    unit = torch.finfo(dtype).eps / 2
    # rounded to half precision once, after float32 sums
    assert ((weight.double() - expected).abs() <= expected.abs() * unit + 1e-6).all()
    assert torch.equal(weight != 0, keep)
    assert torch.equal(model(x), student)


def test_an_entry_that_training_cancels_stays_in_the_mask():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, 2.0]]))
    add_sparse_lora_(model, SparseLoRAConfig(rank=1, alpha=1))
    with torch.no_grad():
        model[0].lora_A.copy_(torch.tensor([[1.0, 0.0]]))
        model[0].lora_B.fill_(-0.5)
    merge_sparse_lora_(model)
    assert model[0].weight.tolist() == [[torch.finfo(torch.float32).tiny, 2.0]]


def test_compacted_model(clip, batch):
    kept = {"heads": {0: [0, 2], 1: [1]}, "neurons": {0: list(range(0, 256, 3))}, "layers": [0, 1]}
    vlprune.compact_(clip, {"visual": kept})
    vlprune.prune_(clip, vlprune.MagnitudeConfig(pattern="unstructured", sparsity=0.4))
    masks = vlprune.masks(clip)
    attention = clip.visual.transformer.resblocks[0].attn
    assert isinstance(attention, PackedAttention)
    add_sparse_lora_(clip, SparseLoRAConfig(rank=2))
    train_a_little(clip)
    trained = outputs(clip, *batch)
    merge_sparse_lora_(clip)
    assert clip.visual.transformer.resblocks[0].attn is attention
    after = vlprune.masks(clip)
    assert after.keys() == masks.keys()
    assert all(torch.equal(after[name], masks[name]) for name in masks)
    assert torch.equal(outputs(clip, *batch), trained)


def test_masks_of_cross_attention_that_is_not_split():
    model = zoo.build("coca")
    small = pruned(model, pattern="2:4")
    masks = vlprune.masks(small)
    assert any("cross_attn" in name and name.endswith("in_proj_weight") for name in masks)
    add_sparse_lora_(model, SparseLoRAConfig(rank=2), masks)
    train_a_little(model)
    merge_sparse_lora_(model)
    after = vlprune.masks(model)
    assert after.keys() == masks.keys()
    assert all(torch.equal(after[name], masks[name]) for name in masks)


def test_attention_split_before_stays_split(clip):
    vlprune.split_attention_(clip)
    add_sparse_lora_(clip, SparseLoRAConfig())
    merge_sparse_lora_(clip)
    assert isinstance(clip.visual.transformer.resblocks[0].attn, PackedAttention)


@torch.no_grad()
def test_module_without_towers_leaves_layers_alone_that_are_not_called():
    inner = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.MultiheadAttention(8, 2), inner, nn.ModuleList([nn.Linear(8, 4)])).eval()
    assert add_sparse_lora_(model, SparseLoRAConfig(rank=2)) == ["2.0"]
    with pytest.raises(ValueError, match="matches no layer"):
        add_sparse_lora_(inner)


def test_copy_of_a_model_with_adapters_merges_alone(clip, batch):
    add_sparse_lora_(clip, SparseLoRAConfig(rank=2))
    train_a_little(clip)
    other = copy.deepcopy(clip)
    expected = outputs(other, *batch)
    merge_sparse_lora_(other)
    assert torch.equal(outputs(other, *batch), expected)
    assert len(adapters(clip)) == 20
    assert torch.equal(outputs(clip, *batch), expected)


def linear24_inside(model):
    vlprune.prune_(model, vlprune.MagnitudeConfig(pattern="2:4"))
    mlp = model.visual.transformer.resblocks[0].mlp
    mlp.c_fc = Linear24.from_linear(mlp.c_fc)


FC = "visual.transformer.resblocks.0.mlp.c_fc.weight"
BAD = {
    "unknown mask": ({}, {"nowhere.weight": torch.ones(2, 2).bool()}, "'nowhere.weight' is no parameter"),
    "mask shape": ({}, {FC: torch.ones(2, 2).bool()}, r"c_fc.weight expects bool \(256, 64\)"),
    "mask dtype": ({}, {FC: torch.ones(256, 64)}, r"expects bool \(256, 64\), got torch.float32"),
    "mask of another layer": (
        {"targets": ("text",)},
        {FC: torch.zeros(256, 64).bool()},
        "its layer is not among the targets",
    ),
    "no such target": ({"targets": ("*.c_fcc",)}, {}, r"'\*.c_fcc' matches no layer; nearest"),
    "nothing left": ({"ignore": ("*",)}, {}, "leave none of the 20"),
    "rank of no layer": ({"rank": {"text": 2}}, {}, "rank: none of 'text' fits layer visual"),
}


@pytest.mark.parametrize(("config", "masks", "message"), BAD.values(), ids=BAD)
def test_bad_input_changes_nothing(clip, config, masks, message):
    before = [(name, type(m)) for name, m in clip.named_modules()]
    with pytest.raises(ValueError, match=message):
        add_sparse_lora_(clip, SparseLoRAConfig(**config), masks)
    assert [(name, type(m)) for name, m in clip.named_modules()] == before
    assert all(p.requires_grad for p in clip.parameters())


def test_refusals(clip):
    with pytest.raises(ValueError, match="has no adapters"):
        merge_sparse_lora_(clip)
    add_sparse_lora_(clip)
    with pytest.raises(ValueError, match="has adapters already"):
        add_sparse_lora_(clip)
    layer = next(iter(adapters(clip).values()))
    layer.lora_B.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="values that are not finite"):
        merge_sparse_lora_(clip)
    assert len(adapters(clip)) == 20
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"1\.weight: it is also 0\.weight"):
        add_sparse_lora_(tied)


def test_weight_that_overflows_is_not_merged(clip):
    clip.half()
    add_sparse_lora_(clip, SparseLoRAConfig(rank=1, alpha=1))
    first, *_, last = adapters(clip).values()
    before = first.weight.detach().clone()
    nn.init.ones_(first.lora_B)
    nn.init.constant_(last.lora_A, 300.0)
    nn.init.constant_(last.lora_B, 300.0)
    with pytest.raises(ValueError, match="with its adapter it holds values that are not finite"):
        merge_sparse_lora_(clip)
    assert torch.equal(first.weight, before)


def test_failure_half_way_changes_nothing(clip, monkeypatch):
    made = []

    def fail(linear, *given, **options):
        if len(made) == 3:
            raise MemoryError("no room")
        made.append(linear)
        return SparseLoRALinear(linear, *given, **options)

    before = [(name, type(m)) for name, m in clip.named_modules()]
    monkeypatch.setattr("vlprune.recovery.adapters.SparseLoRALinear", fail)
    with pytest.raises(MemoryError):
        add_sparse_lora_(clip)
    assert [(name, type(m)) for name, m in clip.named_modules()] == before
    assert all(p.requires_grad for p in clip.parameters())


def test_layers_with_adapters_are_neither_adapted_nor_pruned(clip):
    assert "transformer.resblocks.0.mlp.c_fc" in add_sparse_lora_(clip.visual)
    message = r"visual\S+c_fc: a SparseLoRALinear cannot {}; ignore it, or put its adapter into its weight"
    with pytest.raises(ValueError, match=message.format("carry an adapter")):
        add_sparse_lora_(clip, SparseLoRAConfig(targets=("visual.*.c_fc",)))
    with pytest.raises(ValueError, match=message.format("be pruned")):
        vlprune.prune_(clip, vlprune.MagnitudeConfig(targets=("visual.*.c_fc",)))
    assert all(layer.weight.all() for layer in adapters(clip).values())


def test_weight_that_is_computed_is_refused(clip):
    layer = clip.visual.transformer.resblocks[0].mlp.c_fc
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(ValueError, match=r"c_fc: its weight is computed by a parametrization"):
        add_sparse_lora_(clip)


def test_packed_layer_is_refused(clip):
    linear24_inside(clip)
    with pytest.raises(ValueError, match="a Linear24 cannot carry an adapter"):
        add_sparse_lora_(clip)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 0}, "rank: expected a whole number of at least 1, got 0"),
        ({"rank": {"visual": 2.5}}, "rank: expected a whole number of at least 1, got 2.5"),
        ({"rank": {}}, "rank: expected at least one pattern"),
        ({"alpha": float("nan")}, "alpha: expected a number above 0, got nan"),
        ({"targets": "visual"}, "targets: expected a sequence of texts, got 'visual'"),
        ({"sparse": 1}, "sparse: expected True or False, got 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        SparseLoRAConfig(**config)


def test_config_goes_to_json_and_back():
    config = SparseLoRAConfig(rank={"visual": 4, "text": 8}, targets=("*.c_fc", "text"), sparse=False)
    assert SparseLoRAConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown field 'ranks'"):
        SparseLoRAConfig.from_dict({"ranks": 3})
    with pytest.raises(ValueError, match="version: this vlprune reads 1 to 1, got 2"):
        SparseLoRAConfig.from_dict({"version": 2})
