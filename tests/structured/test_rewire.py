"""Neurons sorted by importance: the same function, in the order that a brute-force gradient gives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models.zoo import assert_close, build, inputs, outputs
from torch import nn

import vlprune
from vlprune import demo, models
from vlprune.losses import contrastive
from vlprune.models.parts import block_parts
from vlprune.structured import compact_, mask_modules, rewire_
from vlprune.structured.rewire import neuron_importance


def mlps(model):
    blocks = (b for tower in models.view(model).towers.values() for b in tower.blocks)
    return [block_parts(block).mlp for block in blocks]


def pairs(model, count=6):
    images, texts = inputs(model, count)
    # as many words of each text as its number: texts that all end alike would not be told apart
    return images, torch.where(torch.arange(9) <= torch.arange(count)[:, None] + 2, texts, 0)


def test_importance_by_hand():
    # neuron 0: |1*2 + 2*-1 + 3*1| + |1*4| = 7; neuron 1: |0*5 + -1*1 + 0| + |2*-3| = 7; neuron 2: 0
    fc1, grad1 = torch.tensor([[1.0, 2], [0, -1], [4, 4]]), torch.tensor([[2.0, -1], [5, 1], [1, -1]])
    fc2, grad2 = torch.tensor([[1.0, 2, 0]]), torch.tensor([[4.0, -3, 9]])
    bias, bias_grad = torch.tensor([3.0, 0, 1]), torch.tensor([1.0, 9, 0])
    assert neuron_importance(fc1, fc2, grad1, grad2, bias, bias_grad).tolist() == [7, 7, 0]
    assert neuron_importance(fc1, fc2, grad1, grad2).tolist() == [4, 7, 0]


@pytest.mark.parametrize("kind", ["clip", "siglip-like", "custom-text", "timm", "hf", "coca", "pooler"])
def test_outputs_stay_and_parameters_move_together(kind, tmp_path):
    model = build(kind, tmp_path)
    before, was = outputs(model), copy.deepcopy(model)
    held = {name: id(p) for name, p in model.named_parameters()}
    orders = rewire_(model, pairs(model), batch_size=6)
    assert_close(outputs(model), before)
    assert {name: id(p) for name, p in model.named_parameters()} == held
    assert list(orders) == [mlp.fc1_name for mlp in mlps(model)]
    for new, old in zip(mlps(model), mlps(was), strict=True):
        order = orders[new.fc1_name]
        assert torch.equal(order.sort().values, torch.arange(new.neurons))
        assert torch.equal(new.fc1.weight, old.fc1.weight[order])
        assert torch.equal(new.fc1.bias, old.fc1.bias[order])
        assert torch.equal(new.fc2.weight, old.fc2.weight[:, order])
        assert torch.equal(new.fc2.bias, old.fc2.bias)
    moved = [not torch.equal(order, torch.arange(len(order))) for order in orders.values()]
    # the contrastive loss does not reach a decoder: all of its neurons are equally important
    assert moved == ["text_decoder" not in name for name in orders]


def brute_force(model, batches):
    """Importance of every neuron in float64, from plain backward passes over CLIP's loss."""
    model = copy.deepcopy(model).double()
    count = sum(len(images) for images, _ in batches)
    for images, texts in batches:
        image = F.normalize(model.encode_image(images.double()), dim=-1)
        text = F.normalize(model.encode_text(texts), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T
        rows, columns = logits.log_softmax(1).diagonal().mean(), logits.log_softmax(0).diagonal().mean()
        (-(rows + columns) / 2 * len(images) / count).backward()
    found = {}
    for mlp in mlps(model):
        parameters = mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight
        w1, b1, w2 = (p.detach() for p in parameters)
        g1, gb, g2 = (p.grad for p in parameters)
        scores = []
        for k in range(mlp.neurons):
            entering = float(w1[k] @ g1[k] + b1[k] * gb[k])
            scores.append(abs(entering) + abs(float(w2[:, k] @ g2[:, k])))
        found[mlp.fc1_name] = torch.tensor(scores)
    return found


def test_order_is_that_of_a_brute_force_gradient():
    model = build("clip")
    images, texts = pairs(model, 7)
    batches = [(images[:4], texts[:4]), (images[4:], texts[4:])]
    expected = brute_force(model, batches)
    orders = rewire_(model, batches)
    for name, order in orders.items():
        scores = expected[name][order]
        # neurons whose float32 scores are closer than rounding may stand either way
        assert float(scores.diff().max()) <= 1e-4 * float(scores.max())
        assert float(scores[0]) > 10 * float(scores[-1])


def test_equal_neurons_keep_their_order():
    model = build("clip")
    mlp = block_parts(models.view(model).towers["visual"].blocks[1]).mlp
    with torch.no_grad():
        mlp.fc2.weight[:, 10:200:3] = 0.0
        mlp.fc1.weight[10:200:3] = 0.0
        mlp.fc1.bias[10:200:3] = 0.0
    order = rewire_(model, pairs(model))[mlp.fc1_name]
    assert order[-64:].tolist() == list(range(10, 200, 3))


def test_samples_and_batches_are_limited():
    images, texts = pairs(build("clip"), 8)
    expected = rewire_(build("clip"), [(images[:2], texts[:2]), (images[2:4], texts[2:4])])
    found = rewire_(build("clip"), (images, texts), samples=4, batch_size=2)
    for name, order in found.items():
        assert torch.equal(order, expected[name])


def test_zeros_move_with_their_neurons():
    model = build("clip")
    vlprune.prune_(model, vlprune.MagnitudeConfig(pattern="2:4"))
    before = outputs(model)
    zeros = [int((p == 0).sum()) for p in model.parameters()]
    orders = rewire_(model, pairs(model))
    assert_close(outputs(model), before)
    assert [int((p == 0).sum()) for p in model.parameters()] == zeros
    lists = {"visual": {"neurons": {i: range(64) for i in range(3)}}}
    compact_(model, lists)
    assert models.view(model).towers["visual"].blocks[0].module.mlp.c_fc.out_features == 64
    assert len(orders) == 5


def test_one_tower_and_another_loss():
    model = build("clip")
    calls = []

    def loss(model, batch):
        calls.append(len(batch.images))
        return model.encode_text(batch.texts).square().sum()

    orders = rewire_(model, pairs(model), towers=["text"], loss=loss, batch_size=4)
    assert calls == [4, 2]
    assert [name.split(".")[0] for name in orders] == ["transformer", "transformer"]


def test_nothing_else_is_left_behind():
    model = build("siglip-like").train()
    model.visual.conv1.weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.inference_mode():
        rewire_(model, pairs(model))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None and not p.is_inference() for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_the_first_neurons_of_the_trained_model_are_worth_more_than_the_last():
    model, preprocess, tokenizer = demo.load()
    data = vlprune.load_data("demo:train:64", preprocess, tokenizer)
    rewire_(model, data, samples=64)
    batch = next(iter(data.batches(64)))

    @torch.no_grad()
    def loss(keep):
        lists = {
            name: {"neurons": {b.index: keep(block_parts(b).mlp.neurons) for b in tower.blocks}}
            for name, tower in models.view(model).towers.items()
        }
        with mask_modules(model, lists):
            return float(contrastive(model, batch))

    whole, first, last = loss(range), loss(lambda n: range(n // 8)), loss(lambda n: range(n - n // 8, n))
    assert whole < first < 0.75 * last


@pytest.mark.parametrize("towers", ["visual", [], ["image"]])
def test_bad_towers(towers):
    model = build("clip")
    with pytest.raises(ValueError, match="towers: expected some of visual, text, got"):
        rewire_(model, pairs(model), towers=towers)


def test_what_cannot_be_sorted_is_told_before_anything_changes():
    model = build("custom-blocks")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"resblocks\.0\.mlp\.ln: works on all neurons at once"):
        rewire_(model, pairs(model))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    model = build("clip")
    vlprune.prune_(model, vlprune.MagnitudeConfig(targets=("text",)))
    vlprune.sparsify_(model, only_if_faster=False)
    with pytest.raises(ValueError, match=r"transformer\.resblocks\.0\.mlp\.c_fc: packed 2:4; take modules"):
        rewire_(model, pairs(model))
    rewire_(model, pairs(model), towers=["visual"])

    model = build("clip")
    nn.init.constant_(model.transformer.resblocks[1].mlp.c_proj.bias, float("nan"))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="the loss's gradient is not finite"):
        rewire_(model, pairs(model))
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items() if not v.isnan().any())
    with pytest.raises(ValueError, match="loss: it does not depend on any MLP"):
        rewire_(build("clip"), pairs(model), loss=lambda model, batch: model.logit_scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": None}, "data: rewire_ needs data, for example of load_data"),
        ({"samples": 0}, "samples must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    model = build("clip")
    with pytest.raises(ValueError, match=f"^{message}"):
        rewire_(model, **{"data": [inputs(model, 4)], **arguments})
