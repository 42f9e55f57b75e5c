"""Modules taken out: outputs equal those of the model in which they are silent."""

import copy

import pytest
import torch
from models.zoo import VISION, assert_close, build, inputs, outputs
from torch import nn

import vlprune
from vlprune import models
from vlprune.models.build import build_model
from vlprune.models.parts import block_parts
from vlprune.nn import PackedAttention
from vlprune.structured import compact_, mask_modules

from .cases import uneven, zero_out_

# transformers' attention and norms over all heads or neurons cannot lose any: see test_compact_errors.py
WHAT = {
    "clip": {},
    "siglip-like": {},
    "custom-text": {},
    "pooler": {},
    "coca": {},
    "timm": {},
    "half": {},
    "hf": {"heads": False},
    "custom-blocks": {"heads": False, "neurons": False},
}


@pytest.mark.parametrize("kind", WHAT)
def test_removal_equals_masking_and_masking_equals_zeroed_weights(kind, tmp_path):
    model = build(kind, tmp_path)
    # biases that are zero would hide one that went missing
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    lists = uneven(model, **WHAT[kind])
    full = outputs(model)
    with mask_modules(model, lists):
        masked = outputs(model)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), full, strict=True))
    zeroed = copy.deepcopy(model)
    if kind not in ("custom-blocks", "hf"):
        # a norm behind a layer's output hears its silence: there only skipping is like removal
        zero_out_(zeroed, lists)
        assert_close(masked, outputs(zeroed))
    compact_(model, lists)
    assert_close(outputs(model), masked)
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(outputs(model), full, strict=True))


def test_every_tensor_has_the_size_that_is_left():
    model = build("clip")
    visual = models.view(model).towers["visual"]
    before = copy.deepcopy(visual.blocks[2].module)
    compact_(model, {"visual": {"heads": {2: [3, 1]}, "neurons": {2: [9, 0, 4]}, "layers": [0, 2]}})
    block = model.visual.transformer.resblocks[1]
    assert len(model.visual.transformer.resblocks) == model.visual.transformer.layers == 2
    assert isinstance(block.attn, PackedAttention)
    assert (block.attn.num_heads, block.attn.head_dim, block.attn.kept_heads) == (2, 16, (1, 3))
    # head 1 is rows 16 to 31 of q, k and v, head 3 is 48 to 63; a third has 64 rows
    rows = [t * 64 + h * 16 + i for t in range(3) for h in (1, 3) for i in range(16)]
    assert torch.equal(block.attn.qkv.weight, before.attn.in_proj_weight[rows])
    assert torch.equal(block.attn.qkv.bias, before.attn.in_proj_bias[rows])
    assert torch.equal(block.attn.out_proj.weight, before.attn.out_proj.weight[:, rows[:32]])
    assert torch.equal(block.attn.out_proj.bias, before.attn.out_proj.bias)
    assert torch.equal(block.mlp.c_fc.weight, before.mlp.c_fc.weight[[0, 4, 9]])
    assert torch.equal(block.mlp.c_fc.bias, before.mlp.c_fc.bias[[0, 4, 9]])
    assert torch.equal(block.mlp.c_proj.weight, before.mlp.c_proj.weight[:, [0, 4, 9]])
    sizes = [(m.in_features, m.out_features) for m in (block.attn.qkv, block.mlp.c_fc, block.mlp.c_proj)]
    assert sizes == [(64, 96), (64, 3), (3, 64)]


def test_what_loses_nothing_is_left_alone():
    model = build("clip")
    before = dict(model.named_parameters())
    full = {"heads": {0: [3, 2, 1, 0]}, "neurons": {0: range(256)}, "layers": (0, 1, 2)}
    report = compact_(model, {"visual": full, "text": {}})
    assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, p in before.items()}
    assert type(model.visual.transformer.resblocks[0].attn) is nn.MultiheadAttention
    assert report.parameters[0] == report.parameters[1]


