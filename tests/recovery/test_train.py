"""Training end to end on small models: what falls, what holds, what is refused."""

import copy
import json
import math

import pytest
import torch

import vlprune
from vlprune import demo
from vlprune.data import LabelledData
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    add_sparse_lora_,
    dense_teacher,
    distill_,
    merge_sparse_lora_,
    recover_,
)
from vlprune.recovery.batches import Source
from vlprune.recovery.config import TrainConfig
from vlprune.recovery.loop import fit
from vlprune.recovery.losses import kl_loss, matching_loss
from vlprune.recovery.objective import Distillation, SelfDistillation
from vlprune.recovery.outputs import outputs_of
from vlprune.recovery.step import learning_rate


def pruned(model, **config):
    small = copy.deepcopy(model)
    vlprune.prune_(small, vlprune.MagnitudeConfig(**config))
    return small


class Watched(Distillation):
    """Keeps the weights that each step began with."""

    def __init__(self, *given):
        super().__init__(*given)
        self.seen = []

    def forward(self, batch):
        self.seen.append({name: p.detach().clone() for name, p in self.student.named_parameters()})
        return super().forward(batch)


def zero_sets_equal(model, masks):
    after = vlprune.masks(model)
    return after.keys() == masks.keys() and all(torch.equal(after[name], masks[name]) for name in masks)


