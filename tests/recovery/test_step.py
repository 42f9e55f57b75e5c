"""One step after another: what AdamW, masks, bounds and means make of the weights, and what stops them."""

import copy
import json
import math

import pytest
import torch
from common import Watched, pruned, same_weights
from models import zoo
from small_clip import SmallClip
from torch import nn

from vlprune.recovery import DistillConfig, distill_, loop
from vlprune.recovery.batches import Source
from vlprune.recovery.config import TrainConfig
from vlprune.recovery.loop import fit
from vlprune.recovery.objective import Distillation
from vlprune.recovery.step import learning_rate


@pytest.mark.parametrize("ema", [None, 0.9], ids=["weights", "mean of weights"])
def test_held_weights_are_zero_and_their_gradients_count_for_nothing(clip, batches, tmp_path, ema):
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    student = copy.deepcopy(clip)
    keep = torch.rand(256, 64) < 0.5
    config = DistillConfig(steps=1, sim=0, feat=0, hidden=0, ema=ema)
    objective, source = Distillation(student, clip, config), Source(batches, config, True)
    student.get_parameter(name).data *= keep
    (objective(source.batch(0))["itc"]).backward()
    grads = {own: p.grad.clone() for own, p in student.named_parameters()}
    grads[name] *= keep
    # dense weights under a mask, which has to be laid over them before the first step
    student.load_state_dict(clip.state_dict())
    fit("distill", objective, source, config, held=lambda: {name: keep}, out=tmp_path)
    assert torch.equal(student.get_parameter(name) != 0, keep)
    expected = torch.stack([grad.norm() for grad in grads.values()]).norm().item()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["grad_norm"] == pytest.approx(expected, rel=1e-5)


def test_mean_of_weights_is_what_is_left(clip, batches, tmp_path):
    config = {"steps": 3, "learning_rate": 1e-2, "warmup": 0, "sim": 0, "feat": 0, "hidden": 0}
    mean = {name: p.detach().clone() for name, p in clip.named_parameters()}
    settings = DistillConfig(**config, ema=0.75)
    student = copy.deepcopy(clip)
    source = Source(batches, settings, True)
    watched = Watched(student, clip, settings)
    fit("distill", watched, source, settings)
    raw = copy.deepcopy(clip)
    distill_(raw, clip, batches, DistillConfig(**config))
    for weights in [*watched.seen[1:], dict(raw.named_parameters())]:
        mean = {name: 0.75 * mean[name] + 0.25 * weights[name].detach() for name in mean}
    for name, p in student.named_parameters():
        torch.testing.assert_close(p, mean[name], rtol=1e-5, atol=1e-7)


def test_step_that_fp16_is_too_narrow_for_is_left_out(clip, batches, tmp_path, monkeypatch, one_thread):
    common = {"steps": 4, "save_every": 1, "learning_rate": 1e-3, "warmup": 0}
    config = DistillConfig(**common, amp="fp16", ema=0.5, sim=0, feat=0, hidden=0)
    start = pruned(clip, pattern="2:4")
    states, save = [], loop.save_state
    monkeypatch.setattr(loop, "save_state", lambda _, state: states.append(copy.deepcopy(state)))
    student, begun = copy.deepcopy(start), []
    student.visual.register_forward_pre_hook(lambda *_: begun.append(1))
    student.visual.proj.register_hook(lambda grad: grad * (math.inf if len(begun) == 3 else 1.0))
    report = distill_(student, clip, batches, config, out=tmp_path)
    # the first step is one by itself: scaled by 2 ** 16 a gradient is above fp16's largest number
    assert [state["scaler"]["scale"] for state in states] == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
    assert [len(state["history"]) for state in states] == [1, 2, 3, 4]
    for part in ("model", "ema"):
        _, before, after, then = ([*state[part].values()] for state in states)
        assert all(map(torch.equal, before, after))
        assert not all(map(torch.equal, after, then))
    # what goes on goes on with the scale
    save(tmp_path, states[2])
    again = copy.deepcopy(start)
    resumed = distill_(again, clip, batches, config, out=tmp_path)
    assert (resumed.resumed, resumed.losses) == (3, report.losses)
    assert same_weights(again, student)


