"""Token weights: padding, modality and drift against masks made by hand, in every kind of text tower."""

import json

import pytest
import torch
from models.zoo import TEXT, VISION, build, inputs

import vlprune
from vlprune import WandaConfig, models
from vlprune.calibration import Calibration, Run, block_by_block, collect
from vlprune.config import config_from_dict
from vlprune.models.tokens import real_tokens
from vlprune.token_weights import ATV, AttentionMask, Modality, Tokens, drift_of, token_weighting

END = 49  # the largest id: end of text where a tower pools at the largest
PADDED = torch.tensor(
    [[5, 7, 3, END, 0, 0, 0, 0, 0], [8, END, 0, 0, 0, 0, 0, 0, 0], [2, 4, 6, 8, 1, 3, 5, 9, END]]
)
LENGTHS = [4, 2, 9]


def first(lengths, total=9):
    """Bool [B, total], True for the first so many."""
    return torch.arange(total) < torch.tensor(lengths)[:, None]


def observed(model, token_weight, texts=PADDED):
    """Column norm of every layer of the model as it is, and the blocks."""
    models.split_attention_(model)
    blocks = {b.name: b for t in models.view(model).towers.values() for b in t.blocks}
    layers = {name: block.linears() for name, block in blocks.items()}
    calibration = Calibration()
    images = inputs(model, len(texts))[0]
    collect([Run(model, images, texts)], blocks, layers, calibration, token_weight)
    return {name: calibration.column_norm(name) for group in layers.values() for name in group}, images


def seen_by(model, images, texts, names):
    """Inputs of the layers, and (input, output) of the modules, by plain hooks."""
    seen = {}

    def note(name):
        def hook(_, args, out):
            seen[name] = args[0].clone(), (out[0] if isinstance(out, tuple) else out).clone()

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.no_grad():
        model(images, texts)
    for hook in hooks:
        hook.remove()
    return seen


def norm_of(x, mask):
    """Wanda's norm over the tokens where the mask [B, T] is True, in float64."""
    return (x[mask].double().square().sum(0) / len(x)).sqrt().float()


@pytest.mark.parametrize("kind", ["clip", "custom-text", "custom-blocks", "coca", "hf"])
def test_padding_does_not_count(kind, tmp_path):
    model = build(kind, tmp_path)
    norms, images = observed(model, AttentionMask())
    seen = seen_by(model, images, PADDED, norms)
    plain, _ = observed(model, None)
    differs = set()
    for name, norm in norms.items():
        x = seen[name][0]
        if name.startswith("visual.") or (name.endswith((".k_proj", ".v_proj")) and ".cross_attn." in name):
            mask = torch.ones(x.shape[:-1], dtype=torch.bool)
        elif x.shape[1] == 10:  # with a class token at the end
            mask = torch.cat([first(LENGTHS), torch.ones(3, 1, dtype=torch.bool)], 1)
        else:
            mask = first(LENGTHS)[:, : x.shape[1]]
        # 1e-5: float32 sums over some thirty tokens
        torch.testing.assert_close(norm, norm_of(x, mask), rtol=1e-5, atol=1e-7)
        if not torch.allclose(norm, plain[name]):
            differs.add(name)
    text = {name for name in norms if not name.startswith("visual.")}
    cross_kv = {name for name in text if ".cross_attn." in name and name.endswith((".k_proj", ".v_proj"))}
    assert differs == text - cross_kv