def same_weights(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_recover_trains_adapters_towards_the_dense_model(clip, batches):
    small = pruned(clip, pattern="2:4")
    masks = vlprune.masks(small)
    add_sparse_lora_(clip, SparseLoRAConfig(rank=4), masks)
    before = {name: p.clone() for name, p in clip.named_parameters()}
    report = recover_(clip, batches, RecoverConfig(steps=30, learning_rate=3e-3, lam=1.0))
    assert sum(report.losses[-3:]) < 0.5 * sum(report.losses[:3])
    changed = {name for name, p in clip.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    assert report.trained == sum(before[name].numel() for name in changed)
    merge_sparse_lora_(clip)
    assert zero_sets_equal(clip, masks)


def test_recover_loss_is_the_task_and_the_divergence(clip, batches):
    add_sparse_lora_(clip, SparseLoRAConfig(rank=2), vlprune.masks(pruned(clip, pattern="2:4")))
    (batch,) = [Source(batches[:1], RecoverConfig(), True).batch(0)]
    terms = SelfDistillation(clip, RecoverConfig(lam=0.25))(batch)
    own = clip(*batches[0])
    with dense_teacher(clip):
        other = clip(*batches[0])
    student, teacher = (scale * image @ text.T for image, text, scale in (own, other))
    # float32 towers run twice
    assert terms["task"].item() == pytest.approx(0.75 * matching_loss(student).item(), rel=1e-5)
    assert terms["kl"].item() == pytest.approx(0.25 * kl_loss(student, teacher).item(), rel=1e-4)
    assert set(SelfDistillation(clip, RecoverConfig(lam=0.0))(batch)) == {"task"}
    assert set(SelfDistillation(clip, RecoverConfig(lam=1.0))(batch)) == {"kl"}


@pytest.mark.parametrize("ema", [None, 0.5], ids=["weights", "mean of weights"])
def test_distillation_holds_every_zero(clip, batches, ema):
    student = pruned(clip, pattern="unstructured", sparsity=0.6)
    masks = vlprune.masks(student)
    config = DistillConfig(steps=6, learning_rate=1e-2, weight_decay=0.5, ema=ema, warmup=0.0)
    distill_(student, clip, batches, config)
    assert zero_sets_equal(student, masks)
    released = pruned(clip, pattern="unstructured", sparsity=0.6)
    distill_(released, clip, batches, DistillConfig(steps=1, learning_rate=1e-2, hold_zeros=False))
    assert not zero_sets_equal(released, masks)


def test_held_weights_are_zero_and_their_gradients_count_for_nothing(clip, batches, tmp_path):
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    student = copy.deepcopy(clip)
    keep = torch.rand(256, 64) < 0.5
    config = DistillConfig(steps=1, sim=0, feat=0, hidden=0)
    objective, source = Distillation(student, clip, config), Source(batches, config, True)
    (objective(source.batch(0))["itc"]).backward()
    grads = {own: p.grad.clone() for own, p in student.named_parameters()}
    grads[name] *= keep
    # dense weights under a mask, which the first step has to lay over them
    fit("distill", objective, source, config, held={name: keep}, out=tmp_path)
    assert torch.equal(student.get_parameter(name) != 0, keep)
    expected = torch.stack([grad.norm() for grad in grads.values()]).norm().item()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["grad_norm"] == pytest.approx(expected, rel=1e-5)


def test_distillation_brings_the_student_closer(clip, batches):
    student = pruned(clip, pattern="2:4")
    teacher = copy.deepcopy(clip)
    report = distill_(student, clip, batches, DistillConfig(steps=40, learning_rate=1e-3))
    assert sum(report.losses[-3:]) < 0.7 * sum(report.losses[:3])
    assert same_weights(clip, teacher)
    assert set(report.terms) == {"itc", "sim", "feat", "hidden"}
    assert not student.training
    assert all(p.grad is None for p in student.parameters())


def test_distillation_terms_are_those_of_the_models(clip, batches):
    student = pruned(clip, pattern="2:4")
    config = DistillConfig(itc=2.0, sim=3.0, feat=5.0, hidden=7.0)
    terms = Distillation(student, clip, config)(Source(batches[:1], config, True).batch(0))
    states = {}
    for name, model in (("student", student), ("teacher", clip)):
        to = states[name] = []
        layers = [*model.visual.transformer.resblocks, *model.transformer.resblocks]
        hooks = [layer.register_forward_hook(lambda _, __, out, to=to: to.append(out)) for layer in layers]
        states[f"{name} embeddings"] = model(*batches[0])[:2]
        for hook in hooks:
            hook.remove()
    own, other = states["student"], states["teacher"]
    assert len(own) == 5
    hidden = sum((a - b).square().mean() for a, b in zip(own, other, strict=True)) / 2
    assert terms["hidden"].item() == pytest.approx(7 * hidden.item(), rel=1e-5)
    pairs = zip(states["student embeddings"], states["teacher embeddings"], strict=True)
    feat = sum((a - b).square().mean() for a, b in pairs) / 2
    assert terms["feat"].item() == pytest.approx(5 * feat.item(), rel=1e-5)
    image, text = states["student embeddings"]
    logits = student.logit_scale.exp() * image @ text.T
    assert terms["itc"].item() == pytest.approx(2 * matching_loss(logits).item(), rel=1e-5)


def test_layers_of_a_shallower_student_map_to_those_that_were_left(clip, batches):
    student = copy.deepcopy(clip)
    report = vlprune.compact_(student, {"visual": {"layers": [0, 2]}})
    retained = {"visual": report.keep_lists["visual"]["layers"]}
    config = DistillConfig(itc=0, sim=0, feat=0, towers=("visual",), retained=retained)
    batch = Source([batches[0][0]], config, False).batch(0)
    found = Distillation(student, clip, config)(batch)["hidden"]
    own = outputs_of(student, batch, ("visual",)).hidden["visual"]
    other = outputs_of(clip, batch, ("visual",)).hidden["visual"]
    expected = ((own[0] - other[0]).square().mean() + (own[1] - other[2]).square().mean()) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    # layer 0 is untouched, so it adds nothing
    assert expected.item() == pytest.approx((own[1] - other[2]).square().mean().item() / 2, rel=1e-5)
    with pytest.raises(ValueError, match="visual tower has 2 layers and the teacher's 3; say which are left"):
        Distillation(student, clip, DistillConfig())
    with pytest.raises(ValueError, match="expected 2 of the teacher's layers 0 to 2"):
        Distillation(student, clip, DistillConfig(retained={"visual": (0, 1, 2)}))


def test_images_alone(clip, batches):
    student = pruned(clip, pattern="2:4")
    before = copy.deepcopy(student)
    config = DistillConfig(itc=0, sim=0, towers=("visual",), steps=20, learning_rate=1e-3)
    report = distill_(student, clip, [images for images, _ in batches], config)
    assert set(report.terms) == {"feat", "hidden"}
    assert report.losses[-1] < 0.8 * report.losses[0]
    for name, p in student.named_parameters():
        assert torch.equal(p, before.get_parameter(name)) == (not name.startswith("visual.")), name


def test_labelled_images_share_the_text_of_their_class():
    _, preprocess, tokenizer = demo.load()
    data = vlprune.load_data("demo", preprocess, tokenizer).subset(4)
    labelled = LabelledData(data.images, [2, 0, 2, 1], ["circle", "star", "ring"], preprocess, tokenizer)
    labelled.templates = ["a red {}"]
    batch = Source(labelled, RecoverConfig(batch_size=4), True).batch(0)
    assert batch.texts.shape[0] == 3
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0)).tolist()
    expected = [[2, 0, 2, 1][position] for position in order]
    assert batch.labels.tolist() == expected
    prompts = tokenizer([f"a red {name}" for name in labelled.classes])
    assert torch.equal(batch.texts, prompts)


