"""One pruned model trained back: what teaches it, what holds, and whose training a folder is."""

import copy
import json

import pytest
import torch

import vlprune
from vlprune import (
    Keep,
    MagnitudeConfig,
    SparseGPTConfig,
    StructuredConfig,
    compact_,
    masks,
    prune_,
    sparsify_,
)
from vlprune.nn import Linear24
from vlprune.pipeline import Variant
from vlprune.pipeline.curves import curves
from vlprune.pipeline.dense import holds_dense_weights, retained_layers, unpack_, was_pruned
from vlprune.pipeline.recovery import RECOVERY_METHODS, Recovery
from vlprune.pipeline.start import start_key
from vlprune.pipeline.train import claim, recover_pruned_
from vlprune.recovery import DistillConfig, RecoverConfig, SparseLoRAConfig

QUICK = {"steps": 6, "batch_size": 3, "learning_rate": 1e-3}


def quick(method, **more):
    return Recovery.from_dict({"method": method, **QUICK, **more})


def pruned(model, **config):
    small = copy.deepcopy(model)
    prune_(small, MagnitudeConfig(**config))
    return small


def train(model, dense, pairs, recovery, folder, **more):
    claim(folder, model, dense, pairs, recovery)
    return recover_pruned_(model, dense, pairs, recovery, folder, progress=False, **more)


def same_masks(model, before):
    after = masks(model)
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("method", RECOVERY_METHODS)
def test_settings_survive_json(method):
    recovery = Recovery.from_dict({"method": method, "steps": 5, "seed": 3})
    again = Recovery.from_dict(json.loads(json.dumps(recovery.to_dict())))
    assert again == recovery
    assert (recovery.training.steps, recovery.training.seed) == (5, 3)
    assert recovery.trains_weights == (method in ("finetune", "distill"))


def test_what_adapters_learn_by():
    assert Recovery.from_dict({"lam": 0.3, "rank": 4}) == Recovery(
        "sparselora", RecoverConfig(lam=0.3), SparseLoRAConfig(rank=4)
    )
    alone = Recovery.from_dict({"itc": 0, "sim": 0, "towers": ["visual"]})
    assert alone.adapters == SparseLoRAConfig(targets=("visual",))
    assert not alone.training.needs_texts
    # the rates of adapters, not those of weights
    assert (alone.training.learning_rate, alone.training.warmup) == (RecoverConfig().learning_rate, 0.0)
    assert Recovery.from_dict({"towers": ["text"]}).training == RecoverConfig()
    fine = Recovery.from_dict({"method": "finetune"}).training
    assert fine == DistillConfig(sim=0.0, feat=0.0, hidden=0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "rest"}, "method: expected one of sparselora, lora, finetune, distill, got 'rest'"),
        ({"method": "distill", "rank": 4}, "rank: belongs to sparselora and lora, not to distill"),
        ({"method": "finetune", "lam": 0.5}, "lam: belongs to sparselora"),
        ({"method": "finetune", "hidden": 2.0}, "hidden: belongs to distill, not to finetune"),
        ({"lam": 0.5, "feat": 10}, "lam: feat says what is minimised instead"),
        ({"rank": 0}, "rank: expected a whole number of at least 1, got 0"),
        ({"step": 3}, "unknown field 'step'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        Recovery.from_dict(values)


@pytest.mark.parametrize(
    ("method", "taught"),
    [
        ("sparselora", "its own dense weights"),
        ("lora", "its own dense weights"),
        ("finetune", "captions alone"),
        ("distill", "the dense model"),
    ],
)
def test_training_holds_zeros_but_for_plain_lora(clip, pairs, tmp_path, method, taught):
    model, teacher = pruned(clip), copy.deepcopy(clip)
    before = masks(model)
    start = copy.deepcopy(model)
    part = train(model, clip, pairs, quick(method), tmp_path)
    assert part["taught_by"] == taught
    assert part["zeros"]["kept"] == (method != "lora")
    assert same_masks(model, before) == (method != "lora")
    assert part["zeros"]["before"] == sum(int((~keep).sum()) for keep in before.values())
    assert not torch.equal(model.visual.transformer.resblocks[0].mlp.c_fc.weight,
                           start.visual.transformer.resblocks[0].mlp.c_fc.weight)  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(clip.parameters(), teacher.parameters(), strict=True))
    assert list(model.state_dict()) == list(clip.state_dict())
    assert all(p.requires_grad for p in model.parameters())