def test_generators_of_other_gpus_are_left_alone(clip, batches, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("seeded all GPUs"))
    before = torch.get_rng_state()
    distill_(copy.deepcopy(clip), clip, batches, DistillConfig(steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_steps_of_adamw_by_hand():
    student, teacher = SmallClip().double(), SmallClip().double()
    batches = [(torch.randn(4, 3, 4, 4).double(), torch.randint(1, 30, (4, 8))) for _ in range(2)]
    rate, decay, betas = 1e-2, 0.3, (0.8, 0.9)
    config = DistillConfig(
        steps=2,
        learning_rate=rate,
        final_learning_rate=1.0,
        warmup=0,
        weight_decay=decay,
        betas=betas,
        clip_norm=None,
        sim=0,
        feat=0,
        hidden=0,
    )
    source, own = Source(batches, config, True), copy.deepcopy(student)
    first, second = ({name: torch.zeros_like(p) for name, p in own.named_parameters()} for _ in range(2))
    for step in (1, 2):
        own.zero_grad()
        Distillation(own, teacher, config)(source.batch(step - 1))["itc"].backward()
        for name, p in own.named_parameters():
            first[name] = betas[0] * first[name] + (1 - betas[0]) * p.grad
            second[name] = betas[1] * second[name] + (1 - betas[1]) * p.grad.square()
            mean, square = first[name] / (1 - betas[0] ** step), second[name] / (1 - betas[1] ** step)
            shrunk = p.detach() * (1 - rate * decay if p.dim() > 1 else 1)
            p.data = shrunk - rate * mean / (square.sqrt() + 1e-8)
    distill_(student, teacher, batches, config)
    for name, p in student.named_parameters():
        # float64; the gradient of the keys' bias is rounding, beside which 1e-8 is large
        torch.testing.assert_close(p, own.get_parameter(name), rtol=1e-9, atol=1e-9, msg=name)


def test_scale_of_the_logits_comes_down_from_its_bound(clip, batches):
    config = DistillConfig(steps=1, learning_rate=0.1, warmup=0, sim=0, feat=0, hidden=0)
    # the number in OpenAI's files; its exponential is a little more than 100
    nn.init.constant_(clip.logit_scale, 4.6052)
    distill_(clip, copy.deepcopy(clip), batches, config)
    # Adam's first step is the rate
    assert clip.logit_scale.item() == pytest.approx(4.6052 - 0.1, abs=1e-5)


def test_scale_of_the_logits_has_a_bound_but_in_sigmoid_models(clip, batches):
    config = DistillConfig(steps=1, learning_rate=1e-6, warmup=0, sim=0, feat=0, hidden=0)
    nn.init.constant_(clip.logit_scale, 4.7)
    distill_(clip, copy.deepcopy(clip), batches, config)
    assert clip.logit_scale.item() == pytest.approx(math.log(100), abs=1e-6)
    # as large as SigLIP's own
    siglip = zoo.build("siglip-like")
    nn.init.constant_(siglip.logit_scale, math.log(117.3))
    distill_(siglip, copy.deepcopy(siglip), [zoo.inputs(siglip, 4)], config)
    assert siglip.logit_scale.item() == pytest.approx(math.log(117.3), abs=2e-6)


def test_learning_rate():
    config = TrainConfig(learning_rate=2.0, warmup=0.25, final_learning_rate=0.5)
    rates = [learning_rate(step, 8, config) for step in range(8)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    # half way through the six steps of the cosine: 2 (0.5 + 0.5 / 2)
    assert rates[5] == pytest.approx(1.5, rel=1e-12)
    assert rates[7] == pytest.approx(2 * (0.5 + 0.25 * (1 + math.cos(math.pi * 5 / 6))), rel=1e-12)


def test_loss_that_is_not_finite_names_the_step_and_changes_nothing(clip, batches, tmp_path):
    bad = [*batches, (torch.full((4, 3, 32, 32), float("nan")), batches[0][1])]
    student = pruned(clip, pattern="2:4")
    order = Source(bad, DistillConfig(seed=2), True)
    at = next(step for step in range(4) if order.batch(step).images.isnan().any())
    assert at > 0
    config = DistillConfig(steps=4, seed=2, learning_rate=1e-3)
    watched = Watched(student, clip, config)
    with pytest.raises(ValueError, match=rf"distill: the loss is nan at step {at} \(itc nan"):
        fit("distill", watched, Source(bad, config, True), config, out=tmp_path)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == at
    assert not all(torch.equal(p, watched.seen[0][name]) for name, p in student.named_parameters())
    assert all(torch.equal(p, watched.seen[at][name]) for name, p in student.named_parameters())


def test_gradient_that_is_not_finite_changes_nothing_and_is_not_kept(clip, batches):
    student = copy.deepcopy(clip)
    student.visual.proj.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(ValueError, match=r"distill: the gradient's norm is (nan|inf) at step 0"):
        distill_(student, clip, batches, DistillConfig(steps=2))
    assert same_weights(student, clip)
    assert all(p.grad is None for p in student.parameters())
    assert not student.training


def test_log_has_a_line_a_step(clip, batches, tmp_path):
    report = distill_(pruned(clip, pattern="2:4"), clip, batches, DistillConfig(steps=3), out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["loss"] for line in lines] == pytest.approx(report.losses, rel=1e-12)
    assert [line["lr"] for line in lines] == [learning_rate(i, 3, DistillConfig(steps=3)) for i in range(3)]
