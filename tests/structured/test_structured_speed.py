"""What the benchmark of structure counts and takes out."""

import copy

import torch
from models.zoo import build

from benchmarks.structured_speed import evenly, flops
from vlprune.structured import compact_


def by_hand(model, batch):
    """Twice the products of one image forward, from the sizes of its weights."""
    visual = model.visual
    conv = visual.conv1.weight
    patches = visual.positional_embedding.shape[0] - 1
    total = patches * conv.numel() + visual.proj.numel()
    for block in visual.transformer.resblocks:
        attention = block.attn
        qkv = getattr(attention, "in_proj_weight", None)
        qkv = attention.qkv.weight if qkv is None else qkv
        inner = qkv.shape[0] // 3
        weights = (qkv, attention.out_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight)
        total += (patches + 1) * sum(weight.numel() for weight in weights)
        # queries with keys, and shares with values
        total += 2 * (patches + 1) ** 2 * inner
    return 2 * batch * total


def test_half_of_every_layer_goes_and_its_operations_are_counted():
    model = build("clip")
    images = torch.randn(3, 3, *2 * (model.visual.image_size[0],))
    small = copy.deepcopy(model)
    kept = evenly(small, 0.5)
    report = compact_(small, kept)
    for layer in report.layers:
        share = 2 if layer.tower == "visual" else 1
        assert layer.heads[0] == share * layer.heads[1]
        assert layer.neurons[0] == share * layer.neurons[1]
    assert all(len(set(own)) == len(own) for kind in kept["visual"].values() for own in kind.values())
    assert flops(model, images) == by_hand(model, 3)
    assert flops(small, images) == by_hand(small, 3)
    assert 1.5 < flops(model, images) / flops(small, images) < 2.0
