"""Zeroth-order scores: what they estimate, at what cost, and that the model is left as it was."""

import math

import pytest
import torch
from models import zoo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vlprune import models
from vlprune.losses import contrastive, loss_and_batches
from vlprune.zeroth_order import projected_gradient, zeroth_order_scores

HALF_NORMAL = math.sqrt(2 / math.pi)  # E|z|, z ~ N(0, 1)


def parts(model):
    """Split the model's attention; its layers and blocks by name."""
    models.split_attention_(model)
    found = [b for t in models.view(model).towers.values() for b in t.blocks]
    return {n: m for b in found for n, m in b.linears().items()}, {b.name: b.module for b in found}


@pytest.fixture
def clip():
    return zoo.build("clip")


@pytest.fixture
def batches(clip):
    return [zoo.inputs(clip, 4)]


def scored(model, only=None, pairs=None, **options):
    layers, blocks = parts(model)
    pairs = zoo.inputs(model, 3) if pairs is None else pairs
    fn, batches = loss_and_batches("auto", model, pairs, samples=3, batch_size=2)
    layers = layers if only is None else {name: layers[name] for name in only}
    return zeroth_order_scores(model, layers, blocks, batches, fn, progress=False, **options)


class One(nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.layer = nn.Linear(columns, rows)


def test_a_linear_loss_gives_the_projection_exactly():
    direction, weight, noise = torch.randn(3, 5, 7, dtype=torch.float64)
    weight = nn.Parameter(weight)
    got = projected_gradient(weight.detach(), noise, 1e-3, lambda: 0.0)
    assert got == 0
    got = projected_gradient(weight, noise, 1e-3, lambda: float((direction * weight).sum().detach()))
    # float64 rounding of two sums of 35 terms, over 2e-3
    assert got == pytest.approx(float((direction * noise).sum()), rel=1e-10)


def test_expected_score_of_a_linear_loss():
    model, draws = One(6, 5).double(), 4000
    direction = torch.randn(6, 5).double()

    def loss(model, batch):
        return batch * (direction * model.layer.weight).sum()

    score = zeroth_order_scores(model, {"layer": model.layer}, {}, [1.0, 2.0], loss, draws=draws)["layer"]
    # |g| has mean 0.798 and standard deviation 0.603 of the norm; four standard errors
    assert score / draws / 3 == pytest.approx(
        HALF_NORMAL * float(direction.norm()), rel=4 * 0.756 / draws**0.5
    )


def test_it_estimates_the_norm_of_the_gradient(clip, batches):
    clip.double()
    layers, blocks = parts(clip)
    fn, batches = loss_and_batches("contrastive", clip, batches[:1], samples=4, batch_size=4)
    layers = {
        n: layers[n] for n in ("visual.transformer.resblocks.0.attn.qkv", "transformer.resblocks.1.mlp.c_fc")
    }
    draws = 400
    scores = zeroth_order_scores(clip, layers, blocks, batches, fn, draws=draws, epsilon=1e-4)
    contrastive(clip, batches[0]).backward()
    for name, layer in layers.items():
        expected = HALF_NORMAL * float(layer.weight.grad.norm())
        assert scores[name] / draws == pytest.approx(expected, rel=4 * 0.756 / draws**0.5)


def test_one_draw_is_the_gradient_along_the_noise(clip, batches):
    clip.double()
    layers, _ = parts(clip)
    (batch,) = loss_and_batches("contrastive", clip, batches[:1], samples=4, batch_size=4)[1]
    contrastive(clip, batch).backward()
    with torch.no_grad():
        for name in list(layers)[::3]:
            weight = layers[name].weight
            noise = torch.randn_like(weight)
            got = projected_gradient(weight, noise, 1e-4, lambda: float(contrastive(clip, batch)))
            # float32 loss of about 2.5 leaves 1e-7 / 1e-4; the rest is the third derivative
            assert got == pytest.approx(float((weight.grad * noise).sum()), abs=5e-3)


@pytest.mark.parametrize("kind", [kind for kind in zoo.KINDS if kind != "timm-map"])  # ViT-B: minutes
def test_reuse_changes_no_score(kind, tmp_path):
    model = zoo.build(kind, tmp_path)
    only = list(parts(model)[0])[:: 7 if kind == "timm" else 1]
    # transformers draws weights so small that 1e-3 moves some losses by less than float32 resolves
    scores = scored(model, only=only, seed=5, epsilon=0.1)
    assert all(score > 0 for score in scores.values())
    assert scores == scored(model, only=only, seed=5, epsilon=0.1, reuse=False)


EVEN = {"layers": 4, "width": 32, "image_size": 32, "patch_size": 8, "head_width": 16}, {
    "layers": 4, "width": 32, "heads": 2, "vocab_size": 50, "context_length": 16,
}  # fmt: skip


def test_at_least_three_times_fewer_flops_than_published():
    from open_clip.model import CLIP

    model = CLIP(32, *EVEN).eval()
    layers, blocks = parts(model)
    images, texts = torch.randn(2, 3, 32, 32), torch.randint(1, 49, (2, 16))
    fn, batches = loss_and_batches("auto", model, (images, texts), samples=2, batch_size=2)
    flops = {}
    for reuse in (True, False):
        with FlopCounterMode(display=False) as counter:
            zeroth_order_scores(model, layers, blocks, batches, fn, reuse=reuse, progress=False)
        flops[reuse] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fn(model, batches[0])
    assert flops[False] == 2 * len(layers) * counter.get_total_flops()
    assert flops[False] / flops[True] > 3


def test_noise_follows_the_seed_and_the_name_alone(clip):
    name = "visual.transformer.resblocks.1.mlp.c_fc"
    all_ = scored(clip)
    assert scored(clip) == all_
    assert scored(clip, only=[name]) == {name: all_[name]}
    assert scored(clip, only=[name], seed=1)[name] != all_[name]
    # the same noise twice would give just twice the score
    assert scored(clip, only=[name], draws=2)[name] != pytest.approx(2 * all_[name])


def test_noise_differs_between_batches_and_matrices():
    model = nn.Sequential(One(3, 3), One(3, 3))
    layers = {"a": model[0].layer, "b": model[1].layer}
    start = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    seen = []

    def loss(model, batch):
        moved = [(layer.weight - start[name]).flatten() for name, layer in layers.items()]
        seen.append((batch, *(m for m in moved if m.any())))
        return torch.zeros(())

    scores = zeroth_order_scores(model, layers, {}, [0, 1], loss, draws=2, epsilon=1.0, reuse=False)
    assert scores == {"a": 0.0, "b": 0.0}
    noise = [m for _, m in seen]  # one matrix at a time moves
    assert len(noise) == 2 * 2 * 2 * 2
    for plus, minus in zip(noise[::2], noise[1::2], strict=True):
        torch.testing.assert_close(plus, -minus)
    different = torch.stack(noise[::2])
    assert len(different.round(decimals=4).unique(dim=0)) == len(different)


def state(model):
    return {
        name: (t.data_ptr(), t.dtype, t.clone(), t.requires_grad)
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }


def assert_untouched(model, before):
    for name, (pointer, dtype, value, requires_grad) in before.items():
        tensor = dict((*model.named_parameters(), *model.named_buffers()))[name]
        assert (tensor.data_ptr(), tensor.dtype, tensor.requires_grad) == (pointer, dtype, requires_grad), (
            name
        )
        assert torch.equal(tensor, value), name
        assert tensor.grad is None, name
    assert all("forward" not in vars(m) and not m._forward_hooks for m in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["clip", "half"])
@pytest.mark.parametrize("fails_at", [None, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("reuse", [True, False])
def test_the_model_is_left_as_it_was(kind, fails_at, reuse):
    model = zoo.build(kind)
    layers, blocks = parts(model)
    before = state(model)
    calls = []

    def loss(model, batch):
        calls.append(batch)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return contrastive(model, batch)

    fn, batches = loss_and_batches(loss, model, zoo.inputs(model, 4), samples=4, batch_size=2)
    if fails_at is None:
        zeroth_order_scores(model, layers, blocks, batches, fn, reuse=reuse)
    else:
        with pytest.raises(KeyboardInterrupt):
            zeroth_order_scores(model, layers, blocks, batches, fn, reuse=reuse)
    assert_untouched(model, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_is_scored_as_float32(dtype):
    model = zoo.build("clip")
    pairs = zoo.inputs(model, 3)
    half = scored(model.to(dtype), pairs=pairs)
    assert half == scored(model.float(), pairs=pairs)
    assert all(score > 0 for score in half.values())


def test_works_in_inference_mode(clip):
    expected = scored(clip)
    with torch.inference_mode():
        assert scored(clip) == expected


class Nowhere(nn.Module):
    """A model whose loss turns bad once its layer moves."""

    def __init__(self, value, moved):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.start = self.layer.weight.detach().clone()
        self.value, self.moved = value, moved

    def forward(self):
        unmoved = torch.equal(self.layer.weight, self.start)
        return self.value if unmoved else self.moved


@pytest.mark.parametrize(
    ("value", "moved", "message"),
    [
        (torch.tensor(math.nan), None, r"loss of the unchanged model, batch 0: .* finite number, got nan"),
        (torch.tensor(1.0), torch.tensor(math.inf), r"loss of fc with noise, batch 0: .* got inf"),
        (torch.ones(2), None, r"loss: expected a scalar tensor, got shape \(2,\)"),
        (1.0, None, "loss: expected a scalar tensor, got float"),
    ],
)
def test_a_loss_that_is_no_finite_scalar_is_named(value, moved, message):
    model = Nowhere(value, moved)
    with pytest.raises(ValueError, match=message):
        zeroth_order_scores(model, {"fc": model.layer}, {}, [None], lambda model, _: model())
    assert torch.equal(model.layer.weight, model.start)


def test_no_batches():
    model = One(2, 2)
    with pytest.raises(ValueError, match="batches: expected at least one"):
        zeroth_order_scores(model, {"fc": model.layer}, {}, [], contrastive)


@pytest.mark.parametrize("progress", [True, False])
def test_progress(clip, capsys, progress):
    layers, blocks = parts(clip)
    fn, batches = loss_and_batches("auto", clip, zoo.inputs(clip, 4), samples=4, batch_size=2)
    zeroth_order_scores(clip, layers, blocks, batches, fn, progress=progress)
    assert ("40/40" in capsys.readouterr().err) == progress  # 20 matrices, 2 batches
