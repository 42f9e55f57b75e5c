"""Models compacted by how much is to stay: equal to the masked model, in both stages, by every criterion."""

import copy

import pytest
import torch
from models.zoo import assert_close, build, inputs, outputs

import vlprune
from vlprune import measure, models
from vlprune.structured import (
    Keep,
    StructuredConfig,
    choose,
    compact,
    compact_,
    mask_modules,
    module_pruning_errors,
)
from vlprune.structured.keep import CRITERIA

from .cases import labelled_data, pair_data
from .clock import Clock

SMALL = {"samples": 12, "batch_size": 6, "groups": 4}
HALF = Keep(heads=0.5, neurons=0.25, layers=2)


def state(model):
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_equals_the_masked_model(criterion, stage):
    model = build("clip")
    whole, full = copy.deepcopy(model), outputs(model)
    config = StructuredConfig(
        visual=HALF, text=Keep(heads=1, neurons=0.5), criterion=criterion, stage=stage, **SMALL
    )
    report = compact_(model, config, pair_data(model))
    with mask_modules(whole, report.keep_lists):
        masked = outputs(whole)
    assert_close(outputs(model), masked)
    assert not any(torch.allclose(a, b, rtol=1e-2) for a, b in zip(full, masked, strict=True))
    assert len(model.visual.transformer.resblocks) == 2
    assert len(model.transformer.resblocks) == 2
    assert [s.heads[1] for s in report.layers if s.stays] == [2, 2, 1, 1]
    assert [s.neurons for s in report.layers if s.stays] == [(256, 64)] * 2 + [(128, 64)] * 2
    assert sum(not s.stays and s.tower == "visual" for s in report.layers) == 1
    assert report.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (whole, model))
    assert {e.kind for e in report.errors} == {"heads", "neurons", "layers"}


@pytest.mark.parametrize("scope", ["layer", "tower"])
@pytest.mark.parametrize("labelled", [False, True])
def test_mope_takes_what_errors_and_rules_say(labelled, scope):
    model = build("custom-text")
    data = (labelled_data if labelled else pair_data)(model)
    config = StructuredConfig(visual=Keep(heads=1, layers=2), stage="pretrain", scope=scope, **SMALL)
    errors = module_pruning_errors(
        model, data, ["heads", "layers"], "accuracy" if labelled else "retrieval", ["visual"], limit=12
    )
    expected = choose(model, config, errors)
    report = compact_(model, config, data)
    assert report.errors == tuple(errors)
    assert report.keep_lists == expected
    assert [s.heads[1] for s in report.layers if s.tower == "visual" and s.stays] == [
        len(expected["visual"]["heads"][layer]) for layer in expected["visual"]["layers"]
    ]


def test_finetune_measures_layers_after_the_width_and_the_training():
    model = build("clip")
    data = pair_data(model)
    seen = []

    def recover(model):
        seen.append([b.attn.num_heads for b in model.visual.transformer.resblocks])
        torch.nn.init.zeros_(model.visual.transformer.resblocks[1].mlp.c_proj.weight)
        torch.nn.init.zeros_(model.visual.transformer.resblocks[1].attn.out_proj.weight)

    config = StructuredConfig(visual=Keep(heads=2, layers=2), **SMALL)
    report = compact_(model, config, data, recover=recover)
    assert seen == [[2, 2, 2]]
    layers = [e for e in report.errors if e.kind == "layers"]

    again = build("clip")
    compact_(again, {"visual": {"heads": report.keep_lists["visual"]["heads"]}})
    recover(again)
    assert layers == module_pruning_errors(again, data, ["layers"], towers=["visual"], limit=12, batch_size=6)
    assert layers[1].error == 0.0  # its weights are zero, and so are its biases
    compact_(again, {"visual": {"layers": report.keep_lists["visual"]["layers"]}})
    assert all(map(torch.equal, outputs(model), outputs(again)))


def test_pretrain_does_not_call_recover_and_width_alone_does_not_either():
    def never(model):
        raise AssertionError("there is nothing between")

    for config in (
        StructuredConfig(visual=HALF, stage="pretrain", criterion="random"),
        StructuredConfig(visual=Keep(heads=2), criterion="random"),
        StructuredConfig(text=Keep(layers=1), criterion="random"),
    ):
        compact_(build("clip"), config, recover=never)


def test_seeds_choose_differently_and_the_same_seed_alike():
    def kept(seed):
        config = StructuredConfig(visual=HALF, criterion="random", seed=seed)
        return compact_(build("clip"), config).keep_lists

    assert kept(1) == kept(1)
    assert len({str(kept(seed)) for seed in range(5)}) == 5


def test_rounding_is_said_once():
    config = StructuredConfig(visual=Keep(neurons=0.4), criterion="magnitude")
    report = compact_(build("clip"), config, notes=["mine"])
    said = "visual: neurons: 102 of 256 rounded to 96, a multiple of 16, which runs faster"
    assert report.notes == ("mine", said)


def test_an_only_layer_stays_without_being_judged():
    model = build("clip")
    compact_(model, {"visual": {"layers": [1]}})
    report = compact_(model, StructuredConfig(visual=Keep(heads=2, layers=0.5), **SMALL), pair_data(model))
    assert [(s.stays, s.heads) for s in report.layers if s.tower == "visual"] == [(True, (4, 2))]
    assert {e.kind for e in report.errors} == {"heads"}


