"""Module pruning errors against a loop that runs the whole model for every module."""

import pytest
import torch
from models.zoo import build, inputs
from torch import nn

import vlprune
from vlprune import models
from vlprune.data import PairData
from vlprune.data.listing import Problems
from vlprune.models.parts import block_parts
from vlprune.structured import (
    Keep,
    StructuredConfig,
    ablated,
    choose,
    compact_,
    mask_modules,
    module_pruning_errors,
    mope,
)
from vlprune.structured.criteria import module_importance

from .cases import Numbered, labelled_data, pair_data


def naive(model, data, towers=("visual", "text"), groups=3, batch_size=8, ran=lambda block: True):
    """Every error of every tower, as published, in no particular order."""

    def score(lists):
        with mask_modules(model, lists):
            return vlprune.evaluate(model, data, batch_size=batch_size).primary

    full = score({})
    errors = {}
    for tower in towers:
        blocks = models.view(model).towers[tower].blocks
        for block in filter(ran, blocks):
            parts, i = block_parts(block), block.index
            heads, neurons = parts.attention.num_heads, parts.mlp.neurons
            for head in range(heads):
                kept = sorted(set(range(heads)) - {head})
                errors[tower, i, "heads", head] = full - score({tower: {"heads": {i: kept}}})
            bounds = [g * neurons // groups for g in range(groups + 1)]
            for group in range(groups):
                kept = [n for n in range(neurons) if not bounds[group] <= n < bounds[group + 1]]
                errors[tower, i, "neurons", group] = full - score({tower: {"neurons": {i: kept}}})
            if len(blocks) > 1:
                kept = [j for j in range(len(blocks)) if j != i]
                errors[tower, i, "layers", i] = full - score({tower: {"layers": kept}})
    return errors


def named(found):
    errors = {(e.tower, e.layer, e.kind, e.index): e.error for e in found}
    assert len(errors) == len(found)
    return errors


def assert_telling(errors):
    """Many errors that are all zero would be equal to anything."""
    assert len(set(errors.values())) > 5


@pytest.mark.parametrize("kind", ["clip", "siglip-like", "custom-text", "custom-blocks", "hf"])
def test_retrieval_equals_the_loop_over_whole_models(kind, tmp_path):
    model = build(kind, tmp_path)
    data = pair_data(model)
    expected = naive(model, data)
    found = named(module_pruning_errors(model, data, groups=3, batch_size=8))
    assert found == expected
    assert_telling(found)
    again = named(module_pruning_errors(model, data, groups=3, batch_size=8, reuse=False))
    assert again == expected


def test_accuracy_equals_the_loop_over_whole_models():
    model = build("clip")
    data = labelled_data(model, 75)
    expected = naive(model, data)
    found = named(module_pruning_errors(model, data, metric="accuracy", groups=3, batch_size=8))
    assert found == expected
    assert_telling(found)


def test_layers_that_the_metric_does_not_run_are_left_out():
    model = build("coca")
    data = pair_data(model)
    expected = naive(model, data, ran=lambda block: not block.name.startswith("text_decoder."))
    found = module_pruning_errors(model, data, groups=3, batch_size=8)
    # the text tower alone cannot be told from its decoder by the number of its layers
    assert named(found) == expected
    assert_telling(named(found))
    decoders = {b.index for b in models.view(model).towers["text"].blocks if b.name.startswith("text_d")}
    assert decoders
    assert not decoders & {e.layer for e in found if e.tower == "text"}


def test_a_function_sees_the_model_without_each_module():
    model = build("clip")
    data = [torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))]

    class Size:
        def __call__(self, model, data):
            return size(model, data)

    def size(model, data):
        assert not model.training
        with torch.no_grad():
            return float(model.encode_image(data[0]).double().norm())

    expected = {}
    with mask_modules(model, {}):
        full = size(model, data)
    for head in range(4):
        for layer in range(3):
            with mask_modules(model, {"visual": {"heads": {layer: [h for h in range(4) if h != head]}}}):
                expected["visual", layer, "heads", head] = full - size(model, data)
    model.train()
    found = named(module_pruning_errors(model, data, ["heads"], Size(), ["visual", "text"]))
    assert found == expected  # this function does not run the text tower
    assert len(set(found.values())) == 12
    assert all(module.training for module in model.modules())