@pytest.mark.parametrize("setting", ["checkpointing", "amp"], ids=str)
def test_recomputed_blocks_and_bf16_give_the_same_course(clip, batches, setting):
    reports = {}
    for value in ({"checkpointing": (False, True), "amp": (None, "bf16")})[setting]:
        student = pruned(clip, pattern="2:4")
        reports[value] = distill_(
            student, clip, batches, DistillConfig(steps=4, learning_rate=1e-3, **{setting: value})
        )
    (plain, other) = reports.values()
    # checkpointing computes the same numbers; bf16 keeps 8 bits of each activation
    tolerance = 1e-6 if setting == "checkpointing" else 0.05
    assert other.losses == pytest.approx(plain.losses, rel=tolerance)
    assert (other.losses == plain.losses) == (setting == "checkpointing")


def test_checkpointing_keeps_less(clip, batches):
    sizes = {}
    for checkpointing in (False, True):
        held = []
        model = copy.deepcopy(clip)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, to=held: to.append(t.nbytes) or t, lambda t: t
        ):
            config = DistillConfig(steps=1, sim=0, feat=0, hidden=0, checkpointing=checkpointing)
            distill_(model, clip, batches, config)
        sizes[checkpointing] = sum(held)
        assert "forward" not in vars(model.visual.transformer.resblocks[0])
    assert sizes[True] < 0.5 * sizes[False]


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


def test_learning_rate():
    config = TrainConfig(learning_rate=2.0, warmup=0.25, final_learning_rate=0.5)
    rates = [learning_rate(step, 8, config) for step in range(8)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    # half way through the six steps of the cosine: 2 (0.5 + 0.5 / 2)
    assert rates[5] == pytest.approx(1.5, rel=1e-12)
    assert rates[7] == pytest.approx(2 * (0.5 + 0.25 * (1 + math.cos(math.pi * 5 / 6))), rel=1e-12)


def test_order_is_a_function_of_seed_and_epoch():
    given = [torch.full((1, 1), float(i)) for i in range(5)]
    source = Source(given, TrainConfig(epochs=2, seed=3), False)
    assert source.steps == 10
    seen = [int(batch.images) for batch in source.ahead(0, 10)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:]
    assert [int(batch.images) for batch in source.ahead(7, 10)] == seen[7:]
    other = Source(given, TrainConfig(epochs=2, seed=4), False)
    assert [int(batch.images) for batch in other.ahead(0, 10)] != seen


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


def test_log_has_a_line_a_step(clip, batches, tmp_path):
    report = distill_(pruned(clip, pattern="2:4"), clip, batches, DistillConfig(steps=3), out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["loss"] for line in lines] == pytest.approx(report.losses, rel=1e-12)
    assert [line["lr"] for line in lines] == [learning_rate(i, 3, DistillConfig(steps=3)) for i in range(3)]


def test_refusals(clip, batches):
    images = [batch[0] for batch in batches]
    with pytest.raises(ValueError, match="it is the student itself"):
        distill_(clip, clip, batches)
    with pytest.raises(ValueError, match="batch 0 has no texts"):
        distill_(copy.deepcopy(clip), clip, images)
    with pytest.raises(ValueError, match="has no adapters; call add_sparse_lora_"):
        recover_(clip, batches)
    with pytest.raises(ValueError, match="expected data of load_data, or batches"):
        distill_(copy.deepcopy(clip), clip, [])
    frozen = copy.deepcopy(clip).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        distill_(frozen, clip, batches)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"itc": 0, "sim": 0, "feat": 0, "hidden": 0}, "expected one of them above 0"),
        ({"towers": ("audio",)}, "towers: expected some of visual, text"),
        ({"retained": {"visual": (2, 1)}}, "retained: expected ascending layer numbers"),
        ({"learning_rate": 0}, "learning_rate: expected a number above 0, got 0"),
        ({"warmup": 1.5}, r"warmup: expected a number in \[0, 1\], got 1.5"),
        ({"amp": "fp8"}, "amp: expected None"),
        ({"betas": (0.9,)}, "betas: expected two numbers"),
        ({"steps": 0}, "steps: expected a whole number of at least 1, got 0"),
        ({"ema": 1.0}, r"ema: expected a decay in \[0, 1\), got 1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_config(fields, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**fields)


def test_configs_go_to_json_and_back():
    config = DistillConfig(retained={"visual": (0, 2)}, towers=("visual",), itc=0, sim=0, steps=7)
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    recover = RecoverConfig(lam=0.5, ema=0.9)
    assert RecoverConfig.from_dict(json.loads(json.dumps(recover.to_dict()))) == recover
