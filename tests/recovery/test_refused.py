"""What cannot be trained is refused in one line, before anything is changed."""

import copy
import json

import pytest
import torch
from common import pruned, same_weights
from models import zoo
from torch import nn

from vlprune.recovery import DistillConfig, RecoverConfig, add_sparse_lora_, distill_, recover_


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
    with pytest.raises(ValueError, match=r"is torch\.bfloat16, in which small steps are rounded away"):
        distill_(copy.deepcopy(clip).bfloat16(), clip, batches)
    with pytest.raises(ValueError, match="teacher: expected an open_clip model, got Linear, which has no"):
        distill_(clip, nn.Linear(2, 2), batches)
    with pytest.raises(ValueError, match="samples: expected None with batches that are given"):
        distill_(copy.deepcopy(clip), clip, batches, DistillConfig(samples=4))
    alone = [(images[:1], texts[:1]) for images, texts in batches]
    with pytest.raises(ValueError, match="but no batch has two"):
        distill_(copy.deepcopy(clip), clip, alone)


def test_teacher_that_would_be_trained_is_refused(clip, batches):
    student = copy.deepcopy(clip)
    student.visual = clip.visual
    with pytest.raises(ValueError, match=r"teacher: visual\S+ is the student's own and would be trained"):
        distill_(student, clip, batches)
    clip.visual.requires_grad_(False)
    before = copy.deepcopy(clip)
    distill_(student, clip, batches, DistillConfig(steps=1, learning_rate=1e-2))
    assert same_weights(clip, before)
    assert not torch.equal(student.text_projection, clip.text_projection)


def test_loss_that_nothing_trained_has_a_part_in_is_refused(clip, batches):
    student = pruned(clip, pattern="2:4")
    student.visual.requires_grad_(False)
    config = DistillConfig(itc=0, sim=0, towers=("visual",))
    with pytest.raises(ValueError, match="nothing that is trained has a part in feat, hidden"):
        distill_(student, clip, batches, config)


def test_blocks_that_do_not_run_cannot_be_compared():
    teacher = zoo.build("coca")
    student, batches = copy.deepcopy(teacher), [zoo.inputs(teacher, 4)]
    with pytest.raises(ValueError, match=r"hidden: 2 of the 6 blocks of the text tower run when it encodes"):
        distill_(student, teacher, batches)
    assert same_weights(student, teacher)
    report = distill_(student, teacher, batches, DistillConfig(steps=1, hidden=0))
    assert set(report.terms) == {"itc", "sim", "feat"}


def test_adapters_on_pruned_weights_have_no_teacher_of_their_own(clip, batches):
    add_sparse_lora_(small := pruned(clip, pattern="2:4"))
    with pytest.raises(ValueError, match="so that its dense teacher is the pruned model"):
        recover_(small, batches, RecoverConfig(steps=1))
    assert set(recover_(small, batches, RecoverConfig(steps=1, lam=0)).terms) == {"task"}
    # ordinary LoRA, without masks, has one, whatever zeros the dense model came with
    nn.init.zeros_(clip.visual.transformer.resblocks[0].mlp.c_fc.weight[0])
    add_sparse_lora_(clip)
    assert set(recover_(clip, batches, RecoverConfig(steps=1)).terms) == {"task", "kl"}


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