def loss_to(model, dense, pairs):
    """How far the embeddings of all pairs are from the dense model's."""
    (batch,) = pairs.batches(6)
    with torch.inference_mode():
        return sum(
            (getattr(model, call)(x, normalize=True) - getattr(dense, call)(x, normalize=True))
            .square()
            .sum()
            .item()
            for call, x in (("encode_image", batch.images), ("encode_text", batch.texts))
        )


@pytest.mark.parametrize("method", ["sparselora", "distill"])
def test_training_brings_the_model_back(clip, pairs, tmp_path, method):
    model = pruned(clip)
    before = loss_to(model, clip, pairs)
    lam = {"lam": 1.0} if method == "sparselora" else {}
    part = train(model, clip, pairs, quick(method, steps=40, learning_rate=3e-3, **lam), tmp_path)
    losses = part["curves"]["loss"]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    if method == "distill":  # which compares embeddings; the other one compares similarities
        assert loss_to(model, clip, pairs) < 0.7 * before


def test_weights_that_pruning_changed_learn_from_the_dense_model(clip, pairs, tmp_path):
    """They have no dense weights of their own; the loss has the gradient of (1 - lam) * task + lam * KL."""
    model = copy.deepcopy(clip)
    prune_(model, SparseGPTConfig(samples=6), pairs)
    before, weight = masks(model), model.transformer.resblocks[0].mlp.c_fc.weight.clone()
    part = train(model, clip, pairs, quick("sparselora", lam=0.25, steps=1), tmp_path)
    assert part["taught_by"] == "the dense model"
    assert set(part["curves"]) == {"step", "loss", "itc", "sim", "lr"}
    assert same_masks(model, before)
    # one small step from what SparseGPT made, not from the dense weight
    moved = (model.transformer.resblocks[0].mlp.c_fc.weight - weight).abs().max()
    assert 0 < moved < (clip.transformer.resblocks[0].mlp.c_fc.weight * before[
        "transformer.resblocks.0.mlp.c_fc.weight"] - weight).abs().max()  # fmt: skip


def first_layer(tower):
    return tower.transformer.resblocks[0].mlp.c_fc.weight


@pytest.mark.parametrize("where", [{"targets": ["visual"]}, {"ignore": ["*out_proj"]}], ids=str)
@pytest.mark.parametrize("method", ["sparselora", "lora"])
def test_layers_without_adapters_stay_as_they_were_pruned(clip, pairs, tmp_path, method, where):
    """Their teacher is the dense model, not one of which they are a pruned part."""
    model = pruned(clip)
    before, start = masks(model), copy.deepcopy(model)
    part = train(model, clip, pairs, quick(method, **where), tmp_path)
    assert part["taught_by"] == "the dense model"
    assert same_masks(model, before) == (method == "sparselora")
    for own, other in ((model, start), (model.visual, start.visual)):
        adapted = "targets" not in where or own is model.visual
        assert torch.equal(first_layer(own), first_layer(other)) != adapted


@pytest.mark.parametrize(
    ("settings", "taught"),
    [
        ({"lam": 0}, "captions alone"),
        ({"lam": 0, "targets": ["visual"]}, "captions alone"),
        ({"sim": 0, "feat": 0, "hidden": 0}, "captions alone"),
        ({"sim": 0, "feat": 1, "hidden": 0}, "the dense model"),
    ],
    ids=str,
)
def test_who_teaches_is_said_by_the_terms(clip, pairs, tmp_path, settings, taught):
    part = train(pruned(clip), clip, pairs, quick("sparselora", **settings, steps=1), tmp_path)
    assert part["taught_by"] == taught


def test_packed_layers_are_trained_as_dense_ones(clip, pairs, tmp_path):
    model = pruned(clip)
    plain = copy.deepcopy(model)
    sparsify_(model, only_if_faster=False)
    assert any(isinstance(m, Linear24) for m in model.modules())
    results = [
        train(one, clip, pairs, quick("sparselora"), tmp_path / name)
        for name, one in (("packed", model), ("plain", plain))
    ]
    assert results[0]["curves"] == results[1]["curves"]
    vlprune.split_attention_(model), vlprune.split_attention_(plain)
    own, other = dict(model.named_parameters()), dict(plain.named_parameters())
    assert not any(isinstance(m, Linear24) for m in model.modules())
    for name, weight in other.items():
        assert torch.equal(own[name], weight), name


def test_activations_come_back_where_packing_took_them(clip):
    model = pruned(clip)
    sparsify_(model, only_if_faster=False)
    block = model.visual.transformer.resblocks[0].mlp
    assert type(block.gelu) is torch.nn.Identity
    assert unpack_(model, clip) > 0
    assert type(block.gelu) is type(clip.visual.transformer.resblocks[0].mlp.gelu)


