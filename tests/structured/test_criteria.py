"""The baselines against brute force: gates on what modules say, and sums written out."""

from contextlib import ExitStack

import pytest
import torch
from models.zoo import build, inputs

import vlprune
from vlprune import models
from vlprune.losses import contrastive, loss_and_batches
from vlprune.models.parts import block_parts
from vlprune.structured import Keep, StructuredConfig
from vlprune.structured.criteria import module_importance

from .cases import labelled_data, pair_data


def importance(model, data, tower, kind, **config):
    found = module_importance(model, data, StructuredConfig(visual=Keep(), **config), tower, [kind])
    assert {(e.tower, e.kind) for e in found} == {(tower, kind)}
    return {(e.layer, e.index): e.error for e in found}


def by_gate(model, batches, loss, tower, kind):
    """|dL/dg| of a gate g = 1 on each module's output, in float64, averaged over the batches."""
    model = model.double()
    models.split_attention_(model)
    blocks = models.view(model).towers[tower].blocks
    gates, places = [], []
    with ExitStack() as stack:
        for block in blocks:
            parts = block_parts(block)
            count = parts.attention.num_heads if kind == "heads" else 1
            gate = torch.ones(count, dtype=torch.float64, requires_grad=True)
            gates.append(gate)
            places += [(block.index, h if kind == "heads" else block.index) for h in range(count)]
            width = parts.attention.head_dim

            def on_input(_, args, gate=gate, width=width):
                return (args[0] * gate.repeat_interleave(width),)

            def on_output(_, args, out, gate=gate):
                return out * gate

            out_proj, fc2 = parts.attention.out_proj, parts.mlp.fc2
            if kind == "heads":
                stack.callback(out_proj.register_forward_pre_hook(on_input).remove)
            else:
                stack.callback(out_proj.register_forward_hook(on_output).remove)
                stack.callback(fc2.register_forward_hook(on_output).remove)
        total = sum(len(batch.images) for batch in batches)
        value = sum(loss(model, batch) * len(batch.images) / total for batch in batches)
        found = torch.autograd.grad(value, gates)
    model.float()
    models.merge_attention_(model)
    return dict(zip(places, torch.cat(found).abs().tolist(), strict=True))


def assert_near(found, expected):
    # float32 sums of up to 256 x 64 products that cancel, next to float64
    scale = max(expected.values())
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4 * scale)
    assert min(expected.values()) < 0.8 * scale  # they tell modules apart


@pytest.mark.parametrize("kind", ["heads", "layers"])
@pytest.mark.parametrize(("name", "tower"), [("clip", "visual"), ("clip", "text"), ("siglip-like", "text")])
def test_gradient_of_pairs_is_that_of_gates(name, tower, kind):
    model = build(name)
    with torch.no_grad():  # biases of zero would add nothing
        for block in models.view(model).towers[tower].blocks:
            for layer in (block_parts(block).attention.out_proj, block_parts(block).mlp.fc2):
                layer.bias.normal_(std=0.2)
    data = pair_data(model, 10)
    found = importance(model, data, tower, kind, criterion="gradient", batch_size=4, samples=9)
    _, batches = loss_and_batches("contrastive", model, data, samples=9, batch_size=4)
    assert [len(batch.images) for batch in batches] == [4, 4, 1]
    assert_near(found, by_gate(model, batches, contrastive, tower, kind))


def test_gradient_of_labelled_images_is_that_of_their_classes():
    model = build("clip")
    data = labelled_data(model, 10)
    found = importance(model, data, "visual", "heads", criterion="gradient", batch_size=8, samples=10)
    loss, batches = loss_and_batches("cross_entropy", model, data, samples=10, batch_size=8)
    assert_near(found, by_gate(model, batches, loss, "visual", "heads"))