@pytest.mark.parametrize(
    ("pool", "options", "expected"),
    [
        ("argmax", {}, first(LENGTHS)),
        ("eos", {"eos_id": 3}, first([3, 9, 6])),  # no 3 in the second text: it counts in full
        ("last", {}, first(LENGTHS) | (torch.arange(9) == 8)),
        ("first", {"pad_id": 5}, PADDED.ne(5) | (torch.arange(9) == 0)),
        ("none", {"pad_id": 8}, PADDED.ne(8)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_real_tokens_of_a_tower_by_how_it_pools(pool, options, expected):
    from open_clip.model import CustomTextCLIP

    model = CustomTextCLIP(32, VISION, TEXT | {"pool_type": pool} | options)
    assert torch.equal(real_tokens(model, PADDED), expected)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [("argmax", first(LENGTHS)), ("eos", first([3, 9, 6])), ("last", first([9, 9, 9]))],
    ids=["argmax", "eos", "last"],
)
def test_real_tokens_of_clip_that_holds_its_text_tower_bare(pool, expected):
    from open_clip.model import CLIP

    model = CLIP(32, VISION, TEXT | {"pool_type": pool, "eos_id": 3})
    assert torch.equal(real_tokens(model, PADDED), expected)


def test_real_tokens_of_masking_towers(tmp_path):
    assert torch.equal(real_tokens(build("coca"), PADDED), PADDED != 0)
    assert torch.equal(real_tokens(build("hf", tmp_path), PADDED), PADDED != 0)


@pytest.mark.parametrize("kind", ["clip", "coca"])
def test_modality_scales_what_each_layer_sees(kind):
    model = build(kind)
    plain, _ = observed(model, None)
    norms, _ = observed(model, Modality(visual=4.0, text=0.25))
    for name, norm in norms.items():
        cross_kv = ".cross_attn." in name and name.endswith((".k_proj", ".v_proj"))
        factor = 2.0 if name.startswith("visual.") or cross_kv else 0.5
        torch.testing.assert_close(norm, plain[name] * factor, rtol=1e-6, atol=0)


def test_modality_without_images_names_the_layer(clip, batches):
    with pytest.raises(ValueError, match=r"visual\.\S+qkv: token_weight gives every calibration token of it"):
        vlprune.prune_(clip, WandaConfig(token_weight=Modality(visual=0)), batches)
    config = WandaConfig(token_weight=Modality(visual=0), targets=("text",))
    assert vlprune.prune_(clip, config, batches).sparsity == 0.5


def top_drifting(before, after, texts, alpha):
    """ATV's choice, token by token in plain Python."""
    mask = torch.zeros(before.shape[:2], dtype=torch.bool)
    for image in range(len(before)):
        drift = []
        for a, b in zip(before[image].double(), after[image].double(), strict=True):
            drift.append(1 - float(a @ b / (a.norm() * b.norm())))
        k = round(min(1, alpha * sum(drift) / len(drift)) * texts[image])
        k = max(1, min(len(drift), k))
        order = sorted(range(len(drift)), key=lambda token: -drift[token])
        mask[image, order[:k]] = True
    return mask


@pytest.mark.parametrize("alpha", [1.0, 0.3, 5.0])
@pytest.mark.parametrize("kind", ["clip", "custom-text", "timm", "hf"])
def test_atv_takes_the_visual_tokens_that_drift_most(kind, alpha, tmp_path):
    model = build(kind, tmp_path)
    models.split_attention_(model)
    for block in models.view(model).towers["visual"].blocks:
        for layer in block.linears().values():
            layer.weight.data.mul_(4)  # fresh weights hardly turn a token
    norms, images = observed(model, ATV(alpha))
    blocks = [block for tower in models.view(model).towers.values() for block in tower.blocks]
    seen = seen_by(model, images, PADDED, [*norms, *(block.name for block in blocks)])
    counts = []
    for block in blocks:
        before, after = seen[block.name]
        if block.tower == "visual":
            mask = top_drifting(before, after, LENGTHS, alpha)
            counts += mask.sum(1).tolist()
        else:
            mask = first(LENGTHS)
        for name in block.linears():
            torch.testing.assert_close(norms[name], norm_of(seen[name][0], mask), rtol=1e-5, atol=1e-7)
    assert len(set(counts)) > 1  # otherwise any fixed number would pass


def test_atv_in_coca_leaves_cross_attention_its_images():
    model = build("coca")
    norms, _ = observed(model, ATV())
    plain, _ = observed(model, AttentionMask())
    for name, norm in norms.items():
        assert torch.equal(norm, plain[name]) == (not name.startswith("visual.")), name


@pytest.mark.parametrize(
    ("drift", "real", "alpha", "expected"),
    [
        ([[0.5, 0.1, 0.5, 0.9]], 6, 1.0, [[True, False, True, True]]),  # mean .5: 3 of 4
        ([[0.5, 0.1, 0.5, 0.9]], 4, 1.0, [[True, False, False, True]]),  # 2: of equals the first
        ([[0.01, 0.0, 0.0, 0.0]], 9, 1.0, [[True, False, False, False]]),  # none would be left
        ([[0.5, 0.1, 0.5, 0.9]], 9, 10.0, [[True, True, True, True]]),  # min(1, 5) * 9 is more than all
    ],
    ids=["half", "ties", "at least one", "at most all"],
)
def test_atv_counts(drift, real, alpha, expected):
    tokens = Tokens(True, first([real]), torch.tensor(drift))
    assert ATV(alpha).weigh(torch.zeros(1, 4, 3), tokens).tolist() == expected


def test_atv_needs_pairs():
    tokens = Tokens(True, first(LENGTHS), torch.zeros(4, 17))
    with pytest.raises(ValueError, match="ATV needs a text for every image, got 4 images and 3 texts"):
        ATV().weigh(torch.zeros(4, 17, 8), tokens)


def test_drift_is_one_minus_cosine():
    before = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]]])
    after = torch.tensor([[[3.0, 0.0], [-1.0, -1.0], [0.0, 5.0]]])
    torch.testing.assert_close(drift_of(before, after), torch.tensor([[0.0, 2.0, 1.0]]))
    assert drift_of(before, after[:, :2]) is None
    assert drift_of(before[0], after[0]) is None


