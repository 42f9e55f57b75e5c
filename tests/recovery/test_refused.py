"""What cannot be trained is refused in one line, before anything is changed."""

import copy
import json

import pytest
import torch
from common import pruned, same_weights
from models import zoo
from PIL import Image
from torch import nn

from vlprune import load_data
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    add_sparse_lora_,
    distill_,
    load_adapters_,
    recover_,
)
from vlprune.recovery import batches as batches_module
from vlprune.recovery.batches import Source


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


def test_processes_that_share_a_batch_cannot_skip_a_broken_image(tmp_path, monkeypatch):
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "pairs.tsv").write_text("".join(f"{i}.png\tnumber {i}\n" for i in range(4)))
    data = load_data(
        f"pairs:{tmp_path / 'pairs.tsv'}", lambda _: torch.zeros(3, 8, 8), lambda t: torch.zeros(len(t), 4),
        on_error="skip",
    )  # fmt: skip
    config = RecoverConfig(batch_size=4)
    assert len(Source(data, config, True).batch(0).images) == 3
    monkeypatch.setattr(batches_module, "world_size", lambda: 2)
    said = []
    for rank in range(2):
        monkeypatch.setattr(batches_module, "rank", lambda rank=rank: rank)
        try:
            assert len(Source(data, config, True).batch(0).images) == 2
        except ValueError as error:
            said.append(str(error))
    (message,) = said
    assert "2.png of step 0 could not be decoded; one process skips it, 2 that share" in message


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
        ({"retained": {"visual": 3}}, "retained: expected ascending layer numbers by tower, got 'visual': 3"),
        ({"retained": {3: (1,)}}, "retained: expected ascending layer numbers by tower, got 3"),
        ({"seed": 2**32}, "seed: expected a whole number from 0 to 4294967295, got 4294967296"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_config(fields, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**fields)


@pytest.mark.parametrize("name", ["rank", "alpha"])
def test_patterns_are_texts(name):
    with pytest.raises(ValueError, match=rf"{name}: expected patterns of layer names, got 1"):
        SparseLoRAConfig(**{name: {1: 4}})


def test_largest_seed_trains(clip, batches):
    config = DistillConfig(steps=1, seed=2**32 - 1)
    assert distill_(pruned(clip, pattern="2:4"), clip, batches, config).steps == 1


def test_missing_adapters(clip, tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config\.json: no such file"):
        load_adapters_(clip, tmp_path)


def test_configs_go_to_json_and_back():
    config = DistillConfig(retained={"visual": (0, 2)}, towers=("visual",), itc=0, sim=0, steps=7)
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    recover = RecoverConfig(lam=0.5, ema=0.9)
    assert RecoverConfig.from_dict(json.loads(json.dumps(recover.to_dict()))) == recover
