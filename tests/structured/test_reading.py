"""Of the last block only those tokens are computed that the embedding is read from."""

import pytest
import torch
from models.zoo import build, inputs

from vlprune import models
from vlprune.models.parts import block_parts
from vlprune.reuse import Memory, outside
from vlprune.structured.reading import read_tokens

from .cases import round_rows_alike_


def found(model, tower, encode, batch):
    blocks = [block.module for block in models.view(model).towers[tower].blocks]
    round_rows_alike_(blocks[-1])
    around = Memory(outside(model, blocks))
    full = around.record(lambda: encode(batch))
    return read_tokens(blocks, lambda: encode(batch), full, around), full, blocks


def rows_of(layer, run):
    """How many rows a layer computes in a run."""
    rows = []
    handle = layer.register_forward_hook(lambda _, __, out: rows.append(out.shape[:-1].numel()))
    run()
    handle.remove()
    return sum(rows)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "custom-blocks", "half"])
def test_the_class_token(kind):
    model = build(kind)
    models.split_attention_(model)
    pictures = inputs(model, 5)[0]
    tokens, full, blocks = found(model, "visual", model.encode_image, pictures)
    parts = block_parts(blocks[-1])
    with tokens.alone():
        assert torch.equal(model.encode_image(pictures), full)
        out = {}
        handle = blocks[-1].register_forward_hook(lambda _, __, hidden: out.update(last=hidden))
        assert rows_of(parts.mlp.fc1, lambda: model.encode_image(pictures)) == 5
        handle.remove()
    assert out["last"][:, 0].isfinite().all()
    assert out["last"][:, 1:].isnan().all()
    # afterwards nothing is left
    assert torch.equal(model.encode_image(pictures), full)
    assert rows_of(parts.mlp.fc1, lambda: model.encode_image(pictures)) == 5 * 17


@torch.no_grad()
def test_the_end_of_each_text():
    model = build("clip")
    models.split_attention_(model)
    texts = torch.tensor([[1, 2, 49, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8, 49], [49, *[0] * 8]])
    tokens, full, blocks = found(model, "text", model.encode_text, texts)
    out = {}
    handle = blocks[-1].register_forward_hook(lambda _, __, hidden: out.update(last=hidden))
    with tokens.alone():
        assert torch.equal(model.encode_text(texts), full)
    handle.remove()
    assert out["last"].isfinite().all(-1).nonzero().tolist() == [[0, 2], [1, 8], [2, 0]]


@pytest.mark.parametrize("kind", ["siglip-like", "pooler", "coca", "timm"])
def test_where_all_tokens_are_read_none_is_left_out(kind):
    model = build(kind)
    models.split_attention_(model)
    assert found(model, "visual", model.encode_image, inputs(model, 3)[0])[0] is None


@pytest.mark.parametrize("places", [(1, 2), (0, 16), (16,)], ids=str)
def test_several_tokens_are_not_taken_for_one(places):
    model = build("clip")
    models.split_attention_(model)

    def encode(pictures):
        hidden = {}
        norm = model.visual.ln_post.register_forward_hook(lambda _, __, out: hidden.update(all=out))
        model.encode_image(pictures)
        norm.remove()
        return hidden["all"][:, list(places)].sum(1)

    tokens, _, _ = found(model, "visual", encode, inputs(model, 3)[0])
    assert (tokens is None) == (len(places) > 1)


def test_rounding_that_differs_is_not_taken():
    model = build("clip")
    models.split_attention_(model)
    fc2 = block_parts(models.view(model).towers["visual"].blocks[-1]).mlp.fc2
    # a product that rounds otherwise where it has few rows
    fc2.register_forward_pre_hook(lambda _, args: (args[0] * (1 if args[0].shape[1] > 1 else 1 + 2**-20),))
    assert found(model, "visual", model.encode_image, inputs(model, 3)[0])[0] is None