def test_shallower_models_are_compared_with_the_layers_that_were_left(clip, pairs, tmp_path):
    small = copy.deepcopy(clip)
    compact_(small, {"visual": {"heads": {0: [0, 2], 2: [1]}, "layers": [0, 2]}})
    assert retained_layers(small, clip) == {"visual": (0, 2)}
    part = train(small, clip, pairs, quick("distill", steps=2), tmp_path)
    assert "hidden" in part["curves"]
    # its norms were trained since
    with pytest.raises(ValueError, match=r"none of the dense model's 3 layers of the visual tower; say"):
        retained_layers(small, clip)


def test_the_other_tower_stays_as_it_is(clip, pairs, tmp_path):
    model = pruned(clip)
    before = copy.deepcopy(model)
    train(model, clip, pairs, quick("finetune", towers=["visual"]), tmp_path)
    for name, p in model.named_parameters():
        if not name.startswith("visual."):
            assert torch.equal(p, before.get_parameter(name)), name
    assert not torch.equal(model.visual.conv1.weight, before.visual.conv1.weight)


def test_a_folder_is_of_one_training(clip, pairs, tmp_path):
    model = pruned(clip)
    # nothing was trained yet that would be lost
    claim(tmp_path, model, clip, pairs, quick("sparselora"))
    train(copy.deepcopy(model), clip, pairs, quick("distill"), tmp_path)
    claim(tmp_path, model, clip, pairs, quick("distill", save_every=3))
    for other, message in (
        ((model, clip, pairs, quick("distill", learning_rate=1e-2)), "learning_rate 0.001, now 0.01"),
        ((pruned(clip, pattern="1:4"), clip, pairs, quick("distill")), "a training with another model"),
        ((model, pruned(clip, pattern="1:4"), pairs, quick("distill")), "a training with another teacher"),
        ((model, clip, pairs.subset([0, 1, 2]), quick("distill")), "a training with another data"),
    ):
        with pytest.raises(ValueError, match=message):
            claim(tmp_path, *other)
    whole = (tmp_path / "run.json").read_text()
    for text in ("[1]", '{"model": 1', whole.replace('"data"', '"more": 0, "data"', 1)):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"a training of which run\.json does not tell; give another folder"
        ):
            claim(tmp_path, model, clip, pairs, quick("distill"))
        assert (tmp_path / "run.json").read_text() == text
    assert (tmp_path / "log.jsonl").exists()
    claim(tmp_path, model, clip, pairs, quick("finetune"), restart=True)
    assert not (tmp_path / "log.jsonl").exists()


def test_what_cannot_be_trained(clip, pairs, tmp_path):
    with pytest.raises(ValueError, match="nothing was pruned"):
        claim(tmp_path, copy.deepcopy(clip), clip, pairs, quick("sparselora"))
    half = pruned(clip).bfloat16()
    with pytest.raises(ValueError, match=r"method: distill trains weights, and torch\.bfloat16 rounds"):
        claim(tmp_path, half, clip, pairs, quick("distill"))
    claim(tmp_path, half, clip, pairs, quick("sparselora"))


def test_whether_a_model_is_the_dense_one_with_zeros(clip):
    assert not was_pruned(copy.deepcopy(clip), clip)
    small = pruned(clip)
    assert was_pruned(small, clip)
    assert holds_dense_weights(small, clip)
    with torch.no_grad():
        small.visual.conv1.weight[0, 0, 0, 0] += 1e-6
    assert not holds_dense_weights(small, clip)
    cut = copy.deepcopy(clip)
    compact_(cut, {"visual": {"neurons": {0: [0, 1]}}})
    assert was_pruned(cut, clip)
    assert not holds_dense_weights(cut, clip)


def test_long_logs_are_thinned_to_means():
    rows = [{"step": n, "loss": float(n * n), "lr": 1.0 / (n + 1), "grad_norm": None} for n in range(10)]
    found = curves(rows, points=4)
    # 2, 3, 2 and 3 steps
    assert found["step"] == [0.5, 3.0, 5.5, 8.0]
    assert found["loss"] == [0.5, 29 / 3, 30.5, (49 + 64 + 81) / 3]
    assert curves(rows)["loss"] == [row["loss"] for row in rows]
    assert set(found) == {"step", "loss", "lr"}


def test_keep_is_a_start_of_its_own():
    """Counts and shares of the same number are two things, also when trained."""
    configs = [StructuredConfig(visual=Keep(heads=kept)) for kept in (1, 1.0)]
    first, second = (start_key(Variant(None, config, quick("distill"))) for config in configs)
    assert first != second