def test_a_group_of_all_layers_at_once():
    model = build("clip")
    data = pair_data(model)
    arguments = {"groups": 4, "across_layers": True, "batch_size": 8}
    found = module_pruning_errors(model, data, ["neurons"], **arguments)
    assert [(e.tower, e.layer, e.index) for e in found] == [
        (tower, None, group) for tower in ("visual", "text") for group in range(4)
    ]
    with mask_modules(model, {}):
        full = vlprune.evaluate(model, data, batch_size=8).primary
    for error in found:
        blocks = models.view(model).towers[error.tower].blocks
        quarter = block_parts(blocks[0]).mlp.neurons // 4
        gone = range(error.index * quarter, (error.index + 1) * quarter)
        kept = [n for n in range(4 * quarter) if n not in gone]
        with mask_modules(model, {error.tower: {"neurons": {b.index: kept for b in blocks}}}):
            assert error.error == full - vlprune.evaluate(model, data, batch_size=8).primary
    assert found == module_pruning_errors(model, data, ["neurons"], reuse=False, **arguments)


def test_nothing_is_left_behind():
    model = build("clip")
    keys = list(model.state_dict())
    with torch.inference_mode():
        module_pruning_errors(model, pair_data(model, 6), groups=2)
    assert list(model.state_dict()) == keys
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_a_failure_leaves_nothing_behind_either():
    model = build("clip")

    def fail(model, data):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        module_pruning_errors(model, pair_data(model, 6), metric=fail)
    assert isinstance(model.visual.transformer.resblocks[0].attn, nn.MultiheadAttention)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_images_that_cannot_be_decoded_are_left_out():
    model = build("clip")
    whole = pair_data(model)
    broken = [Numbered(i) for i in range(20)]
    for i in (3, 17):
        broken[i].open = lambda: None  # which is no picture
    data = PairData(broken, whole.captions, whole.preprocess, whole.tokenizer, Problems("skip"))
    arguments = {"batch_size": 8, "groups": 2}
    found = module_pruning_errors(model, data, **arguments)
    assert data.skipped == 2
    kept = [i for i in range(20) if i not in (3, 17)]
    assert found == module_pruning_errors(model, whole.subset(kept), **arguments)


def test_limit_takes_the_first_images():
    model = build("clip")
    data = pair_data(model)
    few = module_pruning_errors(model, data.subset(range(9)), ["layers"])
    assert module_pruning_errors(model, data, ["layers"], limit=9) == few


@pytest.mark.parametrize("size", [1, 5])
def test_a_few_modules_at_a_time_give_the_same(size, tmp_path, monkeypatch):
    model = build("clip")
    data = pair_data(model)
    expected = module_pruning_errors(model, data, groups=3)
    monkeypatch.setattr(mope, "_CHUNK_MODULES", size)
    assert module_pruning_errors(model, data, groups=3, resume=tmp_path / "kept.json") == expected
    monkeypatch.setattr(ablated, "_CHUNK_BYTES", size * 4 * 32 * 20)  # 20 images of 32 values
    assert module_pruning_errors(model, data, groups=3) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modules": ["head"]}, "modules: expected some of heads, neurons, layers, got 'head'"),
        ({"modules": "heads"}, "modules: expected some of heads, neurons, layers, got 'heads'"),
        ({"modules": []}, r"modules: expected some of heads, neurons, layers, got \[\]"),
        ({"modules": ["heads", "heads"]}, "modules: expected some of .*, got 'heads'"),
        ({"towers": ["image"]}, "towers: expected some of visual, text, got 'image'"),
        ({"metric": "recall"}, "metric: expected one of retrieval, accuracy or a function, got 'recall'"),
        ({"metric": 3}, "metric: expected one of retrieval, accuracy or a function, got 3"),
        ({"metric": "accuracy"}, "metric: accuracy needs labelled images of load_data, got PairData"),
        ({"groups": 0}, "groups: expected a whole number of at least 1, got 0"),
        ({"groups": 2.0}, "groups: expected a whole number of at least 1, got 2.0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"modules": {"heads"}}, "modules: expected some of heads, neurons, layers, got {'heads'}"),
        ({"towers": 5}, "towers: expected some of visual, text, got 5"),
        ({"limit": "3"}, "limit must be a whole number of at least 1, got '3'"),
        ({"limit": 0}, "limit must be a whole number of at least 1, got 0"),
        ({"metric": lambda m, d: float("nan")}, "metric: expected a finite score of the full model, got nan"),
    ],
)
def test_bad_arguments(arguments, message):
    model = build("clip")
    with pytest.raises(ValueError, match=message):
        module_pruning_errors(model, pair_data(model, 4), **arguments)