@pytest.mark.parametrize("shape", [(27, 8), (3, 5, 8), (2, 9, 8), (3, 3, 3, 8)], ids=str)
def test_inputs_of_another_leading_shape_count_in_full(shape):
    x = torch.zeros(shape)
    real = first(LENGTHS)
    assert AttentionMask().weigh(x, Tokens(False, real)) is None
    assert ATV().weigh(x, Tokens(False, real)) is None
    assert ATV().weigh(x, Tokens(True, real, torch.zeros(3, 17))) is None
    assert ATV().weigh(x, Tokens(True, real, None)) is None


def test_drift_of_a_block_that_writes_into_its_input(clip, batches):
    """Observing the drift runs the block twice; neither its input nor what follows may notice."""

    def in_place(block):
        def forward(x, attn_mask=None, **_):
            y = block.ln_1(x)
            x += block.attn(y, y, y, need_weights=False, attn_mask=attn_mask)[0]
            x += block.mlp(block.ln_2(x))
            return x

        return forward

    found = []
    for patched in (False, True):
        models.split_attention_(clip)
        blocks = {b.name: b for t in models.view(clip).towers.values() for b in t.blocks}
        layers = {name: block.linears() for name, block in blocks.items()}
        if patched:
            for block in clip.visual.transformer.resblocks:
                block.forward = in_place(block)
        seen = {}
        block_by_block(
            [Run(clip, *batches[0])],
            blocks,
            layers,
            lambda name, c, seen=seen, layers=layers: seen.update(
                {n: c.column_norm(n) for n in layers[name]}
            ),
            token_weight=ATV(),
        )
        found.append(seen)
    for name, norm in found[0].items():
        torch.testing.assert_close(norm, found[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("attention_mask", AttentionMask()),
        ("modality", Modality()),
        ("atv", ATV()),
        ({"kind": "atv", "alpha": 0.5}, ATV(alpha=0.5)),
        (Modality(visual=2.0), Modality(visual=2.0)),
        (None, None),
    ],
    ids=["attention_mask", "modality", "atv", "dict", "instance", "none"],
)
def test_names_and_files(given, expected):
    config = WandaConfig(token_weight=given)
    assert config.token_weight == expected
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("atvv", "token_weight: expected a function, one of attention_mask, modality, atv, .* got 'atvv'"),
        (3, "token_weight: expected a function, .* got 3"),
        ({"kind": "atv", "beta": 1}, "token_weight: unknown field 'beta' for kind 'atv'"),
        ({"alpha": 1}, "token_weight: expected a function"),
        ({"kind": "atv", "alpha": 0}, "alpha: expected a number above 0, got 0"),
        ({"kind": "atv", "alpha": "1"}, "alpha: expected a number above 0, got '1'"),
        ({"kind": "modality", "visual": -1}, "visual: expected a weight of at least 0, got -1"),
        ({"kind": "modality", "text": float("inf")}, "text: expected a weight of at least 0, got inf"),
        (AttentionMask, r"an instance such as AttentionMask\(\), got the class AttentionMask$"),
        (["atv"], r"token_weight: expected a function, .* got \['atv'\]"),
        ({"kind": "atv", 1: 2, "x": 3}, "token_weight: unknown field 1 for kind 'atv'"),
    ],
    ids=[
        "name",
        "number",
        "field",
        "no kind",
        "zero alpha",
        "text alpha",
        "negative",
        "infinite",
        "class",
        "list",
        "fields of two types",
    ],
)
def test_bad_token_weight(given, message):
    with pytest.raises(ValueError, match=message):
        WandaConfig(token_weight=given)


def test_function_stays_a_function():
    def weight(name, x):
        return x

    assert token_weighting(weight) is weight


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "ria"])
@pytest.mark.parametrize("activations", ["sequential", "dense"])
def test_weights_do_not_see_the_padding(method, activations):
    """What stands behind the end of the texts changes inputs there, and no weight."""
    images = torch.randn(3, 3, 32, 32)
    pruned, plain = [], []
    for texts in (PADDED, PADDED.masked_fill(PADDED == 0, 30)):
        for models_, weight in ((pruned, "attention_mask"), (plain, None)):
            model = build("clip").double()
            config = {"method": method, "activations": activations, "token_weight": weight}
            vlprune.prune_(model, config_from_dict(config), [(images, texts)])
            models_.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    # 1e-6: the statistics are float32, the model is float64 so that nothing else rounds
    torch.testing.assert_close(*pruned, rtol=1e-6, atol=1e-6)
    assert (plain[0] != plain[1]).sum() > 100