def test_gradient_of_neurons():
    model = build("clip")
    images, texts = inputs(model, 5)
    texts = torch.where(torch.arange(9) <= torch.arange(5)[:, None] + 2, texts, 0)
    found = importance(model, [(images, texts)], "visual", "neurons", criterion="gradient")
    _, batches = loss_and_batches("contrastive", model, [(images, texts)], samples=5, batch_size=5)
    contrastive(model, batches[0]).backward()
    expected = {}
    for layer, block in enumerate(model.visual.transformer.resblocks):
        fc1, fc2 = block.mlp.c_fc, block.mlp.c_proj
        for k in range(fc1.out_features):
            entering = fc1.weight[k] @ fc1.weight.grad[k] + fc1.bias[k] * fc1.bias.grad[k]
            leaving = fc2.weight[:, k] @ fc2.weight.grad[:, k]
            expected[layer, k] = float((entering.abs() + leaving.abs()).detach())
    # the same products summed in another order
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5 * max(expected.values()))


def test_gradient_leaves_out_what_the_loss_does_not_reach():
    model = build("coca")
    found = importance(model, pair_data(model, 6), "text", "heads", criterion="gradient")
    decoders = {b.index for b in models.view(model).towers["text"].blocks if b.name.startswith("text_d")}
    assert decoders
    assert not decoders & {layer for layer, _ in found}
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("kind", "fused"), [("clip", True), ("hf", False)])
def test_magnitude_is_the_mean_of_all_weights_of_a_module(kind, fused, tmp_path):
    model = build(kind, tmp_path)
    tower = "visual" if fused else "text"
    found = {
        w: importance(model, None, tower, w, criterion="magnitude") for w in ("heads", "neurons", "layers")
    }
    for block in models.view(model).towers[tower].blocks:
        parts, i = block_parts(block), block.index
        attention, mlp = parts.attention, parts.mlp
        width, heads = attention.head_dim, attention.num_heads
        qkv = (
            attention.module.in_proj_weight.view(3, heads, width, -1)
            if fused
            else torch.stack([layer.weight.view(heads, width, -1) for layer in attention.inputs.values()])
        )
        for head in range(heads):
            own = [qkv[:, head], attention.out_proj.weight[:, head * width : (head + 1) * width]]
            expected = torch.cat([w.flatten() for w in own]).abs().mean()
            assert found["heads"][i, head] == pytest.approx(float(expected), rel=1e-5)
        for k in range(0, mlp.neurons, 9):
            expected = torch.cat([mlp.fc1.weight[k], mlp.fc2.weight[:, k]]).abs().mean()
            assert found["neurons"][i, k] == pytest.approx(float(expected), rel=1e-5)
        every = [qkv, attention.out_proj.weight, mlp.fc1.weight, mlp.fc2.weight]
        expected = torch.cat([w.flatten() for w in every]).abs().mean()
        assert found["layers"][i, i] == pytest.approx(float(expected), rel=1e-5)
    assert len(found["heads"]) == heads * (i + 1)
    assert len(found["neurons"]) == mlp.neurons * (i + 1)


def test_chance_is_of_the_seed_and_the_place():
    model = build("clip")
    first = importance(model, None, "visual", "heads", criterion="random", seed=3)
    assert first == importance(model, None, "visual", "heads", criterion="random", seed=3)
    assert len(set(first.values())) == 12
    assert not set(first.values()) & set(
        importance(model, None, "visual", "heads", criterion="random", seed=4).values()
    )
    config = StructuredConfig(criterion="random", seed=3)
    both = module_importance(model, None, config, "visual", ["layers", "heads"])
    assert {(e.layer, e.index): e.error for e in both if e.kind == "heads"} == first


def test_packed_layers_are_refused():
    model = build("clip")
    vlprune.prune_(model, vlprune.MagnitudeConfig(targets=("visual",)))
    vlprune.sparsify_(model, only_if_faster=False)
    for criterion in ("magnitude", "gradient"):
        with pytest.raises(ValueError, match="packed 2:4; take modules out"):
            importance(model, pair_data(model, 4), "visual", "neurons", criterion=criterion)


def test_a_gradient_that_is_not_finite():
    model = build("clip")
    torch.nn.init.constant_(model.visual.transformer.resblocks[1].mlp.c_proj.bias, float("nan"))
    with pytest.raises(ValueError, match=r"visual\.transformer\.resblocks\.0: the loss's gradient is not"):
        importance(model, pair_data(model, 4), "visual", "heads", criterion="gradient")
