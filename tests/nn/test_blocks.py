"""Fused blocks and towers: the numbers of open_clip's own, and its whole computation where anybody looks."""

import copy
import io

import pytest
import torch
from conftest import tiny_clip
from models.zoo import build, inputs, outputs
from open_clip import transformer
from torch import nn

import vlprune
from vlprune import MagnitudeConfig
from vlprune.models import view
from vlprune.nn import Linear24, PackedAttention, blocks
from vlprune.nn.blocks import fuse_, unfuse_
from vlprune.pipeline.dense import unpack_
from vlprune.structured import compact_

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True, params=["product", "convolution"])
def patches_are(request, monkeypatch):
    """What runs the patch embedding is not left to a measurement."""
    monkeypatch.setattr(blocks, "product_is_faster", lambda *_: request.param == "product")
    return request.param


def packed(model=None, **options):
    """The model with packed layers, fused and as it was before that."""
    model = tiny_clip() if model is None else model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # open_clip's are zero, which would hide one that is lost
                parameter.normal_(0.0, 0.2)
    vlprune.prune_(model, MagnitudeConfig())
    report = vlprune.sparsify_(model, only_if_faster=False, **options)
    plain = copy.deepcopy(model)
    unfuse_(plain)
    assert not any(type(m).__module__ == blocks.__name__ for m in plain.modules())
    return model, plain, report


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        # sums of another order, through all of a tower
        tolerance = 32 * torch.finfo(a.dtype).eps * float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance)


def tokens_seen(monkeypatch, run):
    """Output features and tokens of a sequence, of every packed layer that runs."""
    seen, forward = [], Linear24.forward

    def noting(self, x, residual=None, norm=None):
        seen.append((self, x.shape[1], residual is not None))
        return forward(self, x, residual, norm)

    with monkeypatch.context() as patched:
        patched.setattr(Linear24, "forward", noting)
        run()
    return {layer: (tokens, added) for layer, tokens, added in seen}


@pytest.mark.parametrize(
    "kind", ["clip", "siglip-like", "custom-text", "custom-blocks", "pooler", "coca", "half"]
)
def test_every_kind_of_model_gives_what_it_gave(kind):
    model, plain, _ = packed(build(kind))
    assert_same(outputs(model), outputs(plain))


def norms_that_run(monkeypatch, model):
    ran = []
    with monkeypatch.context() as patched:
        forward = transformer.LayerNorm.forward
        patched.setattr(transformer.LayerNorm, "forward", lambda m, x: (ran.append(m), forward(m, x))[1])
        with torch.no_grad():
            model.encode_image(IMAGES)
    return {name for name, module in model.visual.named_modules() if module in ran}


def test_packed_layers_make_the_norms_before_them(monkeypatch):
    model, plain, _ = packed()
    assert norms_that_run(monkeypatch, model) == {"ln_pre", "transformer.resblocks.2.ln_1", "ln_post"}
    assert len(norms_that_run(monkeypatch, plain)) == 8
    model.visual.transformer.resblocks[1].ln_2.register_forward_hook(lambda *_: None)
    assert "transformer.resblocks.1.ln_2" in norms_that_run(monkeypatch, model)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_the_last_block_runs_for_one_token_without_gradients(monkeypatch, grad):
    model, plain, report = packed()
    last = model.visual.transformer.resblocks[2]
    with torch.set_grad_enabled(grad):
        seen = tokens_seen(monkeypatch, lambda: model.encode_image(IMAGES))
        torch.testing.assert_close(model.encode_image(IMAGES), plain.encode_image(IMAGES))
    tokens = {name: seen[layer][0] for name, layer in last.named_modules() if layer in seen}
    one = 17 if grad else 1
    # the packed projection is called for keys and values after it was for the queries of one token
    assert tokens == {"attn.qkv": 17, "attn.out_proj": one, "mlp.c_fc": one, "mlp.c_proj": one}
    for block in view(model).towers["visual"].blocks:
        adds = [name for name, layer in block.module.named_modules() if seen.get(layer, (0, False))[1]]
        assert adds == ["attn.out_proj", "mlp.c_proj"]
    assert "visual.transformer.resblocks.2 runs for the class token alone" in str(report)
    assert report.to_dict()["also"] == list(report.also)


def test_nothing_but_the_class_token_is_read_of_the_last_block(monkeypatch):
    """The result is that of a tower whose last block returns NaN in place of all other tokens."""
    model, plain, _ = packed()
    last = plain.visual.transformer.resblocks[2]
    forward, nan = last.forward, torch.tensor(float("nan"))
    last.forward = lambda x, **how: torch.cat((forward(x, **how)[:, :1], nan.expand(3, 16, 64)), dim=1)
    with torch.no_grad():
        assert_same([model.encode_image(IMAGES)], [plain.encode_image(IMAGES)])


@pytest.mark.parametrize(
    ("vision", "alone"),
    [
        ({}, True), ({"final_ln_after_pool": True}, True), ({"ls_init_value": 0.3}, True),
        ({"no_ln_pre": True, "patch_dropout": 0.5}, True), ({"layers": 1}, True),
        ({"pool_type": "avg"}, False), ({"output_tokens": True}, False), ({"attentional_pool": True}, False),
    ],
    ids=str,
)  # fmt: skip
def test_only_where_nothing_else_is_read(monkeypatch, vision, alone):
    if "attentional_pool" in vision:
        vision = {**vision, "attn_pooler_heads": 2}
    model, plain, report = packed(tiny_clip(**vision))
    assert any("class token" in what for what in report.also) is alone
    assert (type(model.visual) is blocks.VisionTransformer) is alone
    with torch.no_grad():
        ours, theirs = model.visual(IMAGES), plain.visual(IMAGES)
    assert_same(*(out if isinstance(out, tuple) else [out] for out in (ours, theirs)))


def test_what_is_asked_for_later():
    model, plain, _ = packed()
    with torch.no_grad():
        ours, theirs = (m.visual.forward_intermediates(IMAGES) for m in (model, plain))
        assert_same(ours["image_intermediates"], theirs["image_intermediates"])
        assert_same([ours["image_features"]], [theirs["image_features"]])
        for tower in (model.visual, plain.visual):
            tower.output_tokens = True
        assert_same(model.visual(IMAGES), plain.visual(IMAGES))


@pytest.mark.parametrize("kept", ["c_fc", "c_proj", "out_proj", "qkv", "0.", "2."])
def test_where_only_some_layers_are_packed(kept):
    model, plain, _ = packed(filter_fn=lambda _, name: "visual" in name and kept in name)
    assert type(model.visual) is blocks.VisionTransformer
    assert type(model.transformer.resblocks[0]) is transformer.ResidualAttentionBlock
    with torch.no_grad():
        assert_same([model.encode_image(IMAGES)], [plain.encode_image(IMAGES)])


@pytest.mark.parametrize(
    "lists",
    [
        {"heads": {0: [1], 1: [0, 3], 2: [2]}}, {"heads": {2: []}}, {"neurons": {2: []}},
        {"heads": {2: []}, "neurons": {1: [5, 7, 8, 9], 2: []}},
    ],
    ids=["uneven heads", "no heads", "no neurons", "neither"],
)  # fmt: skip
def test_towers_that_lost_parts(lists):
    model = tiny_clip()
    compact_(model, {"visual": lists})
    model, plain, _ = packed(model)
    with torch.no_grad():
        assert_same([model.encode_image(IMAGES)], [plain.encode_image(IMAGES)])


PLACES = [
    "visual.transformer", "visual.transformer.resblocks.2", "visual.transformer.resblocks.2.attn",
    "visual.transformer.resblocks.2.attn.qkv", "visual.transformer.resblocks.2.attn.out_proj",
    "visual.transformer.resblocks.2.ls_1", "visual.transformer.resblocks.2.mlp",
    "visual.transformer.resblocks.2.mlp.c_fc", "visual.transformer.resblocks.2.mlp.c_proj",
    "visual.transformer.resblocks.0", "visual.transformer.resblocks.0.attn",
    "visual.transformer.resblocks.0.attn.out_proj", "visual.transformer.resblocks.0.ls_2",
    "visual.transformer.resblocks.0.mlp", "visual.transformer.resblocks.0.mlp.c_proj",
    "visual.transformer.resblocks.0.ln_1", "visual.transformer.resblocks.1.ln_2",
    "visual.transformer.resblocks.1.attn.qkv", "visual.transformer.resblocks.1.mlp.c_fc",
    "visual.ln_post", "visual.conv1",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "forward"])
@pytest.mark.parametrize("place", PLACES)
def test_whoever_looks_sees_what_was_there(place, kind):
    def look(model):
        module, seen = model.get_submodule(place), []

        def note(*values):
            seen.extend(v for value in values for v in (value if isinstance(value, tuple) else (value,)))

        if kind == "hook":
            module.register_forward_hook(lambda _, args, out: note(args, out))
        elif kind == "pre-hook":
            module.register_forward_pre_hook(lambda _, args: note(args))
        else:
            forward = module.forward
            module.forward = lambda *args, **how: (note(args), forward(*args, **how))[1]
        with torch.no_grad():
            seen.append(model.encode_image(IMAGES))
        return [value for value in seen if value is not None]

    model, plain, _ = packed()
    ours, theirs = look(model), look(plain)
    assert len(ours) > 1
    assert_same(ours, theirs)


@pytest.mark.parametrize("kind", ["hook", "pre-hook"])
def test_hooks_of_all_modules_see_what_was_there(kind):
    from torch.nn.modules import module as every

    def look(model):
        seen = []

        def note(module, args, out=None):
            seen.extend((type(module).__name__, v) for v in (*args, out) if isinstance(v, torch.Tensor))

        register = "register_module_forward_hook" if kind == "hook" else "register_module_forward_pre_hook"
        handle = getattr(every, register)(note)
        try:
            with torch.no_grad():
                model.encode_image(IMAGES)
        finally:
            handle.remove()
        return seen

    model, plain, _ = packed()
    ours, theirs = look(model), look(plain)
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert_same([value for _, value in ours], [value for _, value in theirs])


@pytest.mark.parametrize("layer", [0, -1], ids=["first block", "last block"])
def test_a_replaced_attention_is_called(layer):
    model, plain, _ = packed()
    before = model.encode_image(IMAGES)
    for one in (model, plain):
        block = one.visual.transformer.resblocks[layer]
        attend = block.attention
        block.attention = lambda *args, attend=attend, **how: 3 * attend(*args, **how)
    with torch.no_grad():
        after = model.encode_image(IMAGES)
        assert_same([after], [plain.encode_image(IMAGES)])
    assert (after - before).abs().max() > 0.01


def test_gradients():
    def gradients(model):
        images, texts = inputs(model)
        images.requires_grad_()
        (model.encode_image(images).square().sum() + model.encode_text(texts).square().sum()).backward()
        return [images.grad, *(p.grad for p in model.parameters() if p.grad is not None)]

    model, plain, _ = packed(build("clip"))
    assert_same(gradients(model), gradients(plain))


def test_autocast():
    model, plain, _ = packed()
    with torch.no_grad():
        exact = plain.encode_image(IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            out, before = model.encode_image(IMAGES), plain.encode_image(IMAGES)
    assert out.dtype == before.dtype
    # both round to bfloat16 on the way, each at other places
    assert float((out - exact).abs().max()) < 2 * float((before - exact).abs().max()) + 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_packed_layer_adds_what_autocast_brings(dtype):
    layer = nn.Linear(8, 6)
    layer.weight.data *= torch.tensor([1, 0, 0, 1]).repeat(6, 2)
    x, residual = torch.randn(2, 5, 8), torch.randn(2, 5, 6).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = Linear24.from_linear(layer)(x.bfloat16(), residual)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, layer(x.bfloat16().float()) + residual.float())


def test_compiled_and_exported():
    model, plain, _ = packed()
    with torch.no_grad():
        eager = plain.visual(IMAGES)
        compiled = torch.compile(model.visual, fullgraph=True, backend="aot_eager")(IMAGES)
        exported = torch.export.export(model.visual, (IMAGES,))
        assert_same([compiled, exported.module()(IMAGES)], [eager, eager])
    products = [n.meta["val"].shape for n in exported.graph.nodes if "linear24" in str(n.target)]
    assert [shape[1] for shape in products] == [17] * 8 + [1, 17, 1, 1, 1]


def test_copied_and_pickled():
    model, plain, _ = packed()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert type(other.visual) is blocks.VisionTransformer
        with torch.no_grad():
            assert torch.equal(other.encode_image(IMAGES), model.encode_image(IMAGES))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert repr(model) == repr(plain)


@pytest.mark.parametrize("fused", [True, False])
def test_saved_and_loaded(tmp_path, fused):
    model, plain, _ = packed()
    vlprune.save_pretrained(model if fused else plain, tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved")
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    with torch.no_grad():
        assert torch.equal(back.encode_image(IMAGES), model.encode_image(IMAGES))


def test_a_dense_model_is_loaded_as_it_was(tmp_path):
    vlprune.save_pretrained(tiny_clip(), tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved")
    assert not any(type(m).__module__ == blocks.__name__ for m in back.modules())


def test_undone_where_layers_are_unpacked():
    dense = tiny_clip()
    split = copy.deepcopy(dense)
    vlprune.split_attention_(split)
    types = [type(m) for m in split.modules()]
    model, plain, _ = packed(copy.deepcopy(dense))
    assert unpack_(model, dense) == 20
    assert [type(m) for m in model.modules()] == types
    with torch.no_grad():
        assert_same([model.encode_image(IMAGES)], [plain.encode_image(IMAGES)])


def test_a_second_call_changes_nothing():
    model, _, report = packed()
    types = [type(m) for m in model.modules()]
    assert tuple(fuse_(model)) == report.also
    assert [type(m) for m in model.modules()] == types


def test_dense_towers_only_where_asked(patches_are):
    model, plain = tiny_clip(), tiny_clip()
    plain.load_state_dict(model.state_dict())
    assert fuse_(model) == []
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert len(fuse_(model, dense=True)) == (2 if patches_are == "product" else 1)
    with torch.no_grad():
        assert_same([model.encode_image(IMAGES)], [plain.encode_image(IMAGES)])


def test_other_blocks_stay():
    class Block(transformer.ResidualAttentionBlock):
        pass

    model = tiny_clip()
    model.visual.transformer.resblocks[1].__class__ = Block
    # later open_clips have attention of their own in blocks of the same name, which call it otherwise
    for block in model.transformer.resblocks:
        block.attn = PackedAttention.from_attention(transformer.Attention(48, 3))
    assert fuse_(model, dense=True) == []
    assert not any(type(m).__module__ == blocks.__name__ for m in model.modules())
