"""Modules taken out of models of real size, and of the trained one."""

import shutil

import pytest
import torch

import vlprune
from vlprune import demo, models
from vlprune.models.build import build_model
from vlprune.structured import compact_, mask_modules

from .cases import uneven


def random_model(name, towers, image_size):
    """A registered open_clip model with random weights, and its config; a tower not asked for is small."""
    import open_clip

    config = open_clip.get_model_config(name)
    config["vision_cfg"]["image_size"] = image_size
    if "text" not in towers:
        config["text_cfg"] |= {"width": 64, "heads": 1, "layers": 1, "vocab_size": 50}
    # no_causal_mask: the mask is computed at construction, which on meta gives no values
    config["text_cfg"]["no_causal_mask"] = True
    model = build_model(config, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.uniform_(0.2, 1.0, generator=generator)
            else:
                # outputs of a layer as large as its inputs, so that every layer is heard at the end
                bound = (3.0 / parameter[0].numel()) ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
    return model, config


@torch.no_grad()
def run(model, towers):
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(1, 3, *model.visual.image_size, generator=generator)
    found = [model.encode_image(images)] if "visual" in towers else []
    if "text" in towers:
        found.append(model.encode_text(torch.randint(1, 49, (1, 77), generator=generator)))
    return found


@pytest.mark.parametrize(
    ("name", "towers", "image_size"),
    [
        ("ViT-B-32", "visual+text", 224),
        ("ViT-B-16", "visual", 224),
        # 304 million parameters to draw and to cut; fewer tokens to save time
        pytest.param("ViT-L-14", "visual", 112, marks=pytest.mark.slow),
    ],
)
def test_real_sizes_with_other_counts_in_every_layer(name, towers, image_size, tmp_path):
    model, config = random_model(name, towers, image_size)
    lists = {tower: own for tower, own in uneven(model).items() if tower in towers}
    full = run(model, towers)
    with mask_modules(model, lists):
        masked = run(model, towers)
    report = compact_(model, lists)
    assert report.parameters[1] < 0.75 * report.parameters[0]
    smaller = run(model, towers)
    for found, expected, before in zip(smaller, masked, full, strict=True):
        # sums of up to 4096 products in another order, carried through up to 23 layers
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
        assert float((found - before).abs().max()) > 0.05 * float(before.abs().max())
    vlprune.save_pretrained(model, tmp_path / "saved", config=config)
    back = run(vlprune.from_pretrained(tmp_path / "saved"), towers)
    shutil.rmtree(tmp_path / "saved")  # hundreds of megabytes, of which pytest would keep three runs
    assert all(torch.equal(one, other) for one, other in zip(back, smaller, strict=True))


def test_the_trained_model(tmp_path):
    model, preprocess, tokenizer = demo.load()
    data = vlprune.load_data("demo", preprocess, tokenizer)
    lists = uneven(model, seed=3)
    for own in lists.values():
        own["heads"][0] = [0]
    batch = next(iter(data.batches(16, limit=16)))

    @torch.no_grad()
    def features(model):
        both = model.encode_image(batch.images), model.encode_text(batch.texts)
        return [torch.nn.functional.normalize(f, dim=-1) for f in both]

    with mask_modules(model, lists):
        masked = features(model)
    compact_(model, lists)
    smaller = features(model)
    for found, expected in zip(smaller, masked, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert all(len(t.blocks) > 1 for t in models.view(model).towers.values())
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = features(vlprune.from_pretrained(tmp_path / "saved"))
    assert all(torch.equal(one, other) for one, other in zip(back, smaller, strict=True))
