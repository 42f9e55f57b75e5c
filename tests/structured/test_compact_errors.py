"""Whatever is wrong with keep lists, or stands in the way, is told in one error before anything changes."""

import re

import pytest
import torch
from models.zoo import build
from torch import nn

import vlprune
from vlprune import models
from vlprune.structured import Keep, compact_, mask_modules

GOOD = {"neurons": {0: [1, 2]}, "layers": [0, 1]}

BAD_LISTS = [
    ([1], "keep_lists: expected a dict such as"),
    (Keep(heads=0.5), "keep_lists: expected a dict such as"),
    ({"image": {}}, "keep_lists: unknown tower 'image'; this model has visual, text"),
    ({"visual": [0]}, "keep_lists['visual']: expected a dict with heads, neurons or layers, got [0]"),
    ({"visual": {"head": {}}}, "keep_lists['visual']: unknown key 'head'; expected heads, neurons, layers"),
    ({"visual": {"layers": []}}, "keep_lists['visual']['layers']: at least one layer must stay, got none"),
    (
        {"visual": {"layers": [0, 3]}},
        "keep_lists['visual']['layers']: layer 3 does not exist; there are layers 0 to 2",
    ),
    ({"visual": {"layers": [1, 1]}}, "keep_lists['visual']['layers']: layer 1 is named twice"),
    ({"visual": {"layers": 2}}, "keep_lists['visual']['layers']: expected a list of layer numbers, got 2"),
    (
        {"visual": {"heads": [0, 1]}},
        "keep_lists['visual']['heads']: expected a dict {layer: [kept heads]}, got [0, 1]",
    ),
    (
        {"visual": {"heads": {3: [0]}}},
        "keep_lists['visual']['heads']: layer 3 does not exist; there are layers 0 to 2",
    ),
    ({"visual": {"heads": {"0": [0]}}}, "keep_lists['visual']['heads']: expected a layer number, got '0'"),
    (
        {"text": {"heads": {1: [2]}}},
        "keep_lists['text']['heads'][1]: head 2 does not exist; there are heads 0 to 1",
    ),
    ({"text": {"heads": {1: [-1]}}}, "keep_lists['text']['heads'][1]: head -1 does not exist"),
    ({"text": {"heads": {1: [0, 0]}}}, "keep_lists['text']['heads'][1]: head 0 is named twice"),
    ({"text": {"heads": {1: [True]}}}, "keep_lists['text']['heads'][1]: expected a head number, got True"),
    (
        {"text": {"neurons": {0: "12"}}},
        "keep_lists['text']['neurons'][0]: expected a list of neuron numbers, got '12'",
    ),
    (
        {"text": {"neurons": {0: [0.5]}}},
        "keep_lists['text']['neurons'][0]: expected a neuron number, got 0.5",
    ),
    (
        {"text": {"neurons": {0: [128]}}},
        "keep_lists['text']['neurons'][0]: neuron 128 does not exist; there are neurons 0 to 127",
    ),
]


def snapshot(model):
    modules = {name: id(module) for name, module in model.named_modules()}
    return modules, {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}


def assert_untouched(model, before):
    modules, parameters = snapshot(model)
    assert modules == before[0]
    assert parameters.keys() == before[1].keys()
    for name, (ident, value) in parameters.items():
        assert ident == before[1][name][0]
        assert torch.equal(value, before[1][name][1])


def refused(model, lists, message):
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        compact_(model, lists)
    assert_untouched(model, before)


@pytest.mark.parametrize(("lists", "message"), BAD_LISTS, ids=[m[:90] for _, m in BAD_LISTS])
def test_bad_keep_lists(lists, message):
    model = build("clip")
    if isinstance(lists, dict) and "text" in lists:
        # what comes first is fine, and must not be done either
        lists = {"visual": GOOD, **lists}
    refused(model, lists, message)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"), mask_modules(model, lists):
        pass
    assert_untouched(model, before)


def test_packed_layers():
    model = build("clip")
    vlprune.prune_(model, vlprune.MagnitudeConfig(targets=("text",)))
    vlprune.sparsify_(model, only_if_faster=False)
    advice = "packed 2:4; take modules out, or rewire, before sparsify_"
    text = "transformer.resblocks.1"
    refused(model, {"visual": GOOD, "text": {"heads": {1: [0]}}}, f"{text}.attn.qkv: {advice}")
    refused(model, {"visual": GOOD, "text": {"neurons": {1: [0]}}}, f"{text}.mlp.c_fc: {advice}")
    compact_(model, {"visual": GOOD, "text": {"layers": [0]}})


def test_layers_that_are_no_plain_linear():
    model = build("clip")
    block = model.visual.transformer.resblocks[2]
    block.mlp.c_proj = type("Adapted", (nn.Linear,), {})(256, 64)
    message = "visual.transformer.resblocks.2.mlp.c_proj: expected a plain nn.Linear, got Adapted"
    refused(model, {"visual": {"heads": {0: [1]}, "neurons": {2: [1]}}}, message)
    torch.nn.utils.parametrizations.weight_norm(block.mlp.c_fc)
    message = "visual.transformer.resblocks.2.mlp.c_fc: expected a plain nn.Linear, got Parametrized"
    refused(model, {"visual": {"neurons": {2: [1]}}}, message)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"heads": {1: [0]}}, "attn.ln_inner: works on all heads at once"),
        ({"neurons": {1: [0]}}, "mlp.ln: works on all neurons at once"),
    ],
)
def test_norms_over_what_would_be_cut(what, message):
    refused(build("custom-blocks"), {"text": what}, f"text.transformer.resblocks.1.{message}")


def test_attention_that_would_not_compute_with_fewer_heads(tmp_path):
    name = "text.transformer.encoder.layer.0.attention.self"
    message = f"{name}: heads can be taken out of open_clip's and timm's attention, not of BertSelfAttention"
    refused(build("hf", tmp_path), {"text": {"heads": {0: [1]}}}, message)
    message = "visual.trunk.blocks.2.attn: timm's attention needs at least one head"
    refused(build("timm"), {"visual": {"heads": {2: []}}}, message)


def test_blocks_that_run_in_step():
    model = build("coca")
    message = "text_decoder.resblocks.1: cannot be taken out, it runs in step with the blocks of text_decoder"
    refused(model, {"visual": GOOD, "text": {"layers": [0, 1, 2, 3, 5]}}, message)
    message = "text.transformer.resblocks: at least one layer must stay"
    refused(model, {"text": {"layers": [2, 3, 4, 5]}}, message)


def test_blocks_without_known_parts():
    model = build("clip")
    model.visual.transformer.resblocks[1].mlp = nn.Identity()
    message = "layer 1: visual.transformer.resblocks.1 (ResidualAttentionBlock) has no known MLP"
    lists = {"visual": {"neurons": {1: [0]}}}
    refused(model, lists, f"keep_lists['visual']['neurons']: {message}")
    # the others can still lose theirs
    compact_(model, {"visual": {"heads": {1: [0]}, "neurons": {0: [0]}}})


def test_heads_that_are_gone_cannot_be_named():
    model = build("clip")
    compact_(model, {"visual": {"heads": {0: []}}})
    message = "keep_lists['visual']['heads'][0]: head 0 does not exist; there are no heads left"
    refused(model, {"visual": {"heads": {0: [0]}}}, message)


def test_masks_are_gone_after_an_error_inside():
    model = build("clip")
    models.split_attention_(
        model,
    )
    before = snapshot(model)
    with pytest.raises(KeyError), mask_modules(model, {"visual": {"heads": {0: [0]}, "layers": [0]}}):
        raise KeyError
    assert_untouched(model, before)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []
