"""Keep lists that differ from layer to layer, and the zeros that say the same in a model's weights."""

import random

import torch

from vlprune import models
from vlprune.models.parts import block_parts


def uneven(model, heads=True, neurons=True, layers=True, seed=0):
    """Keep lists of other counts in every layer; the first loses all of its heads, the last all neurons."""
    draw = random.Random(seed)
    lists = {}
    for name, tower in models.view(model).towers.items():
        blocks = [b for b in tower.blocks if not b.name.startswith("text_decoder.")]
        parts = [block_parts(b) for b in blocks]
        own = lists[name] = {}
        if heads and (name != "visual" or not hasattr(tower.module, "trunk")):
            totals = [p.attention.num_heads for p in parts]
            own["heads"] = {i: draw.sample(range(n), draw.randint(1, n)) for i, n in enumerate(totals)}
            own["heads"][0] = []
        elif heads:
            own["heads"] = {i: [i % p.attention.num_heads] for i, p in enumerate(parts)}
        if neurons:
            totals = [p.mlp.neurons for p in parts]
            own["neurons"] = {i: draw.sample(range(n), draw.randint(1, n)) for i, n in enumerate(totals)}
            own["neurons"][len(blocks) - 1] = []
        if layers and len(tower.blocks) == len(blocks):
            own["layers"] = [b.index for b in blocks if b.index != 1]
    return lists


@torch.no_grad()
def zero_out_(model, lists):
    """Zero the weights through which all that is not kept speaks, parameter by parameter; by hand."""
    for name, own in lists.items():
        for block in models.view(model).towers[name].blocks:
            i, parts = block.index, block_parts(block)
            out, fc2 = parts.attention.out_proj, parts.mlp.fc2
            for kept, layer, width in (
                (own.get("heads", {}).get(i), out, parts.attention.head_dim),
                (own.get("neurons", {}).get(i), fc2, 1),
            ):
                if kept is not None:
                    gone = sorted(set(range(layer.in_features // width)) - set(kept))
                    layer.weight.unflatten(1, (-1, width))[:, gone] = 0.0
            if i not in own.get("layers", [i]):
                for layer in (out, fc2):
                    layer.weight.zero_()
                    layer.bias.zero_()
