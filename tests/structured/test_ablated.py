"""Embeddings without a module equal those of a full forward bit for bit, and little runs for them."""

from functools import partial
from itertools import count

import pytest
import torch
from models.zoo import build, inputs
from torch import nn

from vlprune import models
from vlprune.structured import mask_modules
from vlprune.structured.ablated import embeddings_without
from vlprune.structured.modules import removable_modules

from .cases import round_rows_alike_


@pytest.mark.parametrize("kind", ["clip", "custom-blocks", "pooler", "coca", "timm", "hf", "half"])
@pytest.mark.parametrize("across_layers", [False, True])
def test_every_module(kind, across_layers, tmp_path):
    model = build(kind, tmp_path)
    models.split_attention_(model)
    pictures, sentences = inputs(model, 5)
    for tower, batch in (("visual", pictures), ("text", sentences)):

        def encode(batch, tower=tower):
            return (model.encode_image if tower == "visual" else model.encode_text)(batch, normalize=True)

        removed = removable_modules(model, ["heads", "neurons", "layers"], [tower], 2, across_layers)
        removed.sort(key=lambda module: module.blocks[0].index)
        if kind == "timm":  # twelve layers
            removed = removed[::7]
        ticks = count()
        found = embeddings_without(model, encode, batch.split([3, 2]), removed, partial(next, ticks))
        assert next(ticks) == 2 * len(removed)
        with torch.no_grad():
            full = torch.cat([encode(part) for part in batch.split([3, 2])])
            for module, own in zip(removed, found, strict=True):
                with mask_modules(model, module.keep):
                    assert torch.equal(own, torch.cat([encode(part) for part in batch.split([3, 2])]))
        decoder = [any(b.name.startswith("text_decoder.") for b in m.blocks) for m in removed]
        same = [torch.equal(own, full) for own in found]
        assert not any(s and not d for s, d in zip(same, decoder, strict=True))


def test_only_what_comes_behind_the_module_runs():
    model = build("clip")
    models.split_attention_(model)
    round_rows_alike_(models.view(model).towers["visual"].blocks[-1].module)
    computed, rows = [], {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d):

            def noting(*args, name=name, forward=module.forward):
                computed.append(name.removeprefix("visual.").replace("transformer.resblocks.", ""))
                rows[computed[-1]] = args[0].shape[:-1].numel()
                return forward(*args)

            module.forward = noting
    runs = []

    def encode(batch):
        computed.clear()
        embeddings = model.encode_image(batch)
        runs.append(list(computed))
        return embeddings

    removed = [
        module
        for module in removable_modules(model, ["heads", "neurons", "layers"], ["visual"], 1, False)
        if module.layer == 1 and module.index in ((0, 1) if module.kind == "layers" else (0,))
    ]
    assert [module.kind for module in removed] == ["heads", "neurons", "layers"]
    pictures = inputs(model)[0]
    embeddings_without(model, encode, [pictures], removed, lambda: None)
    block = ["ln_1", "attn.qkv", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    behind = [f"2.{name}" for name in block] + ["ln_post"]
    # the whole tower once, its end until it is known what is read, the layer once more, then without each
    assert len(runs[0]) == 2 + 3 * len(block) + 1
    assert runs[1:-4] == [behind[:-1], *[["ln_post"]] * 5, behind]
    assert runs[-4:] == [
        [f"1.{name}" for name in block],
        ["1.attn.out_proj", "1.ln_2", "1.mlp.c_fc", "1.mlp.c_proj", *behind],
        ["1.mlp.c_proj", *behind],
        behind,
    ]
    # of the last layer the class token alone
    for name in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
        assert rows[f"2.{name}"] == len(pictures)
        assert rows[f"1.{name}"] == 17 * len(pictures)
