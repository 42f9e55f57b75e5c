"""prune_ with allocations that look at the model: what is measured, what is removed, what is put back."""

import copy
import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.zoo import build, inputs

import vlprune
from vlprune import MagnitudeConfig, PatternError, PerTower, WandaConfig, models
from vlprune.allocation import OWL, ECoFLaP, PerLayer, ecoflap_sparsities, owl_sparsities
from vlprune.config import RIAConfig, SparseGPTConfig
from vlprune.importance import outlier_ratio
from vlprune.losses import loss_and_batches
from vlprune.zeroth_order import zeroth_order_scores

ECOFLAP = ECoFLaP(samples=8, batch_size=4)


def blocks_of(model):
    return [block for tower in models.view(model).towers.values() for block in tower.blocks]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def owl_by_hand(model, batches, m, mask=None):
    """Block -> (D, number of weights), from all scores of a block laid side by side in float64."""
    found = {}
    for block in blocks_of(model):
        scores = []
        for layer in block.linears().values():
            seen = []
            hook = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                for images, texts in batches:
                    model(images, texts)
            hook.remove()
            x = torch.cat(seen).double()
            x = x if mask is None or x.shape[1] != mask.shape[1] else x * mask[:, :, None]
            norm = (x.square().sum((0, 1)) / len(x)).sqrt()
            scores.append((layer.weight.detach().double().abs() * norm).flatten())
        scores = torch.cat(scores)
        found[block.name] = (100 * float((scores > m * scores.mean()).double().mean()), scores.numel())
    return found


@pytest.mark.parametrize("method", [MagnitudeConfig, WandaConfig, SparseGPTConfig, RIAConfig])
def test_owl_counts_outliers_on_the_dense_model(clip, batches, method):
    reference = copy.deepcopy(clip)
    models.split_attention_(reference)
    found = owl_by_hand(reference, batches, 3.0)
    shares = owl_sparsities(
        {name: d for name, (d, _) in found.items()},
        0.6,
        0.15,
        sizes={n: size for n, (_, size) in found.items()},
    )
    config = method(pattern="unstructured", sparsity=0.6, allocation=OWL(lam=0.15, m=3))
    report = vlprune.prune_(clip, config, batches)
    assert len(report.layers) == 20
    for layer in report.layers:
        block = blocks_of(reference)[layer.block + (3 if layer.tower == "text" else 0)]
        assert layer.name.startswith(block.name)
        # 0.01: a score or two of ten thousand may lie within rounding of the limit
        assert layer.importance == pytest.approx(found[block.name][0], abs=0.01)
        assert layer.target == pytest.approx(shares[block.name], abs=1e-3)
    assert len({layer.target for layer in report.layers}) == 5
    total = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    budget = sum(layer.shape[0] * layer.shape[1] * layer.target for layer in report.layers) / total
    assert budget == pytest.approx(0.6, abs=1e-12)


def test_owl_uses_the_token_weights(clip):
    texts = torch.cat([torch.randint(1, 49, (4, 12))])
    for row, end in enumerate((3, 5, 11, 7)):
        texts[row, end], texts[row, end + 1 :] = 49, 0
    mask = (texts > 0).double()
    batches = [(torch.randn(4, 3, 32, 32), texts)]
    reference = copy.deepcopy(clip)
    models.split_attention_(reference)
    found = owl_by_hand(reference, batches, 3.0, mask)
    plain = owl_by_hand(reference, batches, 3.0)
    config = WandaConfig(
        pattern="unstructured", sparsity=0.5, allocation=OWL(m=3), token_weight="attention_mask"
    )
    report = vlprune.prune_(clip, config, batches)
    for layer in report.layers:
        if layer.tower == "text":
            name = blocks_of(reference)[3 + layer.block].name
            assert layer.importance == pytest.approx(found[name][0], abs=0.01)
            assert layer.importance != pytest.approx(plain[name][0], abs=0.01)


def test_outlier_ratio_by_hand():
    """Scores 1, 1, 2, 20 and 0, 0: their mean is 4, so 20 exceeds it four times, but not five times."""
    weights = {"a": torch.tensor([[-1.0, 0.5], [2.0, 10.0]]), "b": torch.zeros(1, 2)}
    norms = {"a": torch.tensor([1.0, 2.0]), "b": torch.ones(2)}
    assert outlier_ratio(weights, norms, 4.0) == pytest.approx(100 / 6)
    assert outlier_ratio(weights, norms, 5.0) == 0.0
    assert outlier_ratio(weights, norms, 0.0) == pytest.approx(400 / 6)


@pytest.mark.parametrize("method", [MagnitudeConfig, WandaConfig, SparseGPTConfig])
def test_ecoflap_scores_every_layer_once_and_shares_one_budget(clip, batches, method):
    config = method(pattern="unstructured", sparsity=0.5, allocation=ECOFLAP)
    report = vlprune.prune_(clip, config, batches)
    scores, sizes = {}, {}
    for layer in report.layers:
        assert layer.importance > 0
        key = (layer.tower, layer.block)
        scores[key] = scores.get(key, 0.0) + layer.importance
        sizes[key] = sizes.get(key, 0) + layer.shape[0] * layer.shape[1]
    shares = ecoflap_sparsities(scores, sizes, 0.5)
    for layer in report.layers:
        assert layer.target == shares[layer.tower, layer.block]
    assert len(set(shares.values())) > 1


def test_every_field_of_ecoflap_reaches_the_measurement(clip, batches):
    """Against the scores that a direct call with the same settings gives; each setting changes them."""
    fields = {"epsilon": 0.02, "draws": 2, "samples": 6, "loss": mean_feature, "batch_size": 3, "seed": 5}
    reference = copy.deepcopy(clip)
    models.split_attention_(reference)
    blocks = blocks_of(reference)
    layers = {name: layer for block in blocks for name, layer in block.linears().items()}

    def scores(**changed):
        now = fields | changed
        loss, cut = loss_and_batches(
            now["loss"], reference, batches, samples=now["samples"], batch_size=now["batch_size"]
        )
        settings = {name: now[name] for name in ("epsilon", "draws", "seed")}
        return zeroth_order_scores(
            reference, layers, {block.name: block.module for block in blocks}, cut, loss, **settings
        )

    expected = scores()
    for name in fields:
        assert scores(**{name: getattr(ECoFLaP(), name)}) != expected, name
    allocation = ECoFLaP(max_sparsity=0.9, group="layer", **fields)
    config = WandaConfig(pattern="unstructured", sparsity=0.5, allocation=allocation)
    report = vlprune.prune_(clip, config, batches)
    assert {layer.name: layer.importance for layer in report.layers} == expected
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    shares = ecoflap_sparsities(expected, sizes, 0.5, 0.9)
    assert {layer.name: layer.target for layer in report.layers} == shares
    assert max(shares.values()) > 0.6  # above what the default cap allows


def mean_feature(model, batch):
    """A loss that is none of the built-in ones."""
    return model.encode_image(batch.images).square().mean() + model.encode_text(batch.texts).pow(3).mean()