def test_a_second_call_counts_what_the_first_one_left():
    twice, once = build("clip"), build("clip")
    compact_(twice, {"visual": {"heads": {1: [0, 2, 3]}, "neurons": {2: range(100, 200)}, "layers": [1, 2]}})
    compact_(twice, {"visual": {"heads": {0: [1, 2]}, "neurons": {1: [0, 99]}}})
    compact_(once, {"visual": {"heads": {1: [2, 3]}, "neurons": {2: [100, 199]}, "layers": [1, 2]}})
    assert twice.visual.transformer.resblocks[0].attn.kept_heads == (2, 3)
    for (name, a), (_, b) in zip(twice.state_dict().items(), once.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_scales_of_heads_go_with_their_heads():
    from models.zoo import TEXT
    from open_clip.model import CLIP

    torch.manual_seed(1)
    options = {"block_type": "custom", "scaled_cosine_attn": True, "scale_heads": True, "scale_attn": True}
    options["ls_init_value"] = 0.3
    model = CLIP(32, VISION | options, TEXT | options).eval()
    for name, parameter in model.named_parameters():
        if "scale" in name:
            nn.init.normal_(parameter, 1.0, 0.3)
    models.split_attention_(model)
    lists = uneven(model)
    with mask_modules(model, lists):
        masked = outputs(model)
    compact_(model, lists)
    assert_close(outputs(model), masked)


def test_zeros_stay_zero_and_a_broken_pattern_is_told():
    model = build("clip")
    vlprune.prune_(model, vlprune.MagnitudeConfig(pattern="2:4"))
    lists = {"visual": {"heads": {i: [0, 3] for i in range(3)}, "neurons": {0: range(0, 256, 3)}}}
    with mask_modules(model, lists):
        masked = outputs(model)
    report = compact_(model, lists)
    assert_close(outputs(model), masked)
    assert "1 second MLP layers are not 2:4 any more" in str(report)
    pattern = vlprune.patterns.Pattern.parse("2:4")
    for block in models.view(model).towers["visual"].blocks:
        attention, mlp = block_parts(block).attention, block_parts(block).mlp
        layers = {**attention.inputs, "out": attention.out_proj, "fc1": mlp.fc1}
        assert all(pattern.holds(layer.weight) for layer in layers.values())
        assert float((mlp.fc2.weight == 0).float().mean()) > 0.4


def test_requires_grad_training_mode_and_dtype_stay():
    model = build("half").train()
    block = model.visual.transformer.resblocks[0]
    block.attn.in_proj_weight.requires_grad_(False)
    block.mlp.c_proj.weight.requires_grad_(False)
    compact_(model, {"visual": {"heads": {0: [1]}, "neurons": {0: [1, 2]}}})
    attention, mlp = block.attn, block.mlp
    frozen = [p.requires_grad for p in (attention.qkv.weight, attention.qkv.bias, mlp.c_proj.weight)]
    assert frozen == [False, True, False]
    assert all(m.training for m in model.modules())
    assert {p.dtype for p in (attention.qkv.weight, mlp.c_fc.bias)} == {torch.bfloat16}
    model(*inputs(model))[0].sum().backward()
    assert attention.qkv.bias.grad.shape == (48,)


def test_works_under_inference_mode():
    model = build("clip")
    with torch.inference_mode():
        compact_(model, {"visual": {"heads": {0: [1]}, "neurons": {0: [1, 2]}}})
    assert not any(p.is_inference() for p in model.parameters())


def test_report_of_every_layer():
    model = build("clip")
    lists = {"visual": {"heads": {0: [1], 2: [0]}, "neurons": {1: range(100)}, "layers": [0, 1]}}
    report = compact_(model, lists, notes=["neurons: 99 of 256 rounded to 100, because"])
    sizes = [(layer.tower, layer.layer, layer.stays, layer.heads, layer.neurons) for layer in report.layers]
    assert sizes == [
        ("visual", 0, True, (4, 1), (256, 256)),
        ("visual", 1, True, (4, 4), (256, 100)),
        ("visual", 2, False, (4, 0), (256, 0)),
        ("text", 0, True, (2, 2), (128, 128)),
        ("text", 1, True, (2, 2), (128, 128)),
    ]
    assert report.parameters[1] == sum(p.numel() for p in model.parameters())
    first, visual, _, note = str(report).splitlines()
    assert first.startswith(f"{report.parameters[0]:,} -> {report.parameters[1]:,} parameters (")
    assert visual == "visual: 2 of 3 layers, 5 of 12 heads, 356 of 768 neurons"
    assert note == "neurons: 99 of 256 rounded to 100, because"
    assert report.to_dict()["layers"][2]["name"] == "visual.transformer.resblocks.2"


# ViT-L/14 of OpenAI; MoPE-CLIP (arXiv 2403.07839) compresses it to these widths and depths
@pytest.mark.parametrize(
    ("heads", "neurons", "layers", "parameters"),
    [
        (16, 4096, 24, 303_966_208),
        (8, 2048, 24, 152_885_248),
        (6, 1536, 24, 115_115_008),
        (4, 1024, 24, 77_344_768),
        (8, 2048, 12, 77_271_040),
    ],
)
def test_parameters_of_a_smaller_vit_l_14(heads, neurons, layers, parameters):
    import open_clip

    model = build_model(open_clip.get_model_config("ViT-L-14"), device="meta")
    lists = {kind: {i: range(n) for i in range(24)} for kind, n in (("heads", heads), ("neurons", neurons))}
    compact_(model, {"visual": lists | {"layers": range(layers)}})
    assert sum(p.numel() for p in model.visual.parameters()) == parameters


@pytest.mark.parametrize("kind", ["clip", "custom-text"])
def test_compiles_into_one_graph(kind):
    model = build(kind)
    compact_(model, uneven(model))
    torch._dynamo.reset()
    images, _ = inputs(model)
    with torch.no_grad():
        compiled = torch.compile(model.visual, fullgraph=True, backend="eager")
        assert_close([compiled(images)], [model.visual(images)])


@pytest.mark.slow  # a C++ compiler builds the kernels
def test_compiles_with_the_default_compiler():
    model = build("clip")
    compact_(model, uneven(model))
    torch._dynamo.reset()
    images, _ = inputs(model)
    with torch.no_grad():
        assert_close([torch.compile(model.visual, fullgraph=True)(images)], [model.visual(images)])


def test_exports():
    model = build("clip")
    compact_(model, uneven(model))
    images, texts = inputs(model)
    with torch.no_grad():
        exported = torch.export.export(model, (images, texts)).module()
        for ours, theirs in zip(exported(images, texts), model(images, texts), strict=True):
            torch.testing.assert_close(ours, theirs)