def test_data_that_does_not_fit():
    model = build("clip")
    with pytest.raises(ValueError, match="metric: retrieval needs pairs of load_data, got LabelledData"):
        module_pruning_errors(model, labelled_data(model, 5))
    with pytest.raises(ValueError, match="metric: retrieval needs pairs of load_data, got list"):
        module_pruning_errors(model, [])
    for name, value in (("limit", 3), ("resume", "kept.json")):
        with pytest.raises(ValueError, match=f"{name}: needs data of load_data, got list"):
            module_pruning_errors(model, [], metric=lambda m, d: 0.0, **{name: value})


def test_a_module_without_which_the_result_is_not_finite_is_named():
    model = build("clip")
    data = pair_data(model, 4)

    models.split_attention_(model)
    out_proj = model.visual.transformer.resblocks[1].attn.out_proj
    # breaks once the first head is silent
    out_proj.register_forward_hook(lambda _, args, out: out / args[0][..., :16].any())
    with pytest.raises(ValueError, match="without visual 1 heads 0: the visual tower gives NaN or infinite"):
        module_pruning_errors(model, data, ["heads"], towers=["visual"])


def test_a_config_takes_the_same_ranks_of_neurons_from_every_layer():
    model = build("clip")
    data = pair_data(model)
    keep = Keep(neurons=32)
    config = StructuredConfig(
        visual=keep, neuron_groups="rank", groups=4, samples=20, batch_size=8, stage="pretrain"
    )
    found = module_importance(model, data, config, "visual", ["neurons"])
    blocks = models.view(model).towers["visual"].blocks
    total = block_parts(blocks[0]).mlp.neurons
    errors = {}
    with mask_modules(model, {}):
        full = vlprune.evaluate(model, data, batch_size=8).primary
    for group in range(4):
        kept = [n for n in range(total) if not group * total // 4 <= n < (group + 1) * total // 4]
        with mask_modules(model, {"visual": {"neurons": {b.index: kept for b in blocks}}}):
            errors["visual", None, "neurons", group] = (
                full - vlprune.evaluate(model, data, batch_size=8).primary
            )
    assert named(found) == errors
    assert len(set(errors.values())) > 1
    report = compact_(model, config, data)
    # one error for all layers, so that all lose neurons of the same ranks (after sorting, other ones)
    assert {(e.layer, e.index) for e in report.errors} == {(None, group) for group in range(4)}
    assert all(
        after == 32 for layer in report.layers if layer.tower == "visual" for after in layer.neurons[1:]
    )
    lists = choose(build("clip"), config, found)["visual"]["neurons"]
    assert len({tuple(kept) for kept in lists.values()}) == 1
    with pytest.raises(ValueError, match=r"neuron_groups: target_speedup weighs layers .* expected 'layer'"):
        StructuredConfig(target_speedup=2.0, neuron_groups="rank")
    with pytest.raises(ValueError, match="neuron_groups: expected one of layer, rank, got 'all'"):
        StructuredConfig(neuron_groups="all")


def test_ranks_of_layers_that_do_not_all_run_cannot_be_judged():
    model = build("coca")
    message = r"across_layers \(neuron_groups='rank'\): the metric does not run text_decoder.resblocks.0"
    with pytest.raises(ValueError, match=message):
        module_pruning_errors(model, pair_data(model, 6), ["neurons"], towers=["text"], across_layers=True)
    # of a tower that does not run at all there is nothing to say
    images = inputs(model)[0]

    def size(model, data):
        return float(model.encode_image(images).detach().double().norm())

    found = module_pruning_errors(model, None, ["neurons"], size, across_layers=True, groups=2)
    assert [(e.tower, e.layer, e.index) for e in found] == [("visual", None, 0), ("visual", None, 1)]