def test_ecoflap_leaves_the_model_that_is_pruned_the_same(clip, batches):
    """Scoring perturbs every weight; the pruning after it must start from the very same ones."""
    other = copy.deepcopy(clip)
    report = vlprune.prune_(
        clip, WandaConfig(pattern="unstructured", sparsity=0.5, allocation=ECOFLAP), batches
    )
    again = PerLayer({layer.name: layer.target for layer in report.layers})
    vlprune.prune_(other, WandaConfig(pattern="unstructured", allocation=again), batches)
    for (name, a), b in zip(clip.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


MEASURING = [OWL(m=2), ECoFLaP(samples=4, batch_size=2)]


@pytest.mark.parametrize(
    ("kind", "allocation"),
    [*((kind, a) for kind in ("custom-text", "coca", "hf") for a in MEASURING), ("timm", MEASURING[0])],
    ids=lambda value: getattr(value, "kind", value),
)
def test_other_models(kind, allocation, tmp_path):
    model = build(kind, tmp_path)
    config = WandaConfig(pattern="unstructured", sparsity=0.5, allocation=allocation)
    report = vlprune.prune_(model, config, [inputs(model, 4)])
    total = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    budget = sum(layer.shape[0] * layer.shape[1] * layer.target for layer in report.layers) / total
    assert budget == pytest.approx(0.5, abs=1 / total)
    assert len({layer.target for layer in report.layers}) > 1


@pytest.mark.parametrize("allocation", [OWL(), ECOFLAP], ids=["owl", "ecoflap"])
def test_data_that_can_be_read_only_once_serves_both_stages(clip, batches, allocation):
    other = copy.deepcopy(clip)
    config = WandaConfig(pattern="unstructured", sparsity=0.5, allocation=allocation)
    vlprune.prune_(clip, config, iter(batches))
    vlprune.prune_(other, config, batches)
    for (name, a), b in zip(clip.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("allocation", [OWL(), ECOFLAP], ids=["owl", "ecoflap"])
def test_magnitude_needs_data_for_these(clip, allocation):
    config = MagnitudeConfig(pattern="unstructured", sparsity=0.5, allocation=allocation)
    assert config.needs_calibration
    assert not MagnitudeConfig().needs_calibration
    with pytest.raises(ValueError, match="calib: "):
        vlprune.prune_(clip, config)


@pytest.mark.parametrize(
    "allocation", [OWL(), ECOFLAP, PerLayer({"a": 0.5}), PerTower(0.4, 0.6)], ids=lambda a: a.kind
)
def test_n_of_m_fixes_every_sparsity(allocation):
    with pytest.raises(PatternError, match=f'"2:4" fixes every sparsity, {type(allocation).__name__} cannot'):
        WandaConfig(allocation=allocation)


def test_report_goes_to_json(clip, batches):
    config = WandaConfig(pattern="unstructured", sparsity=0.5, allocation=OWL(m=2), targets=("text",))
    report = vlprune.prune_(clip, config, batches)
    record = json.loads(json.dumps(report.to_dict()))
    assert [(layer["tower"], layer["block"]) for layer in record["layers"]] == [("text", 0)] * 4 + [
        ("text", 1)
    ] * 4
    for layer, made in zip(record["layers"], report.layers, strict=True):
        assert layer["target"] == made.target
        assert layer["importance"] == made.importance
        assert layer["zeros"] == made.zeros


def test_layers_of_per_layer_must_be_those_that_are_pruned(clip, batches):
    before = weights(clip)
    allocation = PerLayer({"visual.transformer.resblocks.0.attn.qkv": 0.5})
    with pytest.raises(ValueError, match=r"out_proj is to be pruned, but PerLayer gives it no sparsity"):
        vlprune.prune_(clip, MagnitudeConfig(pattern="unstructured", allocation=allocation))
    for name, value in clip.state_dict().items():
        assert torch.equal(value, before[name]), name
    config = MagnitudeConfig(
        pattern="unstructured", allocation=allocation, targets=("*.0.attn.qkv",), ignore=("text",)
    )
    assert len(vlprune.prune_(clip, config).layers) == 1


@pytest.mark.parametrize("after", [0, 7, 60], ids=["at once", "early", "late"])
def test_interrupted_scoring_leaves_the_model(clip, batches, after):
    before = weights(clip)
    modules = [(name, type(module)) for name, module in clip.named_modules()]
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return model.encode_image(batch.images).square().sum() + model.encode_text(batch.texts).sum()

    allocation = ECoFLaP(samples=8, batch_size=4, loss=loss)
    with pytest.raises(KeyboardInterrupt):
        vlprune.prune_(
            clip, WandaConfig(pattern="unstructured", sparsity=0.5, allocation=allocation), batches
        )
    assert len(calls) == after + 1
    assert [(name, type(module)) for name, module in clip.named_modules()] == modules
    for name, value in clip.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in clip.modules())
    assert not any("forward" in vars(m) for m in clip.modules())


@settings(max_examples=25, deadline=None)
@given(
    shares=st.lists(st.floats(0, 1), min_size=20, max_size=20),
    scope=st.sampled_from(["row", "layer"]),
)
def test_zeros_of_any_allocation_meet_its_budget(shares, scope):
    from conftest import tiny_clip

    clip = tiny_clip()
    split = models.split_attention_(clip)
    names = [name for block in blocks_of(clip) for name in block.linears()]
    models.merge_attention_(clip, split)
    allocation = PerLayer(dict(zip(names, shares, strict=True)))
    report = vlprune.prune_(clip, MagnitudeConfig(pattern="unstructured", scope=scope, allocation=allocation))
    sizes = [layer.shape[0] * layer.shape[1] for layer in report.layers]
    for layer, size, share in zip(report.layers, sizes, shares, strict=True):
        assert abs(layer.zeros - size * share) <= 1
    budget = sum(size * Fraction(share) for size, share in zip(sizes, shares, strict=True))
    assert abs(sum(layer.zeros for layer in report.layers) - budget) <= Fraction(1, 2)
    if scope == "row":
        models.split_attention_(clip)
        for block in blocks_of(clip):
            for linear in block.linears().values():
                rows = (linear.weight == 0).sum(1)
                assert rows.max() - rows.min() <= 1
                assert (rows.diff() <= 0).all()


@pytest.mark.parametrize("scope", ["row", "layer"])
@pytest.mark.parametrize("method", [WandaConfig, RIAConfig, MagnitudeConfig])
def test_kept_weights_of_both_towers_are_the_budget(clip, batches, method, scope):
    report = vlprune.prune_(
        clip, method(pattern="unstructured", sparsity=0.53, scope=scope, allocation=ECOFLAP), batches
    )
    total = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    kept = total - sum(layer.zeros for layer in report.layers)
    assert kept == math.floor(total * Fraction("0.47"))


def test_progress_bars_name_the_stages(clip, batches, capsys):
    config = WandaConfig(pattern="unstructured", sparsity=0.5, allocation=OWL())
    vlprune.prune_(clip, config, batches, progress=True)
    shown = capsys.readouterr().err
    assert "outliers: 100%" in shown
    assert "wanda unstructured: 100%" in shown
    vlprune.prune_(clip, config, batches, progress=False)
    assert capsys.readouterr().err == ""
