"""Splitting attention into linear layers and merging it back, on whole models."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from vlprune import models
from vlprune.nn import Linear24, PackedAttention, SplitAttention

from .zoo import KINDS, assert_close, build, inputs, outputs


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_stay_and_merging_restores_everything(kind, tmp_path):
    model = build(kind, tmp_path)
    before, kinds, state = outputs(model), types(model), copy.deepcopy(model.state_dict())
    names = models.split_attention_(model)
    assert names
    assert models.split_attention_(model) == []
    assert all(isinstance(model.get_submodule(n), PackedAttention | SplitAttention) for n in names)
    assert_close(outputs(model), before)
    assert sorted(models.merge_attention_(model)) == sorted(names)
    assert models.merge_attention_(model) == []
    assert types(model) == kinds
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))


def test_every_block_of_both_towers_is_split_and_only_these():
    model = build("coca")
    names = models.split_attention_(model)
    assert names == [f"{b.name}.attn" for t in models.view(model).towers.values() for b in t.blocks]
    kinds = {name: type(model.get_submodule(name)) for name in names}
    assert {n for n, k in kinds.items() if k is SplitAttention} == {n for n in names if "cross_attn" in n}


def test_parameters_move_without_a_copy():
    model = build("clip")
    attention = model.visual.transformer.resblocks[0].attn
    weight, out = attention.in_proj_weight, attention.out_proj.weight
    models.split_attention_(model)
    split = model.visual.transformer.resblocks[0].attn
    assert split.qkv.weight is weight
    assert split.out_proj.weight is out
    assert type(split.qkv) is type(split.out_proj) is nn.Linear
    models.merge_attention_(model)
    assert model.visual.transformer.resblocks[0].attn is attention
    assert attention.in_proj_weight is weight


@pytest.mark.parametrize("kind", KINDS)
def test_merging_brings_the_very_parameters_modules_and_hooks_back(kind, tmp_path):
    model = build(kind, tmp_path)
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    hooked = [name for name in modules if name.endswith(".attn.out_proj")]
    for name in hooked:
        modules[name].register_forward_hook(print)
    for _ in range(2):
        models.split_attention_(model)
        models.merge_attention_(model)
    again = dict(model.named_parameters())
    assert list(again) == list(parameters)
    assert [name for name in parameters if again[name] is not parameters[name]] == []
    assert [name for name, module in model.named_modules() if module is not modules[name]] == []
    assert all(list(model.get_submodule(name)._forward_hooks.values()) == [print] for name in hooked)
    assert hooked or kind.startswith("timm")


def test_an_optimizer_made_before_splitting_trains_after_merging():
    model = build("coca")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    name = "text_decoder.cross_attn.0.attn"
    models.split_attention_(model)
    with torch.no_grad():
        model.get_submodule(name).k_proj.weight.fill_(0.5)
    models.merge_attention_(model)
    attention = model.get_submodule(name)
    q, k, v = attention.in_proj_weight.detach().clone().chunk(3)
    assert torch.equal(k, torch.full_like(k, 0.5))
    attention.in_proj_weight.grad = torch.ones_like(attention.in_proj_weight)
    optimizer.step()
    assert torch.equal(attention.in_proj_weight, torch.cat([q, k, v]) - 0.1)


def test_gradients_of_cross_attention_come_apart_and_together():
    model = build("coca").train()
    name = "text_decoder.cross_attn.1.attn"
    model(*inputs(model))["logits"].square().sum().backward()
    whole = model.get_submodule(name).in_proj_weight.grad.clone()
    models.split_attention_(model)
    model.get_submodule(name).v_proj.weight.grad.mul_(2.0)
    models.merge_attention_(model)
    q, k, v = whole.chunk(3)
    assert torch.equal(model.get_submodule(name).in_proj_weight.grad, torch.cat([q, k, 2.0 * v]))


def test_another_precision_while_split_reaches_the_parameters_of_before():
    model = build("coca")
    weight = model.text_decoder.cross_attn[0].attn.in_proj_weight
    expected = weight.detach().to(torch.bfloat16)
    models.split_attention_(model)
    model.to(torch.bfloat16)
    models.merge_attention_(model)
    assert model.text_decoder.cross_attn[0].attn.in_proj_weight is weight
    assert torch.equal(weight, expected)


def test_a_projection_that_was_replaced_does_not_keep_the_dense_weight_alive():
    model = build("coca")
    weight = weakref.ref(model.text_decoder.cross_attn[0].attn.in_proj_weight)
    models.split_attention_(model)
    attention = model.text_decoder.cross_attn[0].attn
    attention.q_proj = nn.Linear(32, 32)
    gc.collect()
    assert weight() is None
    models.merge_attention_(model)
    assert isinstance(model.text_decoder.cross_attn[0].attn.in_proj_weight, nn.Parameter)


def test_zeros_set_while_split_are_there_after_merging():
    model = build("clip")
    models.split_attention_(model)
    split = model.visual.transformer.resblocks[0].attn
    with torch.no_grad():
        split.qkv.weight[:, ::2] = 0.0
    expected = split.qkv.weight.clone()
    assert_before = outputs(model)
    models.merge_attention_(model)
    assert torch.equal(model.visual.transformer.resblocks[0].attn.in_proj_weight, expected)
    assert_close(outputs(model), assert_before)


@pytest.mark.parametrize("kind", ["clip", "coca"])
def test_frozen_parameters_and_training_mode_are_kept(kind):
    model = build(kind)
    for parameter in model.visual.parameters():
        parameter.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    model.train()
    model.visual.eval()
    names = models.split_attention_(model)
    modes = {name: model.get_submodule(name).training for name in names}
    assert modes == {name: not name.startswith("visual") for name in names}
    for name in names:
        assert all(p.requires_grad is modes[name] for p in model.get_submodule(name).parameters())
    models.merge_attention_(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {name: model.get_submodule(name).training for name in names} == modes


def test_only_named_attention_is_merged():
    model = build("clip")
    first, *rest = models.split_attention_(model)
    assert models.merge_attention_(model, [first]) == [first]
    assert models.merge_attention_(model) == rest


def test_packed_projections_are_not_merged():
    model = build("clip")
    names = models.split_attention_(model)
    attention = model.get_submodule(names[0])
    with torch.no_grad():
        attention.qkv.weight.view(-1, 4)[:, :2] = 0.0
    dense = outputs(model)
    attention.qkv = Linear24.from_linear(attention.qkv)
    assert_close(outputs(model), dense)
    assert models.merge_attention_(model) == names[1:]
    assert model.get_submodule(names[0]) is attention


@pytest.mark.parametrize("kind", ["clip", "custom-blocks", "coca"])
def test_copies_and_state_dicts_work_while_split(kind):
    model = build(kind)
    models.split_attention_(model)
    before = outputs(model)
    twin = copy.deepcopy(model)
    other = build(kind)
    models.split_attention_(other)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(model.state_dict())
    for again in (twin, other):
        models.merge_attention_(again)
        models.split_attention_(again)
        assert all(torch.equal(a, b) for a, b in zip(outputs(again), before, strict=True))
    with torch.no_grad():
        twin.visual.transformer.resblocks[0].attn.qkv.weight.zero_()
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))


@pytest.mark.parametrize("kind", ["clip", "custom-blocks", "coca"])
def test_gradients_are_those_of_the_packed_parameter(kind):
    def gradients(model):
        model.train()
        images, texts = inputs(model)
        loss = model.encode_image(images).square().sum() + model.encode_text(texts).square().sum()
        loss.backward()

    plain, split = build(kind), build(kind)
    models.split_attention_(split)
    gradients(plain)
    gradients(split)
    ours = split.visual.transformer.resblocks[0].attn.qkv.weight.grad
    theirs = plain.visual.transformer.resblocks[0].attn.in_proj_weight.grad
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_attention_used_twice_is_split_once():
    model = build("clip")
    blocks = model.visual.transformer.resblocks
    blocks[2].attn = blocks[0].attn
    before = outputs(model)
    names = models.split_attention_(model)
    assert "visual.transformer.resblocks.2.attn" not in names
    assert blocks[2].attn is blocks[0].attn
    assert_close(outputs(model), before)
    models.merge_attention_(model)
    assert blocks[2].attn is blocks[0].attn
    assert isinstance(blocks[2].attn.in_proj_weight, nn.Parameter)


@pytest.mark.parametrize("kind", ["clip", "custom-blocks"])
def test_compiles_in_one_graph_and_exports(kind):
    model = build(kind)
    models.split_attention_(model)
    images, texts = inputs(model)
    with torch.no_grad():
        eager = model(images, texts)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images, texts)
        exported = torch.export.export(model, (images, texts)).module()(images, texts)
    assert_close(compiled, eager)
    assert_close(exported, eager)