def test_coca_keeps_its_decoder():
    model = build("coca")
    data = pair_data(model)
    whole = copy.deepcopy(model)
    report = compact_(model, StructuredConfig(text=Keep(heads=1, neurons=0.5), **SMALL), data)
    with mask_modules(whole, report.keep_lists):
        assert_close(outputs(model), outputs(whole))
    decoder = [s for s in report.layers if s.name.startswith("text_decoder.")]
    assert decoder
    assert all(s.heads[0] == s.heads[1] for s in decoder)
    assert all(s.heads[1] == 1 for s in report.layers if s.name.startswith("text.transformer"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"visual": Keep(heads=9)}, "heads: 9 cannot be kept of 4"),
        ({"visual": Keep(layers=4)}, "layers: 4 cannot be kept of 3"),
        ({"visual": Keep(heads=2), "text": Keep(neurons=129)}, "neurons: 129 cannot be kept of 128"),
        ({"visual": Keep(heads=2)}, "data: criterion mope needs data of load_data, got list"),
    ],
)
def test_what_cannot_be_is_told_before_anything_changes(config, message):
    model = build("clip")
    before = state(model)
    with pytest.raises(ValueError, match=message):
        compact_(model, StructuredConfig(**config), [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_data_and_no_tower():
    model = build("clip")
    with pytest.raises(ValueError, match=r"data: criterion gradient needs data \(`load_data`"):
        compact_(model, StructuredConfig(visual=Keep(heads=2), criterion="gradient"))
    del model.transformer
    with pytest.raises(ValueError, match="text: expected None, this model has only visual"):
        compact_(model, StructuredConfig(text=Keep(heads=1), criterion="random"))


def test_attention_that_cannot_lose_heads_is_told_before_anything_changes(tmp_path):
    model = build("hf", tmp_path)
    before = state(model)
    with pytest.raises(ValueError, match="heads can be taken out of open_clip's and timm's attention"):
        compact_(model, StructuredConfig(visual=Keep(heads=2), text=Keep(heads=1), criterion="random"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_result_can_be_saved_and_loaded(tmp_path):
    model = build("clip")
    compact_(model, StructuredConfig(visual=HALF, **SMALL), pair_data(model))
    vlprune.save_pretrained(model, tmp_path / "saved")
    again = vlprune.from_pretrained(tmp_path / "saved")
    assert all(map(torch.equal, outputs(again), outputs(model)))
    assert len(models.view(again).towers["visual"].blocks) == 2


def test_layers_without_heads_or_neurons_stay_so():
    model = build("clip")
    compact_(model, {"visual": {"heads": {1: []}, "neurons": {0: []}}})
    report = compact_(model, StructuredConfig(visual=Keep(heads=2, neurons=0.25), criterion="random"))
    sizes = [(s.heads, s.neurons) for s in report.layers if s.tower == "visual"]
    assert sizes == [((4, 2), (0, 0)), ((0, 0), (256, 64)), ((4, 2), (256, 64))]


def test_a_count_that_one_layer_does_not_have_names_it():
    model = build("clip")
    compact_(model, {"visual": {"heads": {1: [3]}}})
    with pytest.raises(ValueError, match=r"visual.transformer.resblocks.1: heads: 2 cannot be kept of 1"):
        compact_(model, StructuredConfig(visual=Keep(heads=2), criterion="random"))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_coca_loses_layers_of_its_text_tower_alone(criterion):
    model = build("coca")
    config = StructuredConfig(text=Keep(layers=0.5), criterion=criterion, **SMALL)
    report = compact_(model, config, pair_data(model))
    stays = {s.name: s.stays for s in report.layers if s.tower == "text"}
    assert sum(stay for name, stay in stays.items() if name.startswith("text.")) == 1
    assert all(stay for name, stay in stays.items() if name.startswith("text_decoder."))
    assert all(output.isfinite().all() for output in outputs(model))


@pytest.mark.parametrize("fields", [{"visual": HALF}, {"target_speedup": 1.5}])
def test_a_choice_that_fails_leaves_neurons_where_they_were(fields, monkeypatch):
    model = build("clip")
    before = state(model)
    real = compact.module_importance

    def dies(model, *arguments):
        moved = model.state_dict()["visual.transformer.resblocks.0.mlp.c_fc.weight"]
        assert not torch.equal(moved, before["visual.transformer.resblocks.0.mlp.c_fc.weight"])
        real(model, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(compact, "module_importance", dies)
    monkeypatch.setattr(measure, "compare", Clock())
    with pytest.raises(KeyboardInterrupt):
        compact_(model, StructuredConfig(**fields, **SMALL), pair_data(model), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_batches_that_come_once_serve_every_tower_and_step(stage):
    batches = [inputs(build("clip"), 6)] * 2
    config = StructuredConfig(visual=HALF, text=Keep(heads=1), criterion="gradient", stage=stage, **SMALL)
    found = [compact_(build("clip"), config, data).errors for data in (batches, iter(batches))]
    assert found[0] == found[1]


def test_weights_that_are_not_finite_are_named():
    model = build("clip")
    with torch.no_grad():
        model.visual.transformer.resblocks[1].mlp.c_fc.weight[3, 2] = float("nan")
    message = "visual.transformer.resblocks.1: weights are not finite, so neurons cannot be judged"
    with pytest.raises(ValueError, match=message):
        compact_(model, StructuredConfig(visual=Keep(neurons=0.5), criterion="magnitude"))
