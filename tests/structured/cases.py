"""Keep lists that differ from layer to layer, the zeros that say the same in weights, and small data sets."""

import random

import torch
from PIL import Image

from vlprune import models
from vlprune.data import LabelledData, PairData
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


class Numbered:
    """An image source that says which image it is."""

    def __init__(self, number):
        self.number = number
        self.name = f"image {number}"

    def open(self):
        return Image.new("RGB", (1, 1), (self.number, 0, 0))


class Pixels:
    """A preprocess that looks random images up by the number of their source."""

    def __init__(self, model, count):
        size = model.visual.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        self.table = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(7))

    def __call__(self, image):
        return self.table[image.getpixel((0, 0))[0]]


def token_ids(texts):
    """Ids of nine tokens that depend on the text alone, of three to nine words."""
    rows = []
    for text in texts:
        draw = random.Random(text)
        words = [draw.randint(1, 48) for _ in range(draw.randint(3, 9))]
        rows.append([*words, *[0] * (9 - len(words))])
    return torch.tensor(rows)


def pair_data(model, count=20, captions=2):
    """Random images for a model of the zoo, each with captions."""
    texts = [[f"caption {j} of {i}" for j in range(1 + i % captions)] for i in range(count)]
    return PairData([Numbered(i) for i in range(count)], texts, Pixels(model, count), token_ids)


def labelled_data(model, count=30, classes=5):
    """Random images for a model of the zoo in classes, with two templates."""
    labels = [i % classes for i in range(count)]
    names = [f"class {c}" for c in range(classes)]
    data = LabelledData([Numbered(i) for i in range(count)], labels, names, Pixels(model, count), token_ids)
    data.templates = ["a photo of a {}.", "a drawing of {}"]
    return data


def round_rows_alike_(block):
    """Let a block's linear layers add up every row in the same order, however many rows there are."""
    parts = block_parts(block)
    for layer in (parts.attention.out_proj, parts.mlp.fc1, parts.mlp.fc2):

        def forward(x, layer=layer):
            return (x[..., None, :] * layer.weight).sum(-1) + layer.bias

        layer.forward = forward
