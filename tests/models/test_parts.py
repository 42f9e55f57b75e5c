"""Which layer feeds which: checked against what flows through the layers in a forward."""

import pytest
import torch
from torch import nn

from vlprune import models
from vlprune.models.parts import block_parts

from .zoo import KINDS, build, outputs

# every tower of the zoo: (kind, tower, heads, neurons)
TOWERS = [
    ("clip", "visual", 4, 256),
    ("clip", "text", 2, 128),
    ("siglip-like", "text", 2, 96),
    ("custom-text", "text", 2, 128),
    ("custom-blocks", "visual", 4, 256),
    ("coca", "text", 2, 128),
    ("timm", "visual", 3, 768),
    ("hf", "text", 2, 64),
]


def flowing(model, modules):
    """First input and output of every module in one forward of the zoo's inputs."""
    seen = {}

    def note(name):
        def hook(_, args, out):
            seen.setdefault(name, (args[0], out))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    outputs(model)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("kind", "tower", "heads", "neurons"), TOWERS)
def test_sizes_and_names_of_every_block(kind, tower, heads, neurons, tmp_path):
    model = build(kind, tmp_path)
    models.split_attention_(model)
    for block in models.view(model).towers[tower].blocks:
        parts = block_parts(block)
        attention, mlp = parts.attention, parts.mlp
        assert (attention.num_heads, mlp.neurons) == (heads, neurons)
        named = {attention.name: attention.module, attention.out_name: attention.out_proj, **attention.inputs}
        named |= {mlp.fc1_name: mlp.fc1, mlp.activation_name: mlp.activation, mlp.fc2_name: mlp.fc2}
        assert all(model.get_submodule(name) is module for name, module in named.items())
        assert [*attention.inputs, attention.out_name, mlp.fc1_name, mlp.fc2_name] == list(block.linears())


@pytest.mark.parametrize("kind", ["clip", "timm", "hf"])
def test_neurons_go_from_fc1_through_the_activation_to_fc2(kind, tmp_path):
    model = build(kind, tmp_path)
    for tower in models.view(model).towers.values():
        mlp = block_parts(tower.blocks[1]).mlp
        seen = flowing(model, {"fc1": mlp.fc1, "act": mlp.activation, "fc2": mlp.fc2})
        assert seen["act"][0] is seen["fc1"][1]
        assert torch.equal(seen["fc2"][0], seen["act"][1])
        assert mlp.shared == ()


@pytest.mark.parametrize(("kind", "tower"), [("clip", "visual"), ("timm", "visual"), ("hf", "text")])
def test_heads_own_equal_slices_of_the_projections(kind, tower, tmp_path):
    model = build(kind, tmp_path)
    models.split_attention_(model)
    attention = block_parts(models.view(model).towers[tower].blocks[1]).attention
    seen = flowing(model, {**attention.inputs, "out": attention.out_proj})
    projected = torch.cat([seen[name][1] for name in attention.inputs], -1)
    q, k, v = projected.unflatten(-1, (3, attention.num_heads, -1)).unbind(-3)
    out = seen["out"][0].unflatten(-1, (attention.num_heads, -1))
    for head in range(attention.num_heads):
        weights = (q[..., head, :] @ k[..., head, :].mT / attention.head_dim**0.5).softmax(-1)
        # sums of 64 products and a softmax of 17 tokens, in another order
        torch.testing.assert_close(out[..., head, :], weights @ v[..., head, :], rtol=1e-4, atol=1e-5)


def test_attention_that_is_not_split_has_no_inputs():
    block = models.view(build("clip")).towers["visual"].blocks[0]
    attention = block_parts(block).attention
    assert attention.inputs == {}
    assert attention.out_proj is block.module.attn.out_proj


def test_norms_over_all_heads_or_neurons_are_named():
    model = build("custom-blocks")
    models.split_attention_(model)
    parts = block_parts(models.view(model).towers["text"].blocks[1])
    assert parts.attention.shared == ("text.transformer.resblocks.1.attn.ln_inner",)
    assert parts.mlp.shared == ("text.transformer.resblocks.1.mlp.ln",)


def test_a_bare_module_has_names_that_start_inside_it():
    parts = block_parts(models.view(build("timm")).towers["visual"].blocks[0].module)
    assert (parts.attention.out_name, parts.mlp.fc1_name) == ("attn.proj", "mlp.fc1")


def test_what_has_no_known_part_has_none():
    assert block_parts(nn.Identity()) == block_parts(nn.TransformerEncoderLayer(8, 2))
    parts = block_parts(nn.Identity())
    assert (parts.attention, parts.mlp) == (None, None)


def test_an_mlp_that_gates_its_neurons_is_not_mistaken_for_one():
    timm_layers = pytest.importorskip("timm.layers")
    block = nn.Module()
    block.mlp = timm_layers.GluMlp(8, 16)
    assert block_parts(block).mlp is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_of_the_zoo_has_both_parts(kind, tmp_path):
    for tower in models.view(build(kind, tmp_path)).towers.values():
        parts = [block_parts(block) for block in tower.blocks]
        assert all(p.attention is not None and p.mlp is not None for p in parts)
