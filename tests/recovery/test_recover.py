"""Training end to end on small models: what falls, what holds, what it is made of."""

import copy
import functools

import pytest
import torch
from common import pruned, same_weights

import vlprune
from vlprune import demo
from vlprune.data import LabelledData
from vlprune.losses import matching_loss
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
from vlprune.recovery.losses import kl_loss, similarity_loss
from vlprune.recovery.objective import Distillation, SelfDistillation
from vlprune.recovery.outputs import checkpointed, outputs_of


def zero_sets_equal(model, masks):
    after = vlprune.masks(model)
    return after.keys() == masks.keys() and all(torch.equal(after[name], masks[name]) for name in masks)


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
    image, text = states["teacher embeddings"]
    sim = similarity_loss(logits, clip.logit_scale.exp() * image @ text.T)
    assert terms["sim"].item() == pytest.approx(3 * sim.item(), rel=1e-5)


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
    labelled.classes = ["circle", "star", "circle"]
    batch = Source(labelled, RecoverConfig(batch_size=4), True).batch(0)
    assert torch.equal(batch.texts, tokenizer(["a red circle", "a red star"]))
    assert batch.labels.tolist() == [{0: 0, 1: 1, 2: 0}[label] for label in expected]


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


def test_checkpointing_leaves_a_blocks_own_forward(clip):
    block = clip.visual.transformer.resblocks[0]
    block.forward = own = functools.partial(type(block).forward, block)
    with checkpointed(clip):
        assert block.forward is not own
    assert block.forward is own


def test_one_pair_is_one_batch(batches):
    images, texts = batches[0]
    source = Source((images, texts), TrainConfig(), False)
    assert source.steps == 1
    assert torch.equal(source.batch(0).images, images)
    assert torch.equal(Source([images, texts], TrainConfig(), True).batch(0).texts, texts)
    assert Source([images, images + 1], TrainConfig(), False).steps == 2


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
